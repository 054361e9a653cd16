"""The benchmark against peers at a tiny size: every figure is there, and ours and the peer's output are equal."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.__main__ import benchmark
from benchmarks.duplicates import _count_other_calls
from benchmarks.encoders import _Contestant, _esm2_peers, _fitting, _missing_peers
from benchmarks.inputs import esm2_weights
from benchmarks.launch import Watch, processes_of
from benchmarks.made_models import MADE_MODELS
from benchmarks.measure import Figure, Goal, take_turns
from benchmarks.memory import _growth_figures
from benchmarks.plain_extraction import cut_windows
from benchmarks.program import ProgramRun
from virnucpro.bundles import load_bundle
from virnucpro.errors import ModelError
from virnucpro.machine.reads import write_reads
from virnucpro.sequence.ragged import Ragged


@pytest.fixture
def measured(tmp_path):
    """Run some sections; gives the record that was written and the printed table."""

    def run(*sections, **options):
        path = tmp_path / "figures.json"
        given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
        arguments = ["--only", ",".join(sections), "-o", path, "--seconds", 0, "--threads", 1, *given]
        ended = CliRunner().invoke(benchmark, [str(part) for part in arguments])
        assert ended.exit_code == 0, ended.output
        return json.loads(path.read_text()), ended.output

    return run


def of(record, section):
    return [figure for figure in record["figures"] if figure["section"] == section]


def test_extraction_keeps_the_rows_that_both_peers_keep(measured):
    record, table = measured("extraction", records=300)
    figures = of(record, "extraction")
    assert [(figure["peer"], figure["agrees"]) for figure in figures] == [
        ("plain Python", True),
        ("Biopython", True),
    ] * 2
    assert all(figure["value"] > 0 and figure["peer_value"] > 0 and figure["ratio"] > 0 for figure in figures)
    assert all(len(figure["values"]) >= 3 for figure in figures)
    assert ">= 60x" in table


@pytest.mark.slow
def test_encoders_agree_with_fair_esm_with_hugging_face_and_with_the_plain_layers(measured):
    """Each dtype against every peer in float32; bfloat16 against those in bfloat16 too, which carry no goal."""
    record, _ = measured("encoders", esm2="8M", dnabert_layers=1, strings=6)
    figures = of(record, "encoders")
    ways = ["float32", "bfloat16"]
    peers = ("fair-esm, padded batches", "fair-esm, one at a time", "EsmModel, padded batches")
    of_esm = [(f"ESM-2 8M, {dtype}, packed", f"{peer}, float32") for dtype in ways for peer in peers]
    of_esm += [("ESM-2 8M, bfloat16, packed", f"{peer}, padded batches, bfloat16") for peer in ("fair-esm", "EsmModel")]
    of_dnabert = [(f"DNABERT-S, 1 layers, {dtype}, packed", "plain torch, one at a time, float32") for dtype in ways]
    assert sorted((figure["what"], figure["peer"]) for figure in figures) == sorted(of_esm + of_dnabert)
    assert all(figure["agrees"] for figure in figures)
    exact = [figure["max_difference"] for figure in figures if "float32" in figure["what"]]
    assert max(exact) <= 1e-5
    rounded = [figure for figure in figures if figure["peer"].endswith("bfloat16")]
    assert all("cast as a whole" in figure["note"] for figure in rounded)
    with_goal = {figure["peer"] for figure in figures if figure["goal"]["least_ratio"] is not None}
    assert with_goal == {"fair-esm, padded batches, float32", "plain torch, one at a time, float32"}


@pytest.mark.parametrize(("module", "package"), [("esm", "fair-esm"), ("transformers", "transformers")])
def test_a_peer_that_is_not_installed_is_named(monkeypatch, module, package):
    """None in ``sys.modules`` is how Python itself says that a module is not to be had."""
    assert list(_missing_peers("ESM-2 8M")) == []
    monkeypatch.setitem(sys.modules, module, None)
    (figure,) = _missing_peers("ESM-2 8M")
    assert (figure.what, figure.peer, figure.values) == ("ESM-2 8M", package, ())
    assert figure.note == f"{package} is not installed"
    config, tensors = esm2_weights("8M", seed=1)
    assert {name.split(",")[0] for name in _esm2_peers(config, tensors)} == {"fair-esm", "EsmModel"} - {
        {"esm": "fair-esm", "transformers": "EsmModel"}[module]
    }


def test_what_takes_too_long_in_bfloat16_gets_fewer_strings():
    def embed(strings):
        time.sleep(0.5 * len(strings))
        return 1, np.zeros((len(strings), 1), dtype=np.float32)

    strings = Ragged.from_bytes([b"MKV"] * 64)
    assert 10 <= len(_fitting(_Contestant("bfloat16", embed), strings)) <= 20
    assert len(_fitting(_Contestant("float32", embed), strings)) == 64


def test_results_have_the_scores_and_windows_of_the_peer(measured):
    record, table = measured("results", rows=120)
    written, whole, kept, *stages = of(record, "results")
    assert written["ratio"] > 0
    assert "merged files kept" in kept["what"]
    for figure in (whole, kept):
        assert figure["agrees"]
        assert figure["ratio"] > 0
    assert [figure["what"].split()[-1] for figure in stages] == ["merge", "classify", "tabulate", "write"]
    assert "rows of 3,328" in table


@pytest.mark.slow
def test_predict_and_memory_run_the_program(measured, tiny_bundle):
    record, _ = measured("predict", "memory", model=tiny_bundle, predict_reads=60, reads="20,80", read_length=150)
    whole, *stages = of(record, "predict")
    assert whole["unit"] == "fragments/s"
    assert {"of it extract", "of it embed", "of it write"} <= {figure["what"].strip() for figure in stages}
    small, small_time, large, _, growth = of(record, "memory")
    assert 0 < small["value"] < 8
    assert small_time["value"] > 0
    assert growth["ratio"] == pytest.approx(large["value"] / small["value"])
    assert [figure["point"]["x"] for figure in (small, large)] == [20, 80]


@pytest.mark.slow
def test_copies_of_reads_are_called_as_their_originals(measured):
    record, table = measured("duplicates", model="hollow", predict_reads=60, read_length=150)
    whole, embed, others = of(record, "duplicates")
    assert whole["agrees"]
    assert whole["max_difference"] == 0
    assert embed["unit"] == others["unit"] == "s"
    assert ">= 1.95x" in table


def test_a_copy_that_is_called_otherwise_is_counted(tmp_path):
    table = tmp_path / "sequences.tsv"
    table.write_text("name\tcall\na\tvirus\nb\tvirus\nc\tvirus\nd\tnot_virus\n")
    assert _count_other_calls(table, 2) == 1


@pytest.mark.slow
def test_several_processes_merge_to_the_same_files_and_embed_the_same_rows(measured):
    """Slow: two dozen processes are started."""
    record, _ = measured("scaling", model="hollow", rows=48)
    one, *several, alone, two = of(record, "scaling")
    assert [figure["point"]["x"] for figure in (one, *several)] == [1, 2, 4]
    assert all(figure["agrees"] for figure in several)
    assert all(figure["peer"] == "as many bytes written plainly" for figure in (one, *several))
    assert two["ratio"] > 0
    assert two["peer_values"] == alone["values"]


def test_time_is_linear_and_memory_flat_where_the_sizes_are_settled():
    runs = {
        num_reads: ProgramRun(seconds, peak, num_reads, num_reads, {})
        for num_reads, seconds, peak in ((1_000, 4.0, 2**28), (100_000, 10.0, 2**29), (1_000_000, 100.0, 2**29))
    }
    against_all, flat, exponent, foreseen = _growth_figures(runs)
    assert against_all.ratio == 2
    assert against_all.is_reached is None
    assert (flat.ratio, flat.is_reached) == (1, True)
    assert exponent.value == pytest.approx(1)
    assert exponent.is_reached
    assert foreseen.value == pytest.approx(0.5)


@pytest.mark.parametrize("model", MADE_MODELS)
def test_a_model_made_on_the_spot_is_the_same_for_the_same_seed(tmp_path, model):
    fingerprints = []
    for name in "ab":
        (tmp_path / name).mkdir()
        fingerprints.append(load_bundle(str(MADE_MODELS[model](tmp_path / name, 3))).fingerprint)
    assert fingerprints[0] == fingerprints[1]


def test_reads_that_are_written_again_have_new_names(tmp_path):
    path = write_reads(tmp_path / "reads.fasta", 3, 9, 0.5, seed=1, num_copies=2)
    names, bases = path.read_text().split()[::2], path.read_text().split()[1::2]
    assert names == [f">r{number:09d}" for number in range(6)]
    assert bases[:3] == bases[3:]
    assert len(set(bases)) == 3


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the system does not tell")
def test_the_memory_of_all_processes_of_a_run_is_seen():
    """A child of the watched process holds most of it."""
    child = "import time; held = bytearray(b'x' * 200_000_000); print('ready', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            assert len(processes_of(process.pid)) == 2
            watch = Watch(process.pid)
            until = time.monotonic() + 20
            while watch.peak_bytes < 200_000_000 and time.monotonic() < until:
                time.sleep(0.05)
            watch.stop()
            assert 200_000_000 < watch.peak_bytes < 300_000_000
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_the_record_says_where_it_was_measured(measured):
    record, _ = measured("extraction", records=100)
    assert record["machine"]["cpus"] >= 1
    assert len(record["machine"]["load_at_start"]) == len(record["load_at_end"]) == 3
    assert record["versions"]["torch"]
    assert record["settings"]["num_records"] == 100


def test_a_missing_model_is_found_before_anything_is_measured(tmp_path):
    ended = CliRunner().invoke(benchmark, ["--only", "extraction,predict", "--model", str(tmp_path / "none")])
    assert isinstance(ended.exception, ModelError)
    assert ended.output == ""


@pytest.mark.parametrize("option", [("--only", "speed"), ("--only", ","), ("--esm2", "7M"), ("--reads", "many")])
def test_unknown_names_are_usage_errors(option):
    assert CliRunner().invoke(benchmark, option).exit_code == 2


def test_goals_are_reached_from_the_right_side():
    assert Figure("s", "w", "u", (3.0, 1.0, 2.0), goal=Goal(least=2)).is_reached
    assert Figure("s", "w", "u", (2.0,), goal=Goal(most=1)).is_reached is False
    assert Figure("s", "w", "u", (2.0,), ratio=1.5, goal=Goal(least=1, least_ratio=2)).is_reached is False
    assert Figure("s", "w", "u", (), goal=Goal(least=1)).is_reached is None


def test_contestants_take_turns_and_run_three_times():
    order = []
    rates = take_turns({name: lambda name=name: order.append(name) or 1 for name in "ab"}, 0)
    assert order == ["a", "b"] * 4
    assert [len(values) for values in rates.values()] == [3, 3]


def test_what_is_done_before_and_after_a_run_is_off_the_clock():
    order = []
    rates = take_turns(
        {"a": lambda: order.append("work") or 1},
        0,
        before={"a": lambda: time.sleep(0.05) or order.append("before")},
        after={"a": lambda: time.sleep(0.05) or order.append("after")},
        warm_up=False,
    )
    assert order == ["before", "work", "after"] * 3
    assert min(rates["a"]) > 100


def test_the_plain_rule_cuts_as_published():
    assert cut_windows(301, 300) == [(0, 300), (150, 301)]
