"""Virus regions in a sequence, from the calibrated log-odds of its fragments.

A sequence is read as a chain of two states, host and virus, that change at random along it (a continuous-time Markov
chain, so that fragments of any length and overlap fit in). What a fragment adds is the log of a ratio of two normal
densities of one spread around the level of either state: a straight line in its log-odds. Two things make it more than
a running mean:

- The *host's own level* is estimated from the sequence, since the log-odds of one bacterium lie around -2.5 and of
  another around 0; a prior of some fragments keeps short sequences from explaining themselves away.
- Neighbouring fragments say partly the same, so each counts as a share of a fragment.

Regions are where the posterior of the virus state (forward-backward) is high; each border is then moved to where the
levels of the region and of what lies beside it part best. Time is linear in the number of fragments. The algorithm is
that of L. R. Rabiner, Proceedings of the IEEE 77(2), 257-286, 1989; for two states it is the twenty lines below, where
a library would want distances of one length.

The settings were fitted on simulated insertions, see ``virnucpro.training.insertions`` and ``docs/regions.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel
from virnucpro.results.fragments import Fragments


@dataclass(frozen=True)
class FinderSettings:
    """How regions are found; levels, spread and bound are in units of calibrated log-odds.

    Attributes:
        host_level: mean of host fragments where the sequence does not say.
        host_level_fragments: how many fragments of evidence that is worth.
        highest_host_level: the host's own level is at most this: where all is virus there is no host to learn from.
        virus_level: mean of virus fragments.
        spread: standard deviation of either.
        largest_log_odds: log-odds count as at most this and as at least its negative.
        fragment_share: what a fragment beside others is worth, of one that stands alone.
        host_nt: expected bases from one virus region to the next.
        virus_nt: expected bases of a virus region.
        smallest_posterior: of every fragment of a region, before its borders are moved.
        border_fragments: borders move by at most so many.
        flank_fragments: so many beside a region tell the level that it is held against,
        flank_prior_fragments: together with so many at the host's level.
        shortest_region_nt: shorter regions are dropped, and a sequence with less host than this is not cut.
        shortest_sequence_nt: shorter sequences are not cut.
    """

    host_level: float = -1.7
    host_level_fragments: float = 50.0
    highest_host_level: float = 0.3
    virus_level: float = 2.2
    spread: float = 1.4
    largest_log_odds: float = 4.0
    fragment_share: float = 0.3
    host_nt: float = 500_000.0
    virus_nt: float = 30_000.0
    smallest_posterior: float = 0.8
    border_fragments: int = 6
    flank_fragments: int = 30
    flank_prior_fragments: float = 10.0
    shortest_region_nt: int = 5_000
    shortest_sequence_nt: int = 20_000


DEFAULT_SETTINGS = FinderSettings()
_LEVEL_ROUNDS = 3
"""The host's level and the posterior are computed in turn; after three rounds the regions no longer change."""


@dataclass(frozen=True)
class Region:
    """A stretch of virus.

    Attributes:
        start: 0-based, on the sequence.
        stop: one after its last base.
        num_fragments: that begin in it.
        score: log of how much more likely its fragments are as virus than as host (nats).
        mean_log_odds: of its scored fragments, calibrated.
        posterior: mean probability of its fragments to be virus, given the whole sequence.
    """

    start: int
    stop: int
    num_fragments: int
    score: float
    mean_log_odds: float
    posterior: float


def find_proviruses(
    bounds: NDArray[np.int64], log_odds: NDArray[np.float64], settings: FinderSettings = DEFAULT_SETTINGS
) -> list[Region]:
    """Virus regions of a sequence that is host besides; none where it is too short or has no host part.

    Args:
        bounds: (n, 2) start and stop of its fragments, 0-based half-open, in order; they cover the sequence.
        log_odds: (n,) calibrated log-odds of its fragments, NaN where there is no score.
        settings: of the finder.
    """
    length = int(bounds[-1, 1]) if len(bounds) else 0
    if length < settings.shortest_sequence_nt:
        return []
    regions = find_regions(bounds, log_odds, settings)
    host_nt = length - sum(region.stop - region.start for region in regions)
    return regions if host_nt >= settings.shortest_region_nt else []


def find_regions(
    bounds: NDArray[np.int64], log_odds: NDArray[np.float64], settings: FinderSettings = DEFAULT_SETTINGS
) -> list[Region]:
    """Virus regions of a sequence of any length, one that is all of it included; arguments as `find_proviruses`.

    Returns:
        Regions in order, apart from each other; their borders are starts of fragments or the sequence's end.
    """
    if np.isnan(log_odds).all():
        return []
    bounded = np.clip(log_odds, -settings.largest_log_odds, settings.largest_log_odds)
    host_level, posterior = _fit_host_level(bounds, bounded, settings)
    evidence = evidence_of(log_odds, settings, host_level)
    edges = np.append(bounds[:, 0], bounds[-1, 1])
    regions = []
    runs = _runs(posterior >= settings.smallest_posterior)
    for start, stop in _move_borders(runs, bounded, host_level, settings):
        if edges[stop] - edges[start] < settings.shortest_region_nt or np.isnan(log_odds[start:stop]).all():
            continue
        regions.append(
            Region(
                start=int(edges[start]),
                stop=int(edges[stop]),
                num_fragments=stop - start,
                score=float(evidence[start:stop].sum()),
                mean_log_odds=float(np.nanmean(log_odds[start:stop])),
                posterior=float(posterior[start:stop].mean()),
            )
        )
    return regions


def evidence_of(
    log_odds: NDArray[np.float64], settings: FinderSettings = DEFAULT_SETTINGS, host_level: float | None = None
) -> NDArray[np.float64]:
    """(n,) log of how much more likely each fragment is as virus than as host (nats); 0 where it has no score.

    Args:
        log_odds: (n,) calibrated log-odds of fragments, NaN where there is no score.
        settings: of the finder.
        host_level: mean of the host's fragments; that of ``settings`` where None.
    """
    host = settings.host_level if host_level is None else host_level
    bounded = np.clip(log_odds, -settings.largest_log_odds, settings.largest_log_odds)
    slope = settings.fragment_share * (settings.virus_level - host) / settings.spread**2
    return np.nan_to_num(slope * (bounded - (settings.virus_level + host) / 2), nan=0.0)


def _fit_host_level(
    bounds: NDArray[np.int64], bounded: NDArray[np.float64], settings: FinderSettings
) -> tuple[float, NDArray[np.float64]]:
    """The level of the sequence's own host fragments, and the (n,) posterior of the virus state."""
    distances = np.diff(bounds.mean(axis=1))
    scored = ~np.isnan(bounded)
    level = settings.host_level
    for _ in range(_LEVEL_ROUNDS):
        posterior = _posterior(
            evidence_of(bounded, settings, level), distances, 1 / settings.host_nt, 1 / settings.virus_nt
        )
        weights = 1 - posterior[scored]
        prior = settings.host_level_fragments
        level = float((prior * settings.host_level + weights @ bounded[scored]) / (prior + weights.sum()))
        level = min(level, settings.highest_host_level)
    evidence = evidence_of(bounded, settings, level)
    return level, _posterior(evidence, distances, 1 / settings.host_nt, 1 / settings.virus_nt)


@kernel
def _posterior(
    evidence: NDArray[np.float64], distances: NDArray[np.float64], host_rate: float, virus_rate: float
) -> NDArray[np.float64]:
    """Forward-backward for two states.

    Args:
        evidence: (n,) log of the likelihood ratio, virus to host.
        distances: (n - 1,) bases between neighbours.
        host_rate: how often host ends, a base; virus begins there.
        virus_rate: how often virus ends.

    Returns:
        (n,) probability of the virus state.
    """
    num = len(evidence)
    share = host_rate / (host_rate + virus_rate)  # of the bases that are virus
    ratios = np.exp(evidence)
    posterior = np.empty(num)
    probability = share
    for i in range(num):
        if i > 0:
            kept = np.exp(-(host_rate + virus_rate) * distances[i - 1])
            probability = share + (probability - share) * kept
        odds = probability / (1 - probability) * ratios[i]
        probability = odds / (1 + odds)
        posterior[i] = probability
    ahead = 1.0  # likelihood ratio, virus to host, of all that comes after
    for i in range(num - 2, -1, -1):
        kept = np.exp(-(host_rate + virus_rate) * distances[i])
        ratio = ahead * ratios[i + 1]
        from_virus = (share + (1 - share) * kept) * ratio + (1 - share) * (1 - kept)
        from_host = share * (1 - kept) * ratio + 1 - share * (1 - kept)
        ahead = from_virus / from_host
        odds = posterior[i] / (1 - posterior[i]) * ahead
        posterior[i] = odds / (1 + odds)
    return posterior


def _runs(is_virus: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First fragment and one after the last, of every run of virus."""
    changes = np.flatnonzero(np.diff(is_virus, prepend=False, append=False))
    return [(int(start), int(stop)) for start, stop in changes.reshape(-1, 2)]


def _move_borders(
    runs: list[tuple[int, int]], bounded: NDArray[np.float64], host_level: float, settings: FinderSettings
) -> list[tuple[int, int]]:
    """Each run with its borders where levels part best; at least one fragment stays between two runs."""
    num = len(bounded)
    moved = []
    for i, (start, stop) in enumerate(runs):
        # The room between two runs is halved, so that it does not matter which is moved first.
        lowest = start - (start - runs[i - 1][1] - 1) // 2 if i else 0
        highest = stop + (runs[i + 1][0] - stop - 1) // 2 if i + 1 < len(runs) else num
        first = _left_border(bounded, start, stop, lowest, host_level, settings)
        last = _left_border(bounded[::-1], num - stop, num - start, num - highest, host_level, settings)
        moved.append((first, num - last))
    return moved


def _left_border(
    bounded: NDArray[np.float64], start: int, stop: int, lowest: int, host_level: float, settings: FinderSettings
) -> int:
    """Where the run ``start:stop`` begins, if it may begin at ``lowest``."""
    inside = bounded[start:stop]
    if start == 0 or np.isnan(inside).all():
        return start
    beside = bounded[max(lowest, start - settings.flank_fragments) : start]
    beside = beside[~np.isnan(beside)]
    prior = settings.flank_prior_fragments
    outside_level = (prior * host_level + beside.sum()) / (prior + len(beside))
    first = max(lowest, start - settings.border_fragments)
    last = min((start + stop) // 2, start + settings.border_fragments)
    excess = np.nan_to_num(bounded[first:last] - (np.nanmean(inside) + outside_level) / 2, nan=0.0)
    left_out = np.append(0.0, np.cumsum(excess))
    # Of equals the last: fragments without a score stay outside.
    return last - int(np.argmin(left_out[::-1]))


REGION_DTYPE = np.dtype(
    [
        ("sequence", "i8"),
        ("start", "i8"),
        ("stop", "i8"),
        ("is_provirus", "?"),
        ("p_virus", "f8"),
        ("score", "f8"),
        ("num_fragments", "i8"),
    ]
)
"""A virus region: number of its sequence in the run, 0-based half-open bounds, whether it is a part of a longer
sequence, its probability, score and number of fragments."""


def proviruses(table: Fragments, settings: FinderSettings = DEFAULT_SETTINGS) -> NDArray[np.void]:
    """(r,) REGION_DTYPE, the viral parts of longer sequences, in order. Masked fragments count as not scored."""
    found = []
    for part in table.parts():
        offsets = part.offsets
        for position in np.flatnonzero(part.sequences["length"] >= settings.shortest_sequence_nt).tolist():
            fragments = part.fragments[offsets[position] : offsets[position + 1]]
            bounds = np.stack([fragments["start"], fragments["stop"]], axis=1)
            found += [
                (part.first + position, item.start, item.stop, True, item.posterior, item.score, item.num_fragments)
                for item in find_proviruses(bounds, _scores(fragments), settings)
            ]
    return np.array(found, dtype=REGION_DTYPE)


def regions(
    table: Fragments,
    is_virus: NDArray[np.bool_],
    p_virus: NDArray[np.floating],
    parts: NDArray[np.void],
    settings: FinderSettings = DEFAULT_SETTINGS,
) -> NDArray[np.void]:
    """(r,) REGION_DTYPE by sequence: its proviruses; the whole of one that is called virus and has none.

    Args:
        table: some sequences.
        is_virus: (m,) whether each is called virus.
        p_virus: (m,) of each.
        parts: the proviruses in them, of ``proviruses``.
        settings: of the finder.
    """
    is_whole = is_virus.copy()
    is_whole[parts["sequence"] - table.first] = False
    positions = np.flatnonzero(is_whole)
    whole = np.zeros(len(positions), dtype=REGION_DTYPE)
    whole["sequence"] = table.first + positions
    whole["stop"] = table.sequences["length"][positions]
    whole["p_virus"] = p_virus[positions]
    if len(positions):
        evidence = evidence_of(_scores(table.fragments), settings)
        whole["score"] = np.bincount(table.positions, evidence, len(table))[positions]
    whole["num_fragments"] = table.sequences["num_fragments"][positions]
    found = np.concatenate([parts, whole])
    return found[np.argsort(found["sequence"], kind="stable")]


def _scores(fragments: NDArray[np.void]) -> NDArray[np.float64]:
    return np.where(fragments["masked"] == 0, fragments["log_odds"], np.nan).astype(np.float64)
