"""The table of fragments: what is written is read, in any cut into parts, and damage is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.bundles.rules import Calibration, Rules
from virnucpro.errors import CountError, StoreError
from virnucpro.nearest.repeats import SITE_DTYPE
from virnucpro.results.fragments import Fragments
from virnucpro.results.stored_table import FRAGMENT_DTYPE, GENE_DTYPE, SEQUENCE_DTYPE, TableWriter
from virnucpro.sequence.ragged import Ragged

CALIBRATION = Calibration(lengths=(300,), slope=(1.0,), intercept=(0.0,), exponent=0.5)
RULES = (Rules("tiny", "f" * 32, 300, 0, False, "max", CALIBRATION, 0.5, {}),)
COUNTS = (2, 0, 1, 5, 0, 3)
"""Fragments of each sequence."""


def whole_table(counts=COUNTS):
    """Sequences, names, fragments and failed rows of a run."""
    sequences = np.zeros(len(counts), dtype=SEQUENCE_DTYPE)
    sequences["length"] = 100 * np.array(counts, dtype=np.int64)
    names = Ragged.from_bytes([b"name_%d" % place * (place + 1) for place in range(len(counts))])
    fragments = np.zeros(sum(counts), dtype=FRAGMENT_DTYPE)
    fragments["sequence"] = np.repeat(np.arange(len(counts)), counts)
    fragments["log_odds"] = np.arange(sum(counts))
    return sequences, names, fragments, np.arange(sum(counts)) % 3


def write(folder, borders=(), genes=()):
    """Write the table in units that end before the fragments at ``borders``."""
    sequences, names, fragments, num_failed = whole_table()
    begins = np.searchsorted(fragments["sequence"], np.arange(len(sequences)))
    bounds = [0, *sorted(set(borders)), len(fragments)]
    num_begun = 0
    with TableWriter(folder) as writer:
        for start, stop in itertools.pairwise(bounds):
            end = len(sequences) if stop == len(fragments) else int(np.searchsorted(begins, stop))
            part = names.slice(num_begun, end)
            writer.append(sequences[num_begun:end], part, fragments[start:stop], num_failed[start:stop])
            num_begun = end
        writer.append_genes(np.array(list(genes), dtype=GENE_DTYPE), np.zeros(0, dtype=SITE_DTYPE))
        writer.finish()


@settings(deadline=None)
@given(borders=st.sets(st.integers(1, sum(COUNTS) - 1), max_size=4))
def test_what_is_written_is_read_however_it_was_cut_into_units(tmp_path_factory, borders):
    """A sequence may span units."""
    folder = tmp_path_factory.mktemp("table")
    write(folder, borders)
    table = Fragments.open(folder, RULES)
    sequences, names, fragments, num_failed = whole_table()
    assert table.names.to_bytes() == names.to_bytes()
    assert (table.sequences["length"] == sequences["length"]).all()
    assert table.sequences["num_fragments"].tolist() == list(COUNTS)
    assert (
        table.sequences["first_fragment"].tolist()
        == np.searchsorted(fragments["sequence"], np.arange(len(COUNTS))).tolist()
    )
    assert (table.sequences["num_failed"] == np.bincount(fragments["sequence"], num_failed, len(COUNTS))).all()
    assert table.fragments.tobytes() == fragments.tobytes()


@pytest.mark.parametrize("num_items", [1, 2, 4, 100])
def test_parts_hold_every_sequence_once_and_whole(tmp_path, num_items):
    """With its fragments and genes."""
    write(tmp_path, genes=[(0, 0, 30, 1, 5.0, 1.0, 3), (3, 0, 30, -1, 5.0, 1.0, 3), (3, 60, 90, 1, 0.0, 0.0, -1)])
    table = Fragments.open(tmp_path, RULES)
    parts = list(table.parts(num_items))
    assert [name for part in parts for name in part.names.to_bytes()] == table.names.to_bytes()
    assert np.concatenate([part.fragments for part in parts]).tobytes() == table.fragments.tobytes()
    assert np.concatenate([part.genes for part in parts]).tobytes() == table.genes.tobytes()
    for part in parts:
        assert part.offsets[-1] == len(part.fragments)
        assert (np.repeat(np.arange(len(part)), np.diff(part.offsets)) == part.positions).all()
        assert set(part.genes["sequence"].tolist()) <= set(range(part.first, part.first + len(part)))


def test_a_table_is_plain_numpy(tmp_path):
    """Whoever has NumPy can read it."""
    write(tmp_path)
    assert np.load(tmp_path / "fragments.npy")["log_odds"].tolist() == list(range(sum(COUNTS)))


@pytest.mark.parametrize("name", ["sequences", "fragments", "genes", "names", "name_offsets"])
def test_a_flipped_bit_is_an_error_that_names_the_file(tmp_path, name):
    """In the header or in the values."""
    write(tmp_path, genes=[(0, 0, 30, 1, 5.0, 1.0, 3)])
    path = tmp_path / f"{name}.npy"
    content = bytearray(path.read_bytes())
    for place in (3, 20, 515, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(StoreError, match=name):
            Fragments.open(tmp_path, RULES)
    path.write_bytes(content[:-1])
    with pytest.raises(StoreError, match=name):
        Fragments.open(tmp_path, RULES)


def test_a_table_that_was_not_finished_is_none(tmp_path):
    """Also where an older one was."""
    write(tmp_path)
    with TableWriter(tmp_path):
        pass
    with pytest.raises(StoreError, match="missing"):
        Fragments.open(tmp_path, RULES)


def test_an_empty_table_is_read(tmp_path):
    """A run without sequences."""
    with TableWriter(tmp_path) as writer:
        writer.finish()
    table = Fragments.open(tmp_path, RULES)
    assert len(table) == 0
    assert list(table.parts()) == []
    assert table.offsets.tolist() == [0]


def test_fragments_of_sequences_that_are_not_there_are_refused(tmp_path):
    """A defect is never written."""
    sequences, names, fragments, num_failed = whole_table()
    with TableWriter(tmp_path) as writer, pytest.raises(CountError):
        writer.append(sequences[:1], names.slice(0, 1), fragments, num_failed)
