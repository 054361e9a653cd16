"""From what a sample holds to what the whole will hold, with a range."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.bundles import Bundle
from virnucpro.errors import InputError
from virnucpro.machine.sampling import Piece, SampledInput
from virnucpro.run_dir import RunDir
from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.table import DECIDED, UnitTable, are_own_source

_SMALLEST_ERROR = 0.05
_SMALLEST_ERROR_OF_BEGINNING = 0.25
"""A range is never narrower, as a share: pieces that agree by chance, and parts of a file that nobody has seen."""
_STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Range:
    """A foreseen amount.

    Attributes:
        low: it may be as little as this.
        likely: best guess.
        high: it may be as much as this.
    """

    low: float
    likely: float
    high: float

    @classmethod
    def exactly(cls, amount: float) -> Range:
        """Known, not foreseen."""
        return cls(amount, amount, amount)

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def __mul__(self, other: Range) -> Range:
        return Range(self.low * other.low, self.likely * other.likely, self.high * other.high)

    @property
    def is_exact(self) -> bool:
        """Whether there is nothing between low and high."""
        return self.low == self.high


@dataclass(frozen=True)
class Amounts:
    """What inputs hold.

    Attributes:
        num_sequences: records.
        num_bases: their bases.
        num_fragments: windows.
        num_rows: kept frames.
        num_computed: rows that are no duplicates of an earlier row: those that take time.
    """

    num_sequences: Range
    num_bases: Range
    num_fragments: Range
    num_rows: Range
    num_computed: Range


@dataclass(frozen=True)
class Counted:
    """What extraction found in the pieces of a sample.

    Attributes:
        amounts: (pieces, 5) int64, the columns in the order of :class:`Amounts`.
        pieces: the lines of ``amounts``.
        seconds: it took to extract them all and to write their units.
        unit_bytes: size of their unit files.
        run_dir: where their units are, ``0 .. num_units - 1``.
        num_units: how many.
    """

    amounts: NDArray[np.int64]
    pieces: tuple[Piece, ...]
    seconds: float
    unit_bytes: int
    run_dir: RunDir
    num_units: int

    @property
    def num_bases(self) -> int:
        """Of all pieces."""
        return int(self.amounts[:, 1].sum())

    @property
    def num_rows(self) -> int:
        """Of all pieces."""
        return int(self.amounts[:, 3].sum())


def count_sample(inputs: Sequence[SampledInput], bundle: Bundle, unit_rows: int, folder: Path) -> Counted:
    """Extract the pieces of all inputs, in order, as one run, and write its units.

    Duplicates are thus seen across pieces and inputs; those of parts that were not sampled are not.

    Raises:
        InputError: an input cannot be read as nucleotide sequences.
    """
    pieces = tuple(piece for sampled in inputs for piece in sampled.pieces)
    extraction = Extraction(
        [str(piece.path) for piece in pieces],
        fragment_length=bundle.fragment_length,
        min_length=bundle.min_length,
        unit_rows=unit_rows,
        score_frameless=bundle.scores_frameless,
    )
    run_dir = RunDir(folder)
    tallies: list[_Tally] = []
    unit_bytes = 0
    start = time.perf_counter()
    try:
        for unit, table in enumerate(extraction.units()):
            store.write_unit(run_dir.unit(unit), table)
            unit_bytes += run_dir.unit(unit).stat().st_size
            tallies.append(_tally(table))
    except InputError as error:
        raise _of_the_input(error, inputs, pieces) from error
    seconds = time.perf_counter() - start
    bounds = [item.first_sequence for item in extraction.inputs] + [sum(i.num_sequences for i in extraction.inputs)]
    return Counted(_amounts(tallies, pieces, bounds), pieces, seconds, unit_bytes, run_dir, len(tallies))


def count_units(
    run_dir: RunDir, num_units: int, pieces: tuple[Piece, ...], bounds: Sequence[int], seconds: float
) -> Counted:
    """Count units that were written already; sequences that another model decided are left out.

    Args:
        run_dir: where they are.
        num_units: how many.
        pieces: of the sample.
        bounds: number of the first sequence of each piece, and of sequences in all.
        seconds: that it took to write them.
    """
    paths = [run_dir.unit(unit) for unit in range(num_units)]
    amounts = _amounts([_tally(store.read_unit(path, strings=())) for path in paths], pieces, bounds)
    return Counted(amounts, pieces, seconds, sum(path.stat().st_size for path in paths), run_dir, num_units)


def foresee(inputs: Sequence[SampledInput], counted: Counted) -> Amounts:
    """Scale the amounts of the pieces up to the inputs.

    The range is two standard errors of the ratio of amount to bytes between the pieces of an input (Cochran 1977,
    Sampling Techniques, 2.11), and at least 5 % of it; 25 % where only the beginning of a file was seen. An input
    that was read whole has none. The ends of several inputs are added up.
    """
    totals = [Range.exactly(0.0)] * counted.amounts.shape[1]
    for number, sampled in enumerate(inputs):
        of_input = np.array([piece.source == number for piece in counted.pieces])
        sizes = np.array([piece.num_bytes for piece in counted.pieces], dtype=np.float64)[of_input]
        for column, amounts in enumerate(counted.amounts[of_input].T.astype(np.float64)):
            likely = float(amounts.sum()) * sampled.factor
            error = 0.0 if sampled.is_whole else _relative_error(amounts, sizes, sampled)
            totals[column] += Range(max(float(amounts.sum()), likely * (1 - error)), likely, likely * (1 + error))
    return Amounts(*totals)


def _relative_error(amounts: NDArray[np.float64], sizes: NDArray[np.float64], sampled: SampledInput) -> float:
    least = _SMALLEST_ERROR_OF_BEGINNING if sampled.is_beginning else _SMALLEST_ERROR
    total, count = float(amounts.sum()), len(amounts)
    if count < 2 or not total:
        return max(least, 1.0)
    residuals = amounts - total / sizes.sum() * sizes
    standard_error = math.sqrt(count / (count - 1) * float((residuals**2).sum())) / total
    return max(least, _STANDARD_ERRORS * standard_error)


@dataclass(frozen=True)
class _Tally:
    """Number of each sequence of a unit and its length, and of that of each fragment, row and computed row."""

    sequences: NDArray[np.int64]
    lengths: NDArray[np.int64]
    fragments: NDArray[np.int64]
    rows: NDArray[np.int64]
    computed: NDArray[np.int64]


def _tally(table: UnitTable) -> _Tally:
    rows = table.rows["sequence"].copy()
    sequences = table.sequences[table.sequences["status"] != DECIDED]
    return _Tally(
        sequences["number"].copy(),
        sequences["length"].copy(),
        table.fragments["sequence"].copy(),
        rows,
        rows[are_own_source(table.rows, table.first_row)],
    )


def _amounts(tallies: Sequence[_Tally], pieces: Sequence[Piece], bounds: Sequence[int]) -> NDArray[np.int64]:
    """(pieces, 5), the columns in the order of :class:`Amounts`."""

    def joined(name: str) -> NDArray[np.int64]:
        return np.concatenate([np.empty(0, dtype=np.int64), *(getattr(tally, name) for tally in tallies)])

    numbers = joined("sequences")
    places = np.searchsorted(numbers, bounds)
    num_bases = np.concatenate([[0], np.cumsum(joined("lengths"))])
    begun_outside = [piece.begins_inside and first in numbers for piece, first in zip(pieces, bounds[:-1], strict=True)]
    columns = [np.diff(places) - begun_outside, np.diff(num_bases[places])]
    columns += [np.diff(np.searchsorted(joined(name), bounds)) for name in ("fragments", "rows", "computed")]
    return np.stack(columns, axis=1).astype(np.int64)


def _of_the_input(error: InputError, inputs: Sequence[SampledInput], pieces: Sequence[Piece]) -> InputError:
    """The same error of the file that the user named; a line number of a piece says nothing of the file."""
    for piece in pieces:
        sampled = inputs[piece.source]
        if error.source == str(piece.path) and str(piece.path) != sampled.source:
            return InputError(sampled.source, error.problem)
    return error
