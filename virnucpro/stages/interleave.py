"""Units of several runs over the same sequences, as one row of units: of each sequence what one of the runs has.

A run's unit may end within a sequence, and units of two runs end in different places. So what a run has is given up to
the last sequence that all runs have seen to begin, and the rest held until the others are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import UnitTable
from virnucpro.stages.base import Index
from virnucpro.stages.consensus import ScoredUnit


@dataclass(frozen=True)
class Share:
    """What one run adds.

    Attributes:
        units: all of the run, in order.
        index: of these units.
        is_mine: from a range of sequences to whether each of them is taken from this run.
    """

    units: Iterator[ScoredUnit]
    index: Index
    is_mine: Callable[[slice], NDArray[np.bool_]]


def interleaved(shares: Sequence[Share], *, with_strings: bool) -> Iterator[ScoredUnit]:
    """Units that hold every sequence once, in order; no unit is without both sequences and fragments.

    Args:
        shares: one for each run; each sequence is taken from one of them.
        with_strings: nucleotides and proteins of the rows too; else these lists are empty.
    """
    streams = [_Stream(share, with_strings=with_strings) for share in shares]
    while not all(stream.is_over for stream in streams):
        # The one that is behind holds nothing: all that it had was given.
        min(streams, key=lambda stream: stream.num_seen).read()
        stop = min(stream.num_seen for stream in streams)
        parts = [part for stream in streams if (part := stream.take(stop)) is not None]
        if parts:
            yield parts[0] if len(parts) == 1 else _merged(parts)


class _Stream:
    """The share of one run, unit by unit.

    Attributes:
        num_seen: sequences that were seen to begin; all but the last of them have ended.
        is_over: every unit was read.
    """

    def __init__(self, share: Share, *, with_strings: bool) -> None:
        self._units = zip(share.units, share.index.units, strict=True)
        self._is_mine = share.is_mine
        self._num_sequences = share.index.num_sequences
        self._with_strings = with_strings
        self._held: ScoredUnit | None = None
        self.num_seen = 0
        self.is_over = False

    def read(self) -> None:
        """Hold what of the next unit is taken; call it when nothing is held."""
        for unit, indexed in self._units:
            self.num_seen = indexed.stop_sequence
            first = indexed.first_sequence
            is_mine = self._is_mine(slice(first, indexed.stop_sequence))
            mine = unit if self._with_strings else _without_strings(unit)
            self._held = _picked(mine, lambda numbers: is_mine[numbers - first])  # noqa: B023 - called at once
            return
        self.is_over = True
        self.num_seen = self._num_sequences + 1  # never behind again

    def take(self, stop: int) -> ScoredUnit | None:
        """What is held of the sequences below ``stop``; None where that is nothing."""
        if self._held is None:
            return None
        taken = _picked(self._held, lambda numbers: numbers < stop)
        self._held = _picked(self._held, lambda numbers: numbers >= stop)
        return taken if len(taken.table.sequences) or len(taken.table.fragments) else None


def _without_strings(unit: ScoredUnit) -> ScoredUnit:
    """With an empty string for each row."""
    empty = Ragged(np.empty(0, dtype=np.uint8), np.zeros(len(unit.table.rows) + 1, dtype=np.int64))
    return replace(unit, table=replace(unit.table, nucleotides=empty, proteins=empty))


def _picked(unit: ScoredUnit, pick: Callable[[NDArray[np.int64]], NDArray[np.bool_]]) -> ScoredUnit:
    """Some sequences of a unit; ``pick`` takes ascending numbers of sequences and says which stay."""
    table = unit.table
    sequences, fragments, rows, pieces = (pick(numbers) for numbers in _numbers(table))
    if all(kept.all() for kept in (sequences, fragments, rows, pieces)):
        return unit
    return ScoredUnit(
        UnitTable(
            sequences=table.sequences[sequences],
            names=table.names.only(sequences),
            fragments=table.fragments[fragments],
            rows=table.rows[rows],
            first_row=table.first_row,
            nucleotides=table.nucleotides.only(rows),
            proteins=table.proteins.only(rows),
            pieces=table.pieces.only(pieces),
            piece_sequences=table.piece_sequences[pieces],
        ),
        scores=unit.scores[rows],
        log_odds=unit.log_odds[fragments],
        num_open=unit.num_open[fragments],
        num_failed=unit.num_failed[fragments],
    )


def _merged(units: Sequence[ScoredUnit]) -> ScoredUnit:
    """Units that share no sequence, in the order of their sequences."""
    tables = [unit.table for unit in units]
    columns = zip(*map(_numbers, tables), strict=True)
    sequences, fragments, rows, pieces = (np.argsort(np.concatenate(part), kind="stable") for part in columns)
    return ScoredUnit(
        UnitTable(
            sequences=np.concatenate([table.sequences for table in tables])[sequences],
            names=Ragged.concatenate(table.names for table in tables).take(sequences),
            fragments=np.concatenate([table.fragments for table in tables])[fragments],
            rows=np.concatenate([table.rows for table in tables])[rows],
            first_row=tables[0].first_row,
            nucleotides=Ragged.concatenate(table.nucleotides for table in tables).take(rows),
            proteins=Ragged.concatenate(table.proteins for table in tables).take(rows),
            pieces=Ragged.concatenate(table.pieces for table in tables).take(pieces),
            piece_sequences=np.concatenate([table.piece_sequences for table in tables])[pieces],
        ),
        scores=np.concatenate([unit.scores for unit in units])[rows],
        log_odds=np.concatenate([unit.log_odds for unit in units])[fragments],
        num_open=np.concatenate([unit.num_open for unit in units])[fragments],
        num_failed=np.concatenate([unit.num_failed for unit in units])[fragments],
    )


def _numbers(table: UnitTable) -> tuple[NDArray[np.int64], ...]:
    """Ascending numbers of the sequences that sequences, fragments, rows and pieces of a unit belong to."""
    return table.sequences["number"], table.fragments["sequence"], table.rows["sequence"], table.piece_sequences
