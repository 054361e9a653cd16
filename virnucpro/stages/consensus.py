"""Rows to fragments to sequences.

Rows of a fragment and fragments of a sequence are contiguous, so each step is a sum over ranges; no
name is ever compared. What a sequence adds up to is kept in memory-mapped arrays, since its fragments
may lie in several units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.errors import CountError
from virnucpro.sequence.table import UnitTable, are_own_source
from virnucpro.stages.base import Index, Run

SUM_DTYPE = np.dtype(
    [
        ("status", "i1"),
        ("log_odds", "f8"),
        ("num_fragments", "i8"),
        ("num_scored", "i8"),
        ("num_rows", "i8"),
        ("num_open", "i8"),
    ]
)
"""A sequence: extraction status, sum of its fragments' calibrated log-odds, how many fragments, how many of them have a
score, rows (kept frames), and fragments with an open frame."""

_SMALLEST_SCORE = 1e-7  # of a float32 softmax; keeps the log finite


@dataclass(frozen=True)
class ScoredUnit:
    """A unit with the scores of all its rows and what they make of its fragments.

    Attributes:
        table: the unit.
        scores: (n, 2) float32, not virus and virus.
        log_odds: (f,) float64 calibrated log-odds of the fragments, NaN where there is no row.
        num_open: (f,) int64, kept frames of each fragment (rows of frame 0 do not count).
    """

    table: UnitTable
    scores: NDArray[np.float32]
    log_odds: NDArray[np.float64]
    num_open: NDArray[np.int64]


def run(run: Run, index: Index) -> NDArray[np.void]:
    """Fill the sums of all sequences and return them, (num_sequences,) SUM_DTYPE, memory-mapped.

    Raises:
        CountError: some row has no score, or more than one.
    """
    path = run.dir.sequence_sums
    path.unlink(missing_ok=True)
    if not index.num_sequences:
        return np.zeros(0, dtype=SUM_DTYPE)
    sums = np.lib.format.open_memmap(path, mode="w+", dtype=SUM_DTYPE, shape=(index.num_sequences,))
    with run.reporter.stage("consensus", index.num_rows, "rows") as advance:
        for unit in scored_units(run, index):
            _add(sums, unit)
            advance(len(unit.table.rows))
    if int(sums["num_fragments"].sum()) != index.num_fragments:
        raise CountError(f"{index.num_fragments} fragments were cut, {sums['num_fragments'].sum()} were counted")
    return sums


def scored_units(run: Run, index: Index) -> Iterator[ScoredUnit]:
    """Each unit in order, with a score for every row, duplicates of earlier rows included."""
    path = run.dir.row_scores
    path.unlink(missing_ok=True)
    known = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(max(index.num_rows, 1), 2))
    try:
        for unit, indexed in enumerate(index.units):
            table = store.read_unit(run.dir.unit(unit))
            computed = store.read_arrays(run.dir.scores(unit), "scores", "scores")["scores"]
            rows = slice(indexed.first_row, indexed.first_row + indexed.num_rows)
            source = table.rows["source"]
            own = are_own_source(table.rows, rows.start)
            if len(computed) != own.sum() or len(table.rows) != indexed.num_rows:
                raise CountError(f"unit {unit}: {own.sum()} rows went in, {len(computed)} scores came out")
            mine = known[rows]
            mine[own] = computed
            mine[~own] = known[source[~own]]
            yield score_fragments(run, table, np.array(mine))
    finally:
        path.unlink(missing_ok=True)


def score_fragments(run: Run, table: UnitTable, scores: NDArray[np.float32]) -> ScoredUnit:
    """Join the rows of each fragment by the bundle's rule."""
    num_rows = table.fragments["num_rows"].astype(np.int64)
    starts = np.cumsum(num_rows) - num_rows
    occupied = num_rows > 0
    log_odds = np.full(len(num_rows), np.nan)
    num_open = np.zeros(len(num_rows), dtype=np.int64)
    if occupied.any():
        safe = np.maximum(scores.astype(np.float64), _SMALLEST_SCORE)
        ranges = starts[occupied]
        if run.bundle.row_rule == "max":
            # The published rule: virus when the largest virus score is >= the largest other score.
            best = np.maximum.reduceat(safe, ranges, axis=0)
            joined = np.log(best[:, 1]) - np.log(best[:, 0])
        else:
            joined = np.add.reduceat(np.log(safe[:, 1]) - np.log(safe[:, 0]), ranges) / num_rows[occupied]
        lengths = (table.fragments["stop"] - table.fragments["start"])[occupied]
        log_odds[occupied] = run.bundle.calibration.fragment_log_odds(joined, lengths)
        num_open[occupied] = np.add.reduceat((table.rows["frame"] != 0).astype(np.int64), ranges)
    return ScoredUnit(table, scores, log_odds, num_open)


def probability(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logistic function."""
    with np.errstate(over="ignore"):  # a genome's log-odds may pass 709; its probability is then 0
        return np.asarray(1.0 / (1.0 + np.exp(-log_odds)), dtype=np.float64)


def _add(sums: NDArray[np.void], unit: ScoredUnit) -> None:
    sums["status"][unit.table.sequences["number"]] = unit.table.sequences["status"]
    fragments = unit.table.fragments
    if not len(fragments):
        return
    first = int(fragments["sequence"][0])
    position = fragments["sequence"] - first
    count = int(position[-1]) + 1
    part = sums[first : first + count]
    scored = ~np.isnan(unit.log_odds)
    # One after the other and not unit by unit: the sum is then the same to the last bit however the run is cut.
    np.add.at(part["log_odds"], position[scored], unit.log_odds[scored])
    part["num_fragments"] += np.bincount(position, minlength=count)
    part["num_scored"] += np.bincount(position[scored], minlength=count)
    part["num_rows"] += np.bincount(position, weights=unit.num_open, minlength=count).astype(np.int64)
    part["num_open"] += np.bincount(position[unit.num_open > 0], minlength=count)
