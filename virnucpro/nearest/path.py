"""Proviruses: a path of two states, host and virus, over the genes of a record.

Each gene adds the log-odds of what is nearest to it, counted on genes of proviruses and of prokaryotes that were left
out of the table (``EVIDENCE``). A gene that matches nothing says little by itself, since foreign cells have many such
genes as well; it is judged by its neighbourhood, genes of one strand, short and close together as phages have them, and
by the fragments it lies in, compared with those of the record's own host part. The path is that of A. J. Viterbi, IEEE
Trans. Inf. Theory 13, 260-269, 1967.

A run of the virus state is a provirus if enough of it matches viruses and if what is left of the record is host by
its genes: whole viruses are not cut. Its ends move to a direct repeat around them, where there is one: integration
doubles the site.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MATCH_BITS = 45.0
"""Fewer bits against both sides are no match."""
_CLEAR_BITS = 100.0
_RATIOS = np.array([0.3, 0.4, 0.47, 0.53, 0.6, 0.7, 0.95])
UNMATCHED, CELL, CLEAR_CELL = 0, 1, 2
MOSTLY_CELL = 4
"""Classes from ``CELL`` to this one are cellular."""
VIRAL = 8
"""Classes from this one on are viral."""
EVIDENCE = np.array([0.0, -1.41, -1.37, -0.76, -1.01, -0.12, 0.42, 1.04, 2.19, 3.59, 3.8])
"""(11,) log-odds of each class of genes; that of unmatched ones is made of the neighbourhood."""


@dataclass(frozen=True)
class PathSettings:
    """How the path is drawn.

    Attributes:
        virus_begins: probability that a gene of virus follows one of host.
        virus_ends: probability that a gene of host follows one of virus.
        first_is_virus: probability that the first gene of a record is one of virus.
        unmatched: log-odds of a gene that matches nothing, in a neighbourhood that says nothing,
        arrangement_share: and how much of those of the arrangement around it are added,
        fragment_share: and of the log-odds of its fragments, from ``fragment_middle`` above the host's level.
        fragment_middle: so far above the host's level fragments say nothing.
        reach: genes; unmatched ones farther than this from any viral match cost at least ``far_cost``.
        far_cost: nats.
        viral_gene_nt: of a region, for each of its genes that match viruses, at most.
        shortest_region_nt: at least.
        lowest_score: sum of its log-odds, at least.
        fewest_cell_genes: of the record outside its regions, at least,
        shortest_host_nt: which is at least so long,
        highest_host_score: has a mean evidence a gene of at most this,
        cell_share: and of whose matching genes at least this share is cellular.
        flank_genes: on one side of a region at least two of so many genes are cellular.
    """

    virus_begins: float = 1 / 60
    virus_ends: float = 1 / 25
    first_is_virus: float = 0.035
    unmatched: float = 0.35
    arrangement_share: float = 0.4
    fragment_share: float = 0.15
    fragment_middle: float = 2.0
    reach: int = 25
    far_cost: float = 0.2
    viral_gene_nt: int = 15_000
    shortest_region_nt: int = 4000
    lowest_score: float = 14.0
    fewest_cell_genes: int = 3
    shortest_host_nt: int = 4000
    highest_host_score: float = -0.25
    cell_share: float = 0.6
    flank_genes: int = 15


DEFAULT = PathSettings()
_LENIENT = PathSettings(lowest_score=5.0, viral_gene_nt=30_000, highest_host_score=0.0, cell_share=0.4)
_NO_FRAGMENTS = np.zeros(0, dtype=[("start", "i8"), ("stop", "i8"), ("log_odds", "f4")])
_WINDOW = 4  # genes on either side
_ARRANGEMENT = np.array([10.917, -2.5075, 7.4557, -0.00754])
"""Constant and weights of the log of the mean gene length (nt), of the share of neighbours on one strand and of the
mean gap (nt, -100 to 500) in a window of nine genes: logistic regression of unmatched genes of dev phages against
those of dev bacteria, archaea and plasmids (AUROC 0.92, and 0.84 on 14 chromosomes with curated proviruses)."""


@dataclass(frozen=True)
class Region:
    """A provirus.

    Attributes:
        start: 0-based, on the record.
        stop: one after its last base.
        first_gene: of it, in the record's genes.
        last_gene: one after its last gene.
        score: sum of the log-odds of its genes.
        posterior: mean probability of its genes to be viral, given the record.
    """

    start: int
    stop: int
    first_gene: int
    last_gene: int
    score: float
    posterior: float


def classes_of(bits_virus: NDArray[np.floating], bits_cell: NDArray[np.floating]) -> NDArray[np.int64]:
    """(n,) class of each gene: unmatched, cellular (to 100 bits, above), and by the share of bits that are viral."""
    share = bits_virus / np.maximum(bits_virus + bits_cell, 1.0)
    graded = CLEAR_CELL + 1 + np.searchsorted(_RATIOS, share, side="right")
    without_virus = np.where(bits_cell < MATCH_BITS, UNMATCHED, np.where(bits_cell < _CLEAR_BITS, CELL, CLEAR_CELL))
    return np.asarray(np.where(bits_virus < MATCH_BITS, without_virus, graded), dtype=np.int64)


def arrangement(starts: NDArray[np.int64], stops: NDArray[np.int64], strands: NDArray[np.int8]) -> NDArray[np.float64]:
    """(n,) log-odds of phage to host of the genes around each, by their lengths, gaps and strands; at most 3."""
    if len(starts) == 0:
        return np.zeros(0)
    lengths = (stops - starts).astype(np.float64)
    gaps = np.append(500.0, np.clip(starts[1:] - stops[:-1], -100, 500))
    same = np.append(0.0, strands[1:] == strands[:-1])
    terms = (np.ones(len(starts)), np.log(_smoothed(lengths)), _smoothed(same), _smoothed(gaps))
    return np.asarray(np.clip(_ARRANGEMENT @ np.array(terms), -3.0, 3.0))


def fragment_level(
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    fragments: NDArray[np.void],
    settings: PathSettings = DEFAULT,
) -> NDArray[np.float64]:
    """(n,) how far the log-odds of each gene's fragments are above the level of the record's host; at most 2.5.

    The host's level is the mean of the record together with fifty fragments of -1.7, and at most 0.3: where all is
    virus there is no host to learn from. 0 for genes without a scored fragment.
    """
    log_odds = fragments["log_odds"].astype(np.float64)
    scored = ~np.isnan(log_odds)
    level = min(0.3, (log_odds[scored].sum() - 1.7 * 50) / (scored.sum() + 50))
    sums, counts = (np.append(0.0, np.cumsum(x)) for x in (np.where(scored, log_odds, 0.0), scored))
    first = np.searchsorted(fragments["stop"], starts, side="right")
    last = np.maximum(first, np.searchsorted(fragments["start"], stops, side="left"))
    count = counts[last] - counts[first]
    mean = (sums[last] - sums[first]) / np.maximum(count, 1)
    return np.where(count > 0, np.clip(mean - level - settings.fragment_middle, -2.5, 2.5), 0.0)


def gene_evidence(
    genes: NDArray[np.void], fragments: NDArray[np.void], settings: PathSettings = DEFAULT
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Class and log-odds (n,) of each gene of a record.

    Args:
        genes: (n,) of one record, by start; with start, stop, strand, bits_virus and bits_cell.
        fragments: (f,) of the same record, in order; with start, stop and log_odds (NaN without a score).
        settings: of the path.
    """
    classes = classes_of(genes["bits_virus"], genes["bits_cell"])
    place = (genes["start"].astype(np.int64), genes["stop"].astype(np.int64))
    unmatched = settings.unmatched + settings.arrangement_share * arrangement(*place, genes["strand"])
    unmatched = unmatched + settings.fragment_share * fragment_level(*place, fragments, settings)
    viral = np.flatnonzero(classes >= VIRAL)
    ahead = np.searchsorted(viral, np.arange(len(genes)))
    padded = np.concatenate([[-(1 << 40)], viral, [1 << 40]])
    distance = np.minimum(np.arange(len(genes)) - padded[ahead], padded[ahead + 1] - np.arange(len(genes)))
    unmatched = np.where(distance > settings.reach, np.minimum(unmatched, -settings.far_cost), unmatched)
    return classes, np.where(classes == UNMATCHED, unmatched, EVIDENCE[classes])


def find_proviruses(
    genes: NDArray[np.void],
    fragments: NDArray[np.void],
    length: int,
    sites: NDArray[np.void] | None = None,
    settings: PathSettings = DEFAULT,
) -> list[Region]:
    """Proviruses of a record, in order; none in a record that is not host besides.

    Args:
        genes: as of ``gene_evidence``.
        fragments: likewise.
        length: of the record.
        sites: (s,) direct repeats around regions, with start (of the left copy), stop (of the right one) and length.
        settings: of the path.
    """
    if len(genes) == 0:
        return []
    classes, evidence = gene_evidence(genes, fragments, settings)
    runs = [run for run in virus_runs(evidence, settings) if _is_region(genes, classes, evidence, run, settings)]
    if not runs or not _is_host_besides(genes, classes, evidence, runs, length, settings):
        return []
    runs = [run for run in runs if _has_host_flank(classes, run, settings)]
    posterior = posterior_of(evidence, settings.virus_begins, settings.virus_ends, settings.first_is_virus)
    regions: list[Region] = []
    for first, last in runs:
        start, stop = int(genes["start"][first]), int(genes["stop"][last - 1])
        if sites is not None:
            lowest = regions[-1].stop if regions else 0
            start, stop = _at_site(start, stop, lowest, sites)
        score, probability = float(evidence[first:last].sum()), float(posterior[first:last].mean())
        regions.append(Region(start, stop, first, last, score, probability))
    return regions


def find_candidates(genes: NDArray[np.void], length: int) -> list[tuple[int, int]]:
    """Start and stop of what may be proviruses by the genes of a record alone; more than ``find_proviruses`` finds."""
    return [(each.start, each.stop) for each in find_proviruses(genes, _NO_FRAGMENTS, length, settings=_LENIENT)]


def virus_runs(evidence: NDArray[np.float64], settings: PathSettings = DEFAULT) -> list[tuple[int, int]]:
    """First gene and one after the last of each run of the virus state."""
    states = best_path(evidence, settings.virus_begins, settings.virus_ends, settings.first_is_virus)
    bounds = np.flatnonzero(np.diff(states, prepend=0, append=0)).reshape(-1, 2)
    return [(int(first), int(last)) for first, last in bounds]


def _is_region(
    genes: NDArray[np.void],
    classes: NDArray[np.int64],
    evidence: NDArray[np.float64],
    run: tuple[int, int],
    settings: PathSettings,
) -> bool:
    first, last = run
    length = genes["stop"][last - 1] - genes["start"][first]
    num_viral = int((classes[first:last] >= VIRAL).sum())
    score = evidence[first:last].sum()
    return bool(
        length >= settings.shortest_region_nt
        and score >= settings.lowest_score
        and length <= settings.viral_gene_nt * num_viral
    )


def _are_cellular(classes: NDArray[np.int64]) -> NDArray[np.bool_]:
    return (classes >= CELL) & (classes <= MOSTLY_CELL)


def _is_host_besides(
    genes: NDArray[np.void],
    classes: NDArray[np.int64],
    evidence: NDArray[np.float64],
    runs: list[tuple[int, int]],
    length: int,
    settings: PathSettings,
) -> bool:
    """Whether what the regions leave of the record is positively host."""
    outside = np.ones(len(genes), dtype=np.bool_)
    host_nt = length
    for first, last in runs:
        outside[first:last] = False
        host_nt -= int(genes["stop"][last - 1] - genes["start"][first])
    cellular, viral = int(_are_cellular(classes[outside]).sum()), int((classes[outside] > MOSTLY_CELL + 2).sum())
    return bool(
        host_nt >= settings.shortest_host_nt
        and cellular >= settings.fewest_cell_genes
        and cellular >= settings.cell_share * (cellular + viral)
        and evidence[outside].mean() <= settings.highest_host_score
    )


def _has_host_flank(classes: NDArray[np.int64], run: tuple[int, int], settings: PathSettings) -> bool:
    first, last = run
    sides = classes[max(0, first - settings.flank_genes) : first], classes[last : last + settings.flank_genes]
    return any(int(_are_cellular(side).sum()) >= 2 for side in sides)


INWARD_NT = 1000
OUTWARD_NT = 6000
"""How far from the ends of a region its repeat may lie."""


def _at_site(start: int, stop: int, lowest: int, sites: NDArray[np.void]) -> tuple[int, int]:
    """The bounds, moved to the repeat that is longest, each kilobase that they move counting as one base."""
    left, right = sites["start"] - start, sites["stop"] - stop
    near = (left >= -OUTWARD_NT) & (left <= INWARD_NT) & (right >= -INWARD_NT) & (right <= OUTWARD_NT)
    near &= sites["start"] >= lowest
    if not near.any():
        return start, stop
    worth = np.where(near, sites["length"] - (np.abs(left) + np.abs(right)) / 1000, -np.inf)
    best = int(np.argmax(worth))
    return int(sites["start"][best]), int(sites["stop"][best])


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over each value and its ``_WINDOW`` neighbours on either side."""
    sums = np.append(0.0, np.cumsum(values))
    place = np.arange(len(values))
    low, high = np.maximum(place - _WINDOW, 0), np.minimum(place + _WINDOW + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def best_path(evidence: NDArray[np.float64], begins: float, ends: float, first: float) -> NDArray[np.int8]:
    """(n,) 1 where the best path is in the virus state."""
    begins_cost, ends_cost, stays_host_cost, stays_virus_cost = map(math.log, (begins, ends, 1 - begins, 1 - ends))
    from_virus = [(False, False)]
    host, virus = math.log(1 - first), math.log(first)
    for i, gain in enumerate(evidence.tolist()):
        if i > 0:
            to_host, to_virus = virus + ends_cost, host + begins_cost
            stays_host, stays_virus = host + stays_host_cost, virus + stays_virus_cost
            from_virus.append((to_host > stays_host, stays_virus > to_virus))
            host, virus = max(stays_host, to_host), max(stays_virus, to_virus)
        virus += gain
    states = np.zeros(len(evidence), dtype=np.int8)
    state = virus > host
    for i in range(len(evidence) - 1, -1, -1):
        states[i] = state
        state = from_virus[i][state]
    return states


def posterior_of(evidence: NDArray[np.float64], begins: float, ends: float, first: float) -> NDArray[np.float64]:
    """(n,) probability of the virus state of each gene (forward-backward)."""
    ratios = list(map(math.exp, evidence.tolist()))
    odds: list[float] = []
    share = first
    for i, ratio in enumerate(ratios):
        before = share * (1 - ends) + (1 - share) * begins if i > 0 else first
        odds.append(before / (1 - before) * ratio)
        share = odds[i] / (1 + odds[i])
    ahead = 1.0  # likelihood of what comes after, from virus to from host
    for i in range(len(ratios) - 1, -1, -1):
        both = odds[i] * ahead
        step = ahead * ratios[i]
        ahead = ((1 - ends) * step + ends) / (begins * step + 1 - begins)
        odds[i] = both / (1 + both)
    return np.array(odds)
