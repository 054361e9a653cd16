"""A run in pieces: prepared, worked on by anybody in any order, finished to the bytes of ``predict``."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from conftest import mixed_records, result_bytes, start, wait_for_files, write_fasta
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.atomic import read_json
from virnucpro.errors import UsageError, WorkerError
from virnucpro.run import by_hand, shards
from virnucpro.run.predict import predict
from virnucpro.run_dir import RunDir
from virnucpro.settings import make_settings

SETTINGS = ("--unit-rows", 8, "--device", "cpu", "-q")


@pytest.fixture(scope="module")
def settings(tiny_bundle):
    """As of ``SETTINGS``."""
    options = {"science.model": str(tiny_bundle), "layout.unit_rows": 8, "runtime.device": "cpu"}
    return make_settings(None, options)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, settings):
    """The inputs, and what ``predict`` makes of them in one go."""
    folder = tmp_path_factory.mktemp("by_hand")
    fasta = write_fasta(folder / "in.fasta", mixed_records(24))
    predict([fasta], folder / "out", settings)
    return fasta, result_bytes(folder / "out", "in")


@pytest.fixture(scope="module")
def original(tmp_path_factory, virnucpro_once, expected, tiny_bundle):
    """A prepared run."""
    folder = tmp_path_factory.mktemp("prepared") / "run"
    ended = virnucpro_once("prepare", expected[0], "-o", folder, "--model", tiny_bundle, *SETTINGS)
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{folder}: {num_units(folder)} units (0-{num_units(folder) - 1})")
    return folder


@pytest.fixture
def run(original, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture(scope="module")
def worked(tmp_path_factory, virnucpro_once, original):
    """A copy whose units are all done."""
    folder = Path(shutil.copytree(original, tmp_path_factory.mktemp("worked") / "run"))
    ended = virnucpro_once("work", folder, "-q")
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{num_units(folder)} units done now, 0 were done")
    return folder


@pytest.fixture
def done(worked, tmp_path):
    """A copy of that."""
    return Path(shutil.copytree(worked, tmp_path / "done"))


def num_units(run):
    return len(read_json(RunDir(run).index)["units"])


def scores(run):
    return {path.name: path.read_bytes() for path in (run / "run/scores").glob("*.h5")}


def test_shards_in_any_order_give_the_results_of_predict(virnucpro, run, expected):
    """Byte for byte; a shard that is done is done at once the second time."""
    for shard in ("3/3", "1/3", "2/3"):
        assert virnucpro("work", run, "--shard", shard, "-q").code == 0
    ended = virnucpro("work", run, "--shard", "2/3", "-q")
    assert (ended.code, ended.out.startswith("0 units done now")) == (0, True)
    ended = virnucpro("merge", run, "--check", "-q")
    assert (ended.code, ended.out.startswith(f"{num_units(run)} units are here and intact, rows 0 to")) == (0, True)
    ended = virnucpro("finish", run, "-q")
    assert ended.code == 0, ended.err
    assert result_bytes(run, "in") == expected[1]
    assert virnucpro("verify", run, "-q").code == 0


def test_units_that_lack_are_named_with_their_rows_and_the_command_that_makes_them(virnucpro, run, expected):
    """Exit 1 and no result; when they are made the run is finished."""
    last = num_units(run) - 1
    assert virnucpro("work", run, "--units", f"0-1,4-{last}", "-q").code == 0
    ended = virnucpro("finish", run, "-q")
    assert ended.code == 1
    units = read_json(RunDir(run).index)["units"]
    stop = units[3]["first_row"] + units[3]["num_rows"]
    assert f"units 2-3 (rows {units[2]['first_row']:,} to {stop:,}): not done" in ended.err
    assert f"virnucpro work {run} --units 2-3" in ended.err
    assert not list(run.glob("in.sequences*"))
    assert virnucpro("work", run, "-q").out.startswith("2 units done now")
    assert virnucpro("finish", run, "-q").code == 0
    assert result_bytes(run, "in") == expected[1]


def edit(path, **changes):
    path.write_text(json.dumps(read_json(path) | changes))


FAULTS = {
    "a damaged file": (
        lambda run: run.scores(2).write_bytes(run.scores(2).read_bytes()[:-1] + b"x"),
        "unit-00002.h5 is not what its receipt says",
    ),
    "a file that is gone": (lambda run: run.scores(2).unlink(), "unit-00002.h5 is gone"),
    "a receipt of another run": (lambda run: edit(run.receipt(2), run="0" * 64), "unit-00002.json is of another run"),
    "a receipt of another unit": (
        lambda run: shutil.copy(run.receipt(1), run.receipt(2)),
        "unit-00002.json is of unit 1, rows",
    ),
    "a receipt of other rows": (lambda run: edit(run.receipt(2), num_rows=3), "unit-00002.json is of unit 2, rows"),
    "a receipt without its scores": (lambda run: edit(run.receipt(2), files={}), "names other files than a unit has"),
    "a receipt that names another file": (
        lambda run: edit(run.receipt(2), files={"scores": "0" * 64, "../../x": "0" * 64}),
        "names other files than a unit has",
    ),
    "a receipt cut short": (lambda run: run.receipt(2).write_text('{"run":'), "unit-00002.json is damaged"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_is_wrong_is_named_with_file_and_range_and_work_mends_it(done, what):
    """The next ``work`` computes that unit alone."""
    spoil, text = FAULTS[what]
    spoil(RunDir(done))
    with pytest.raises(WorkerError, match=rf"unit 2 \(rows .*{re.escape(text)}"):
        by_hand.check(done)
    assert by_hand.work(done, range, {}).num_done == 1
    by_hand.check(done)


def test_nothing_is_written_of_a_run_with_a_fault(virnucpro, done, expected):
    """By ``finish``; what mends it is one command."""
    RunDir(done).scores(2).unlink()
    for command in (("finish", done), ("merge", done, "--check")):
        ended = virnucpro(*command, "-q")
        assert (ended.code, "unit-00002.h5 is gone" in ended.err) == (1, True)
    assert not list(done.glob("in.sequences*"))
    assert virnucpro("work", done, "-q").out.startswith("1 units done now")
    assert virnucpro("finish", done, "-q").code == 0
    assert result_bytes(done, "in") == expected[1]


def test_other_inputs_or_settings_are_another_run(virnucpro, done, tmp_path, tiny_bundle):
    """Their units are not taken: by the digest of the run, which has nothing to do with names."""
    same = write_fasta(tmp_path / "another name.fasta", mixed_records(24))
    ended = virnucpro("prepare", same, "-o", tmp_path / "same", "--model", tiny_bundle, *SETTINGS)
    num = num_units(done)
    assert (ended.code, f"{tmp_path}/same: {num} units (0-{num - 1})" in ended.out) == (0, True)
    ended = virnucpro("finish", tmp_path / "same", "--from", done, "-q")
    assert ended.code == 0, ended.err
    assert scores(tmp_path / "same") == scores(done)
    for name, records, more in (
        ("input", mixed_records(24, seed=1), ()),
        ("cut", mixed_records(24), ("--unit-rows", 9)),
        ("length", mixed_records(24), ("--expected-length", 200)),
    ):
        fasta = write_fasta(tmp_path / f"{name}.fasta", records)
        out = tmp_path / name
        assert virnucpro("prepare", fasta, "-o", out, "--model", tiny_bundle, *SETTINGS, *more).code == 0
        ended = virnucpro("finish", out, "--from", done, "-q")
        assert ended.code == 1, name
        assert "is of another run" in ended.err or "the run has no such unit" in ended.err
        assert not scores(out)


def test_units_from_several_machines_come_together(virnucpro, run, done, expected, tmp_path):
    """Each has some, one of them damaged; receipts and their files are enough."""
    for name, chosen in (("alpha", (0, 1, 2)), ("beta", range(2, num_units(run)))):
        there = RunDir(tmp_path / name)
        for unit in chosen:
            for path in (RunDir(done).receipt(unit), RunDir(done).scores(unit)):
                target = there.root / path.relative_to(done)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    RunDir(tmp_path / "beta").scores(4).write_bytes(b"x")
    arguments = ("finish", run, "--from", tmp_path / "alpha", "--from", tmp_path / "beta", "-q")
    ended = virnucpro(*arguments)
    assert ended.code == 1
    assert "unit 4 (rows" in ended.err
    assert f"{tmp_path}/beta/run/scores/unit-00004.h5 is not what its receipt says" in ended.err
    shutil.copy(RunDir(done).scores(4), RunDir(tmp_path / "beta").scores(4))
    assert virnucpro(*arguments).code == 0
    assert result_bytes(run, "in") == expected[1]


def test_two_at_a_time_in_one_directory(run, expected, virnucpro):
    """On different units and on the same ones; what is done twice is the same."""
    process = start("work", run, "-q", "--shard", "1/2")
    assert virnucpro("work", run, "-q").code == 0
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert virnucpro("finish", run, "-q").code == 0
    assert result_bytes(run, "in") == expected[1]


def test_kill_9_in_the_middle_and_again(run, worked, virnucpro):
    """What was done stays; the same command does the rest, to the same bytes."""
    process = start("work", run, "-q")
    wait_for_files(run / "run/scores", 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert virnucpro("work", run, "-q").code == 0
    assert scores(run) == scores(worked)
    by_hand.check(run)


def test_another_model_is_refused(virnucpro, run, tmp_path, tiny_bundle):
    """The run was prepared for the one that is gone."""
    from tiny_models import write_tiny_bundle

    other = write_tiny_bundle(tmp_path / "other", num_layers=1)
    record = read_json(RunDir(run).request)
    record["settings"]["science.model"] = str(other)
    RunDir(run).request.write_text(json.dumps(record))
    ended = virnucpro("work", run, "-q")
    assert ended.code == 2
    assert "science.model_fingerprint" in ended.err
    assert str(tiny_bundle) not in ended.err


def test_the_place_of_work_is_the_machine_that_works(virnucpro, run):
    """GPUs that were named when the run was prepared elsewhere are forgotten where another device is named."""
    record = read_json(RunDir(run).request)
    record["settings"] |= {"runtime.device": "auto", "runtime.gpus": "0,1"}
    RunDir(run).request.write_text(json.dumps(record))
    assert virnucpro("work", run, "--units", "0", "--device", "cpu", "-q").code == 0


def test_kept_embeddings_have_receipts_too(virnucpro, expected, tmp_path, tiny_bundle):
    """And come with the scores."""
    arguments = ("--model", tiny_bundle, *SETTINGS, "--keep-embeddings")
    for name in ("here", "there"):
        assert virnucpro("prepare", expected[0], "-o", tmp_path / name, *arguments).code == 0
    assert virnucpro("work", tmp_path / "there", "-q").code == 0
    assert set(read_json(RunDir(tmp_path / "there").receipt(0))["files"]) == {
        *("scores", "nucleotide", "protein", "merged"),
    }
    assert virnucpro("finish", tmp_path / "here", "--from", tmp_path / "there", "-q").code == 0
    assert result_bytes(tmp_path / "here", "in") == expected[1]
    for kind in ("embeddings/protein", "merged"):
        assert len(list((tmp_path / "here/run" / kind).glob("*.h5"))) == num_units(tmp_path / "here")


def test_a_cascade_is_screened_when_it_is_prepared(virnucpro, tmp_path, tiny_bundle):
    """The model asked for computes the rest in pieces; results are those of predict."""
    fasta = write_fasta(tmp_path / "in.fasta", mixed_records(12))
    arguments = (fasta, "--model", tiny_bundle, "--cascade", "--no-report", *SETTINGS, "--unit-rows", 20)
    assert virnucpro("predict", *arguments, "-o", tmp_path / "out").code == 0
    assert virnucpro("prepare", *arguments, "-o", tmp_path / "run").code == 0
    assert virnucpro("work", tmp_path / "run", "--shard", "2/2", "-q").code == 0
    assert virnucpro("work", tmp_path / "run", "--shard", "1/2", "-q").code == 0
    assert virnucpro("finish", tmp_path / "run", "-q").code == 0
    assert result_bytes(tmp_path / "run", "in") == result_bytes(tmp_path / "out", "in")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--shard", "0/3"), "give i/n with i from 1 to n"),
        (("--shard", "4/3"), "give i/n with i from 1 to n"),
        (("--shard", "1"), "give i/n with i from 1 to n"),
        (("--units", "5-2"), "the run has units 0-"),
        (("--units", "0-9999"), "the run has units 0-"),
        (("--units", "a"), "give ranges such as"),
        (("--units", "1", "--shard", "1/1"), "give one"),
    ],
)
def test_units_that_there_are_not_are_exit_2(virnucpro, original, arguments, text):
    """With what to write instead."""
    ended = virnucpro("work", original, *arguments)
    assert ended.code == 2
    assert text in ended.err


def test_what_is_not_prepared_is_exit_2(virnucpro, tmp_path):
    """And standard input cannot be prepared."""
    for command in ("work", "finish"):
        ended = virnucpro(command, tmp_path)
        assert (ended.code, "holds no prepared run" in ended.err) == (2, True)
    ended = virnucpro("prepare", "-", "-o", tmp_path / "run")
    assert (ended.code, "prepare reads files" in ended.err) == (2, True)


@given(st.integers(0, 300), st.integers(1, 40))
def test_shards_are_contiguous_and_hold_each_unit_once(num_units, of):
    """And differ by one unit at most."""
    parts = [shards.units_of_shard(f"{number}/{of}", num_units) for number in range(1, of + 1)]
    assert [unit for part in parts for unit in part] == list(range(num_units))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.sets(st.integers(0, 60)))
def test_ranges_are_read_as_they_are_written(units):
    """``as_ranges`` and ``--units`` are each other's inverse."""
    text = shards.as_ranges(sorted(units))
    if units:
        assert shards.units_of_ranges(text, 61) == sorted(units)
    else:
        with pytest.raises(UsageError):
            shards.units_of_ranges(text, 61)
