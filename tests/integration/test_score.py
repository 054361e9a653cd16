"""Scores, calls and regions from Python, without files; and what masked stretches do to them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import mixed_records, read_tsv, write_fasta
from tiny_models import small_lite

import virnucpro
from virnucpro.errors import UsageError
from virnucpro.results.calls import Call

EXAMPLES = Path(__file__).parents[2] / "examples"
ONE_THREAD = {"runtime.threads": 1, "runtime.device": "cpu"}
SETTINGS = virnucpro.make_settings(None, {"science.model": str(small_lite()), **ONE_THREAD})


@pytest.fixture(scope="module")
def scored():
    """Records as ids and bases, and their scores."""
    records = mixed_records(12, seed=3) | {"tiny": "ACGT"}
    return records, virnucpro.score(list(records.items()), SETTINGS)


def test_scores_are_those_that_predict_writes(scored, tmp_path):
    """From a file, from records, as text or bytes; fragment by fragment."""
    records, fragments = scored
    fasta = write_fasta(tmp_path / "in.fasta", records)
    virnucpro.predict([fasta], tmp_path / "out", SETTINGS, options=virnucpro.Options(with_report=False))
    of_bytes = virnucpro.score([(name.encode(), bases.encode()) for name, bases in records.items()], SETTINGS)
    for other in (virnucpro.score(fasta, SETTINGS), virnucpro.score([fasta], SETTINGS), of_bytes):
        assert other.fragments.tobytes() == fragments.fragments.tobytes()
        assert other.names.to_bytes() == fragments.names.to_bytes()
    called = fragments.call()
    rows = read_tsv(tmp_path / "out" / "in.sequences.tsv")
    assert [f"{p:.4f}" for p in called.calls["p_virus"][:-1]] == [row["p_virus"] for row in rows[:-1]]


def test_nothing_is_left_behind(monkeypatch, tmp_path):
    """The scores are in memory; their run is gone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fragments = virnucpro.score([("a", "ACGT" * 100)], SETTINGS)
    assert list(tmp_path.iterdir()) == []
    assert len(fragments) == 1


def test_calls_and_regions_follow_the_options(scored):
    """As of the command line."""
    _, fragments = scored
    strict, by_rate = fragments.call("strict"), fragments.call(fdr=0.2, prevalence=0.3)
    assert strict.calling.preset == "strict"
    assert (by_rate.calling.fdr, by_rate.calling.prevalence) == (0.2, 0.3)
    regions = fragments.call(threshold=0.0).regions
    assert len(regions) == len(fragments) - 1  # all but the one that is too short
    assert len(fragments.regions("strict")) <= len(regions)
    with pytest.raises(UsageError, match="three ways"):
        fragments.call("strict", threshold=0.5)


def test_tables_for_data_frames_have_the_columns_of_the_files(scored):
    """Of fragments and of sequences."""
    pytest.importorskip("pyarrow")
    _, fragments = scored
    table = fragments.to_arrow()
    assert table.column_names == ["name", "start", "stop", "log_odds", "num_open", "masked"]
    assert len(table) == len(fragments.fragments)
    sequences = fragments.call().to_arrow().to_pylist()
    assert [row["name"] for row in sequences] == [name.decode() for name in fragments.names.to_bytes()]
    assert (sequences[-1]["call"], sequences[-1]["p_virus"]) == ("no_call", None)
    pytest.importorskip("pandas")
    assert len(fragments.to_pandas()) == len(table)


def example_records(kind):
    """Those of the example that are of a kind."""
    truth = dict(line.split("\t")[:2] for line in (EXAMPLES / "truth.tsv").read_text().splitlines())
    records = {}
    for part in (EXAMPLES / "metagenome.fasta").read_text().split(">")[1:]:
        header, _, bases = part.partition("\n")
        name = header.split()[0]
        if truth[name] == kind:
            records[name] = bases.replace("\n", "")
    return records


def test_a_gap_changes_no_call_and_no_score():
    """A run of 10 to 10,000 N put anywhere into any host or virus: the same to the last bit."""
    records = example_records("host_like") | example_records("viral_like")
    rng = np.random.default_rng(1)
    gapped = {}
    for name, bases in records.items():
        place, gap = int(rng.integers(0, len(bases) + 1)), "N" * int(rng.choice([10, 100, 1000, 10_000]))
        gapped[name] = bases[:place] + gap + bases[place:]
    settings = virnucpro.make_settings(None, ONE_THREAD)
    plain, changed = (virnucpro.score(list(each.items()), settings) for each in (records, gapped))
    then, now = (table.call() for table in (plain, changed))
    assert len(records) > 50
    assert now.calls.tobytes() == then.calls.tobytes()
    assert len(now.proviruses) == len(then.proviruses) == 0
    for column in ("log_odds", "num_open", "masked"):
        assert changed.fragments[column].tobytes() == plain.fragments[column].tobytes()
    assert changed.closed(changed.genes).tobytes() == plain.closed(plain.genes).tobytes()


def test_telomeres_in_a_host_make_no_virus_and_no_region():
    """Eight thousand bases of TTAGGG."""
    rng = np.random.default_rng(1)
    changed = {}
    for name, bases in example_records("host_like").items():
        place = int(rng.integers(0, len(bases) + 1))
        changed[name] = bases[:place] + "TTAGGG" * 1334 + bases[place:]
    fragments = virnucpro.score(list(changed.items()), virnucpro.make_settings(None, ONE_THREAD))
    called = fragments.call()
    assert Call.VIRUS not in called.calls["call"]
    assert len(called.regions) == 0
    masked = fragments.fragments["masked"] > 0
    assert masked.any()
    assert np.isnan(fragments.fragments["log_odds"][masked]).all()
