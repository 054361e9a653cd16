"""Tables larger than what may be in memory."""

from __future__ import annotations

import tempfile
import tracemalloc

import numpy as np
import psutil
import pytest
from made_tables import RULES

from virnucpro.mapped import chunks, let_go, new_table, new_table_apart
from virnucpro.results.called import InputResults, Source
from virnucpro.results.calls import Calling
from virnucpro.results.counts import overview
from virnucpro.results.fragments import Fragments
from virnucpro.results.outputs import OUTPUTS
from virnucpro.results.schema import REGIONS
from virnucpro.results.stored_table import FRAGMENT_DTYPE, SEQUENCE_DTYPE
from virnucpro.sequence.ragged import Ragged


def test_what_is_let_go_is_not_in_memory_and_not_lost(tmp_path):
    """A table of 128 MB that is let go part by part takes a few MB, and holds what was written."""
    num_items = 1 << 24
    table = new_table(tmp_path / "table.npy", np.float64, (num_items,))
    before = psutil.Process().memory_info().rss
    most = 0
    for part in chunks(num_items, table):
        table[part] = np.arange(part.start, min(part.stop, num_items))
        most = max(most, psutil.Process().memory_info().rss)
    assert most - before < 24e6
    total = sum(float(table[part].sum()) for part in chunks(num_items, table))
    assert total == num_items * (num_items - 1) / 2
    assert psutil.Process().memory_info().rss - before < 24e6


@pytest.mark.parametrize("view", [lambda table: table["b"], lambda table: table[2:5], lambda table: table["a"][1:2]])
def test_a_part_lets_go_of_the_whole(tmp_path, view):
    """Slices and columns too; an array that is not mapped stays as it is."""
    table = new_table(tmp_path / "table.npy", np.dtype([("a", "i1"), ("b", "f8")]), (10,))
    table["b"] = np.arange(10)
    let_go(view(table))
    assert table["b"].tolist() == list(range(10))
    let_go(np.zeros(3))


def test_nothing_is_a_table_too(tmp_path):
    """No items, no file."""
    path = tmp_path / "table.npy"
    path.write_bytes(b"of an earlier run")
    assert new_table(path, np.float32, (0, 2)).shape == (0, 2)
    assert not path.exists()
    assert list(chunks(0)) == []


@pytest.mark.parametrize("has_place", [True, False])
def test_what_has_no_name_is_mapped_where_there_is_room_and_else_in_memory(tmp_path, monkeypatch, has_place):
    """Nothing stays in the folder of temporary files."""
    folder = tmp_path / "temporary"
    if has_place:
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    table = new_table_apart(np.int32, 1 << 18)
    assert not table.any()
    table[:] = np.arange(1 << 18)
    let_go(table)
    assert table[-1] == (1 << 18) - 1
    assert (table.base is not None) == has_place
    assert not has_place or not list(folder.iterdir())


class Reads(Source):
    """The bases of reads that are all alike, some at a time; ``num_read`` says how many were taken."""

    def __init__(self, num_reads):
        self._num_reads, self.num_read = num_reads, 0

    def bases(self):
        for first in range(0, self._num_reads, 1 << 10):
            numbers = np.arange(first, first + (1 << 10))
            self.num_read += len(numbers)
            yield Ragged.from_bytes([b"ACGT" * 10] * len(numbers)), numbers, Ragged.from_bytes([b""] * len(numbers))


def virus_reads(num_reads):
    """A table of reads of 40 bases, most of which are virus."""
    sequences, fragments = np.zeros(num_reads, SEQUENCE_DTYPE), np.zeros(num_reads, FRAGMENT_DTYPE)
    sequences["length"] = fragments["stop"] = 40
    fragments["sequence"] = np.arange(num_reads)
    fragments["log_odds"] = np.linspace(-1, 9, num_reads)
    names = Ragged(np.full(num_reads, ord("r"), np.uint8), np.arange(num_reads + 1))
    return Fragments.of([RULES], sequences, names, fragments)


def bytes_held(num_reads):
    """Most memory that calls and the page of so many reads take at any time; their table is there before."""
    table = virus_reads(num_reads)
    tracemalloc.start()
    try:
        results = InputResults.of(table, Calling(threshold=0.5))
        assert len(results.digest) == 32
        assert sum(overview(results).counts.calls.values()) == num_reads
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_calls_and_a_page_take_twelve_bytes_a_read():
    """Two float32 a read while rates are found: ten million reads fit into any machine."""
    few, many = 1 << 18, 1 << 20
    assert bytes_held(many) - bytes_held(few) < 12 * (many - few)


def test_bases_are_read_as_their_regions_are_written():
    """Not all of them before the first line."""
    num_reads = 1 << 15
    reads = Reads(num_reads)
    (of_regions,) = (output for output in OUTPUTS if output.what is REGIONS)
    parts = of_regions.content(InputResults.of(virus_reads(num_reads), Calling(threshold=0.5), reads))
    assert len(next(parts)[0]) > 0
    assert reads.num_read < num_reads
    assert sum(len(cells[0]) for cells in parts) > 0
    assert reads.num_read == num_reads
