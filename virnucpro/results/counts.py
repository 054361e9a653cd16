"""What the results of an input add up to: counts, its summary, and what a page shows of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.mapped import let_go
from virnucpro.results.called import InputResults
from virnucpro.results.calls import CALLS, EVIDENCE_NAMES, STATUS_NAMES, Call
from virnucpro.results.formats import Cells
from virnucpro.results.outputs import PROVIRUS, WHOLE
from virnucpro.results.prevalence import Prevalence
from virnucpro.results.tables import fragment_probabilities

NUM_SCORE_BINS = 40
LENGTH_BINS_PER_DECADE = 8
LENGTH_EDGES = 10.0 ** (np.arange(10 * LENGTH_BINS_PER_DECADE + 1) / LENGTH_BINS_PER_DECADE)
"""Edges (nt) of the bins of length, from one base to ten billion."""

NUM_HITS = 50
MOST_LISTED = 2000
FEW_SEQUENCES = 200
"""An input of no more is listed as a whole."""
NUM_TRACKS = 20
NUM_PROVIRUSES = 50

_CANDIDATE_DTYPE = np.dtype([("position", "i8"), ("call", "i1"), ("p_virus", "f4"), ("length", "i8")])
"""A sequence that may be shown: its position, its ``Call``, its p_virus (-1 without one) and its length in nt."""


@dataclass
class Counts:
    """What was found in an input."""

    # call to number of sequences
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CALLS, 0))
    # status to number of sequences
    statuses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUS_NAMES.values(), 0))
    # call to number of bases
    bases: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CALLS, 0))
    fragments: int = 0  # all of them
    scored_fragments: int = 0  # how many of them have a score
    masked_fragments: int = 0  # how many of them are masked
    # frame name to number of rows (``N0``: scored from nucleotides alone)
    frames: dict[str, int] = field(default_factory=dict)
    num_failed_rows: int = 0  # rows that could not be computed
    regions: dict[str, int] = field(default_factory=lambda: {WHOLE: 0, PROVIRUS: 0})  # kind to number of virus regions
    # kind to number of bases in them
    region_bases: dict[str, int] = field(default_factory=lambda: {WHOLE: 0, PROVIRUS: 0})
    virus_fdr: float = math.nan  # estimated share of false calls among what is called virus; NaN if nothing is
    # in a cascade, model to number of sequences that it decided
    sequences_by_model: dict[str, int] = field(default_factory=dict)
    bases_by_model: dict[str, int] = field(default_factory=dict)  # in a cascade, model to number of bases in them

    @property
    def num_sequences(self) -> int:
        """Of all calls."""
        return sum(self.calls.values())

    @property
    def num_bases(self) -> int:
        """Of all calls."""
        return sum(self.bases.values())

    @classmethod
    def of(cls, results: InputResults, frames: Mapping[str, int]) -> Counts:
        """Count an input; ``frames`` are its rows by frame, which the table of fragments does not hold."""
        counts = cls(frames=dict(frames))
        for model in results.models:
            counts.sequences_by_model[model.decode()] = counts.bases_by_model[model.decode()] = 0
        for part in results.parts():
            counts._add(part)
        virus = np.unique(results.proviruses["sequence"]) - results.table.first
        virus = virus[results.calls["call"][virus] == Call.VIRUS]  # those that have proviruses
        counts.regions[PROVIRUS] = len(results.proviruses)
        counts.regions[WHOLE] = counts.calls["virus"] - len(virus)
        counts.region_bases[PROVIRUS] = int((results.proviruses["stop"] - results.proviruses["start"]).sum())
        counts.region_bases[WHOLE] = counts.bases["virus"] - int(results.table.sequences["length"][virus].sum())
        return counts

    def _add(self, part: InputResults) -> None:
        sequences, fragments, calls = part.table.sequences, part.table.fragments, part.calls
        lengths = sequences["length"]
        for call, name in enumerate(CALLS):
            is_its = calls["call"] == call
            self.calls[name] += int(is_its.sum())
            self.bases[name] += int(lengths[is_its].sum())
        # The rate of the least likely sequence that is called virus is that of all of them.
        rates = calls["fdr"][calls["call"] == Call.VIRUS]
        self.virus_fdr = float(np.fmax.reduce(rates, initial=self.virus_fdr))
        for status, name in STATUS_NAMES.items():
            self.statuses[name] += int((calls["status"] == status).sum())
        for model, title in enumerate(part.models):
            is_its = sequences["model"] == model
            self.sequences_by_model[title.decode()] += int(is_its.sum())
            self.bases_by_model[title.decode()] += int(lengths[is_its].sum())
        self.fragments += len(fragments)
        self.scored_fragments += int((~np.isnan(fragments["log_odds"])).sum())
        self.masked_fragments += int((fragments["masked"] > 0).sum())
        self.num_failed_rows += int(sequences["num_failed"].sum())


def sample_cells(counted: Mapping[str, Counts]) -> Cells:
    """A line for each sample, ``schema.SAMPLES``; percentages are NaN where there is nothing to divide by.

    Args:
        counted: name of each sample to what was found in it.
    """
    sequences, bases = (
        np.array([list(of_call.values()) for of_call in amounts])
        for amounts in ([each.calls for each in counted.values()], [each.bases for each in counted.values()])
    )
    with np.errstate(invalid="ignore"):
        percent = [100 * each[:, 0] / each.sum(axis=1) for each in (sequences, bases)]
    return [name.encode() for name in counted], sequences.sum(axis=1), bases.sum(axis=1), *sequences.T, *percent


def total(counted: Iterable[Counts]) -> Counts:
    """What was found in all inputs; ``virus_fdr`` is of one input alone and stays out."""
    whole = Counts()
    for counts in counted:
        for name, value in vars(counts).items():
            ours = getattr(whole, name)
            if isinstance(value, dict):
                for key, number in value.items():
                    ours[key] = ours.get(key, 0) + number
            elif isinstance(value, int):
                setattr(whole, name, ours + value)
    return whole


def summary(results: InputResults, counts: Counts, source: str, cascade: Mapping[str, Any] | None) -> dict[str, Any]:
    """What ``.summary.json`` holds."""
    rules = results.table.rules[0]
    by_model = {"sequences_by_model": counts.sequences_by_model, "bases_by_model": counts.bases_by_model}
    return {
        "input": source,
        "model": rules.name,
        "model_fingerprint": rules.fingerprint,
        "calls_digest": results.digest,
        **results.calling.described(rules),
        **_described(results.prevalence),
        "num_sequences": len(results.table),
        "sequences_by_call": counts.calls,
        "sequences_by_status": counts.statuses,
        "fdr_of_virus": None if math.isnan(counts.virus_fdr) else round(counts.virus_fdr, 4),
        "num_bases": counts.num_bases,
        "bases_by_call": counts.bases,
        "num_fragments": counts.fragments,
        "num_fragments_scored": counts.scored_fragments,
        "num_fragments_masked": counts.masked_fragments,
        "num_rows": sum(counts.frames.values()),
        "rows_by_frame": counts.frames,
        "num_rows_failed": counts.num_failed_rows,
        "regions_by_kind": counts.regions,
        "bases_by_region_kind": counts.region_bases,
        **({} if cascade is None else {"cascade": {**cascade, **by_model}}),
    }


def _described(prevalence: Prevalence) -> dict[str, Any]:
    """The share of viruses that p_virus and fdr are at; its 95 % interval where it is estimated."""
    is_estimated = prevalence.how == "estimated"
    return {
        "prevalence": round(prevalence.value, 6),
        "prevalence_is": prevalence.how,
        "prevalence_low": round(prevalence.low, 6) if is_estimated else None,
        "prevalence_high": round(prevalence.high, 6) if is_estimated else None,
    }


@dataclass(frozen=True)
class Hit:
    """A sequence that is shown by itself."""

    position: int  # among the sequences of the input
    name: bytes  # its id
    length: int  # nt
    call: str  # one of ``CALLS``
    p_virus: float  # NaN if nothing was scored
    fdr: float  # share of false calls among sequences with a p_virus at least as high; NaN if nothing was scored
    evidence: str  # what the probability rests on


@dataclass(frozen=True)
class Provirus:
    """A viral part of a longer sequence."""

    position: int  # of the sequence among those of the input
    sequence: bytes  # its id
    start: int  # first base, 1-based
    stop: int  # last base, 1-based
    p_virus: float  # mean over its genes


@dataclass(frozen=True)
class Track:
    """The windows of one sequence, in order."""

    line: Hit
    starts: NDArray[np.int64]  # (n,) first base of each window, 1-based
    stops: NDArray[np.int64]  # (n,) last base of each, 1-based
    p_virus: NDArray[np.float32]  # (n,) NaN if a window has no score
    proviruses: tuple[Provirus, ...]  # those of this sequence


@dataclass(frozen=True)
class Overview:
    """What a page shows of an input."""

    counts: Counts  # what it adds up to
    scores: NDArray[np.int64]  # (calls, score bins) sequences by call and p_virus, in bins of equal width from 0 to 1
    lengths: NDArray[np.int64]  # (calls, length bins) sequences by call and length, in bins of ``LENGTH_EDGES``
    listed: list[Hit]  # those of the page's list, by call and p_virus, the longer first among equals
    hits: list[Hit]  # sequences called virus of highest p_virus, the longer first among equals
    proviruses: list[Provirus]  # those of highest score, the longer first among equals
    tracks: list[Track]  # up to half hold a provirus, the rest are the longest hits


def overview(results: InputResults) -> Overview:
    """Add up an input and pick what is shown by itself."""
    scores = np.zeros((len(CALLS), NUM_SCORE_BINS), np.int64)
    lengths = np.zeros((len(CALLS), len(LENGTH_EDGES) - 1), np.int64)
    listed = longest = np.zeros(0, dtype=_CANDIDATE_DTYPE)
    is_small = len(results.calls) <= FEW_SEQUENCES  # listed as a whole; of others those that are or may be viral
    for part in results.parts():
        call, length, p_virus = part.calls["call"], part.table.sequences["length"], part.calls["p_virus"]
        scored = ~np.isnan(p_virus)
        # As whole numbers of ten thousandths, which tables show, probabilities fall into bins without an error.
        shown = np.rint(p_virus[scored].astype(np.float64) * 10_000).astype(np.int64)
        np.add.at(scores, (call[scored], np.minimum(shown * NUM_SCORE_BINS // 10_000, NUM_SCORE_BINS - 1)), 1)
        length_bin = np.searchsorted(LENGTH_EDGES, length, side="right") - 1
        np.add.at(lengths, (call, np.clip(length_bin, 0, len(LENGTH_EDGES) - 2)), 1)
        candidates = np.zeros(len(call), dtype=_CANDIDATE_DTYPE)
        candidates["position"] = part.table.first - results.table.first + np.arange(len(call))
        candidates["call"], candidates["length"], candidates["p_virus"] = call, length, np.nan_to_num(p_virus, nan=-1)
        listed = np.concatenate([listed, candidates[(call <= Call.UNCERTAIN) | is_small]])
        order = np.lexsort((-listed["length"], -listed["p_virus"], listed["call"]))
        listed = listed[order[:MOST_LISTED]]
        is_long = (call == Call.VIRUS) & (part.table.sequences["num_fragments"] > 1)
        longest = np.concatenate([longest, candidates[is_long]])
        longest = longest[np.argsort(-longest["length"], kind="stable")[:NUM_TRACKS]]
    shown = [_hit(results, position) for position in listed["position"].tolist()]
    proviruses = _best_proviruses(results)
    return Overview(
        counts=Counts.of(results, {}),
        scores=scores,
        lengths=lengths,
        listed=shown,
        hits=[hit for hit in shown if hit.call == "virus"][:NUM_HITS],
        proviruses=proviruses,
        tracks=_tracks(results, proviruses, longest["position"].tolist()),
    )


def _hit(results: InputResults, position: int) -> Hit:
    answer, length = results.calls[position], int(results.table.sequences["length"][position])
    name = results.table.names[position].tobytes()
    results.table.release()  # hits may lie anywhere, and each look brings some pages
    let_go(results.calls)
    return Hit(
        position=position,
        name=name,
        length=length,
        call=CALLS[answer["call"]],
        p_virus=float(answer["p_virus"]),
        fdr=float(answer["fdr"]),
        evidence="NA" if np.isnan(answer["p_virus"]) else EVIDENCE_NAMES[int(answer["has_open"])],
    )


def _best_proviruses(results: InputResults) -> list[Provirus]:
    found = results.proviruses
    order = np.lexsort((found["start"] - found["stop"], -found["score"]))[:NUM_PROVIRUSES]
    return [
        Provirus(
            position=int(region["sequence"]) - results.table.first,
            sequence=results.table.names[int(region["sequence"]) - results.table.first].tobytes(),
            start=int(region["start"]) + 1,
            stop=int(region["stop"]),
            p_virus=float(region["p_virus"]),
        )
        for region in found[order]
    ]


def _tracks(results: InputResults, proviruses: Iterable[Provirus], longest: Iterable[int]) -> list[Track]:
    by_position: dict[int, list[Provirus]] = {}
    for found in proviruses:
        by_position.setdefault(found.position, []).append(found)
    chosen = dict.fromkeys(list(by_position)[: NUM_TRACKS // 2]) | dict.fromkeys(longest)
    tracks = []
    for position in list(chosen)[:NUM_TRACKS]:
        table = results.table.slice(position, position + 1)
        fragments = table.fragments
        tracks.append(
            Track(
                _hit(results, position),
                fragments["start"] + 1,
                fragments["stop"].copy(),
                fragment_probabilities(table, results.prevalence),
                tuple(by_position.get(position, ())),
            )
        )
    return tracks
