"""Rows to fragments to sequences.

Rows of a fragment and fragments of a sequence are contiguous, so each step is a sum over ranges; no
name is ever compared. What a sequence adds up to is kept in memory-mapped arrays, since its fragments
may lie in several units.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.bundles.rules import Rules
from virnucpro.errors import CountError
from virnucpro.mapped import chunks, let_go, new_table
from virnucpro.sequence.table import UnitTable, are_own_source
from virnucpro.stages.base import Index, ScoredRun

SUM_DTYPE = np.dtype(
    [
        ("status", "i1"),
        ("log_odds", "f8"),
        ("num_fragments", "i8"),
        ("num_scored", "i8"),
        ("num_rows", "i8"),
        ("num_frameless", "i8"),
        ("num_open", "i8"),
        ("num_failed", "i8"),
        ("top_log_odds", "f8"),
        ("top_start", "i8"),
        ("top_stop", "i8"),
    ]
)
"""A sequence: extraction status, sum of its fragments' calibrated log-odds, how many fragments, how many of them have a
score, rows that are kept frames, rows that are whole fragments, scored fragments with an open frame, rows that could
not be computed; and the highest log-odds of a fragment with where the first such lies (0-based half-open)."""

_SMALLEST_SCORE = 1e-7  # of a float32 softmax; keeps the log finite


@dataclass(frozen=True)
class ScoredUnit:
    """A unit with the scores of all its rows and what they make of its fragments.

    Attributes:
        table: the unit.
        scores: (n, 2) float32, not virus and virus; NaN where a row could not be computed.
        log_odds: (f,) float64 calibrated log-odds of the fragments, NaN where there is no row with a score.
        num_open: (f,) int64, kept frames of each fragment (rows of frame 0 do not count).
        num_failed: (f,) int64, rows of each fragment that could not be computed.
    """

    table: UnitTable
    scores: NDArray[np.float32]
    log_odds: NDArray[np.float64]
    num_open: NDArray[np.int64]
    num_failed: NDArray[np.int64]

    @property
    def has_failed(self) -> NDArray[np.bool_]:
        """(n,) whether each row could not be computed."""
        return np.asarray(np.isnan(self.scores).any(axis=1))


def run(run: ScoredRun, index: Index) -> NDArray[np.void]:
    """Fill the sums of all sequences and return them, (num_sequences,) SUM_DTYPE, memory-mapped.

    Raises:
        CountError: some row has no score, or more than one.
    """
    sums = new_table(run.dir.sequence_sums, SUM_DTYPE, (index.num_sequences,))
    with run.reporter.stage("consensus", index.num_rows, "rows") as advance:
        for unit in scored_units(run, index, strings=()):
            _add(sums, unit)
            let_go(sums)
            advance(len(unit.table.rows))
    num_fragments = total_of("num_fragments", sums)
    if num_fragments != index.num_fragments:
        raise CountError(f"{index.num_fragments} fragments were cut, {num_fragments} were counted")
    return sums


def total_of(name: str, sums: NDArray[np.void]) -> int:
    """Sum of a count over all sequences."""
    return sum(int(sums[name][part].sum()) for part in chunks(len(sums), sums))


def scored_units(run: ScoredRun, index: Index, strings: Collection[str] = store.STRINGS) -> Iterator[ScoredUnit]:
    """Each unit in order, with a score for every row, duplicates of earlier rows included.

    Args:
        run: whose scores are stored.
        index: of its units.
        strings: lists of strings that are read; the others are then without items.
    """
    path = run.dir.row_scores
    known = new_table(path, np.float32, (index.num_rows, 2))
    try:
        for unit, indexed in enumerate(index.units):
            table = store.read_unit(run.dir.unit(unit), strings)
            computed = store.read_arrays(run.dir.scores(unit), "scores", "scores")["scores"]
            rows = slice(indexed.first_row, indexed.first_row + indexed.num_rows)
            source = table.rows["source"]
            own = are_own_source(table.rows, rows.start)
            if len(computed) != own.sum() or len(table.rows) != indexed.num_rows:
                raise CountError(f"unit {unit}: {own.sum()} rows went in, {len(computed)} scores came out")
            mine = known[rows]
            mine[own] = computed
            mine[~own] = known[source[~own]]
            scores = np.array(mine)
            let_go(known)
            yield score_fragments(run.rules, table, scores, _nearest(run, unit, len(table.fragments)))
    finally:
        path.unlink(missing_ok=True)


def _nearest(run: ScoredRun, unit: int, num_fragments: int) -> NDArray[np.float32] | None:
    """What the nearest proteins say of each fragment of a unit; None where the model does not ask."""
    if not run.rules.adds_nearest:
        return None
    log_odds: NDArray[np.float32] = store.read_arrays(run.dir.nearest(unit), "nearest", "log_odds")["log_odds"]
    if len(log_odds) != num_fragments:
        raise CountError(
            f"unit {unit}: {num_fragments} fragments went in, the nearest proteins of {len(log_odds)} came"
        )
    return log_odds


def score_fragments(
    rules: Rules, table: UnitTable, scores: NDArray[np.float32], nearest: NDArray[np.float32] | None = None
) -> ScoredUnit:
    """Join the rows of each fragment by the bundle's rule; rows that could not be computed are left out.

    Args:
        rules: of the bundle.
        table: the unit.
        scores: (n, 2) of its rows.
        nearest: (f,) log-odds that are added to those of the joined rows.
    """
    num_rows = table.fragments["num_rows"].astype(np.int64)
    failed = np.asarray(np.isnan(scores).any(axis=1))
    num_failed = _per_fragment(failed.astype(np.int64), num_rows)
    num_open = _per_fragment((table.rows["frame"] != 0).astype(np.int64), num_rows)
    num_computed = num_rows - num_failed
    log_odds = np.full(len(num_rows), np.nan)
    scored = num_computed > 0
    if scored.any():
        safe = np.log(np.maximum(scores[~failed].astype(np.float64), _SMALLEST_SCORE))
        ranges = (np.cumsum(num_computed) - num_computed)[scored]
        if rules.row_rule == "max":
            # The published rule: virus when the largest virus score is >= the largest other score.
            best = np.maximum.reduceat(safe, ranges, axis=0)
            joined = best[:, 1] - best[:, 0]
        else:
            joined = np.add.reduceat(safe[:, 1] - safe[:, 0], ranges) / num_computed[scored]
        if nearest is not None:
            joined = joined + nearest[scored]
        lengths = (table.fragments["stop"] - table.fragments["start"])[scored]
        log_odds[scored] = rules.calibration.fragment_log_odds(joined, lengths)
    return ScoredUnit(table, scores, log_odds, num_open, num_failed)


def _per_fragment(values: NDArray[np.int64], num_rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(f,) sums of the rows' values."""
    totals = np.concatenate([[0], np.cumsum(values)])
    stops = np.cumsum(num_rows)
    return np.asarray(totals[stops] - totals[stops - num_rows], dtype=np.int64)


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
    _raise_tops(part, fragments[scored], position[scored], unit.log_odds[scored])
    # One after the other and not unit by unit: the sum is then the same to the last bit however the run is cut.
    np.add.at(part["log_odds"], position[scored], unit.log_odds[scored])
    num_rows = fragments["num_rows"].astype(np.int64)
    for name, values in (
        ("num_fragments", np.ones(len(fragments), dtype=np.int64)),
        ("num_scored", scored),
        ("num_rows", unit.num_open),
        ("num_frameless", num_rows - unit.num_open),
        ("num_open", (unit.num_open > 0) & scored),
        ("num_failed", unit.num_failed),
    ):
        part[name] += np.bincount(position, weights=values, minlength=count).astype(np.int64)


def _raise_tops(
    part: NDArray[np.void], fragments: NDArray[np.void], position: NDArray[np.int64], log_odds: NDArray[np.float64]
) -> None:
    """Let sequences know their best fragment; call it before these are counted in ``num_scored``."""
    if not len(position):
        return
    begins = np.flatnonzero(np.diff(position, prepend=-1))
    highest = np.repeat(np.maximum.reduceat(log_odds, begins), np.diff(begins, append=len(position)))
    best = np.flatnonzero(log_odds == highest)
    best = best[np.diff(position[best], prepend=-1) > 0]  # of equal ones the first
    here = part[position[best]]
    best = best[(here["num_scored"] == 0) | (log_odds[best] > here["top_log_odds"])]
    part["top_log_odds"][position[best]] = log_odds[best]
    part["top_start"][position[best]] = fragments["start"][best]
    part["top_stop"][position[best]] = fragments["stop"][best]
