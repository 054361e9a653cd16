"""A run is repeated from its record alone, and every result is held against what was recorded."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import mixed_records, write_fasta

FOLDER = "somewhere"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder a user works in, with an input in it."""
    (tmp_path / FOLDER).mkdir()
    monkeypatch.chdir(tmp_path / FOLDER)
    return tmp_path / FOLDER


@pytest.fixture
def record(folder, virnucpro, tiny_bundle):
    """The record of a finished run, whose input and model had relative names."""
    write_fasta(folder / "in.fasta", mixed_records(8))
    shutil.copytree(tiny_bundle, folder / "model")
    ended = virnucpro("predict", "in.fasta", "-o", "out", "-m", "model", "--keep-intermediate", "--no-report", "-q")
    assert ended.code == 0, ended.err
    return folder / "out" / "in.run.json"


def change(record, change):
    """Change what a record holds."""
    content = json.loads(record.read_text())
    change(content)
    record.write_text(json.dumps(content))


def test_a_repeated_run_gives_the_same_bytes(virnucpro, record, folder, tmp_path, monkeypatch):
    """From any folder, by the record or the directory with it, into a new directory beside the old one."""
    monkeypatch.chdir(tmp_path)
    num = len(json.loads(record.read_text())["outputs"])
    ended = virnucpro("rerun", record, "-q")
    assert (ended.code, ended.out) == (0, f"{num} of {num} result files are identical\n"), ended.err
    again = folder / "out-rerun"
    for name in ("in.sequences.tsv", "in.rows.tsv.gz", "in.summary.json"):
        assert (again / name).read_bytes() == (folder / "out" / name).read_bytes()
    assert virnucpro("rerun", folder / "out", "-o", "elsewhere", "--threads", 1, "--device", "cpu", "-q").code == 0
    assert (tmp_path / "elsewhere" / "in.sequences.tsv").exists()


def test_a_finished_repetition_begins_anew(virnucpro, record, folder):
    """Else it would compare what it stored the last time."""
    assert virnucpro("rerun", record, "-q").code == 0
    scores = folder / "out-rerun" / "run" / "scores" / "unit-00000.h5"
    before = scores.stat().st_mtime_ns
    assert virnucpro("rerun", record, "-q").code == 0
    assert scores.stat().st_mtime_ns > before


def test_results_that_differ_are_listed(virnucpro, record):
    """Exit 1, with the name of each file and of none that is the same."""

    def other_threshold(content):
        content["request"]["settings"] |= {"science.threshold": 0.0}

    change(record, other_threshold)
    ended = virnucpro("rerun", record, "-q")
    assert ended.code == 1
    assert "in.sequences.tsv: differs" in ended.out
    assert "in.summary.json: differs" in ended.out
    assert "in.rows.tsv.gz" not in ended.out
    assert "result files are not those of the record" in ended.err


def test_results_that_are_there_in_one_run_only_are_listed(virnucpro, record):
    """A file that is recorded and not written again, and one that was not recorded, are both differences."""

    def other_files(content):
        content["outputs"]["in.other.tsv"] = content["outputs"].pop("in.rows.tsv.gz")

    change(record, other_files)
    ended = virnucpro("rerun", record, "-q")
    assert ended.code == 1
    assert "in.other.tsv: is missing" in ended.out
    assert "in.rows.tsv.gz: was not written then" in ended.out


def test_another_input_is_refused(virnucpro, record, folder):
    """Exit 3 with both digests, before anything is written."""
    write_fasta(folder / "in.fasta", mixed_records(8, seed=1))
    ended = virnucpro("rerun", record, "-q")
    assert ended.code == 3
    assert "in.fasta: is not what the run read: its sha256 was" in ended.err
    assert not (folder / "out-rerun").exists()


def test_an_input_that_is_gone_is_refused(virnucpro, record, folder):
    (folder / "in.fasta").unlink()
    ended = virnucpro("rerun", record, "-q")
    assert ended.code == 3
    assert "in.fasta: no such file" in ended.err


def test_another_model_is_refused(virnucpro, record, folder):
    """Exit 6 with what of it differs."""
    settings = folder / "model" / "bundle.yaml"
    settings.write_text(settings.read_text().replace("min_length: ", "min_length: 1"))
    ended = virnucpro("rerun", record, "-q")
    assert ended.code == 6
    assert "what differs: its settings (bundle.yaml)" in ended.err


def test_other_versions_are_said_first(virnucpro, record):
    """The run goes on: the comparison tells whether it matters."""
    change(record, lambda content: content["versions"].update(torch="0.0.1"))
    ended = virnucpro("rerun", record, "-q")
    assert ended.code == 0
    assert ended.out.startswith("version of torch: 0.0.1 then, ")


def test_a_run_on_stdin_is_refused(virnucpro, record):
    """What was read is not kept."""

    def from_stdin(content):
        content["request"]["samples"] = [{"name": "stdin", "paths": ["-"], "named": ["-"]}]

    change(record, from_stdin)
    ended = virnucpro("rerun", record, "-q")
    assert ended.code == 2
    assert "standard input, which is not kept" in ended.err


def test_results_of_a_finished_run_are_not_overwritten(virnucpro, record, folder):
    """Neither those to compare with, nor others in a directory that the user names."""
    shutil.copytree(folder / "out", folder / "other")
    for name in ("out", "other"):
        ended = virnucpro("rerun", record, "-o", folder / name)
        assert ended.code == 2
        assert "holds the results of a finished run" in ended.err


def test_a_record_that_does_not_add_up_is_refused(virnucpro, record):
    """One sample was asked for, and no input is recorded."""
    change(record, lambda content: content["inputs"].clear())
    ended = virnucpro("rerun", record, "-q")
    assert ended.code == 2
    assert "the run record cannot be followed" in ended.err


@pytest.mark.usefixtures("record")
@pytest.mark.parametrize("name", ["in.fasta", "out/run/manifest.json", "nowhere.run.json", "out/run"])
def test_what_is_no_record_is_refused(virnucpro, folder, name):
    """A file of something else, no file, a folder without one."""
    ended = virnucpro("rerun", folder / name)
    assert ended.code == 2
    assert ".run.json" in ended.err


def test_pairs_and_several_samples_are_repeated(virnucpro, folder):
    """Both files of a pair are checked and read again."""
    for mate in (1, 2):
        write_fasta(folder / f"r{mate}.fasta", {f"read_{i}": "ACGT" * 40 for i in range(3)})
    write_fasta(folder / "b.fasta", mixed_records(3))
    (folder / "sheet.csv").write_text("sample,path,path2\na,r1.fasta,r2.fasta\nb,b.fasta,\n")
    assert virnucpro("predict", "--samplesheet", "sheet.csv", "-o", "out", "--no-report", "-q").code == 0
    ended = virnucpro("rerun", "out", "-q")
    assert ended.code == 0, ended.out
    write_fasta(folder / "r2.fasta", {f"read_{i}": "ACGA" * 40 for i in range(3)})
    assert virnucpro("rerun", "out", "-q").code == 3
