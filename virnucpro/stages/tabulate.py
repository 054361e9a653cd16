"""From stored scores to the table of fragments.

Rows of a fragment are contiguous, so a fragment is a reduction over a range; no name is ever compared. A row that has
the same bases as an earlier one has the score of that one, its source, which may lie in an earlier unit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.bundles.rules import Rules
from virnucpro.errors import CountError
from virnucpro.mapped import let_go, new_scratch
from virnucpro.progress import Reporter
from virnucpro.results.called import ScoredUnit, Source
from virnucpro.results.fragments import Fragments
from virnucpro.results.stored_table import FRAGMENT_DTYPE, SEQUENCE_DTYPE, TableWriter
from virnucpro.run_dir import RunDir
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import FRAME_NAMES, UnitTable, are_own_source
from virnucpro.stages import genes
from virnucpro.stages.base import Index, IndexedInput, computed_rows

_SMALLEST_SCORE = 1e-7  # of a float32 softmax; keeps the log finite


class StoredScores:
    """The scores of all rows of a model, unit by unit; a context manager, which keeps them in a mapped file.

    Args:
        run_dir: of the model, where its scores are stored.
        rules: what turns them into calls.
        index: of the units.
        decided: (num_sequences,) of a cascade, the sequences that another model decided; their rows need no score.
    """

    def __init__(self, run_dir: RunDir, rules: Rules, index: Index, decided: NDArray[np.bool_] | None = None) -> None:
        self.run_dir, self.rules = run_dir, rules
        self._index = index
        self._decided = decided
        self._num_filled = 0

    def __enter__(self) -> Self:
        self._place, self._known = new_scratch(self.run_dir.row_scores, np.float32, (self._index.num_rows, 2))
        return self

    def __exit__(self, *exception: object) -> None:
        self._place.unlink(missing_ok=True)

    def unit(self, unit: int, strings: Collection[str] = ()) -> ScoredUnit:
        """A unit with the score of every row; ``strings`` are the lists that are read.

        Raises:
            CountError: some row has no score, or more than one.
        """
        while self._num_filled < unit:
            self._fill(self._num_filled, store.read_unit(self.run_dir.unit(self._num_filled), ()))
        table = store.read_unit(self.run_dir.unit(unit), strings)
        if self._num_filled == unit:
            self._fill(unit, table)
        scores = np.array(self._known[table.first_row : table.first_row + len(table.rows)])
        let_go(self._known)
        failed = np.isnan(scores).any(axis=1) & are_wanted(self.rules, table, self._decided)
        return ScoredUnit(table, scores, failed, (self._nearest(unit, len(table.fragments)),))

    def _nearest(self, unit: int, num_fragments: int) -> NDArray[np.float32] | None:
        """What the nearest proteins say of each fragment of a unit; None if the model does not ask."""
        if not self.rules.adds_nearest:
            return None
        log_odds: NDArray[np.float32] = store.read_arrays(self.run_dir.nearest(unit), "nearest", "log_odds")["log_odds"]
        if len(log_odds) != num_fragments:
            raise CountError(
                f"unit {unit}: {num_fragments} fragments went in, the nearest proteins of {len(log_odds)} came"
            )
        return log_odds

    def _fill(self, unit: int, table: UnitTable) -> None:
        """Let the rows of the next unit have their scores; NaN if a row was not computed."""
        computed = store.read_arrays(self.run_dir.scores(unit), "scores", "scores")["scores"]
        is_computed = computed_rows(self.run_dir, unit, table.rows, table.first_row)
        if len(computed) != is_computed.sum() or len(table.rows) != self._index.units[unit].num_rows:
            raise CountError(f"unit {unit}: {is_computed.sum()} rows went in, {len(computed)} scores came out")
        mine = self._known[table.first_row : table.first_row + len(table.rows)]
        mine[...] = np.nan
        mine[is_computed] = computed
        is_copy = ~are_own_source(table.rows, table.first_row)
        mine[is_copy] = self._known[table.rows["source"][is_copy]]
        self._num_filled = unit + 1


def are_wanted(rules: Rules, table: UnitTable, decided: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """(n,) which rows of a unit a model must have a score for."""
    wanted = np.ones(len(table.rows), dtype=bool)
    if decided is not None:
        wanted &= ~decided[table.rows["sequence"]]
    return wanted if rules.scores_frameless else wanted & (table.rows["frame"] != 0)


@dataclass(frozen=True, eq=False)
class ScoredModels:
    """The scores of a run: of the model asked for, in a cascade also of the one that looked first."""

    asked: StoredScores  # of the model asked for
    first: StoredScores | None = None  # of the one that looked first; None without one
    decided: NDArray[np.bool_] | None = None  # (num_sequences,) in a cascade, those that ``first`` decided

    @property
    def rules(self) -> tuple[Rules, ...]:
        """Of each model, as ``Fragments`` has them."""
        return tuple(scores.rules for scores in (self.asked, self.first) if scores is not None)

    def unit(self, unit: int, strings: Collection[str] = ()) -> ScoredUnit:
        """A unit, each of its rows with the score of the model that decided its sequence."""
        asked = self.asked.unit(unit, strings)
        if self.first is None or self.decided is None:
            return asked
        first, by_first = self.first.unit(unit), self.decided[asked.table.rows["sequence"]]
        return ScoredUnit(
            asked.table,
            np.where(by_first[:, None], first.scores, asked.scores),
            np.where(by_first, first.failed, asked.failed),
            (*asked.nearest, *first.nearest),
        )


@dataclass(frozen=True, eq=False)
class InputUnits(Source):
    """The units of one input."""

    scores: ScoredModels
    index: Index
    item: IndexedInput

    def _numbers(self) -> Iterator[int]:
        start, num = self.item.first_sequence, self.item.num_sequences
        for number, unit in enumerate(self.index.units):
            if num and start <= unit.first_sequence < start + num:
                yield number

    def units(self, strings: Collection[str]) -> Iterator[ScoredUnit]:
        """Each with its scores."""
        for unit in self._numbers():
            yield self.scores.unit(unit, strings)

    def bases(self) -> Iterator[tuple[Ragged, NDArray[np.int64], Ragged]]:
        """As of ``Source``."""
        for unit in self._numbers():
            table = store.read_unit(self.scores.asked.run_dir.unit(unit), ("pieces", "descriptions"))
            yield table.pieces, table.piece_sequences, table.piece_descriptions


def run(index: Index, scores: ScoredModels, reporter: Reporter) -> Fragments:
    """Write the table of a run whose units are all scored, and open it.

    Raises:
        CountError: some row has no score, or more than one; or the table lacks a sequence or a fragment.
    """
    run_dir = scores.asked.run_dir
    starts = np.array([item.first_sequence for item in index.inputs], dtype=np.int64)
    frames = np.zeros((len(starts), len(FRAME_NAMES)), dtype=np.int64)
    with reporter.stage("tabulate", index.num_rows, "rows") as advance, TableWriter(run_dir.table) as writer:
        for number in range(len(index.units)):
            unit = scores.unit(number, ("names",))
            rows, sequences = unit.table.rows, _sequences(unit.table, scores.decided)
            writer.append(sequences, unit.table.names, *fragments_of(scores.rules, unit, scores.decided))
            writer.append_genes(*genes.read(run_dir, number))
            writer.append_gaps(unit.table.gaps)
            counted = rows[_are_scored(scores, rows)]
            inputs = np.searchsorted(starts, counted["sequence"], side="right") - 1
            for place, frame in enumerate(FRAME_NAMES):
                frames[:, place] += np.bincount(inputs[counted["frame"] == frame], minlength=len(starts))
            advance(len(rows))
        by_frame = [dict(zip(FRAME_NAMES.values(), counts, strict=True)) for counts in frames.tolist()]
        writer.finish({"frames": by_frame, "organisms": genes.read_organisms(run_dir)})
    table = Fragments.open(run_dir.table, scores.rules)
    for what, expected, found in (
        ("sequences", index.num_sequences, len(table)),
        ("fragments", index.num_fragments, len(table.fragments)),
        ("bases", sum(item.num_bases for item in index.inputs), table.total("length")),
    ):
        if expected != found:
            raise CountError(f"{expected} {what} were cut, {found} are in {run_dir.table}")
    return table


def _are_scored(scores: ScoredModels, rows: NDArray[np.void]) -> NDArray[np.bool_]:
    """(n,) whether the model that decided the sequence of a row scores such rows."""
    scores_frameless = np.array([rules.scores_frameless for rules in scores.rules])
    models = 0 if scores.decided is None else scores.decided[rows["sequence"]].astype(np.int64)
    return np.asarray((rows["frame"] != 0) | scores_frameless[models])


def _sequences(table: UnitTable, decided: NDArray[np.bool_] | None) -> NDArray[np.void]:
    sequences = np.zeros(len(table.sequences), dtype=SEQUENCE_DTYPE)
    for name in ("length", "status"):
        sequences[name] = table.sequences[name]
    if decided is not None:
        sequences["model"] = decided[table.sequences["number"]]
    return sequences


def fragments_of(
    rules: Sequence[Rules], unit: ScoredUnit, decided: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """The fragments of a unit, (f,) FRAGMENT_DTYPE, and (f,) their rows that could not be computed."""
    cut, rows = unit.table.fragments, unit.table.rows
    num_rows = np.asarray(cut["num_rows"], dtype=np.int64)
    fragments = np.zeros(len(cut), dtype=FRAGMENT_DTYPE)
    for name in ("sequence", "start", "stop", "masked"):
        fragments[name] = cut[name]
    fragments["num_open"] = _per_fragment((rows["frame"] != 0).astype(np.int64), num_rows)
    fragments["log_odds"] = log_odds_of(rules[0], unit, unit.nearest[0])
    if decided is not None:
        by_first = decided[cut["sequence"]]
        fragments["log_odds"][by_first] = log_odds_of(rules[1], unit, unit.nearest[1])[by_first]
    return fragments, _per_fragment(unit.failed.astype(np.int64), num_rows)


def log_odds_of(rules: Rules, unit: ScoredUnit, nearest: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
    """(f,) calibrated log-odds of fragments, their rows joined by the rule of the bundle; NaN without a score.

    Args:
        rules: of the bundle.
        unit: the unit.
        nearest: (f,) log-odds that are added to those of the joined rows.
    """
    cut = unit.table.fragments
    has_score: NDArray[np.bool_] = np.asarray(~np.isnan(unit.scores).any(axis=1))
    num_rows = np.asarray(cut["num_rows"], dtype=np.int64)
    num_scored = _per_fragment(has_score.astype(np.int64), num_rows)
    log_odds = np.full(len(cut), np.nan)
    scored = num_scored > 0
    if scored.any():
        safe = np.log(np.maximum(unit.scores[has_score].astype(np.float64), _SMALLEST_SCORE))
        ranges = (np.cumsum(num_scored) - num_scored)[scored]
        if rules.row_rule == "max":
            # The published rule: virus when the largest virus score is >= the largest other score.
            best = np.maximum.reduceat(safe, ranges, axis=0)
            joined = best[:, 1] - best[:, 0]
        else:
            joined = np.add.reduceat(safe[:, 1] - safe[:, 0], ranges) / num_scored[scored]
        if nearest is not None:
            joined = joined + nearest[scored]
        lengths = cut["length"][scored].astype(np.int64)
        log_odds[scored] = rules.calibration.fragment_log_odds(joined, lengths)
    return log_odds


def _per_fragment(values: NDArray[np.int64], num_rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(f,) sums of the rows' values."""
    totals = np.concatenate([[0], np.cumsum(values)])
    stops = np.cumsum(num_rows)
    return np.asarray(totals[stops] - totals[stops - num_rows], dtype=np.int64)
