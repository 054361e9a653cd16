"""Scoring: the same bytes for any number of threads, from shards or from merged files."""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import mixed_records, write_fasta

from virnucpro import Options, predict
from virnucpro.bundles import load_bundle
from virnucpro.executors.base import UnitDone, UnitFailed, Worker
from virnucpro.run_dir import RunDir, read_json
from virnucpro.settings import make_settings
from virnucpro.stages.base import ROLES
from virnucpro.stages.classify import ClassifyWork


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, tiny_bundle):
    """A run of a few units that kept its embeddings, and its bundle."""
    folder = tmp_path_factory.mktemp("embedded")
    fasta = write_fasta(folder / "in.fasta", mixed_records(40))
    settings = {"science.model": str(tiny_bundle), "layout.unit_rows": 30, "runtime.device": "cpu"}
    predict([fasta], folder / "out", make_settings(None, settings), options=Options(keep_embeddings=True))
    return RunDir(folder / "out"), load_bundle(str(tiny_bundle))


@pytest.fixture
def work(embedded, tmp_path):
    """Work on a copy of that run, some rows at a time."""
    run_dir, bundle = embedded
    shutil.copytree(run_dir.root, tmp_path / "out")
    dtype = read_json(run_dir.manifest)["science.dtype"]
    return ClassifyWork(RunDir(tmp_path / "out"), bundle, dtype, batch_size=4, keep_embeddings=True)


def score(work, num_threads):
    """Score all units; the bytes of their files."""
    units = range(len(list((work.run_dir.work / "units").iterdir())))
    outcomes = list(work.process(units, Worker(0, "cpu", num_threads)))
    assert all(isinstance(outcome, UnitDone) for outcome in outcomes)
    return [work.run_dir.scores(unit).read_bytes() for unit in units]


def test_scores_do_not_depend_on_the_number_of_threads(work):
    before = torch.get_num_threads()
    alone = score(work, 1)
    assert score(work, 2) == score(work, 5) == alone
    assert torch.get_num_threads() == before


def test_scores_of_merged_files_are_those_of_the_shards(work):
    from_shards = score(work, 2)
    for role in ROLES:
        shutil.rmtree(work.run_dir.embedding(role, 0).parent)
    assert score(work, 2) == from_shards


def test_a_damaged_shard_costs_its_unit_alone(work):
    """However many threads had begun with it."""
    path = work.run_dir.embedding("protein", 1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    work.run_dir.merged(1).unlink()
    outcomes = {outcome.unit: outcome for outcome in work.process([0, 1, 2], Worker(0, "cpu", 2))}
    assert isinstance(outcomes[1], UnitFailed)
    assert "damaged" in outcomes[1].reason
    assert isinstance(outcomes[0], UnitDone)
    assert isinstance(outcomes[2], UnitDone)
