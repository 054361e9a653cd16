"""Calls: presets, thresholds, prevalence, false discovery; calling a finished run anew; rows that failed."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pysam
import pytest
from conftest import mixed_records, read_tsv, result_bytes, write_fasta
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tables import PRESETS, RULES, line, table_of

from virnucpro import store
from virnucpro.bundles import load_bundle
from virnucpro.bundles.rules import Rules
from virnucpro.errors import StoreError
from virnucpro.results.calls import FAILED, NO_OPEN_FRAME, Call, Calling, call_sequences, false_discovery_rates
from virnucpro.results.formats import decimals
from virnucpro.results.schema import SEQUENCES
from virnucpro.results.tables import sequence_cells
from virnucpro.run_dir import RunDir
from virnucpro.sequence.table import Status

MORE_RESULTS = ("uncertain.fna.gz",)

probabilities = st.lists(
    st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, float("nan")]), st.floats(0, 1)), min_size=1, max_size=30
)


@pytest.fixture(scope="module")
def rules():
    """With presets."""
    return RULES


def table_with(rules, p_virus):
    """Sequences of one fragment each with these probabilities; NaN is one without a score."""
    return table_of([line(f"s{place}", 500, p) for place, p in enumerate(p_virus)], rules)


def called(rules, p_virus, **calling):
    """Words for the calls of sequences with these probabilities at equal prevalence."""
    calls = call_sequences(table_with(rules, p_virus), Calling(**calling))[0]
    return [Call(call).name.lower() for call in calls["call"]]


@settings(deadline=None)
@given(p_virus=probabilities)
def test_the_false_discovery_rate_is_the_mean_doubt_of_all_that_are_at_least_as_likely(p_virus):
    """Sequence by sequence in plain Python; ties share a value, and what has no probability has no rate."""
    known = [p for p in p_virus if p == p]  # noqa: PLR0124 - NaN
    p_virus = np.array(p_virus, dtype=np.float32)
    found = false_discovery_rates(p_virus)
    for p, rate in zip(p_virus.tolist(), found.tolist(), strict=True):
        above = [1 - other for other in known if np.float32(other) >= p]
        assert np.isnan(rate) if np.isnan(p) else abs(rate - np.mean(above)) < 1e-6


@settings(deadline=None)
@given(p_virus=probabilities, seed=st.integers(0, 99))
def test_false_discovery_rates_do_not_depend_on_the_order_of_sequences(p_virus, seed):
    """To the last bit."""
    p_virus = np.array(p_virus, dtype=np.float32)
    order = np.random.default_rng(seed).permutation(len(p_virus))
    assert false_discovery_rates(p_virus)[order].tobytes() == false_discovery_rates(p_virus[order]).tobytes()


def test_two_thresholds_part_three_calls(rules):
    """From the upper one on virus, below the lower one not virus; without a score there is no call.

    What is more likely viral than not is never called not virus.
    """
    p_virus = [0.1, 0.55, 0.7, 0.95, 0.995, float("nan")]
    assert called(rules, p_virus) == ["not_virus", "uncertain", "uncertain", "virus", "virus", "no_call"]
    assert called(rules, p_virus, preset="sensitive") == ["not_virus", "uncertain", *["virus"] * 3, "no_call"]
    assert called(rules, p_virus, preset="strict")[2:] == ["uncertain", "uncertain", "virus", "no_call"]


def test_a_threshold_leaves_nothing_uncertain(rules):
    """And belongs to the viruses."""
    assert called(rules, [0.4999, 0.5, 0.6], threshold=0.5) == ["not_virus", "virus", "virus"]


def test_a_bundle_without_presets_calls_by_its_threshold(rules):
    """Whichever preset is named."""
    bare = replace(rules, presets={}, threshold=0.7)
    for preset in PRESETS:
        assert called(bare, [0.49, 0.69, 0.71], preset=preset) == ["not_virus", "uncertain", "virus"]


@settings(deadline=None)
@given(p=st.floats(0.01, 0.99), prevalence=st.floats(0.001, 0.999))
def test_prevalence_shifts_probabilities_by_bayes_rule(rules, p, prevalence):
    """The odds at equal prevalence times those of the prevalence."""
    found = call_sequences(table_with(rules, [p]), Calling(prevalence=prevalence))[0]["p_virus"][0]
    joint = p * prevalence
    assert found == pytest.approx(joint / (joint + (1 - p) * (1 - prevalence)), abs=1e-6)


def test_presets_do_not_move_with_the_prevalence_and_thresholds_do(rules):
    """A preset is an error rate of the model; a threshold is about the probability that is reported."""
    p_virus = [0.4, 0.7, 0.95]
    assert called(rules, p_virus, prevalence=0.01) == called(rules, p_virus) == ["not_virus", "uncertain", "virus"]
    assert called(rules, p_virus, threshold=0.6, prevalence=0.01) == ["not_virus"] * 3
    assert called(rules, p_virus, threshold=0.6, prevalence=0.9) == ["virus"] * 3


def test_a_false_discovery_rate_makes_the_longest_list_that_holds_it(rules):
    """What is beyond the list and yet more likely viral than not is uncertain."""
    p_virus = [0.99, 0.9, 0.8, 0.7, 0.6, 0.3]
    # Mean doubts from the top: 0.01, 0.055, 0.103, 0.153, 0.202, 0.285
    assert called(rules, p_virus, fdr=0.11) == ["virus"] * 3 + ["uncertain"] * 2 + ["not_virus"]
    assert called(rules, p_virus, fdr=0.0) == ["uncertain"] * 5 + ["not_virus"]
    assert called(rules, p_virus, fdr=0.3) == ["virus"] * 6


def test_status_tells_failed_rows_from_a_model_that_needs_an_open_frame(rules):
    """A record that was refused at extraction keeps that status and has no call, whatever was scored."""
    table = table_with(rules, [0.99, 0.99, float("nan"), float("nan"), 0.99])
    table.sequences["num_failed"] = 0, 1, 1, 0, 1
    table.sequences["status"][4] = Status.TOO_SHORT
    calls = call_sequences(table, Calling())[0]
    assert calls["status"].tolist() == [Status.OK, FAILED, FAILED, NO_OPEN_FRAME, Status.TOO_SHORT]
    assert calls["call"].tolist() == [Call.VIRUS, Call.VIRUS, Call.NO_CALL, Call.NO_CALL, Call.NO_CALL]
    assert np.isnan(calls["p_virus"]).tolist() == np.isnan(calls["fdr"]).tolist() == [False, False, True, True, True]


def test_a_sequence_that_repeats_itself_is_not_called_virus(rules):
    """Whatever decides the calls; it keeps its probability, and any other call."""
    for calling in (Calling(), Calling(threshold=0.5), Calling(fdr=0.3)):
        table = table_with(rules, [0.99, 0.01, float("nan")])
        table.sequences["status"] = Status.REPETITIVE
        calls = call_sequences(table, calling)[0]
        assert calls["call"].tolist() == [Call.UNCERTAIN, Call.NOT_VIRUS, Call.NO_CALL]
        assert calls["status"].tolist() == [Status.REPETITIVE] * 3
        np.testing.assert_allclose(calls["p_virus"][:2], [0.99, 0.01], rtol=1e-6)


def test_masked_fragments_are_in_no_sum(rules):
    """A call is that of the other fragments, whatever a masked one would have said."""
    plain = table_of([line("a", 1500, [0.2, 0.95, 0.95])], rules)
    masked = table_of([line("a", 2000, [0.2, 0.95, 0.001, 0.95])], rules)
    masked.fragments["masked"][2] = 1
    one, other = (call_sequences(table, Calling())[0] for table in (plain, masked))
    assert one.tobytes() == other.tobytes()


def test_the_score_ranks_what_the_probability_rounds_to_one(rules):
    """It adds up over fragments; what has no probability has none."""
    one = 1 - 1e-6
    table = table_of([line(f"s{n}", 500 * n, one) for n in (1, 2, 3)] + [line("none", 500, float("nan"))], rules)
    rows = list(zip(*sequence_cells(table, call_sequences(table, Calling())[0]), strict=True))
    place = SEQUENCES.header.index("score")
    assert [decimals(np.float32([row[5]]))[0] for row in rows] == [b"1.0000"] * 3 + [b"NA"]
    np.testing.assert_allclose([row[place] for row in rows], [13.8155, 27.631, 41.4465, np.nan], rtol=1e-4)


def test_an_input_without_sequences_can_be_called(rules):
    """Nothing in, nothing out."""
    assert len(call_sequences(table_with(rules, []), Calling(fdr=0.1))[0]) == 0


def test_rules_read_back_as_they_were_written(rules, tmp_path):
    """With and without presets."""
    for written in (rules, replace(rules, presets={}), load_bundle("lite").rules):
        written.write(tmp_path / "rules.json")
        assert Rules.read(tmp_path / "rules.json") == written


@pytest.mark.parametrize(
    "damage",
    [{"schema": 2}, {"calibration": {}}, {"presets": {"strict": [0.5, 0.6]}}, {"presets": [1]}, {"more": 1}],
    ids=str,
)
def test_rules_that_cannot_be_understood_are_refused(rules, tmp_path, damage):
    """With the file."""
    path = tmp_path / "rules.json"
    rules.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(StoreError, match=r"rules\.json"):
        Rules.read(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, virnucpro_once):
    """A finished run of the bundled model over two inputs in many units."""
    folder = tmp_path_factory.mktemp("finished")
    inputs = [write_fasta(folder / f"{stem}.fasta", mixed_records(9, seed=seed)) for stem, seed in (("a", 1), ("b", 2))]
    command = ("predict", *inputs, "-o", folder / "out", "-q", "-t", 1, "--unit-rows", 7)
    assert virnucpro_once(*command, "--prevalence", 0.2, "--keep-intermediate").code == 0
    return folder / "out"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it to change."""
    return shutil.copytree(finished, tmp_path / "run")


def test_the_same_settings_give_the_same_bytes(virnucpro, run, finished, tmp_path):
    """Elsewhere, and in place."""
    for place in ((), ("-o", tmp_path / "new" / "place")):
        ended = virnucpro("call", run, "--prevalence", 0.2, "--keep-intermediate", *place)
        assert ended.code == 0, ended.err
        for stem in "ab":
            files = (*MORE_RESULTS, "rows.tsv.gz")
            found = result_bytes(place[1] if place else run, stem, *files)
            assert found == result_bytes(finished, stem, *files)
    assert not list(run.glob("run/*.npy"))


def test_other_settings_change_calls_and_no_score(virnucpro, run, finished):
    """In place; what the run record and the summary say of the calls goes with them."""
    assert virnucpro("call", run, "--threshold", 0, "-q").code == 0
    rows = read_tsv(run / "a.sequences.tsv")
    assert {row["call"] for row in rows} <= {"virus", "no_call"}
    summary = json.loads((run / "a.summary.json").read_text())
    assert (summary["preset"], summary["threshold_virus"], summary["prevalence"]) == (None, 0.0, 0.5)
    assert summary["fdr_of_virus"] == max(float(row["fdr"]) for row in rows if row["call"] == "virus")
    before, after = (json.loads((place / "all.run.json").read_text()) for place in (finished, run))
    assert after["parameters"]["threshold_virus"] == 0.0
    assert after["counts"]["calls"]["virus"] == sum(
        row["call"] == "virus" for stem in "ab" for row in read_tsv(run / f"{stem}.sequences.tsv")
    )
    assert after["outputs"]["a.sequences.tsv"] != before["outputs"]["a.sequences.tsv"]
    assert after["outputs"]["a.rows.tsv.gz"] == before["outputs"]["a.rows.tsv.gz"]


def test_pages_follow_the_calls(virnucpro, run, finished):
    """Report, figures, MultiQC, samples, log and record are renewed; verify finds a page of other calls."""
    for file_format in ("svg", "png"):
        assert virnucpro("report", run, "--plots", file_format, "--multiqc").code == 0
    (run / "a.reads.json").write_text("{}")
    assert (run / "a.report.html").read_bytes() == (finished / "a.report.html").read_bytes()
    names = ("a.report.html", "a.virnucpro_mqc.json", "a.plots/scores.svg", "a.plots/scores.png")
    before = {name: (run / name).read_bytes() for name in names}
    ended = virnucpro("call", run, "--threshold", 0)
    assert ended.code == 0
    assert "a.reads.json: its reads have the calls of before" in ended.err
    assert "--threshold 0" in (run / "all.log").read_text()
    samples = {row["sample"]: int(row["virus"]) for row in read_tsv(run / "samples.tsv")}
    assert samples["a"] == sum(row["call"] == "virus" for row in read_tsv(run / "a.sequences.tsv"))
    (run / "a.reads.json").unlink()
    assert virnucpro("verify", run, "-q").code == 0
    for name, content in before.items():
        assert (run / name).read_bytes() != content, name
        kept = (run / name).read_bytes()
        (run / name).write_bytes(content)
        ended = virnucpro("verify", run, "-q")
        assert (ended.code, f"{name}: shows other calls" in ended.out) == (1, True), ended.out
        (run / name).write_bytes(kept)


def test_pages_that_nobody_asked_for_are_not_made_by_a_call(virnucpro, run):
    """What is not there stays away; figures of tracks that are no longer shown go."""
    (run / "a.report.html").unlink()
    (run / "a.plots").mkdir()
    (run / "a.plots" / "track_09_gone.svg").write_text("of a former call")
    (run / "a.plots" / "mine.svg").write_text("of the user")
    assert virnucpro("call", run, "--preset", "strict", "-q").code == 0
    assert not (run / "a.report.html").exists()
    assert (run / "b.report.html").exists()
    assert not (run / "a.plots" / "track_09_gone.svg").exists()
    assert (run / "a.plots" / "mine.svg").read_text() == "of the user"


def test_uncertain_sequences_are_written_as_they_were_read(virnucpro, run):
    """Each sequence in the file of its call, base for base."""
    assert virnucpro("call", run, "--fdr", 0.19, "--prevalence", 0.9, "-q").code == 0
    records = mixed_records(9, seed=1)
    rows = read_tsv(run / "a.sequences.tsv")
    for call in ("virus", "uncertain"):
        expected = "".join(f">{row['name']}\n{records[row['name']]}\n" for row in rows if row["call"] == call)
        assert gzip.decompress((run / f"a.{call}.fna.gz").read_bytes()).decode() == expected
        pysam.faidx(str(run / f"a.{call}.fna.gz"))
        with pysam.FastaFile(str(run / f"a.{call}.fna.gz")) as fasta:
            assert all(fasta.fetch(name) == records[name] for name in fasta.references)
    assert {"virus", "uncertain"} <= {row["call"] for row in rows}


def test_a_run_is_called_anew_without_its_model(virnucpro, tiny_bundle, tmp_path):
    """The folder of the bundle may be gone."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    fasta = write_fasta(tmp_path / "in.fasta", mixed_records(4))
    assert virnucpro("predict", fasta, "-o", tmp_path / "out", "-m", bundle, "-q").code == 0
    before = result_bytes(tmp_path / "out", "in", *MORE_RESULTS)
    shutil.rmtree(bundle)
    ended = virnucpro("call", tmp_path / "out", "--preset", "strict")
    assert ended.code == 0
    assert "no presets" in ended.err
    assert result_bytes(tmp_path / "out", "in", *MORE_RESULTS) == before


def test_calling_anew_loads_no_torch(run):
    """It is done in seconds."""
    code = f"import sys; from virnucpro.cli import cli; cli(['call', {str(run)!r}, '-q'], standalone_mode=False); "
    ended = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=False)
    assert ended.returncode == 0


def test_a_run_that_is_not_complete_is_refused_with_what_to_do(virnucpro, run, tmp_path):
    """No directory of a run, no rules, no scores, no index: exit 2, and the results stay."""
    before = result_bytes(run, "a")
    nowhere = virnucpro("call", tmp_path / "nowhere")
    assert (nowhere.code, "holds no run" in nowhere.err) == (2, True)
    for part, said in (("rules.json", "rules.json"), ("scores/unit-00001.h5", "1 of "), ("index.json", "not complete")):
        (run / "run" / part).unlink()
        ended = virnucpro("call", run, "--threshold", 0.1)
        assert ended.code == 2
        assert said in ended.err
        assert "predict command again" in ended.err
    assert result_bytes(run, "a") == before


def test_a_run_in_use_is_not_called_anew(virnucpro, run):
    """Another process holds it: exit 4."""
    with RunDir(run).locked():
        ended = virnucpro("call", run)
    assert (ended.code, "in use" in ended.err) == (4, True)


@pytest.mark.parametrize(
    "options",
    [("--preset", "strict", "--threshold", "0.5"), ("--fdr", "0.1", "--threshold", "0.5"), ("--prevalence", "0")],
    ids=" ".join,
)
def test_options_that_contradict_each_other_are_refused(virnucpro, run, options):
    """Exit 2 before anything is written."""
    assert virnucpro("call", run, *options).code == 2


def spoil(run, unit, rows):
    """Let rows of a unit have no score, as those have that killed their worker."""
    path = RunDir(run).scores(unit)
    scores = store.read_arrays(path, "scores", "scores")["scores"]
    scores[rows] = np.nan
    made_from = {name: store.read_attributes(path, "scores")[name] for name in ("unit_digest", "fingerprint")}
    store.write_arrays(path, "scores", {"scores": scores}, made_from)
    shutil.rmtree(RunDir(run).table, ignore_errors=True)


def test_rows_that_failed_are_listed_and_the_others_make_the_call(virnucpro, run, finished):
    """Rows in are rows out: NA in the tables, a list of their own, and a status with how many they are."""
    spoil(run, 0, [0])
    ended = virnucpro("call", run, "--prevalence", 0.2, "--keep-intermediate", "--legacy-output", "-q")
    assert ended.code == 0, ended.err
    table = store.read_unit(RunDir(run).unit(0))
    num_rows = (store.read_unit(RunDir(run).unit(0)).rows["sequence"] == 0).sum()
    first, *others = read_tsv(run / "a.sequences.tsv")
    assert first["status"] == "failed"
    assert first["reason"].startswith("1 of ")
    assert int(first["reason"].split()[2]) >= num_rows
    assert first["p_virus"] != "NA"
    assert {row["status"] for row in others} == {"ok"}
    assert len(read_tsv(run / "a.sequences.tsv")) == len(read_tsv(finished / "a.sequences.tsv"))
    row = table.rows[0]
    expected = {
        "name": "seq_0",
        "frame": f"{row['frame']:+d}",
        "start": str(row["start"] + 1),
        "stop": str(row["stop"]),
    }
    assert read_tsv(run / "a.failed.tsv") == [expected]
    assert not (run / "b.failed.tsv").exists()
    kept, before = read_tsv(run / "a.rows.tsv.gz"), read_tsv(finished / "a.rows.tsv.gz")
    assert len(kept) == len(before)
    assert [row["score_virus"] for row in kept].count("NA") == 1
    assert len(read_tsv(run / "a_merged" / "prediction_results.txt")) == len(before) - 1
    summary = json.loads((run / "a.summary.json").read_text())
    assert (summary["num_rows_failed"], summary["sequences_by_status"]["failed"]) == (1, 1)


def test_a_sequence_of_which_nothing_was_computed_has_no_call(virnucpro, run):
    """All rows of the first input failed; the list goes away when they are computed after all."""
    kept = {}
    for unit in range(len(list((run / "run" / "units").iterdir()))):
        path = RunDir(run).scores(unit)
        kept[path] = path.read_bytes()
        spoil(run, unit, slice(None))
    assert virnucpro("call", run, "-q").code == 0
    rows = read_tsv(run / "a.sequences.tsv")
    assert {(row["call"], row["status"], row["p_virus"], row["evidence"]) for row in rows} == {
        ("no_call", "failed", "NA", "NA")
    }
    assert {row["p_virus"] for row in read_tsv(run / "a.fragments.tsv.gz")} == {"NA"}
    assert json.loads((run / "a.summary.json").read_text())["fdr_of_virus"] is None
    for path, content in kept.items():
        path.write_bytes(content)
    shutil.rmtree(RunDir(run).table, ignore_errors=True)
    assert virnucpro("call", run, "-q").code == 0
    assert not (run / "a.failed.tsv").exists()


def test_the_top_region_is_that_of_the_best_fragment(run):
    """Where a sequence has several; the table of fragments agrees."""
    fragments = {}
    for row in read_tsv(run / "a.fragments.tsv.gz"):
        fragments.setdefault(row["name"], []).append(row)
    for row in read_tsv(run / "a.sequences.tsv"):
        mine = fragments[row["name"]]
        best = {f"{one['start']}-{one['stop']}" for one in mine if one["p_virus"] == max(x["p_virus"] for x in mine)}
        assert row["top_region"] in (best if len(mine) > 1 else {"NA"})
