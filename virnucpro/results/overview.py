"""What a page shows of an input: counts, distributions, the best hits, its proviruses and scores along sequences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro.mapped import let_go
from virnucpro.results.called import InputResults
from virnucpro.results.calls import CALLS, EVIDENCE_NAMES, Call
from virnucpro.results.counts import Counts
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
