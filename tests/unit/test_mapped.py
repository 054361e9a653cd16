"""Tables larger than what may be in memory."""

from __future__ import annotations

import numpy as np
import psutil
import pytest

from virnucpro.mapped import chunks, let_go, new_table


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
