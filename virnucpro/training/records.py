"""Whole records: the weights of their calls fitted, and what calls and proviruses are worth measured.

Records are scored as ``predict`` does, so that what is measured is what users get.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles.rules import GENE_CLASSES, RecordWeights
from virnucpro.errors import InputError
from virnucpro.results.called import InputResults
from virnucpro.results.calls import Call, Calling, evidence_of, probability, record_features
from virnucpro.results.fragments import Fragments
from virnucpro.results.prevalence import estimate
from virnucpro.training.calibration import fit_logistic, read_settings, write_settings
from virnucpro.training.evaluation import auroc
from virnucpro.training.genomes import LETTERS, Genomes, read_table

Score = Callable[[Iterable[str | tuple[bytes, bytes]]], Fragments]
"""What scores files, or records as ids and bases, as ``predict`` does."""

VIRUS = "virus"
MOBILE = ("mge", "te")
"""Classes of transposons and integrative elements: the classic false calls, measured apart."""
LENGTH_BOUNDS = (0, 500, 1_500, 3_000, 10_000, 30_000, 100_000, 300_000, 1 << 40)
LONG_VIRUS_NT, LONG_HOST_NT = 20_000, 300_000
SHARES = (0.0, 0.01, 0.1, 0.5, 1.0)
"""Of viruses in made communities."""
COMMUNITY, NUM_COMMUNITIES = 5_000, 20
WHOLE_RECORDS, CONTIGS, FITTED = 300, 3_000, 4_000
"""Drawn of each class of a data set: to be measured, and for the weights to be fitted on."""
FITTED_LENGTHS = (500.0, 1_500.0, 5_000.0, 15_000.0)
"""At which two of the weights are fitted, nt."""
SHRINKAGE = 0.92
"""What all weights are multiplied with. Log-odds of families and genera that the fit has not seen are too large by some
6 %, most of all the largest, on which false discovery rests; chosen so that it holds on dev within a fifth, for groups
that were left out and for those that were not."""
CONTIG_NT = (500, 10_000)
_TIED = np.array([[0, 0], [1, 0], [1, 0], [1, 0], [0, 0], [0, 1], [0, 1]])
"""(classes, 2) which of two weights a class of genes has: near to cells, near to viruses."""
_PRIOR_MEAN = np.array([*np.zeros(len(FITTED_LENGTHS)), *np.full(len(FITTED_LENGTHS), 0.8), -0.6, 1.5])
_PRIOR_WEIGHT = np.array([*np.full(2 * len(FITTED_LENGTHS), 0.1), 30.0, 30.0])


@dataclass(frozen=True)
class Labelled:
    """Records with what they are."""

    table: Fragments  # their fragments and genes
    classes: NDArray[np.str_]  # (m,) virus, or a host class
    groups: NDArray[np.str_]  # (m,) family or genus; empty where it is not known

    @property
    def is_virus(self) -> NDArray[np.bool_]:
        """(m,) whether each is a virus."""
        return np.asarray(self.classes == VIRUS)


def draw(
    genomes: Genomes,
    score: Score,
    num: int,
    nt: tuple[int, int] = (1_500, 50_000),
    *,
    whole: bool = False,
    seed: int,
) -> Labelled:
    """Pieces of labelled genomes, ``num`` of each class; families and genera weigh by the root of their bases.

    Args:
        genomes: to draw from.
        score: scores the pieces.
        num: pieces of each class.
        nt: shortest and longest piece; lengths are drawn evenly on a logarithmic scale.
        whole: take the record itself in place of every other piece.
        seed: of the draws.
    """
    gen, (shortest_nt, longest_nt) = np.random.default_rng(seed), nt
    chosen: list[tuple[int, int, int]] = []
    classes: list[str] = []
    for name in sorted(set(genomes.classes.tolist())):
        members = np.flatnonzero((genomes.classes == name) & (genomes.lengths >= shortest_nt))
        if not len(members):
            continue
        _, place, counts = np.unique(genomes.groups[members], return_inverse=True, return_counts=True)
        weights = (np.sqrt(np.bincount(place, genomes.lengths[members])) / counts)[place]
        for number, record in enumerate(gen.choice(members, num, p=weights / weights.sum()).tolist()):
            length = int(genomes.lengths[record])
            high = min(length, longest_nt)
            wanted = int(np.exp(gen.uniform(np.log(shortest_nt), np.log(high))))
            if whole and number % 2:
                wanted = length
            start = int(gen.integers(0, length - wanted + 1))
            chosen.append((record, start, wanted))
            classes.append(name)
    pieces = (
        (
            f"{genomes.ids[record]}:{start + 1}-{start + length}#{number}".encode(),
            LETTERS[genomes[record][start : start + length]].tobytes(),
        )
        for number, (record, start, length) in enumerate(chosen)
    )
    groups = genomes.groups[[record for record, _, _ in chosen]]
    return Labelled(score(pieces), np.array(classes), groups)


def fit(labelled: Labelled) -> RecordWeights:
    """Weights of a call, by logistic regression; classes weigh alike on either side, and so do lengths.

    Genes near to cells share one weight, and those near to viruses one. Fragments have searched the same table, so
    that little is left for genes on genomes like those of the data; a prior keeps them in the call, for the sake of
    phages whose fragments look like their host.
    """
    table, flat = labelled.table, (0.0,) * len(FITTED_LENGTHS)
    blank = RecordWeights(FITTED_LENGTHS, flat, flat, (0.0,) * len(GENE_CLASSES))
    features, lengths = record_features(table, InputResults.of(table, Calling()).proviruses, blank)
    known = ~np.isnan(features).any(axis=1) & (lengths > blank.fragment_nt)
    nearness = np.stack([blank.at(tuple(hat), lengths) for hat in np.eye(len(FITTED_LENGTHS))], axis=1)
    rows = np.column_stack([nearness, nearness * features[:, :1], features[:, 1:] @ _TIED])[known]
    target, weights = labelled.is_virus[known], _balanced(labelled, known)
    found = fit_logistic(rows, target, weights, ridge=_PRIOR_WEIGHT, prior=_PRIOR_MEAN)
    *lines, cell, virus = (round(float(value), 4) for value in SHRINKAGE * found)
    intercept, fragments = lines[: len(FITTED_LENGTHS)], lines[len(FITTED_LENGTHS) :]
    genes = (0.0, cell, cell, cell, 0.0, virus, virus)
    return replace(blank, intercept=tuple(intercept), fragments=tuple(fragments), genes=genes)


def _balanced(labelled: Labelled, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Each class of hosts weighs alike within a range of lengths, and viruses as much as all hosts together."""
    bins = np.digitize(labelled.table.sequences["length"][known], LENGTH_BOUNDS)
    classes = labelled.classes[known]
    weights = np.zeros(len(bins))
    for place in np.unique(bins):
        hosts = [name for name in np.unique(classes[bins == place]) if name != VIRUS]
        for name in (*hosts, VIRUS):
            members = (bins == place) & (classes == name)
            share = 1.0 if name == VIRUS else 1 / len(hosts)
            weights[members] = share / max(members.sum(), 1)
    return np.asarray(weights / weights.sum() * 1000)


def read_labelled(folder: Path, score: Score) -> Labelled:
    """Records of a folder with ``labels.tsv`` (file, name, length, truth) and FASTA files.

    Raises:
        InputError: it lacks labels or files, or some record has no label.
    """
    labels = folder / "labels.tsv"
    if not labels.is_file():
        raise InputError(str(labels), "is missing. It says of each record (column name) what it is (truth).")
    truth = {line["name"]: line for line in read_table(labels, ("name", "truth"))}
    files = sorted(path for path in folder.iterdir() if path.name.split(".")[1:2] in (["fasta"], ["fa"], ["fna"]))
    table = score([str(path) for path in files])
    names = _names(table)
    unknown = [name for name in names if name not in truth]
    if unknown:
        raise InputError(str(labels), f"says nothing of {unknown[0]}" + f" and {len(unknown) - 1} others.")
    classes = np.array([truth[name]["truth"] for name in names])
    groups = np.array([truth[name].get("group") or truth[name].get("file") or "" for name in names])
    return Labelled(table, classes, groups)


def _names(table: Fragments) -> list[str]:
    return [name.decode("utf-8", "backslashreplace") for name in table.names.to_bytes()]


def measure_folder(folder: Path, score: Score) -> dict[str, Any]:
    """What ``evaluate --records`` measures: calls of whole records, and their curated proviruses."""
    labelled = read_labelled(folder, score)
    found: dict[str, Any] = {"records": measure(labelled)}
    if (folder / "prophages.tsv").is_file():
        found["curated"] = measure_curated(labelled.table, read_curated(folder / "prophages.tsv"))
    return found


def measure_dataset(genomes: Genomes, score: Score, seed: int) -> dict[str, Any]:
    """What ``evaluate --communities`` measures: whole records of a data set and communities of pieces of them."""
    whole = draw(genomes, score, WHOLE_RECORDS, whole=True, seed=seed)
    contigs = draw(genomes, score, CONTIGS, CONTIG_NT, seed=seed + 1)
    return {"whole_dev": measure(whole), "communities": measure_communities(contigs, seed)}


def measure(labelled: Labelled, calling: Calling | None = None) -> dict[str, Any]:
    """Calls of records by length and class, viruses that are cut, and hosts of any length that are virus."""
    results = InputResults.of(labelled.table, calling or Calling(prevalence=0.5))
    lengths, calls = labelled.table.sequences["length"], results.calls["call"]
    evidence = evidence_of(labelled.table, results.proviruses).astype(np.float64)
    is_cut = np.zeros(len(lengths), dtype=np.bool_)
    is_cut[np.unique(results.proviruses["sequence"]) - labelled.table.first] = True
    is_virus, is_mobile = labelled.is_virus, np.isin(labelled.classes, MOBILE)
    is_host = ~is_virus & ~is_mobile
    long_virus, long_host = is_virus & (lengths >= LONG_VIRUS_NT), is_host & (lengths >= LONG_HOST_NT)
    by_length = {}
    for low, high in pairwise(LENGTH_BOUNDS):
        here = (lengths >= low) & (lengths < high)
        if here.any():
            title = f"{low}-{high}" if high < LENGTH_BOUNDS[-1] else f"{low}-"
            by_length[title] = _tally(calls, evidence, here & is_virus, here & is_host)
    named = {f"{kind}": labelled.classes == kind for kind in np.unique(labelled.classes[~is_virus])}
    families = {str(name): is_virus & (labelled.groups == name) for name in np.unique(labelled.groups[is_virus])}
    return {
        "num": len(lengths),
        "by_length": by_length,
        "by_class": {name: _shares(calls, members) for name, members in named.items()},
        "by_family": {name: _shares(calls, members) for name, members in families.items()},
        "mobile": _shares(calls, is_mobile),
        "long_viruses": {"num": int(long_virus.sum()), "cut": int((is_cut & long_virus).sum())},
        "long_hosts": {
            "num": int(long_host.sum()),
            "called_virus": int((long_host & (calls == Call.VIRUS)).sum()),
        },
    }


def _shares(calls: NDArray[np.int8], members: NDArray[np.bool_]) -> dict[str, Any]:
    num = int(members.sum())
    return {"num": num} | {
        call.name.lower(): round(float((calls[members] == call).mean()), 4) if num else None for call in Call
    }


def _tally(
    calls: NDArray[np.int8], evidence: NDArray[np.float64], virus: NDArray[np.bool_], host: NDArray[np.bool_]
) -> dict[str, Any]:
    found: dict[str, Any] = {"virus": _shares(calls, virus), "host": _shares(calls, host), "auroc": None}
    known = (virus | host) & ~np.isnan(evidence)
    if (known & virus).any() and (known & host).any():
        found["auroc"] = round(auroc(evidence[known], virus[known]), 4)
    return found


def read_curated(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Curated proviruses by accession without its version, 0-based half-open.

    Raises:
        InputError: a column is missing, or a place is not a number.
    """
    curated: dict[str, list[tuple[int, int]]] = {}
    for number, row in enumerate(read_table(path, ("accession", "start", "stop")), 2):
        if not (row["start"].isdigit() and row["stop"].isdigit()):
            raise InputError(str(path), "start and stop are whole numbers, 1-based closed.", number)
        accession = row["accession"].split(".")[0]
        curated.setdefault(accession, []).append((int(row["start"]) - 1, int(row["stop"])))
    return curated


def measure_curated(table: Fragments, curated: Mapping[str, list[tuple[int, int]]]) -> dict[str, Any]:
    """Proviruses found (half covered), recall and precision of their bases, and regions that touch none."""
    parts = InputResults.of(table, Calling(prevalence=0.5)).proviruses
    total: Counter[str] = Counter(curated=0, found=0, regions=0, elsewhere=0)
    bases: Counter[str] = Counter()
    records = {}
    for position, name in enumerate(_names(table)):
        truth = curated.get(name.split("|")[-1].split(".")[0])
        if truth is None:
            continue
        mine = parts[parts["sequence"] == table.first + position]
        bounds = list(zip(mine["start"].tolist(), mine["stop"].tolist(), strict=True))
        shared = [[max(0, min(b, d) - max(a, c)) for a, b in bounds] for c, d in truth]
        found = sum(2 * sum(row) >= d - c for row, (c, d) in zip(shared, truth, strict=True))
        elsewhere = [bound for place, bound in enumerate(bounds) if not any(row[place] for row in shared)]
        counts = {"curated": len(truth), "found": found, "regions": len(bounds)}
        records[name] = counts | {"elsewhere": elsewhere}
        total.update(counts, elsewhere=len(elsewhere))
        bases.update(
            common=sum(map(sum, shared)), ours=sum(b - a for a, b in bounds), curated=sum(d - c for c, d in truth)
        )
    shares = {"base_recall": bases["curated"], "base_precision": bases["ours"]}
    rounded = {name: round(bases["common"] / num, 4) if num else None for name, num in shares.items()}
    return dict(total) | rounded | {"records": records}


def measure_communities(labelled: Labelled, seed: int = 7) -> dict[str, Any]:
    """False discovery said and true in communities made of the records, at the shares of ``SHARES``."""
    table = labelled.table
    results = InputResults.of(table, Calling(prevalence=0.5))
    evidence = evidence_of(table, results.proviruses).astype(np.float64)
    thresholds = np.array([rules.thresholds(Calling.preset).virus for rules in table.rules])[table.sequences["model"]]
    is_called, is_virus = probability(evidence) >= thresholds, labelled.is_virus
    gen = np.random.default_rng(seed)
    viruses, hosts = (np.flatnonzero(side & ~np.isnan(evidence)) for side in (is_virus, ~is_virus))
    found = {}
    for share in SHARES:
        num, draws = round(share * COMMUNITY), []
        for _ in range(NUM_COMMUNITIES):
            members = np.concatenate([gen.choice(viruses, num), gen.choice(hosts, COMMUNITY - num)])
            prevalence = estimate([evidence[members]])
            called = members[is_called[members]]
            said = (1 - probability(evidence[called] + prevalence.shift)).sum()
            interval = (prevalence.value, prevalence.low, prevalence.high)
            draws.append((*interval, len(called), said, (~is_virus[called]).sum(), is_virus[called].sum()))
        value, low, high, num_called, said, false, true = np.array(draws, dtype=np.float64).mean(axis=0).tolist()
        found[f"{share:g}"] = {
            "prevalence": round(value, 5),
            "low": round(low, 5),
            "high": round(high, 5),
            "called": round(num_called, 1),
            "fdr_said": round(said / num_called, 5) if num_called else None,
            "fdr_true": round(false / num_called, 5) if num_called else None,
            "recall": round(true / (share * COMMUNITY), 4) if share else None,
        }
    return found


def fit_bundle(folder: Path, genomes: Genomes, score: Score) -> None:
    """Fit the weights of a bundle, into its ``bundle.yaml``; no score and no fingerprint depends on them.

    Args:
        folder: of the bundle.
        genomes: of which it has not seen any.
        score: scores by the bundle.
    """
    weights = fit(draw(genomes, score, FITTED, (300, 30_000), seed=101))
    names = ("lengths", "intercept", "fragments", "genes")
    write_settings(folder, read_settings(folder) | {"records": {name: list(getattr(weights, name)) for name in names}})
