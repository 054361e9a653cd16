"""The run directory: files that are there are whole, one run at a time, and nobody else's files are touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from virnucpro.atomic import atomic_write, read_json, write_json
from virnucpro.errors import DiskFullError, PlaceError, ResourceError, RunMismatchError, StoreError, UsageError
from virnucpro.run_dir import MANIFEST_SCHEMA, RunDir

HOLD = """
import sys, time
from pathlib import Path
from virnucpro.run_dir import RunDir

with RunDir(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def run_dir(tmp_path):
    """A prepared directory."""
    directory = RunDir(tmp_path / "out")
    directory.prepare()
    return directory


@pytest.fixture
def holder(run_dir):
    """Another process that holds the directory until its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, run_dir.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def all_files(folder):
    """Every file below ``folder`` with its content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_until_free(run_dir):
    """Take the lock as soon as it can be had."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with run_dir.locked():
                return
        except ResourceError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def write_text(path, text, error=None):
    """Write atomically; raise ``error`` before the block ends."""
    with atomic_write(path) as temporary:
        temporary.write_text(text)
        if error is not None:
            raise error


def write_to_full_disk(path):
    """Write atomically to a link to ``/dev/full``, where the kernel says that no space is left."""
    with atomic_write(path) as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_text("no room for this")


def test_a_file_takes_its_place_when_the_block_ends(tmp_path):
    """Not before, with folders made on the way, and in place of an older one."""
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("first", "second"):
        before = path.exists() and path.read_text()
        with atomic_write(path) as temporary:
            temporary.write_text(text)
            assert (path.exists() and path.read_text()) == before
        assert all_files(tmp_path) == {"a/b/file.txt": text.encode()}


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_nothing(tmp_path, error):
    """No temporary file, no new file; an old one stays as it was."""
    write_json(tmp_path / "old.json", [1])
    before = all_files(tmp_path)
    for name in ("old.json", "new.json"):
        with pytest.raises(error):
            write_text(tmp_path / name, "half", error)
    assert all_files(tmp_path) == before


def test_a_full_disk_names_the_file(tmp_path):
    """And nothing is left behind."""
    with pytest.raises(DiskFullError) as caught:
        write_to_full_disk(tmp_path / "file")
    assert caught.value.path == tmp_path / "file"
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_names_the_file_and_what_to_do(tmp_path):
    """Not the temporary name; exit code 4."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(PlaceError, match="folder: is a folder, where") as caught:
        write_text(tmp_path / "folder", "a file cannot take the place of a folder")
    assert caught.value.exit_code == 4
    with pytest.raises(PlaceError, match="the name is too long"):
        write_text(tmp_path / ("x" * 300), "")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_json_is_read_as_it_was_written(tmp_path):
    """Names in any script; damage is an error that names the file."""
    content = {"name": "Jürgen 病毒", "numbers": [1, 2.5, None], "yes": True}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    (tmp_path / "x.json").write_text('{"name": ')
    with pytest.raises(StoreError, match="not JSON") as caught:
        read_json(tmp_path / "x.json")
    assert caught.value.path == tmp_path / "x.json"


def test_sweep_deletes_what_killed_writers_left_and_nothing_else(run_dir):
    """In the results and in the run, at any depth."""
    write_json(run_dir.manifest, {})
    write_json(run_dir.scores(3), {})
    write_json(run_dir.result("in", "summary.json"), {})
    write_json(run_dir.named("in", "<stem>_merged/prediction_results.txt"), {})
    (run_dir.root / ".hidden").write_text("of the user")
    (run_dir.root / ".notes.tmp-1").write_text("of the user")
    kept = all_files(run_dir.root)
    for path in (
        run_dir.result("in", "sequences.tsv"),
        run_dir.named("in", "<stem>_merged/prediction_results.txt"),
        run_dir.index,
        run_dir.embedding("protein", 7),
    ):
        code = (
            "import os, sys, pathlib; from virnucpro.atomic import atomic_write\n"
            "with atomic_write(pathlib.Path(sys.argv[1])) as t: t.write_text('half'); os.kill(os.getpid(), 9)"
        )
        assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -9
    assert len(all_files(run_dir.root)) == len(kept) + 4
    run_dir.sweep()
    assert all_files(run_dir.root) == kept


def test_the_first_run_writes_what_was_asked_and_the_same_settings_agree(run_dir):
    """The manifest is what the run is held against."""
    settings = {"science.model": "lite", "layout.unit_rows": 5, "science.threshold": 0.5}
    run_dir.agree(settings)
    assert json.loads(run_dir.manifest.read_text()) == {"schema": MANIFEST_SCHEMA} | settings
    run_dir.agree(dict(reversed(settings.items())))


def test_other_settings_are_listed_then_and_now(run_dir):
    """All that differ, and no others; a setting that is new or gone differs too."""
    run_dir.agree({"a": 1, "b": "x", "c": 2, "gone": True})
    before = run_dir.manifest.read_bytes()
    with pytest.raises(RunMismatchError) as caught:
        run_dir.agree({"a": 1, "b": "y", "c": 3, "new": 4})
    assert caught.value.path == run_dir.root
    assert caught.value.differences == [("b", "x", "y"), ("c", 2, 3), ("gone", True, None), ("new", None, 4)]
    text = str(caught.value)
    assert "b     then x  now y" in text
    assert "c     then 2  now 3" in text
    assert "--fresh" in text
    assert run_dir.manifest.read_bytes() == before


def test_a_second_run_is_refused_and_told_who_holds_the_directory(run_dir, holder):
    """And gets it when the first has ended, without waiting for anything else."""
    with pytest.raises(ResourceError, match=f"process {holder.pid}") as caught, run_dir.locked():
        pass
    assert caught.value.exit_code == 4
    assert str(run_dir.root) in str(caught.value)
    holder.communicate("\n", timeout=20)
    with run_dir.locked():
        assert (run_dir.work / "lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_goes_with_a_killed_process(run_dir, holder):
    """No stale lock can be left behind."""
    holder.kill()
    holder.wait(timeout=20)
    with run_dir.locked():
        pass


def test_the_lock_can_be_had_again_after_an_error(run_dir):
    """A run that fails lets go."""
    with pytest.raises(ValueError, match="run"), run_dir.locked():
        raise ValueError("run")
    wait_until_free(run_dir)


def test_locks_of_one_process_exclude_each_other(run_dir):
    """Two calls of the library on one directory as well."""
    with run_dir.locked(), pytest.raises(ResourceError, match=str(os.getpid())), RunDir(run_dir.root).locked():
        pass


def test_prepare_makes_folders_and_may_be_repeated(tmp_path):
    """A directory that is not there, an empty one, and one with a run."""
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "a" / "b", tmp_path / "empty"):
        run_dir = RunDir(path)
        run_dir.prepare()
        run_dir.prepare()  # killed before the lock was made
        with run_dir.locked():
            run_dir.agree({})
        run_dir.prepare()
        assert run_dir.work.is_dir()


def test_a_file_is_no_directory_to_write_into(tmp_path):
    """Refused with the path, also with ``--force``, and the file stays."""
    (tmp_path / "file").write_text("mine")
    for force in (False, True):
        with pytest.raises(UsageError, match=str(tmp_path / "file")):
            RunDir(tmp_path / "file").prepare(force=force)
        with pytest.raises(PlaceError, match="below"):
            RunDir(tmp_path / "file" / "below").prepare(force=force)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_may_hold_other_files_but_none_with_the_name_of_a_result(tmp_path):
    """A workflow's own log stays; a table that no run of ours wrote is replaced with --force only."""
    (tmp_path / "thesis.tex").write_text("mine")
    run_dir = RunDir(tmp_path)
    run_dir.prepare(["in"])
    with run_dir.locked():
        run_dir.start_over()
        run_dir.sweep()
    shutil.rmtree(run_dir.work)
    (tmp_path / "in.sequences.tsv").write_text("mine too")
    before = all_files(tmp_path)
    with pytest.raises(UsageError, match=r"in\.sequences\.tsv is there .* --force"):
        run_dir.prepare(["in"])
    assert all_files(tmp_path) == before
    run_dir.prepare(["other"])
    shutil.rmtree(run_dir.work)
    run_dir.prepare(["in"], force=True)
    assert run_dir.work.is_dir()


def test_a_folder_called_run_that_is_not_ours_is_never_taken_for_a_run(tmp_path):
    """Starting over would delete it: refused, also with ``--force``."""
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "measured.csv").write_text("mine")
    for force in (False, True):
        with pytest.raises(UsageError, match="not of this program"):
            RunDir(tmp_path).prepare(force=force)
    assert all_files(tmp_path) == {"run/data/measured.csv": b"mine"}


def test_start_over_drops_the_run_and_keeps_results_and_lock(run_dir):
    """The lock file stays the same file: another one would let two runs in."""
    with run_dir.locked():
        run_dir.agree({"a": 1})
        for path in (run_dir.unit(0), run_dir.embedding("protein", 0), run_dir.scores(0), run_dir.row_scores):
            write_json(path, {})
        write_json(run_dir.result("in", "summary.json"), {})
        inode = (run_dir.work / "lock").stat().st_ino
        run_dir.start_over()
        assert [path.name for path in run_dir.work.iterdir()] == ["lock"]
        assert (run_dir.work / "lock").stat().st_ino == inode
        assert run_dir.result("in", "summary.json").exists()
        run_dir.agree({"a": 2})


def test_results_of_an_input_are_its_own(run_dir):
    """A stem that begins like another, or has the signs of a pattern in it, finds its own files."""
    for stem in ("in", "in2", "a[1]", "a1"):
        for suffix in ("sequences.tsv", "summary.json", "log", "run.json"):
            run_dir.result(stem, suffix).write_text(stem)
    names = {stem: [path.name for path in run_dir.results(stem)] for stem in ("in", "a[1]")}
    assert names == {stem: [f"{stem}.sequences.tsv", f"{stem}.summary.json"] for stem in names}


def test_every_path_of_a_run_is_another_one(run_dir):
    """No two files share a place, and all but the results are in ``run/``."""
    units = [
        make(unit)
        for unit in (0, 1, 99_999, 100_000)
        for make in (
            run_dir.unit,
            run_dir.merged,
            run_dir.scores,
            lambda unit: run_dir.embedding("protein", unit),
            lambda unit: run_dir.embedding("nucleotide", unit),
        )
    ]
    paths = [*units, run_dir.manifest, run_dir.index, run_dir.table, run_dir.row_scores]
    assert len(set(paths)) == len(paths)
    assert all(Path(run_dir.work) in path.parents for path in paths)


@pytest.mark.parametrize("stem", ["../outside/x", "/abs/x", "a/b", ".hidden", "line\nbreak", "escape\x1b[2J"])
def test_a_stored_name_never_leads_out_of_the_output_directory(run_dir, stem):
    """A stem comes from ``index.json``, which somebody else may have written."""
    for make in (run_dir.result, run_dir.named):
        with pytest.raises(StoreError, match="is damaged"):
            make(stem, "sequences.tsv")


def plant_link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("place", ["lock", "units/unit-00000.h5", "index.json", "scores", "failed/x.json"])
@pytest.mark.parametrize("enter", [RunDir.locked, RunDir.reading])
def test_links_in_a_run_are_never_followed(run_dir, tmp_path, place, enter):
    """A link that somebody left in a shared run could lead a write to any file of its next user."""
    victim = tmp_path / "bashrc"
    victim.write_text("mine")
    plant_link(run_dir.work / place, victim)
    with pytest.raises((PlaceError, StoreError), match="link"), enter(run_dir):
        pass
    assert victim.read_text() == "mine"


def test_a_fifo_in_a_run_is_named_and_not_waited_for(run_dir):
    """In the place of any JSON file, or anywhere in the run."""
    os.mkfifo(run_dir.index)
    with pytest.raises(StoreError, match="not a plain file"):
        read_json(run_dir.index)
    with pytest.raises(StoreError, match="neither a file nor a folder"), run_dir.locked():
        pass


def test_a_result_replaces_a_link_and_leaves_what_it_leads_to(tmp_path):
    """Written beside it and renamed."""
    (tmp_path / "bashrc").write_text("mine")
    (tmp_path / "in.sequences.tsv").symlink_to(tmp_path / "bashrc")
    write_text(tmp_path / "in.sequences.tsv", "table")
    assert not (tmp_path / "in.sequences.tsv").is_symlink()
    assert (tmp_path / "bashrc").read_text() == "mine"


def test_several_may_read_a_run_and_nobody_then_writes(run_dir):
    """A reader keeps writers out, and needs no right to write."""
    with run_dir.locked():
        pass
    with run_dir.reading(), RunDir(run_dir.root).reading(), pytest.raises(ResourceError), run_dir.locked():
        pass
    with run_dir.locked(), pytest.raises(ResourceError), run_dir.reading():
        pass
