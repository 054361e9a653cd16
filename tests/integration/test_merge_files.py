"""Files of embeddings from anywhere become one, or what is wrong with them is named."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from datetime import datetime

import h5py
import numpy as np
import pytest

WIDTH = 5


def values(start, stop, seed=0, dtype=np.float32):
    """The embeddings of items; those of an item are always the same."""
    rows = [np.random.default_rng([seed, index]).standard_normal(WIDTH) for index in range(start, stop)]
    return np.array(rows, dtype).reshape(-1, WIDTH)


def write(path, start, stop, *, rows=None, end="given", model="esm2", width=WIDTH):
    """A checkpoint in the form that its ending says."""
    array = values(start, stop) if rows is None else rows
    array = array[:, :width]
    facts = {"start_index": start, "end_index": stop if end == "given" else end, "model": model}
    facts = {name: value for name, value in facts.items() if value is not None}
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["embeddings"] = array
            file.attrs.update(facts)
    elif path.suffix == ".hdf5":  # facts as datasets
        with h5py.File(path, "w") as file:
            file["embeddings"] = array
            for name, value in facts.items():
                file[name] = value
    elif path.suffix == ".npz":
        np.savez(path, embeddings=array, **facts)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps({"embeddings": array, **facts}))
    else:
        import torch

        saved = {"embeddings": torch.from_numpy(array), **facts}
        torch.save(saved, path, _use_new_zipfile_serialization=path.suffix == ".pt")
    return path


def read(path):
    with h5py.File(path) as file:
        return file["embeddings"][...], dict(file.attrs), json.loads(file["chunks"].asstr()[()])


@pytest.fixture
def shards(tmp_path):
    """A file of each form, whose names say nothing about the order."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, start, stop in (
        ("f.h5", 0, 7), ("e.hdf5", 7, 8), ("d.npz", 8, 20), ("c.pkl", 20, 33), ("b.pt", 33, 40), ("a.pth", 40, 50),
    ):  # fmt: skip
        write(folder / name, start, stop)
    return folder


def test_all_forms_become_one_file(virnucpro, shards, tmp_path):
    """In the order of their items, with what is known of them and figures that numpy confirms."""
    out = tmp_path / "merged.h5"
    ended = virnucpro("merge", shards, "-o", out, "-q")
    assert ended.code == 0, ended.err
    array, attributes, chunks = read(out)
    np.testing.assert_array_equal(array, values(0, 50))
    assert (attributes["total"], attributes["width"], attributes["model"]) == (50, WIDTH, "esm2")
    assert list(attributes["shape"]) == [50, WIDTH]
    assert datetime.fromisoformat(attributes["created"]).tzinfo is not None
    assert [(chunk["start"], chunk["stop"], chunk["file"]) for chunk in chunks][:2] == [
        (0, 7, "f.h5"),
        (7, 8, "e.hdf5"),
    ]
    assert chunks[3]["sha256"] == hashlib.sha256((shards / "c.pkl").read_bytes()).hexdigest()
    norms = np.linalg.norm(array.astype(float), axis=1)
    expected = {
        "mean": array.mean(dtype=float),
        "sd": array.std(dtype=float),
        "min_norm": norms.min(),
        "max_norm": norms.max(),
    }
    quality = json.loads(attributes["quality"])
    assert {name: quality[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert (quality["num_nan"], quality["num_inf"], quality["num_zero_rows"]) == (0, 0, 0)
    assert chunks[2]["mean"] == pytest.approx(values(8, 20).mean(dtype=float), rel=1e-12)
    (line,) = out.with_name("merged.h5.sha256").read_text().splitlines()
    assert line == f"{hashlib.sha256(out.read_bytes()).hexdigest()}  merged.h5"
    assert virnucpro("merge", out, "--check", "-q").code == 3  # it is no part of anything


def test_odd_rows_are_counted_where_they_are(virnucpro, tmp_path):
    """NaN, Inf and zeros stay in and spoil no other figure."""
    rows = values(0, 6)
    rows[1, 2], rows[1, 3], rows[2, 0], rows[4] = np.nan, np.nan, -np.inf, 0
    write(tmp_path / "a.npz", 0, 6, rows=rows)
    write(tmp_path / "b.npz", 6, 9)
    assert virnucpro("merge", tmp_path, "-o", tmp_path / "m.h5", "-q").code == 0
    array, attributes, chunks = read(tmp_path / "m.h5")
    np.testing.assert_array_equal(array, np.concatenate([rows, values(6, 9)]))
    figures = ("num_nan", "num_inf", "num_zero_rows")
    assert [chunks[0][name] for name in figures] == [2, 1, 1]
    assert [chunks[1][name] for name in figures] == [0, 0, 0]
    quality = json.loads(attributes["quality"])
    finite = array[np.isfinite(array)].astype(float)
    assert (quality["mean"], quality["sd"]) == pytest.approx((finite.mean(), finite.std()), rel=1e-12)


def cut_short(folder):
    path = folder / "c.pkl"
    path.write_bytes(path.read_bytes()[:-30])


def at_8(folder, start=8, stop=20, **options):
    write(folder / "d.npz", start, stop, **options)


def saved(folder, **arrays):
    np.savez(folder / "d.npz", **arrays)


FAULTS = {
    "gap": (lambda folder: (folder / "d.npz").unlink(), "items 8 to 20 are missing after", "e.hdf5 (7 to 8)"),
    "gap at the beginning": (lambda folder: (folder / "f.h5").unlink(), "items 0 to 7 are missing, before", "e.hdf5"),
    "overlap": (lambda folder: write(folder / "g.npz", 6, 8), "g.npz (6 to 8) overlaps", "f.h5 (0 to 7)"),
    "the same range twice": (lambda folder: write(folder / "g.npz", 0, 7), "(0 to 7) overlaps", "f.h5"),
    "width": (lambda folder: at_8(folder, width=3), "d.npz (8 to 20) is of width 3", "others of 5"),
    "model": (lambda folder: at_8(folder, model="other"), "d.npz (8 to 20) is of model other", "esm2"),
    "too few": (lambda folder: at_8(folder, rows=values(8, 15)), "holds 7 items, 12 belong", "d.npz"),
    "too many": (lambda folder: at_8(folder, rows=values(8, 25)), "holds 17 items, its range has 12", "--take 12"),
    "nothing": (lambda folder: write(folder / "g.npz", 50, 50), "g.npz (50 to 50) holds no item"),
    "backwards": (lambda folder: at_8(folder, end=4), "d.npz: its range is 8 to 4"),
    "damage": (cut_short, "c.pkl: is not a pickle that can be read", "items 20 to 33 are missing"),
    "no start": (lambda folder: saved(folder, embeddings=values(8, 20)), "d.npz: has no start_index"),
    "no embeddings": (lambda folder: saved(folder, x=values(8, 20)), "d.npz: has no 'embeddings'"),
    "no rows": (lambda folder: saved(folder, embeddings=np.arange(3), start_index=8), "not rows of", "d.npz"),
    "objects": (
        lambda folder: saved(folder, embeddings=np.array([None, 1]), start_index=8),
        "d.npz: cannot be read",
        "Object arrays cannot be loaded",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_named_with_file_and_range_and_nothing_is_written(virnucpro, shards, tmp_path, name):
    """Exit 3, by ``--check`` as well."""
    spoil, *expected = FAULTS[name]
    spoil(shards)
    out = tmp_path / "merged.h5"
    for arguments in (("-o", out), ("--check",)):
        ended = virnucpro("merge", shards, *arguments, "-q")
        assert ended.code == 3, ended.err
        for text in expected:
            assert text in ended.err
        assert "Traceback" not in ended.err
    assert not list(tmp_path.glob("*merged*"))


def test_all_faults_are_listed_at_once(virnucpro, shards):
    """Not one a call."""
    (shards / "e.hdf5").unlink()
    write(shards / "c.pkl", 20, 33, model="other")
    cut_short(shards)
    write(shards / "a.pth", 40, 50, width=2)
    ended = virnucpro("merge", shards, "--check", "-q")
    assert "items 7 to 8 are missing" in ended.err
    assert "4 faults" in ended.err


def test_damaged_numbers_are_found_by_reading_them(virnucpro, tmp_path):
    """What a look at the head of a file cannot see."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("embeddings", data=values(0, 400), chunks=(10, WIDTH), fletcher32=True)
        file.attrs["start_index"] = 0
    assert virnucpro("merge", path, "--check", "-q").code == 0
    content = bytearray(path.read_bytes())
    place = content.index(values(200, 210).tobytes())
    content[place + 8] ^= 1
    path.write_bytes(content)
    ended = virnucpro("merge", path, "--check", "-q")
    assert ended.code == 3
    assert f"{path}: cannot be read" in ended.err


def test_take_leaves_out_what_files_carry_beyond(virnucpro, tmp_path):
    """The first N of each file, and of the last one what its range has."""
    for start in (0, 10, 20):
        write(tmp_path / f"{start}.npz", start, start + 10, rows=values(start, start + 13))
    write(tmp_path / "30.npz", 30, 34, rows=values(30, 37))
    assert virnucpro("merge", tmp_path, "--check", "-q").code == 3
    ended = virnucpro("merge", tmp_path, "-o", tmp_path / "m.h5", "--take", 10, "-q")
    assert ended.code == 0, ended.err
    np.testing.assert_array_equal(read(tmp_path / "m.h5")[0], values(0, 34))


def test_ends_that_name_the_last_item_are_understood(virnucpro, tmp_path):
    """Where all files agree on that; where the end is not given, the rows say it."""
    for start, stop in ((0, 10), (10, 15)):
        write(tmp_path / f"{start}.npz", start, stop, end=stop - 1)
    assert virnucpro("merge", tmp_path, "--check", "-q").code == 0
    for start, stop in ((0, 10), (10, 15)):
        write(tmp_path / f"{start}.npz", start, stop, end=None)
    assert virnucpro("merge", tmp_path, "--check", "-q").code == 0


@pytest.mark.parametrize("form", ["tsv", "csv", "jsonl"])
def test_a_table_is_joined_by_index_and_counted(virnucpro, tmp_path, form):
    """Items without a line, and lines of no item, too."""
    write(tmp_path / "a.npz", 0, 4)
    lines = [{"index": str(i), "id": f"id{i}", "title": f'Über, "{i}"'} for i in (3, 0, 1, 9)]  # fmt: skip
    table = tmp_path / f"table.{form}"
    if form == "jsonl":
        table.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    else:
        import csv

        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(lines[0]), delimiter="\t" if form == "tsv" else ",")
            writer.writeheader()
            writer.writerows(lines)
    ended = virnucpro("merge", tmp_path / "a.npz", "-o", tmp_path / "m.h5", "--metadata", table, "-q")
    assert ended.code == 0, ended.err
    assert "metadata: 3 items joined, 1 without a line, 1 lines of no item" in ended.out
    with h5py.File(tmp_path / "m.h5") as file:
        assert list(file["metadata/id"].asstr()) == ["id0", "id1", "", "id3"]
        assert list(file["metadata/title"].asstr())[3] == 'Über, "3"'
        assert dict(file["metadata"].attrs) == {"num_joined": 3, "num_missing": 1, "num_extra": 1}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("t.tsv", "index\tid\n0\ta\n0\tb\n", "two lines for index 0"),
        ("t.tsv", "index\tid\nx\ta\n", "its index 'x' is not a number"),
        ("t.tsv", "index\tid\n0\ta\tb\n", "another number of cells"),
        ("t.jsonl", "[1]\n", "not a JSON object"),
        ("t.jsonl", "{\n", "is not a table"),
        ("t.xlsx", "", "name a .tsv, .csv or .jsonl"),
        ("none.tsv", None, "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_joined_is_exit_3(virnucpro, tmp_path, name, text, expected):
    """With the file; nothing is written."""
    write(tmp_path / "a.npz", 0, 4)
    if text is not None:
        (tmp_path / name).write_text(text)
    ended = virnucpro("merge", tmp_path / "a.npz", "-o", tmp_path / "m.h5", "--metadata", tmp_path / name, "-q")
    assert ended.code == 3
    assert expected in ended.err
    assert not (tmp_path / "m.h5").exists()


def test_usage(virnucpro, tmp_path):
    """No file, no such file, no output: exit 2 with what to do."""
    for arguments, expected in (
        ((tmp_path, "--check"), "no file in it ends in"),
        ((tmp_path / "nowhere", "--check"), "there is no such file"),
        ((tmp_path, tmp_path), "Name it with --output"),
        ((tmp_path, "--take", 3), "Name it with --output"),
    ):
        ended = virnucpro("merge", *arguments)
        assert (ended.code, expected in ended.err) == (2, True), ended.err


def test_a_full_disk_is_exit_4(virnucpro, tmp_path, small_disk):
    """Seen beforehand; nothing stays behind."""
    disk, resize = small_disk
    resize("200k")
    write(tmp_path / "a.npz", 0, 20_000, rows=np.ones((20_000, WIDTH), np.float32))
    ended = virnucpro("merge", tmp_path / "a.npz", "-o", disk / "m.h5", "-q")
    assert ended.code == 4
    assert "Make room" in ended.err
    assert not list(disk.iterdir())


def test_memory_does_not_grow_with_the_data(tmp_path):
    """Sixteen files of 12 MB each; the process grows by less than half of the data."""
    for number in range(16):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["embeddings"] = np.full((4096, 768), number, np.float32)
            file.attrs["start_index"] = number * 4096
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from virnucpro.clusters.merge import files_in, merge, plan\n"
        "from virnucpro.progress import Reporter\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "folder = Path(sys.argv[1])\n"
        "merge(plan(files_in([folder])), folder / 'm.h5', Reporter(False))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert int(ended.stdout) * 1024 < 16 * 4096 * 768 * 4 / 2
