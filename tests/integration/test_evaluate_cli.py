"""``virnucpro evaluate``: its figures are those of the dev protocol, its files the same for a seed."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from test_training import HOSTS, write_data
from tiny_models import small_lite

from virnucpro.bundles import load_bundle
from virnucpro.cli.evaluate import evaluate
from virnucpro.errors import InputError
from virnucpro.training.dev import DevSize, Rows, ScoredDev, cut_rows, draw_dev, join_rows, mean_of_fragments
from virnucpro.training.evaluation import (
    auroc,
    average_precision,
    calibration_error,
    describe,
    precision_recall_curve,
    reliability,
    roc_curve,
)
from virnucpro.training.genomes import load_genomes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def run(data, output, *more):
    options = ("--dev-share", 0.002, "--device", "cpu", "--model", small_lite(), "-q", *more)
    asked = [str(word) for word in ("--data", data, "-o", output, *options)]
    found = CliRunner().invoke(evaluate, asked)
    if found.exception is not None:
        raise found.exception
    return found.stdout


@pytest.fixture(scope="module")
def evaluated(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation")
    (output / "said").write_text(run(data, output, "--seed", 8))
    return output


def test_the_same_command_writes_the_same_bytes(data, evaluated, tmp_path):
    said = run(data, tmp_path / "one", "--no-panel")
    assert run(data, tmp_path / "two", "--no-panel") == said.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    for name in ("evaluation.json", "evaluation.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    found, other = (json.loads((place / "evaluation.json").read_text()) for place in (evaluated, tmp_path / "one"))
    assert other["panel"] is None
    assert other["lengths"] != found["lengths"]  # another seed


def test_figures_are_by_length_family_and_host_class(evaluated):
    found = json.loads((evaluated / "evaluation.json").read_text())
    assert list(found["lengths"]) == ["150", "300", "500", "1000", "3000"]
    for of_length in found["lengths"].values():
        assert set(of_length["by_host"]) == set(HOSTS)
        assert set(of_length["by_virus"]) == {"novel", "seen"}
        assert 0 <= of_length["calibration_error"] <= 1
    assert set(found["lengths"]["500"]["by_family"]) == {"virusNew", "virus1 (seen)"}
    assert found["panel"]["num_sequences"] >= 1000
    assert found["model"]["fingerprint"] == load_bundle(str(small_lite())).fingerprint


def test_the_page_stands_alone_and_shows_what_the_json_holds(evaluated):
    page = (evaluated / "evaluation.html").read_text()
    assert not re.search(r"<script|https?://(?!www\.w3\.org)|src=", page)
    assert page.count("<svg ") == 3
    found = json.loads((evaluated / "evaluation.json").read_text())
    called = found["panel"]["presets"]["balanced"]["called_virus"]
    assert f"{100 * called:.2f} %" in page
    assert f"{100 * called:.2f} %" in (evaluated / "said").read_text()
    assert f"{found['lengths']['500']['auroc']}" in page


def test_curves_hold_the_areas_they_stand_for():
    generator = np.random.default_rng(5)
    is_virus = generator.random(4000) < 0.4
    scores, weights = generator.normal(is_virus * 1.5, 1), generator.random(4000)
    fpr, recall = roc_curve(scores, is_virus, weights)
    assert np.trapezoid(recall, fpr) == pytest.approx(auroc(scores, is_virus, weights), abs=2e-3)
    recalled, precision = precision_recall_curve(scores, is_virus, weights)
    assert np.trapezoid(precision, recalled) == pytest.approx(average_precision(scores, is_virus, weights), abs=0.01)


def test_the_reliability_diagram_holds_the_calibration_error():
    generator = np.random.default_rng(6)
    p_virus = generator.random(5000)
    is_virus, weights = generator.random(5000) < p_virus**2, generator.random(5000)
    mean, share, mass = reliability(p_virus, is_virus, weights)
    assert mass.sum() == pytest.approx(1)
    assert (mass * np.abs(mean - share)).sum() == pytest.approx(calibration_error(p_virus, is_virus, weights))


def test_sequences_without_a_score_rank_last_and_are_never_called(data):
    dev = draw_dev(load_genomes(data, "dev"), 300, DevSize(20, 20))
    log_odds = np.where(dev.is_virus, 3.0, -3.0)
    log_odds[np.flatnonzero(dev.is_virus)[::2]] = np.nan
    scored = ScoredDev(dev, cut_rows(dev.letters, 500), np.empty(0), np.zeros(len(log_odds), dtype=bool))
    found = describe(scored, log_odds, load_bundle("lite").presets)
    assert found["num_unscored"] == 20
    assert found["auroc"] == pytest.approx(0.5)
    assert found["presets"]["sensitive"]["recall"] == pytest.approx(0.5)


def test_fragments_without_a_row_have_no_part_in_a_sequence():
    letters = np.frombuffer(b"TAACTAACTAACTTAACTAACTAACTTAACTAACTAA" * 10, dtype=np.uint8)[None].repeat(3, axis=0)
    every, only_open = cut_rows(letters, 100), cut_rows(letters, 100, scores_frameless=False)
    assert len(every.fragments) >= len(only_open.fragments)
    rows = Rows(only_open.nucleotides, only_open.proteins, np.array([1, 1]), np.array([0, 0, 1]), np.array([9, 9, 9]))
    joined = join_rows(rows, np.array([1.0, 3.0]), "mean")
    assert np.array_equal(joined, [np.nan, 2.0, np.nan], equal_nan=True)
    mean, counts = mean_of_fragments(rows, joined)
    assert np.array_equal(mean, [2.0, np.nan], equal_nan=True)
    assert counts.tolist() == [1, 0]


def test_a_bundle_that_needs_open_frames_is_measured(data, tmp_path, tiny_bundle):
    run(data, tmp_path, "--model", tiny_bundle, "--no-panel")
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["lengths"]["500"]["num_unscored"] > 0
    assert found["lengths"]["500"]["by_host"]["fungi"].keys() == {"threshold"}


def test_data_without_long_records_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="3,000 bases"):
        run(write_data(tmp_path / "short", length=1200), tmp_path / "out")
