"""Columns as text: to the byte what Python and NumPy write, and back."""

from __future__ import annotations

import gzip
import math
from itertools import pairwise

import numpy as np
import pytest
from conftest import random_dna
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.results import text
from virnucpro.results.tables import open_output
from virnucpro.sequence.ragged import Ragged

TIES = [0.00005, 0.03125, 0.125, 0.375, 0.99995, 1.0, 0.0, -0.0, -0.001, -2.675, 1e9, 12345678.905, 3e10, math.nan]
patient = settings(deadline=None)
"""Kernels are compiled when they are first called."""

some_cells = st.lists(st.binary(max_size=5).map(lambda cell: cell.translate(None, b"\t\n")), max_size=6)


@patient
@given(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 18).map(lambda power: 10**power)))
def test_integers_are_their_digits(values):
    assert text.integers(np.array(values, dtype=np.int64)).to_bytes() == [b"%d" % value for value in values]


@patient
@given(st.lists(st.floats(0, 1) | st.floats(-1e12, 1e12) | st.sampled_from(TIES)), st.integers(1, 6))
def test_decimals_are_those_of_printf(values, num_decimals):
    expected = [b"NA" if math.isnan(value) else b"%.*f" % (num_decimals, value) for value in values]
    assert text.decimals(np.array(values, dtype=np.float64), num_decimals).to_bytes() == expected


def test_decimals_of_every_tie_of_a_small_denominator_are_those_of_printf():
    values = np.arange(1 << 14) / (1 << 14)
    assert text.decimals(values).to_bytes() == [b"%.4f" % value for value in values.tolist()]


def neighbours_of(value, num):
    """The float32 numbers around a value, in the order of their bits."""
    return (np.float32(value).view(np.uint32) + np.arange(-num, num, dtype=np.int64)).astype(np.uint32).view(np.float32)


def logistic(values):
    return 1 / (1 + np.exp(-values))


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(1).random(50_000),
        logistic(np.random.default_rng(2).normal(0, 9, 50_000)),
        np.concatenate([neighbours_of(value, 2_000) for value in (1e-13, 1e-4, 1e-3, 0.1, 0.5, 1.0)]),
        2.0 ** -np.arange(70),
        np.arange(1, 1000) / 1000,
        np.arange(1, 1000) / 1e8,
        [0.0, 1.0, 2.0, 1e-45, -0.5, np.nan, np.inf],
        [],
    ],
    ids=["evenly", "of a head", "at borders", "powers of two", "short", "short and small", "no shares", "none"],
)
def test_shortest_is_what_numpy_writes_of_a_float32(values):
    values = np.asarray(values, dtype=np.float32)
    assert text.shortest(values).to_bytes() == [str(value).encode() for value in values]


@patient
@given(some_cells)
def test_items_begin_where_they_differ_from_the_one_before(cells):
    expected = [place for place, cell in enumerate(cells) if not place or cell != cells[place - 1]]
    assert text.begins(Ragged.from_bytes(cells)).tolist() == expected


@patient
@given(some_cells, st.integers(0, 2))
def test_items_lose_letters_at_their_ends(cells, num_letters):
    cells = [cell + b"F1" for cell in cells]
    shortened = text.shortened(Ragged.from_bytes(cells), num_letters)
    assert shortened.to_bytes() == [cell[: len(cell) - num_letters] for cell in cells]


@patient
@given(some_cells, st.lists(st.integers(0, 5)))
def test_items_are_taken_from_any_places(cells, places):
    places = [place for place in places if place < len(cells)]
    taken = text.taken(Ragged.from_bytes(cells), np.array(places, dtype=np.int64))
    assert taken.to_bytes() == [cells[place] for place in places]


some_numbers = st.one_of(
    st.floats(allow_infinity=False).map(str),
    st.integers(-(10**18), 10**18).map(str),
    st.floats(0, 1).map("{:.4f}".format),
    st.sampled_from([".5", "5.", "1e-3", "NA"]),
)


@patient
@given(st.integers(1, 4).flatmap(lambda num: st.lists(st.tuples(*[st.binary(max_size=4)] * num), max_size=5)))
def test_lines_are_cells_with_tabs_between_them_and_are_read_back(rows):
    rows = [tuple(cell.translate(None, b"\t\n") for cell in row) for row in rows]
    columns = [Ragged.from_bytes(column) for column in zip(*rows, strict=True)]
    if not columns:
        return
    content = text.lines(columns)
    assert content == b"".join(b"\t".join(row) + b"\n" for row in rows)
    lines = text.Lines(content, len(columns))
    assert [lines.column(number).to_bytes() for number in range(len(columns))] == [item.to_bytes() for item in columns]


@pytest.mark.parametrize("content", [b"a\n", b"a\tb", b"a\tb\tc\n", b"a\nb\tc\td\n", b"a\tb\nc\n"])
def test_lines_of_another_number_of_cells_are_refused(content):
    with pytest.raises(ValueError, match="another number of cells"):
        text.Lines(content, 2)


@patient
@given(st.lists(some_numbers))
def test_numbers_are_read_as_python_reads_them(cells):
    expected = [math.nan if cell == "NA" else float(cell) for cell in cells]
    found = text.numbers(Ragged.from_bytes([cell.encode() for cell in cells]))
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float64))


@pytest.mark.parametrize("cell", [b"", b".", b"1.2.3", b"virus", b"1 2", b"-"])
def test_what_is_no_number_is_refused(cell):
    with pytest.raises(ValueError, match="could not convert"):
        text.numbers(Ragged.from_bytes([cell]))


@patient
@given(some_cells, st.sampled_from([b"", b"a", b"virus", b"\0"]))
def test_cells_are_a_word_or_not(cells, word):
    cells = [*cells, word, word + b"a"]
    assert text.are(Ragged.from_bytes(cells), word).tolist() == [cell == word for cell in cells]


def test_a_packed_file_is_the_same_however_its_bytes_come(tmp_path):
    """Units of any size give the same bytes; three blocks of the packer and some."""
    content = (random_dna(1 << 20, 1) + random_dna(1 << 20, 2) + "A" * (1 << 20) + random_dna(1000, 3)).encode()
    packed = []
    for name, steps in (("whole", [len(content)]), ("lines", [61]), ("large", [1_500_000, 7, 1 << 20])):
        with open_output(tmp_path / f"{name}.gz") as stream:
            starts = np.cumsum([0, *steps * (len(content) // min(steps) + 1)])
            for first, last in pairwise([*starts[starts < len(content)].tolist(), len(content)]):
                stream.write(content[first:last])
        packed.append((tmp_path / f"{name}.gz").read_bytes())
    assert packed[0] == packed[1] == packed[2]
    assert gzip.decompress(packed[0]) == content
    assert packed[0][:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"  # no name, no time
