"""The promise: the same calls for any batch size, worker count, unit size and input order."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
from conftest import mixed_records, read_tsv, result_bytes, write_fasta
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import small_lite

from virnucpro import Options, predict, store
from virnucpro.run_dir import RunDir
from virnucpro.settings import make_settings

RECORDS = mixed_records(20, seed=7)
OPTIONS = Options(keep_intermediate=True, with_report=False)
SCORES_AGREE_TO = 1e-5
TABLES_AGREE_TO = 1.5e-4
"""Tables have four decimals: two scores 1e-5 apart may be rounded to neighbours."""

COMBINATIONS = st.fixed_dictionaries(
    {
        "layout.unit_rows": st.sampled_from([1, 3, 8, 40, 1000]),
        "runtime.token_budget": st.sampled_from([None, 60, 300, 2000, 50_000]),
        "runtime.batch_size": st.sampled_from([1, 7, 4096]),
        "runtime.threads": st.sampled_from([1, 2]),
        "runtime.merge_threads": st.sampled_from([1, 2]),
        "runtime.loader_workers": st.sampled_from([0, 0, 0, 1]),
        "runtime.parallel": st.sampled_from([False, False, False, True]),
    }
)


@pytest.fixture(scope="module", params=["lite", "tiny"])
def reference(request, tmp_path_factory, tiny_bundle):
    """A model, and what it says with the settings as they come."""
    folder = tmp_path_factory.mktemp("promise")
    model = str(small_lite() if request.param == "lite" else tiny_bundle)
    fasta = write_fasta(folder / "in.fasta", RECORDS)
    settings = make_settings(None, {"science.model": model, "runtime.device": "cpu"})
    predict([fasta], folder / "out", settings, options=OPTIONS)
    return model, folder


def answers(folder):
    """Name to (call, p_virus), and name of row to scores."""
    lines = read_tsv(folder / "in.sequences.tsv")
    calls = {line["name"]: line["call"] for line in lines}
    probabilities = {line["name"]: float("nan" if line["p_virus"] == "NA" else line["p_virus"]) for line in lines}
    return calls, probabilities, row_scores(folder)


def row_scores(folder):
    """(sequence name, fragment, frame) to scores, from what is stored."""
    run_dir = RunDir(folder)
    names, rows, computed = [], [], []
    for unit in range(len(list((run_dir.work / "units").iterdir()))):
        table = store.read_unit(run_dir.unit(unit))
        names += table.names.to_bytes()
        rows.append(table.rows)
        computed.append(store.read_arrays(run_dir.scores(unit), "scores", "scores")["scores"])
    rows, scores = np.concatenate(rows), np.concatenate(computed)
    own = rows["source"] == np.arange(len(rows))
    of_row = scores[np.cumsum(own)[rows["source"]] - 1]
    keys = ((names[row["sequence"]], int(row["fragment"]), int(row["frame"])) for row in rows)
    return dict(zip(keys, of_row, strict=True))


def check_same(ours, theirs):
    calls, probabilities, scores = ours
    expected_calls, expected_probabilities, expected_scores = theirs
    assert calls == expected_calls
    names = list(probabilities)
    np.testing.assert_allclose(
        [probabilities[name] for name in names],
        [expected_probabilities[name] for name in names],
        rtol=0,
        atol=TABLES_AGREE_TO,
    )
    assert scores.keys() == expected_scores.keys()
    keys = list(scores)
    np.testing.assert_allclose(
        [scores[key] for key in keys], [expected_scores[key] for key in keys], rtol=0, atol=SCORES_AGREE_TO
    )


def check_combination(reference, tmp_path_factory, combination, order):
    model, folder = reference
    shuffled = list(RECORDS.items())
    random.Random(order).shuffle(shuffled)
    here = tmp_path_factory.mktemp("combination")
    fasta = write_fasta(here / "in.fasta", dict(shuffled))
    options = {"science.model": model, "runtime.device": "cpu", **combination}
    predict([fasta], here / "out", make_settings(None, options), options=OPTIONS)
    check_same(answers(here / "out"), answers(folder / "out"))


ONE_PROCESS = {"runtime.parallel": False, "runtime.merge_threads": 1, "runtime.loader_workers": 0}


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(combination=COMBINATIONS, order=st.integers(0, 1000))
def test_calls_are_the_same_for_any_combination(reference, tmp_path_factory, combination, order):
    """Scores to 1e-5 and every call, whatever the batches and units, and the order of the records."""
    check_combination(reference, tmp_path_factory, combination | ONE_PROCESS, order)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(combination=COMBINATIONS, order=st.integers(0, 1000))
def test_calls_are_the_same_for_many_combinations(reference, tmp_path_factory, combination, order):
    """The same, more often, and in several processes."""
    check_combination(reference, tmp_path_factory, combination, order)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_bundle):
    """How to start a run of many units, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("whole")
    fasta = write_fasta(folder / "in.fasta", RECORDS)
    settings = {"science.model": str(tiny_bundle), "runtime.device": "cpu", "layout.unit_rows": 6}

    def begin(out, **more):
        runtime = {f"runtime.{name}": value for name, value in more.items()}
        predict([fasta], out, make_settings(None, settings | runtime), options=OPTIONS)

    begin(folder / "out")
    return begin, folder / "out"


@pytest.mark.parametrize(
    "others",
    [
        {"parallel": True, "threads": 2, "merge_threads": 2},
        pytest.param({"threads": 1, "loader_workers": 1, "batch_size": 3}, marks=pytest.mark.slow),
    ],
    ids=["more processes", "loaders and other batches"],
)
def test_a_run_goes_on_with_other_workers_and_the_bytes_are_the_same(tmp_path, whole, others):
    """Half of the units come from one process, the rest from others, in other batches of the head."""
    begin, out = whole
    half = shutil.copytree(out, tmp_path / "half")
    scores = sorted((half / "run/scores").iterdir())
    assert len(scores) > 4
    for path in scores[::2]:
        path.unlink()
    begin(half, **others)
    assert result_bytes(half, "in", "rows.tsv.gz") == result_bytes(out, "in", "rows.tsv.gz")
