"""Tables as text: to the byte what Python writes, in files that are the same however their bytes come."""

from __future__ import annotations

import gzip
import math
from itertools import pairwise

import numpy as np
import pysam
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
    assert packed[0][:8] == b"\x1f\x8b\x08\x04\x00\x00\x00\x00"  # no name, no time


def test_packed_files_are_read_anywhere_by_samtools_and_tabix(tmp_path):
    """BGZF: records far behind the first block are fetched by name and place, also of bytes that no packer shortens."""
    records = {f"s{number}": random_dna(50_000, number) for number in range(5)}
    with open_output(tmp_path / "x.fna.gz") as stream:
        for name, bases in records.items():
            stream.write(f">{name}\n{bases}\n".encode())
    with pysam.FastaFile(str(tmp_path / "x.fna.gz")) as fasta:
        assert fasta.fetch("s4", 40_000, 40_100) == records["s4"][40_000:40_100]
        assert list(fasta.references) == list(records)
    with open_output(tmp_path / "x.bed.gz") as stream:
        for start in range(0, 1_000_000, 100):
            stream.write(b"a\t%d\t%d\n" % (start, start + 100))
    with pysam.TabixFile(pysam.tabix_index(str(tmp_path / "x.bed.gz"), preset="bed")) as table:
        assert list(table.fetch("a", 900_000, 900_150)) == ["a\t900000\t900100", "a\t900100\t900200"]
    for content in (b"", np.random.default_rng(1).bytes(200_000)):
        with open_output(tmp_path / "y.gz") as stream:
            stream.write(content)
        assert gzip.decompress((tmp_path / "y.gz").read_bytes()) == content
        with pysam.BGZFile(str(tmp_path / "y.gz")) as file:
            assert file.read() == content
