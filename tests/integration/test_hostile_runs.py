"""A run directory that somebody else made: whatever its files hold, one line names the file, and nothing hangs.

The seed decides which of a few hundred mutations of its JSON files are tried; the quick suite takes some of them.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import mixed_records, write_fasta
from test_stored_json import mutations

COMMANDS = ("verify", "merge", "call", "report")
DEEP = b"[" * 200_000


def put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


PLANTS = {
    "fifo": put_fifo,
    "link": put_link_to_itself,
    "folder": put_folder,
    "deep": lambda path: path.write_bytes(DEEP),
    "empty": lambda path: path.write_bytes(b""),
    "null": lambda path: path.write_bytes(b"null"),
    "utf-16": lambda path: path.write_text("{}", encoding="utf-16"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_bundle):
    """A finished run with its embeddings."""
    from virnucpro import Options, make_settings, predict

    folder = tmp_path_factory.mktemp("finished")
    fasta = write_fasta(folder / "in.fasta", mixed_records(8))
    settings = make_settings(None, {"science.model": str(tiny_bundle), "layout.unit_rows": 4, "runtime.threads": 1})
    predict([fasta], folder / "out", settings, options=Options(with_report=False, keep_embeddings=True))
    return folder / "out"


def json_files(run: Path) -> list[Path]:
    return sorted(path.relative_to(run) for path in run.rglob("*.json"))


def tried(virnucpro, run, tmp_path):
    """Ends of all commands over a run; none of them may be an internal error."""
    for command in COMMANDS:
        more = ("-o", tmp_path / command) if command in ("call", "report") else ()
        ended = virnucpro(command, run, *more)
        assert "internal" not in ended.err, f"{command}: {ended.err}"
        assert "Traceback" not in ended.err, f"{command}: {ended.err}"
        yield command, ended


@pytest.mark.parametrize("plant", PLANTS)
def test_a_json_file_that_is_something_else_is_named(finished, virnucpro, tmp_path, plant):
    """A FIFO, a link, a folder, no JSON: each command ends by itself, and none takes it for an internal error."""
    for number, name in enumerate(json_files(finished)):
        run = tmp_path / f"run{number}"
        shutil.copytree(finished, run)
        PLANTS[plant](run / name)
        ends = dict(tried(virnucpro, run, tmp_path / f"out{number}"))
        if str(name) in ("run/index.json", "run/manifest.json"):
            assert ends["verify"].code != 0, (name, ends["verify"])


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_no_content_of_a_json_file_is_an_internal_error(finished, virnucpro, tmp_path, seed):
    """Wrong types, missing keys, huge and negative numbers, in every file of the run."""
    generator = random.Random(seed)
    num_tries = 12 if seed == 1 else 150
    changes = [
        (name, content)
        for name in json_files(finished)
        for content in mutations(json.loads((finished / name).read_text()), generator)
    ]
    for number, (name, content) in enumerate(generator.sample(changes, min(num_tries, len(changes)))):
        run = tmp_path / f"run{number}"
        shutil.copytree(finished, run)
        (run / name).write_text(json.dumps(content))
        for _ in tried(virnucpro, run, tmp_path / f"out{number}"):
            pass
        shutil.rmtree(run)


@pytest.mark.parametrize("stem", ["../outside/x", "/abs/x", "a\nb"])
def test_a_stem_in_a_stored_index_never_leads_out_of_the_run(finished, virnucpro, tmp_path, stem):
    """``call`` and ``report`` would write their tables there."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    index = json.loads((run / "run" / "index.json").read_text())
    index["inputs"][0]["stem"] = stem.replace("/abs", str(tmp_path / "outside"))
    (run / "run" / "index.json").write_text(json.dumps(index))
    (tmp_path / "outside").mkdir()
    ended = virnucpro("call", run)
    assert ended.code == 1
    assert "damaged" in ended.err
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_run_that_may_only_be_read_is_verified_and_called(finished, virnucpro, tmp_path, monkeypatch):
    """Of a colleague, or on a read-only mount: nothing is written into it, and its lock is not opened for writing."""
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    make = np.lib.format.open_memmap

    def open_memmap(path, mode, **more):
        if mode == "w+" and finished in Path(path).parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return make(path, mode, **more)

    monkeypatch.setattr(np.lib.format, "open_memmap", open_memmap)  # root may write anywhere
    assert virnucpro("verify", finished).code == 0
    assert virnucpro("call", finished, "-o", tmp_path / "mine").code == 0
    assert (tmp_path / "mine" / "in.sequences.tsv").exists()
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
