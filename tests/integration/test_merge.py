"""Merging: pair by pair, in parallel, never twice, never wrong; and the command that does it alone."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from conftest import mixed_records, write_fasta
from work_samples import Timed

from virnucpro.atomic import read_json
from virnucpro.errors import WorkerError
from virnucpro.executors.local import PoolExecutor
from virnucpro.run.verify import StoredModel
from virnucpro.run_dir import RunDir
from virnucpro.stages.merge import MergeWork, merge_all


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, tiny_bundle):
    """A run of twelve units or so that kept its embeddings."""
    from virnucpro import Options, predict
    from virnucpro.settings import make_settings

    folder = tmp_path_factory.mktemp("embedded")
    fasta = write_fasta(folder / "in.fasta", mixed_records(40))
    settings = {"science.model": str(tiny_bundle), "layout.unit_rows": 8, "runtime.device": "cpu"}
    predict([fasta], folder / "out", make_settings(None, settings), options=Options(keep_embeddings=True))
    return folder


@pytest.fixture
def run_dir(embedded, tmp_path):
    """A copy of that run before anything was merged."""
    shutil.copytree(embedded / "out", tmp_path / "out")
    shutil.rmtree(tmp_path / "out/run/merged")
    shutil.rmtree(tmp_path / "out/run/scores")
    return RunDir(tmp_path / "out")


def work_of(run_dir: RunDir) -> MergeWork:
    model = StoredModel.of(run_dir.read_manifest(), run_dir)
    return MergeWork.of_model(run_dir, model.digests, model.fingerprint, model.dtype)


def units_of(run_dir: RunDir) -> range:
    return range(len(list((run_dir.work / "units").iterdir())))


def merged_bytes(run_dir: RunDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run_dir.work / "merged").iterdir()}


def merge(work, units, num_processes, advance=lambda _: None):
    with PoolExecutor(num_processes) as executor:
        return list(merge_all(work, units, executor, advance))


def test_several_pairs_merge_at_the_same_time_in_other_processes(run_dir, embedded, tmp_path):
    """Two processes, whose work overlaps in time; the bytes are those of the merge in the run itself."""
    merge(Timed(work_of(run_dir), tmp_path), units_of(run_dir), 2)
    assert merged_bytes(run_dir) == merged_bytes(RunDir(embedded / "out"))
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(records) == len(units_of(run_dir))
    assert os.getpid() not in {record["process"] for record in records}
    assert any(
        one["process"] != other["process"] and one["start"] < other["stop"] and other["start"] < one["stop"]
        for one in records
        for other in records
    )


@pytest.mark.parametrize(("num_processes", "num_units"), [(1, 4), (2, 1)])
def test_one_core_or_one_pair_starts_no_process(run_dir, tmp_path, num_processes, num_units):
    """It is done here, at once."""
    merge(Timed(work_of(run_dir), tmp_path), range(num_units), num_processes)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert [record["process"] for record in records] == [os.getpid()] * num_units


@pytest.mark.parametrize("num_processes", [1, 2])
def test_progress_is_told_file_by_file(run_dir, num_processes):
    """As each is finished, not at the end."""
    told = []
    with PoolExecutor(num_processes) as executor:
        for _ in merge_all(work_of(run_dir), units_of(run_dir), executor, told.append):
            on_disk = len(list((run_dir.work / "merged").glob("unit-*.h5")))
            assert 0 < len(told) <= on_disk
    assert told == [1] * len(units_of(run_dir))


def test_a_valid_merged_file_is_left_alone_and_another_is_made_again(run_dir, embedded):
    """By what it was made from, not by its being there."""
    units = units_of(run_dir)
    assert sorted(merge(work_of(run_dir), units, 1)) == list(units)
    expected = merged_bytes(run_dir)
    assert expected == merged_bytes(RunDir(embedded / "out"))
    shutil.copy(run_dir.merged(3), run_dir.merged(2))  # of another unit
    run_dir.merged(4).write_bytes(b"no HDF5 at all")
    run_dir.merged(5).unlink()
    before = {path: path.stat().st_mtime_ns for path in (run_dir.work / "merged").iterdir()}
    assert sorted(merge(work_of(run_dir), units, 1)) == list(units)
    assert merged_bytes(run_dir) == expected
    renewed = {path for path, time_ns in before.items() if path.stat().st_mtime_ns != time_ns}
    assert renewed == {run_dir.merged(2), run_dir.merged(4)}


@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_pairs_that_cannot_be_merged_are_listed_when_all_others_are(run_dir, num_processes):
    """With the file and the reason."""
    content = run_dir.embedding("protein", 1).read_bytes()
    run_dir.embedding("protein", 1).write_bytes(content[: len(content) // 2])
    run_dir.embedding("nucleotide", 3).unlink()
    with pytest.raises(WorkerError) as caught:
        merge(work_of(run_dir), units_of(run_dir), num_processes)
    text = str(caught.value)
    assert "2 pairs" in text
    assert str(run_dir.embedding("protein", 1)) in text
    assert str(run_dir.embedding("nucleotide", 3)) in text
    assert {path.name for path in (run_dir.work / "merged").iterdir()} == {
        run_dir.merged(unit).name for unit in units_of(run_dir) if unit not in (1, 3)
    }


def score_again(virnucpro, embedded, out, bundle, *more):
    """Run the command of the fixture in another directory."""
    settings = ("--model", bundle, "--unit-rows", 8, "--device", "cpu", "-q", *more)
    ended = virnucpro("predict", embedded / "in.fasta", "-o", out, *settings)
    assert ended.code == 0, ended.err
    return {path.name: path.read_bytes() for path in (out / "run/scores").iterdir()}


def scores_of(embedded):
    return {path.name: path.read_bytes() for path in (embedded / "out/run/scores").iterdir()}


def test_a_unit_whose_shards_are_gone_is_scored_from_its_merged_file(virnucpro, embedded, tmp_path, tiny_bundle):
    """To the same bits, and nothing is embedded again."""
    out = tmp_path / "out"
    shutil.copytree(embedded / "out", out)
    shutil.rmtree(out / "run/embeddings")
    shutil.rmtree(out / "run/scores")
    assert score_again(virnucpro, embedded, out, tiny_bundle, "--keep-embeddings") == scores_of(embedded)
    assert not (out / "run/embeddings").exists()


def test_scores_are_the_same_bits_whether_or_not_embeddings_are_kept(virnucpro, embedded, tmp_path, tiny_bundle):
    """And without that, neither shards nor merged files stay."""
    assert score_again(virnucpro, embedded, tmp_path / "out", tiny_bundle) == scores_of(embedded)
    assert not [*tmp_path.glob("out/run/embeddings/*/unit-*"), *tmp_path.glob("out/run/merged/unit-*")]
    assert "merge" not in read_json(tmp_path / "out/in.run.json")["seconds"]


def test_with_merge_threads_the_head_reads_merged_files(virnucpro, embedded, tmp_path, tiny_bundle):
    """To the same bits. Each pair is merged, by as many processes, and nothing of it stays."""
    out = tmp_path / "out"
    assert score_again(virnucpro, embedded, out, tiny_bundle, "--merge-threads", 2) == scores_of(embedded)
    assert read_json(out / "in.run.json")["seconds"]["merge"] > 0
    assert not [*out.glob("run/embeddings/*/unit-*"), *out.glob("run/merged/unit-*")]


def test_merge_alone_by_its_command(virnucpro, run_dir, embedded):
    """It says what it did; again there is nothing to do; a pair that is not there waits."""
    number = len(units_of(run_dir))
    run_dir.embedding("protein", 0).unlink()
    ended = virnucpro("merge", run_dir.root, "--merge-threads", 1, "-q")
    assert (ended.code, ended.out.split(",")[0]) == (0, f"{number - 1} merged now")
    assert "1 wait for their embeddings" in ended.out
    shutil.copy(RunDir(embedded / "out").embedding("protein", 0), run_dir.embedding("protein", 0))
    assert virnucpro("merge", run_dir.root, "-q").out.startswith(f"1 merged now, {number - 1} were merged already")
    assert virnucpro("merge", run_dir.root, "-q").out.startswith(f"0 merged now, {number} were merged already")
    assert merged_bytes(run_dir) == merged_bytes(RunDir(embedded / "out"))


def test_merge_of_what_is_no_run_is_a_usage_error(virnucpro, tmp_path):
    """Exit 2, and what to name instead."""
    ended = virnucpro("merge", tmp_path)
    assert ended.code == 2
    assert "holds no run" in ended.err
    assert not list(tmp_path.iterdir())
