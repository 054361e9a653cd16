"""Columns of a table as text and back, without a Python object for any cell.

A column is a ``Ragged`` of uint8, an item for each line; columns side by side make lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel
from virnucpro.sequence.ragged import Ragged, offsets_of

NOTHING = b"NA"

_ZERO, _MINUS, _POINT, _EXPONENT, _TAB, _NEWLINE = b"0-.e\t\n"
_TIE = 1e-6
"""So near to a tie, what is left of a number after its last decimal may be on the other side of it."""
_LARGEST_SCALED = 1e9
_MOST_DIGITS = 15
"""Any whole number of so many is a double."""
_SMALLEST_POSITIONAL = 1e-4
"""numpy writes what is smaller with an exponent."""
_SMALLEST_SHORT, _MOST_DECIMALS = 1e-13, 22
"""Nine digits of any larger number end within so many decimals, whose power of ten is a double."""


def integers(values: NDArray[np.integer]) -> Ragged:
    """Numbers (n,) that are not negative, in decimal digits."""
    whole = values.astype(np.int64)
    offsets = offsets_of(_num_digits(whole))
    text = np.empty(offsets[-1], dtype=np.uint8)
    _write_digits(whole, offsets, text)
    return Ragged(text, offsets)


def decimals(values: NDArray[np.floating], num_decimals: int = 4) -> Ragged:
    """Numbers (n,) with so many decimals, to the digit as C's ``printf`` rounds them; ``NA`` for NaN."""
    values = np.asarray(values, dtype=np.float64)
    missing = np.isnan(values)
    scaled = np.abs(np.where(missing, 0.0, values)) * 10.0**num_decimals
    digits = np.rint(np.minimum(scaled, _LARGEST_SCALED)).astype(np.int64)
    # A product is rounded, so near a tie it does not say which way: there, and where digits are lost, Python does.
    doubtful = np.flatnonzero((np.abs(scaled - np.floor(scaled) - 0.5) < _TIE) | (scaled >= _LARGEST_SCALED))
    for place in doubtful.tolist():
        digits[place] = int(f"{abs(values[place]):.{num_decimals}f}".replace(".", ""))
    is_negative = np.signbit(values) & ~missing
    whole, part = np.divmod(digits, 10**num_decimals)
    lengths = np.where(missing, len(NOTHING), is_negative + _num_digits(whole) + 1 + num_decimals)
    offsets = offsets_of(lengths)
    text = np.empty(offsets[-1], dtype=np.uint8)
    _write_decimals(whole, part, num_decimals, is_negative, missing, offsets, text)
    return Ragged(text, offsets)


def shortest(values: NDArray[np.float32]) -> Ragged:
    """Numbers (n,) as numpy's ``str`` writes them: the fewest digits that read back as the same float32."""
    exact = values.astype(np.float64)
    lows, highs = (
        (exact + np.nextafter(values, np.float32(towards)).astype(np.float64)) / 2 for towards in (-np.inf, np.inf)
    )
    digits, num_decimals = _fewest_digits(exact, lows, highs)
    has_exponent = exact < _SMALLEST_POSITIONAL
    num_digits = _num_digits(digits)
    lengths = np.where(has_exponent, num_digits + (num_digits > 1) + len("e-00"), len("0.") + num_decimals)
    others = {place: str(values[place]).encode() for place in np.flatnonzero(num_decimals == 0).tolist()}
    lengths[list(others)] = [len(other) for other in others.values()]
    offsets = offsets_of(lengths)
    text = np.empty(offsets[-1], dtype=np.uint8)
    _write_shortest(digits, num_decimals, has_exponent, offsets, text)
    for place, other in others.items():
        text[offsets[place] : offsets[place + 1]] = list(other)
    return Ragged(text, offsets)


def words(choices: Sequence[bytes], numbers: NDArray[np.integer] | NDArray[np.bool_]) -> Ragged:
    """``choices[number]`` for each of the numbers (n,)."""
    return taken(Ragged.from_bytes(choices), numbers.astype(np.int64))


def taken(column: Ragged, places: NDArray[np.int64]) -> Ragged:
    """The items of a column at some places, as ``Ragged.take``, which is slower for short items."""
    offsets = offsets_of(column.lengths[places])
    text = np.empty(offsets[-1], dtype=np.uint8)
    _write_taken(column.values, column.offsets[:-1][places], offsets, text)
    return Ragged(text, offsets)


def shortened(column: Ragged, num_letters: int) -> Ragged:
    """The items of a column, none of them shorter than that, without so many letters at their ends."""
    offsets = offsets_of(column.lengths - num_letters)
    text = np.empty(offsets[-1], dtype=np.uint8)
    _write_taken(column.values, column.offsets[:-1], offsets, text)
    return Ragged(text, offsets)


def begins(column: Ragged) -> NDArray[np.int64]:
    """Places of items that differ from the one before; the first does."""
    return np.flatnonzero(_are_new(column.values, column.offsets))


def joined(*columns: Ragged | bytes) -> Ragged:
    """Columns side by side, an item each; bytes stand in every item."""
    num_lines = next(len(column) for column in columns if isinstance(column, Ragged))
    lengths = np.zeros(num_lines, dtype=np.int64)
    for column in columns:
        lengths += len(column) if isinstance(column, bytes) else column.lengths
    offsets = offsets_of(lengths)
    text = np.empty(offsets[-1], dtype=np.uint8)
    places = offsets[:-1].copy()
    for column in columns:
        if isinstance(column, bytes):
            _write_constant(np.frombuffer(column, dtype=np.uint8), places, text)
        else:
            _write_column(column.values, column.offsets, places, text)
    return Ragged(text, offsets)


def lines(columns: Sequence[Ragged | bytes]) -> bytes:
    """Columns as lines, with tabs between them; bytes stand in every line."""
    separated = [part for column in columns for part in (b"\t", column)]
    return joined(*separated[1:], b"\n").values.tobytes()


class Lines:
    """Whole lines of a table, as ``lines`` makes them.

    Args:
        text: them.
        num_columns: cells in each.

    Raises:
        ValueError: a line has more cells or fewer.
    """

    def __init__(self, text: bytes, num_columns: int) -> None:
        self._text = np.frombuffer(text, dtype=np.uint8)
        ends = np.flatnonzero((self._text == _TAB) | (self._text == _NEWLINE))
        is_last = np.arange(len(ends)) % num_columns == num_columns - 1
        if len(ends) % num_columns or not np.array_equal(self._text[ends] == _NEWLINE, is_last):
            raise ValueError(f"a line has another number of cells than the {num_columns} of the header")
        self._ends = ends.reshape(-1, num_columns)
        self._starts = np.append(0, ends[:-1] + 1)[: len(ends)].reshape(-1, num_columns)

    def column(self, number: int) -> Ragged:
        """The cells of a column."""
        starts = self._starts[:, number].copy()
        offsets = offsets_of(self._ends[:, number] - starts)
        cells = np.empty(offsets[-1], dtype=np.uint8)
        _write_taken(self._text, starts, offsets, cells)
        return Ragged(cells, offsets)


def numbers(column: Ragged) -> NDArray[np.float64]:
    """(n,) cells as numbers, as ``float`` reads them; NaN for ``NA``.

    Raises:
        ValueError: a cell is none.
    """
    values, is_plain = _read_decimals(column.values, column.offsets)
    for place in np.flatnonzero(~is_plain).tolist():
        cell = column[place].tobytes()
        values[place] = np.nan if cell == NOTHING else float(cell)
    return values


def are(column: Ragged, word: bytes) -> NDArray[np.bool_]:
    """(n,) whether each cell is a word."""
    found: NDArray[np.bool_] = column.lengths == len(word)
    first = column.offsets[:-1][found]
    for place, letter in enumerate(word):
        is_same = column.values[first + place] == letter
        found[found] = is_same
        first = first[is_same]
    return found


@kernel
def _num_digits(values: NDArray[np.int64]) -> NDArray[np.int64]:
    numbers = np.ones(len(values), dtype=np.int64)
    for i in range(len(values)):
        limit = 10
        while values[i] >= limit and numbers[i] < 19:
            limit *= 10
            numbers[i] += 1
    return numbers


@kernel
def _write_digits(values: NDArray[np.int64], offsets: NDArray[np.int64], text: NDArray[np.uint8]) -> None:
    for i in range(len(values)):
        rest = values[i]
        for place in range(offsets[i + 1] - 1, offsets[i] - 1, -1):
            text[place] = _ZERO + rest % 10
            rest //= 10


@kernel
def _write_decimals(
    whole: NDArray[np.int64],
    part: NDArray[np.int64],
    num_decimals: int,
    is_negative: NDArray[np.bool_],
    missing: NDArray[np.bool_],
    offsets: NDArray[np.int64],
    text: NDArray[np.uint8],
) -> None:
    for i in range(len(whole)):
        first, place = offsets[i], offsets[i + 1] - 1
        if missing[i]:
            for j in range(len(NOTHING)):
                text[first + j] = NOTHING[j]
            continue
        if is_negative[i]:
            text[first] = _MINUS
            first += 1
        rest = part[i]
        for _ in range(num_decimals):
            text[place] = _ZERO + rest % 10
            rest //= 10
            place -= 1
        text[place] = _POINT
        rest = whole[i]
        for j in range(place - 1, first - 1, -1):
            text[j] = _ZERO + rest % 10
            rest //= 10


@kernel
def _fewest_digits(
    values: NDArray[np.float64], lows: NDArray[np.float64], highs: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole numbers of so many decimals, the fewest that lie nearer to each value than to its neighbours.

    0 decimals where that is not certain, or where the value is no share.

    Args:
        values: (n,).
        lows: halfway to the float32 below.
        highs: halfway to the float32 above.
    """
    digits, num_decimals = np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=np.int64)
    for i in range(len(values)):
        value, scale = values[i], 1.0
        if not _SMALLEST_SHORT <= value <= 1:
            continue
        for decimals in range(1, _MOST_DECIMALS + 1):
            scale *= 10.0
            scaled = value * scale
            nearest = np.rint(scaled)
            # Of two numbers that doubles hold exactly, the quotient is the double nearest to the decimal number.
            read = nearest / scale
            if lows[i] <= read <= highs[i]:
                is_tied = read in (lows[i], highs[i]) or abs(abs(scaled - nearest) - 0.5) < _TIE
                # Beside a power of two the gaps differ, and a number that is not the nearest may be shorter.
                is_between_equal_gaps = highs[i] - value == value - lows[i]
                if not is_tied and (is_between_equal_gaps or decimals == 1):
                    digits[i], num_decimals[i] = int(nearest), decimals
                break
    return digits, num_decimals


@kernel
def _write_shortest(
    digits: NDArray[np.int64],
    num_decimals: NDArray[np.int64],
    has_exponent: NDArray[np.bool_],
    offsets: NDArray[np.int64],
    text: NDArray[np.uint8],
) -> None:
    """Write all that have decimals."""
    for i in range(len(digits)):
        first, last, rest = offsets[i], offsets[i + 1] - 1, digits[i]
        if num_decimals[i] == 0:
            continue
        point = first + 1
        if has_exponent[i]:
            last -= 4
            exponent = num_decimals[i] - max(last - first - 1, 0)
            text[last + 1], text[last + 2] = _EXPONENT, _MINUS
            text[last + 3], text[last + 4] = _ZERO + exponent // 10, _ZERO + exponent % 10
        for place in range(last, first - 1, -1):
            if place == point:
                text[place] = _POINT
            else:
                text[place] = _ZERO + rest % 10
                rest //= 10


@kernel
def _write_taken(
    values: NDArray[np.uint8], starts: NDArray[np.int64], offsets: NDArray[np.int64], text: NDArray[np.uint8]
) -> None:
    for i in range(len(starts)):
        for j in range(offsets[i + 1] - offsets[i]):
            text[offsets[i] + j] = values[starts[i] + j]


@kernel
def _write_column(
    values: NDArray[np.uint8], offsets: NDArray[np.int64], places: NDArray[np.int64], text: NDArray[np.uint8]
) -> None:
    """Put each item where its line has got to, and move that place behind it."""
    for i in range(len(places)):
        place = places[i]
        for j in range(offsets[i], offsets[i + 1]):
            text[place] = values[j]
            place += 1
        places[i] = place


@kernel
def _write_constant(values: NDArray[np.uint8], places: NDArray[np.int64], text: NDArray[np.uint8]) -> None:
    """The same with one item for all lines."""
    for i in range(len(places)):
        for j in range(len(values)):
            text[places[i] + j] = values[j]
        places[i] += len(values)


@kernel
def _are_new(values: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    are_new = np.ones(len(offsets) - 1, dtype=np.bool_)
    for i in range(1, len(are_new)):
        before, start, stop = offsets[i - 1], offsets[i], offsets[i + 1]
        if stop - start == start - before:
            are_new[i] = False
            for j in range(stop - start):
                if values[before + j] != values[start + j]:
                    are_new[i] = True
                    break
    return are_new


@kernel
def _read_decimals(
    values: NDArray[np.uint8], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Cells of digits with at most one point among them, and which are such."""
    found, is_plain = np.empty(len(offsets) - 1), np.zeros(len(offsets) - 1, dtype=np.bool_)
    for i in range(len(found)):
        number, divisor, num_digits = 0, 1.0, 0
        has_point = False
        for j in range(offsets[i], offsets[i + 1]):
            if values[j] == _POINT and not has_point:
                has_point = True
            elif _ZERO <= values[j] < _ZERO + 10:
                number = 10 * number + (values[j] - _ZERO)
                divisor *= 10.0 if has_point else 1.0
                num_digits += 1
            else:
                num_digits = _MOST_DIGITS + 1
                break
        # Of two numbers that doubles hold exactly, the quotient is the double nearest to the decimal number.
        is_plain[i] = 0 < num_digits <= _MOST_DIGITS
        found[i] = number / divisor
    return found, is_plain
