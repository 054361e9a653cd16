"""Looking at a run: every kind of damage is found and named, and mended on request."""

from __future__ import annotations

import shutil

import pytest
from conftest import mixed_records, result_bytes, write_fasta

from virnucpro import store
from virnucpro.atomic import read_json
from virnucpro.run_dir import RunDir


@pytest.fixture(scope="module")
def original(tmp_path_factory, tiny_bundle):
    """A finished run of several units that kept everything."""
    from virnucpro import Options, predict
    from virnucpro.settings import make_settings

    folder = tmp_path_factory.mktemp("verify")
    fasta = write_fasta(folder / "in.fasta", mixed_records(30))
    settings = {"science.model": str(tiny_bundle), "layout.unit_rows": 8, "runtime.device": "cpu"}
    predict([fasta], folder / "out", make_settings(None, settings), options=Options(keep_embeddings=True))
    return folder / "out"


@pytest.fixture
def run_dir(original, tmp_path):
    shutil.copytree(original, tmp_path / "out")
    return RunDir(tmp_path / "out")


def flip(path, kind, name):
    """Change one bit in the middle of an array of a file."""
    content = bytearray(path.read_bytes())
    array = store.read_arrays(path, kind, name)[name].tobytes()
    content[bytes(content).index(array) + len(array) // 2] ^= 0x04
    path.write_bytes(content)


def test_a_sound_run_has_no_problems(virnucpro, run_dir):
    """Exit 0; every file is read and every row has its score."""
    ended = virnucpro("verify", run_dir.root, "-q")
    assert ended.code == 0, ended.out
    num_rows = sum(unit["num_rows"] for unit in read_json(run_dir.index)["units"])
    assert f"{num_rows:,} of {num_rows:,} rows have a score; 0 problems" in ended.out


DAMAGE = {
    "a flipped bit in a unit": lambda run: flip(run.unit(1), "unit", "proteins/values"),
    "a flipped bit in a shard": lambda run: flip(run.embedding("nucleotide", 2), "embedding", "embedding"),
    "a truncated merged file": lambda run: run.merged(0).write_bytes(run.merged(0).read_bytes()[:900]),
    "scores of another unit": lambda run: shutil.copy(run.scores(2), run.scores(1)),
    "a shard of another unit": lambda run: shutil.copy(run.embedding("protein", 0), run.embedding("protein", 1)),
    "a changed result": lambda run: run.result("in", "sequences.tsv").write_text("name\n"),
    "a result that is gone": lambda run: run.result("in", "fragments.tsv.gz").unlink(),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_and_repaired(virnucpro, run_dir, original, what):
    """Exit 1 with the file; with --repair all is as it was, byte for byte, stored files too."""
    DAMAGE[what](run_dir)
    ended = virnucpro("verify", run_dir.root, "-q")
    assert ended.code == 1
    assert "damaged" in ended.out
    assert "--repair" in ended.err
    assert virnucpro("verify", run_dir.root, "--repair", "-q").code == 0
    assert virnucpro("verify", run_dir.root, "-q").code == 0
    assert result_bytes(run_dir.root, "in") == result_bytes(original, "in")
    stored = {path.relative_to(original): path.read_bytes() for path in original.rglob("unit-*.h5")}
    assert {path.relative_to(run_dir.root): path.read_bytes() for path in run_dir.root.rglob("unit-*.h5")} == stored


def test_an_unfinished_run_is_exit_5_and_is_finished_on_request(virnucpro, run_dir, original):
    """Nothing is damaged: what lacks is said, unit by unit."""
    run_dir.scores(1).unlink()
    run_dir.merged(1).unlink()
    run_dir.embedding("protein", 1).unlink()
    ended = virnucpro("verify", run_dir.root, "-q")
    assert ended.code == 5
    assert "1 of 2 embeddings are there" in ended.out
    assert virnucpro("verify", run_dir.root, "--repair", "-q").code == 0
    assert result_bytes(run_dir.root, "in") == result_bytes(original, "in")


def test_repair_from_another_folder_changes_no_name(virnucpro, tmp_path, tiny_bundle, monkeypatch):
    """Inputs named relative to the folder of the run are found, and are named so in the results."""
    write_fasta(tmp_path / "in.fasta", mixed_records(6))
    monkeypatch.chdir(tmp_path)
    assert virnucpro("predict", "in.fasta", "-o", "out", "--model", tiny_bundle, "-q").code == 0
    before = result_bytes(tmp_path / "out", "in")
    RunDir(tmp_path / "out").scores(0).unlink()
    monkeypatch.chdir("/")
    assert virnucpro("verify", tmp_path / "out", "--repair", "-q").code == 0
    assert result_bytes(tmp_path / "out", "in") == before
    assert virnucpro("verify", tmp_path / "out", "-q").code == 0


def test_what_is_no_run_is_a_usage_error(virnucpro, tmp_path):
    """Exit 2, and what to name instead."""
    ended = virnucpro("verify", tmp_path / "nowhere")
    assert ended.code == 2
    assert "holds no run" in ended.err
