"""Scoring: the same bytes for any number of threads, from shards or from merged files."""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import mixed_records, write_fasta

from virnucpro import Options, predict
from virnucpro.atomic import read_json
from virnucpro.bundles import load_bundle
from virnucpro.errors import StoreError
from virnucpro.progress import Reporter
from virnucpro.run_dir import RunDir
from virnucpro.settings import make_settings
from virnucpro.stages.base import ROLES, Run
from virnucpro.stages.classify import Scorer


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, tiny_bundle):
    """A run of a few units that kept its embeddings, and its bundle."""
    folder = tmp_path_factory.mktemp("embedded")
    fasta = write_fasta(folder / "in.fasta", mixed_records(40))
    settings = {"science.model": str(tiny_bundle), "layout.unit_rows": 30, "runtime.device": "cpu"}
    predict([fasta], folder / "out", make_settings(None, settings), options=Options(keep_embeddings=True))
    return RunDir(folder / "out"), load_bundle(str(tiny_bundle))


@pytest.fixture
def run(embedded, tmp_path):
    """A copy of that run."""
    run_dir, bundle = embedded
    shutil.copytree(run_dir.root, tmp_path / "out")
    dtype = read_json(run_dir.manifest)["science.dtype"]
    return Run(RunDir(tmp_path / "out"), (), bundle, bundle.fragment_length, 30, dtype, Reporter(bars=False))


def scorer_of(run, num_threads):
    """Scores some rows at a time."""
    return Scorer(run, num_threads, batch_size=4, keep_embeddings=True)


def score(run, num_threads):
    """Score all units; the bytes of their files."""
    units = range(len(list((run.dir.work / "units").iterdir())))
    scorer = scorer_of(run, num_threads)
    for unit in units:
        scorer.score(unit)
    return [run.dir.scores(unit).read_bytes() for unit in units]


def test_scores_do_not_depend_on_the_number_of_threads(run):
    before = torch.get_num_threads()
    alone = score(run, 1)
    assert score(run, 2) == score(run, 5) == alone
    assert torch.get_num_threads() == before


def test_scores_of_merged_files_are_those_of_the_shards(run):
    from_shards = score(run, 2)
    for role in ROLES:
        shutil.rmtree(run.dir.embedding(role, 0).parent)
    assert score(run, 2) == from_shards


def test_a_damaged_shard_costs_its_unit_alone(run):
    """However many threads had begun with it; the run ends with an error that names the unit."""
    path = run.dir.embedding("protein", 1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    run.dir.merged(1).unlink()
    scorer = scorer_of(run, 2)
    with pytest.raises(StoreError, match="damaged"):
        scorer.score(1)
    assert scorer.score(0) == scorer.score(2) == 30
