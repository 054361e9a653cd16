"""Copies of what a full table had no room for are found in the end: what is computed twice is nothing."""

from __future__ import annotations

import numpy as np
from conftest import open_dna, write_fasta
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro import store
from virnucpro.bundles import load_bundle
from virnucpro.progress import Reporter
from virnucpro.run_dir import RunDir
from virnucpro.sequence.dedup import SequenceIndex, hash_strings
from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.table import are_own_source
from virnucpro.stages.base import Run
from virnucpro.stages.extract import write_units


def find(items: list[bytes], index: SequenceIndex, block: int) -> list[int]:
    """The source of each item, those that come late included."""
    sources = np.empty(len(items), dtype=np.int64)
    for start in range(0, len(items), block):
        sources[start : start + block] = index.find_sources(hash_strings(items[start : start + block]), start)
    last = -1
    for numbers, theirs in index.late_sources():
        assert np.all(np.diff(numbers, prepend=last) > 0)  # in order
        assert np.array_equal(sources[numbers], numbers)  # none was known before
        sources[numbers] = theirs
        last = int(numbers[-1])
    index.close()
    return sources.tolist()


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=200), st.integers(1, 90), st.sampled_from([4, 8, 16, 64]))
def test_sources_are_exact_whatever_room_the_table_has(tmp_path_factory, numbers, block, max_slots):
    """Every item's source is the first item with its content. Shares that are too small only leave copies over."""
    items = [b"%d" % number for number in numbers]
    path = tmp_path_factory.mktemp("left") / "over.bin"
    found = find(items, SequenceIndex(max_slots, path), block)
    exact = [items.index(item) for item in items]
    assert all(items[source] == item for source, item in zip(found, items, strict=True))
    assert all(source in (own, first) for own, (source, first) in enumerate(zip(found, exact, strict=True)))
    assert not path.exists()


def test_many_times_the_room_of_the_table(tmp_path):
    """More than a dozen tables full, and more than are looked at together: each copy is found, however far it is."""
    items = [b"%d" % (i % 150_000) for i in range(300_000)]
    sources = find(items, SequenceIndex(1 << 14, tmp_path / "over.bin"), 77_777)
    assert np.array_equal(sources, np.arange(300_000) % 150_000)


def test_units_on_disk_know_their_late_sources(tiny_bundle, tmp_path):
    """Units written with a table of a dozen rows hold the sources that units with room for all hold; so do counts."""
    reads = {f"r{i}": open_dna(90, seed=i % 40) for i in range(100)}
    fasta = write_fasta(tmp_path / "reads.fasta", reads)
    bundle = load_bundle(str(tiny_bundle))

    def extract(name: str, **room: int) -> tuple[Run, tuple, int]:
        run = Run(RunDir(tmp_path / name), (str(fasta),), bundle, 90, 16, "float32", Reporter(bars=False))
        run.dir.prepare(force=False)
        contents = SequenceIndex(left_over=run.dir.left_over_rows, **room)
        tables = Extraction([str(fasta)], 90, 1, 16, contents=contents).units()
        return run, *write_units(run, tables, contents, lambda _: None)

    (roomy, *expected), (cramped, *found) = extract("roomy"), extract("cramped", max_slots=16)
    assert found == expected
    units, _ = found
    assert len(units) > 5
    for unit, indexed in enumerate(units):
        assert cramped.dir.unit(unit).read_bytes() == roomy.dir.unit(unit).read_bytes()
        table = store.read_unit(cramped.dir.unit(unit))
        assert indexed.num_sources == are_own_source(table.rows, table.first_row).sum()
    assert sum(unit.num_sources for unit in units) < sum(unit.num_rows for unit in units) / 2
    assert not cramped.dir.left_over_rows.exists()
