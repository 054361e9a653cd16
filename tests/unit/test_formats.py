"""Tables as text: to the byte what Python writes, in files that are the same however their bytes come."""

from __future__ import annotations

import gzip
import math
from itertools import pairwise

import numpy as np
from conftest import random_dna
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.results.formats import decimals, lines, open_output
from virnucpro.results.schema import Column

TIES = [0.00005, 0.03125, 0.125, 0.375, 0.99995, 1.0, 0.0, -0.0, -0.001, -2.675, 1e9, 12345678.905, 3e10, math.nan]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1) | st.floats(-1e12, 1e12) | st.sampled_from(TIES)), st.integers(1, 6))
def test_decimals_are_those_of_printf(values, num_decimals):
    expected = [b"NA" if math.isnan(value) else b"%.*f" % (num_decimals, value) for value in values]
    assert decimals(np.array(values, dtype=np.float64), num_decimals) == expected


def test_decimals_of_float32_probabilities_are_those_of_printf():
    """They are looked up: every tie of a small denominator, numbers next to ties, and any others."""
    ties = np.arange((1 << 14) + 1, dtype=np.float32) / (1 << 14)
    near = np.float32(np.arange(20_001) / 20_000)
    beside = (np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(1)))
    some = np.random.default_rng(1).random(100_000, dtype=np.float32)
    values = np.concatenate([ties, near, *beside, some, [np.float32(np.nan)]])
    assert decimals(values) == [b"NA" if math.isnan(value) else b"%.4f" % value for value in values.tolist()]


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=4), st.integers(0, 2**62), st.floats(0, 1)), max_size=5))
def test_lines_are_cells_with_tabs_between_them(rows):
    names, numbers, shares = zip(*rows, strict=True) if rows else ((), (), ())
    cells = (names, np.array(numbers, dtype=np.int64), np.array(shares, dtype=np.float64))
    columns = [Column("a", "string", ""), Column("b", "integer", ""), Column("c", "number", "", decimals=2)]
    assert lines(cells, columns) == b"".join(b"%b\t%d\t%.2f\n" % row for row in rows)


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
