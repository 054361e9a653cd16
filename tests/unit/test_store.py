"""The files of a run: what is written is what is read, and damage is an error that names the file."""

from __future__ import annotations

import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from itertools import islice

import h5py
import numpy as np
import pytest
from conftest import mixed_records, write_fasta
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from xxhash import xxh3_128

from virnucpro import store
from virnucpro.atomic import atomic_write
from virnucpro.errors import DiskFullError, StoreError
from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import FRAGMENT_DTYPE, GAP_DTYPE, ROW_DTYPE, SEQUENCE_DTYPE, UnitTable

MADE_FROM = {"unit_digest": "u" * 64, "fingerprint": "f" * 64 + "/float32"}
many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

strings = st.lists(st.binary(max_size=12), max_size=6).map(Ragged.from_bytes)


def tables(dtype):
    """Structured arrays of any content, empty ones included."""
    lines = [arrays_of.from_dtype(dtype[name]) for name in dtype.names]
    return st.lists(st.tuples(*lines), max_size=5).map(lambda rows: np.array(rows, dtype=dtype))


unit_tables = st.builds(
    UnitTable,
    sequences=tables(SEQUENCE_DTYPE),
    names=strings,
    gaps=tables(GAP_DTYPE),
    fragments=tables(FRAGMENT_DTYPE),
    rows=tables(ROW_DTYPE),
    first_row=st.integers(0, 2**62),
    nucleotides=strings,
    proteins=strings,
    pieces=strings,
    descriptions=strings,
    piece_sequences=arrays_of.arrays(np.int64, st.integers(0, 5)),
)


def content(table):
    """All a table holds, comparable: types, shapes and bytes."""
    parts = {}
    for field in fields(table):
        value = getattr(table, field.name)
        for array in (value.values, value.offsets) if isinstance(value, Ragged) else (np.asarray(value),):
            parts.setdefault(field.name, []).append((array.dtype, array.shape, array.tobytes()))
    return parts


@pytest.fixture
def table(tmp_path):
    """One real unit."""
    fasta = write_fasta(tmp_path / "in.fasta", mixed_records(6) | {"empty": ""})
    (unit,) = Extraction([str(fasta)], fragment_length=300, min_length=1, unit_rows=999).units()
    return unit


@pytest.fixture
def scores(tmp_path):
    """A file of scores."""
    path = tmp_path / "scores" / "unit-00003.h5"
    values = np.random.default_rng(0).random((50, 2), dtype=np.float32)
    store.write_arrays(path, "scores", {"scores": values}, MADE_FROM)
    return path


@many
@given(unit_tables)
def test_a_unit_is_read_as_it_was_written(tmp_path, unit):
    """Every table, every string, every type; empty ones too."""
    store.write_unit(tmp_path / "unit.h5", unit)
    assert content(store.read_unit(tmp_path / "unit.h5")) == content(unit)


def test_a_real_unit_is_read_as_it_was_written(tmp_path, table):
    """And its strings alone are those of the whole."""
    store.write_unit(tmp_path / "unit.h5", table)
    assert content(store.read_unit(tmp_path / "unit.h5")) == content(table)
    assert store.read_rows(tmp_path / "unit.h5", "proteins")[2].to_bytes() == table.proteins.to_bytes()
    assert len(table.rows) > 5


@many
@given(
    arrays_of.arrays(
        st.sampled_from([np.float32, np.float16, np.int64]), arrays_of.array_shapes(min_dims=2, max_dims=2, min_side=0)
    )
)
def test_arrays_are_read_as_they_were_written(tmp_path, array):
    """Of any type and shape, NaN bits and empty ones included."""
    store.write_arrays(tmp_path / "a.h5", "embedding", {"embedding": array, "none": array[:0]}, MADE_FROM)
    read = store.read_arrays(tmp_path / "a.h5", "embedding", "embedding", "none")
    for name, written in (("embedding", array), ("none", array[:0])):
        assert (read[name].dtype, read[name].shape) == (written.dtype, written.shape)
        assert read[name].tobytes() == written.tobytes()


def test_lines_that_do_not_lie_end_to_end_are_read_as_they_were_written(tmp_path):
    """And have the digest of those that do."""
    array = np.random.default_rng(1).random((3000, 7), dtype=np.float32)[:, 1:6]
    digest = store.write_arrays(tmp_path / "a.h5", "merged", {"feature": array}, MADE_FROM)
    assert np.array_equal(store.read_arrays(tmp_path / "a.h5", "merged", "feature")["feature"], array)
    assert digest == store.write_arrays(tmp_path / "b.h5", "merged", {"feature": array.copy()}, MADE_FROM)


@pytest.mark.parametrize("num_rows", [1, 7, 50, 99])
def test_blocks_are_the_array_piece_by_piece(scores, num_rows):
    """In order, none longer than asked for."""
    whole = store.read_arrays(scores, "scores", "scores")["scores"]
    with store.open_array(scores, "scores", MADE_FROM, "scores") as stored:
        assert (stored.shape, stored.dtype) == (whole.shape, whole.dtype)
        blocks = [block.copy() for block in stored.blocks(num_rows)]
    assert {len(block) for block in blocks[:-1]} <= {num_rows}
    assert np.array_equal(np.concatenate(blocks), whole)


def test_a_block_stays_until_so_many_more_were_asked_for(scores):
    with store.open_array(scores, "scores", MADE_FROM, "scores") as array:
        blocks = [(block, block.copy()) for block in islice(array.blocks(3, num_alive=2), 2)]
    for block, then in blocks:
        assert np.array_equal(block, then)


@pytest.mark.parametrize("num_rows", [0, 1, 7, 50])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_file_written_in_blocks_is_the_one_written_at_once(tmp_path, num_rows, dtype):
    array = np.random.default_rng(0).random((num_rows, 3)).astype(dtype)
    at_once = store.write_arrays(tmp_path / "a.h5", "merged", {"feature": array}, MADE_FROM)
    blocks = (array[start : start + 7] for start in range(0, num_rows, 7))
    like = np.broadcast_to(np.zeros((), dtype), array.shape)
    assert store.write_blocks(tmp_path / "b.h5", "merged", "feature", like, blocks, MADE_FROM) == at_once
    assert (tmp_path / "b.h5").read_bytes() == (tmp_path / "a.h5").read_bytes()


def test_lists_of_strings_that_are_not_asked_for_are_not_read(tmp_path, table):
    store.write_unit(tmp_path / "unit.h5", table)
    unit = store.read_unit(tmp_path / "unit.h5", strings=("names",))
    assert unit.names.to_bytes() == table.names.to_bytes()
    assert not len(unit.pieces)
    assert np.array_equal(unit.rows, table.rows)


def test_an_empty_array_has_no_blocks(tmp_path):
    """And is no error."""
    store.write_arrays(tmp_path / "a.h5", "scores", {"scores": np.empty((0, 2), np.float32)}, MADE_FROM)
    with store.open_array(tmp_path / "a.h5", "scores", MADE_FROM, "scores") as stored:
        assert list(stored.blocks(10)) == []


def test_damage_in_a_block_shows_when_the_last_one_was_read(scores):
    """Whichever block it is in; and a file made from something else is not even opened."""
    content = bytearray(scores.read_bytes())
    values = store.read_arrays(scores, "scores", "scores")["scores"].tobytes()
    content[bytes(content).index(values) + 5] ^= 1
    scores.write_bytes(content)
    with store.open_array(scores, "scores", MADE_FROM, "scores") as stored:
        blocks = stored.blocks(20)
        with pytest.raises(StoreError, match="scores is not what was written") as caught:
            for _ in blocks:
                pass
    assert caught.value.path == scores
    with (
        pytest.raises(StoreError, match="another fingerprint"),
        store.open_array(scores, "scores", MADE_FROM | {"fingerprint": "other"}, "scores"),
    ):
        pass


def test_an_array_that_was_replaced_with_its_digest_is_found_by_verify(scores):
    """The digest of the file is over those of its arrays."""
    with h5py.File(scores, "r+") as file:
        file["scores"][0] = 0
        file["scores"].attrs["xxh3_128"] = np.bytes_(xxh3_128(file["scores"][...]).hexdigest().encode())
    assert store.read_arrays(scores, "scores", "scores")["scores"][0].tolist() == [0, 0]
    with pytest.raises(StoreError, match="its digest differs"):
        store.verify(scores, "scores", MADE_FROM)


def test_arrays_lie_in_one_piece_behind_all_else(tmp_path):
    """What HDF5 lays out in memory is then small, however large the arrays are."""
    arrays = {"small": np.ones(9), "a/large": np.ones((500, 200)), "a/empty": np.ones((0, 3))}
    store.write_arrays(tmp_path / "a.h5", "unit", arrays, MADE_FROM)
    with h5py.File(tmp_path / "a.h5") as file:
        assert all(file[name].chunks is None for name in arrays)
        start = file["small"].id.get_offset()
        assert file["a/large"].id.get_offset() == start + arrays["small"].nbytes
    assert start < 4096
    assert (tmp_path / "a.h5").stat().st_size == start + sum(array.nbytes for array in arrays.values())


def test_the_same_content_is_the_same_file(tmp_path, table):
    """Byte for byte and digest for digest; other content has another digest."""
    one, two = (store.write_unit(tmp_path / name, table) for name in ("one.h5", "two.h5"))
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    assert one == two == store.read_attributes(tmp_path / "one.h5", "unit")["digest"]
    rows = table.rows.copy()
    rows["source"][0] += 1
    assert store.write_unit(tmp_path / "three.h5", replace(table, rows=rows)) != one


def test_attributes_are_what_a_file_was_made_from(scores):
    """As text and numbers, without reading its arrays."""
    attributes = store.read_attributes(scores, "scores")
    assert {name: attributes[name] for name in MADE_FROM} == MADE_FROM
    assert (attributes["format"], attributes["version"], attributes["kind"]) == ("virnucpro", 5, "scores")


def assert_refused(path, kind, name, *, problem):
    """Reading ``path`` is a ``StoreError`` that names it and says what to do."""
    for read in (lambda: store.read_arrays(path, kind, name), lambda: store.read_attributes(path, kind)):
        with pytest.raises(StoreError, match=problem) as caught:
            read()
        assert caught.value.path == path
        assert str(path) in str(caught.value)
        assert "Delete this file" in str(caught.value)


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(scores, part):
    """However much of it is left."""
    whole = scores.read_bytes()
    scores.write_bytes(whole[: int(len(whole) * part)])
    assert_refused(scores, "scores", "scores", problem="damaged")


def test_a_missing_file_is_refused(tmp_path):
    """With the words that it is missing."""
    assert_refused(tmp_path / "unit-00001.h5", "scores", "scores", problem="is missing")


def test_a_file_of_another_kind_is_refused(scores):
    """Both kinds are named."""
    assert_refused(scores, "merged", "feature", problem="of kind scores, expected merged")


def test_a_file_of_another_version_is_refused(scores):
    """Both versions are named."""
    with h5py.File(scores, "r+") as file:
        file.attrs["version"] = 1
    assert_refused(scores, "scores", "scores", problem="format version 1, this program reads 5")


def test_a_file_of_another_program_is_refused(tmp_path):
    """HDF5 or not."""
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["scores"] = np.zeros((3, 2))
    assert_refused(tmp_path / "foreign.h5", "scores", "scores", problem="not a file of this program")
    (tmp_path / "text.h5").write_text("Sequence_ID\tPrediction\n" * 100)
    assert_refused(tmp_path / "text.h5", "scores", "scores", problem="damaged")


def test_a_file_without_the_array_asked_for_is_refused(scores):
    """The array is named."""
    with pytest.raises(StoreError, match="nothing") as caught:
        store.read_arrays(scores, "scores", "nothing")
    assert caught.value.path == scores


def test_a_flipped_bit_is_an_error_and_never_another_number(tmp_path):
    """Wherever it is: the file is refused, or the bit was one that nothing reads. Nor does the reader hang."""
    path = tmp_path / "unit.h5"
    fasta = write_fasta(tmp_path / "in.fasta", {"a": "ACGTGCATTA" * 9, "b": "AC"})
    (unit,) = Extraction([str(fasta)], fragment_length=30, min_length=1, unit_rows=99, score_frameless=True).units()
    store.write_unit(path, unit)
    expected, attributes, whole = content(unit), store.read_attributes(path, "unit"), path.read_bytes()
    named = []
    for position in range(0, len(whole), 13):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            assert content(store.read_unit(path)) == expected, position
            assert store.read_attributes(path, "unit") == attributes, position
        except StoreError as error:
            named.append(error.path)
    assert len(named) > len(whole) / 13 / 2
    assert set(named) == {path}


def test_text_attributes_lie_where_the_checksum_is(scores):
    """Text of variable length lies outside it, and one flipped bit of that made HDF5 read for ever."""
    with h5py.File(scores, "r") as file:
        for name in ("format", "kind", "digest", *MADE_FROM):
            assert file.attrs.get_id(name).dtype.kind == "S"


def test_is_made_from_is_false_only_where_nothing_is(tmp_path, scores):
    """A file that is there is of this run, or an error that says what differs."""
    assert not store.is_made_from(tmp_path / "none.h5", "scores", MADE_FROM)
    assert store.is_made_from(scores, "scores", MADE_FROM)
    assert store.is_made_from(scores, "scores", {"unit_digest": MADE_FROM["unit_digest"]})
    for name, words in (("unit_digest", "unit digest"), ("fingerprint", "fingerprint"), ("unheard_of", "unheard of")):
        with pytest.raises(StoreError, match=f"made from another {words}") as caught:
            store.is_made_from(scores, "scores", MADE_FROM | {name: "other"})
        assert caught.value.path == scores
    with pytest.raises(StoreError, match="of kind"):
        store.is_made_from(scores, "merged", MADE_FROM)
    scores.write_bytes(b"")
    with pytest.raises(StoreError, match="damaged"):
        store.is_made_from(scores, "scores", MADE_FROM)


def test_a_full_disk_is_an_error_and_leaves_what_was_there(scores, monkeypatch):
    """``DiskFullError`` names the file; no temporary file is left; the old file stays.

    The temporary file is made a link to ``/dev/full`` beforehand: the kernel itself says that no space is left.
    """
    monkeypatch.setattr(secrets, "token_hex", lambda num_bytes: "0" * num_bytes)  # else nobody knows the name
    before = scores.read_bytes()
    with pytest.raises(ZeroDivisionError), atomic_write(scores) as temporary:
        raise ZeroDivisionError
    temporary.symlink_to("/dev/full")
    with pytest.raises(DiskFullError) as caught:
        store.write_arrays(scores, "scores", {"scores": np.zeros((9, 2))}, MADE_FROM)
    assert caught.value.path == scores
    assert caught.value.exit_code == 4
    assert "no space left" in str(caught.value)
    assert list(scores.parent.iterdir()) == [scores]
    assert scores.read_bytes() == before


def test_a_file_may_be_copied_and_moved(scores, tmp_path):
    """Nothing in it depends on where it lies."""
    copy = shutil.copy(scores, tmp_path / "elsewhere.h5")
    expected = store.read_arrays(scores, "scores", "scores")["scores"]
    assert np.array_equal(store.read_arrays(copy, "scores", "scores")["scores"], expected)


def test_two_threads_may_write_at_the_same_time(tmp_path):
    """As when one unit is merged while the next one's embeddings are written; and the bytes know nothing of it."""
    arrays = {"embedding": np.arange(40_000, dtype=np.float32).reshape(-1, 8)}
    with ThreadPoolExecutor(4) as threads:
        paths = [tmp_path / f"{number}.h5" for number in range(60)]
        list(threads.map(lambda path: store.write_arrays(path, "embedding", arrays, {}), paths))
    assert len({path.read_bytes() for path in paths}) == 1
