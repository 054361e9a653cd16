"""The benchmark of a GPU, at a tiny size on the CPU: every rung is there, and one that fails costs only itself."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from test_compiled import CountingCompiler, broken_compiler

from benchmarks import gpu
from benchmarks.__main__ import benchmark
from benchmarks.gpu import check as gpu_check
from benchmarks.gpu import end_to_end, products
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.models import dense_batch, dnabert_s_shape, esm2_shape, random_encoder
from virnucpro.encoders.compiled_layers import steps_of

CPU = torch.device("cpu")
TINY = gpu.Sizes(
    largest="8M",
    smaller="8M",
    dnabert_layers=1,
    token_counts=(101, 202),
    usual_tokens=202,
    unit_rows=4,
    num_units=3,
    loader_workers=0,
    seconds=0,
    run_seconds=0,
)


@pytest.fixture(scope="module")
def figures():
    torch.compiler.reset()
    return list(gpu.measure_on(CPU, TINY, CountingCompiler()))


def by_name(figures):
    return {figure.what.strip(): figure for figure in figures}


def test_every_rung_has_its_figures(figures):
    """Those that only CUDA has are listed with that reason, and nothing fails."""
    assert [figure.note for figure in figures if "failed" in figure.note] == []
    names = by_name(figures)
    for model, length in (("ESM-2 8M", 101), ("DNABERT-S", 67)):
        assert names[f"matrix products of {model}, bfloat16, 202 tokens"].value > 0
        for num_tokens in TINY.token_counts:
            eager = names[f"{model}, eager, {num_tokens} tokens of {length}"]
            compiled = names[f"{model}, compiled, {num_tokens} tokens of {length}"]
            assert eager.value > 0
            assert compiled.peer_values == eager.values
            assert compiled.ratio == pytest.approx(compiled.value / eager.value)
        assert names[f"{model}, best rung"].value > 0
        assert names[f"{model}, best rung, MFU"].value > 0
    assert names["DNABERT-S and ESM-2 8M, 8 frames of 300 b, end to end"].value > 0
    assert 0 <= names["of it the device computed nothing"].value < 100


def test_a_device_is_busy_while_anything_computes():
    assert end_to_end.busy([(5, 6), (0, 2), (1, 3), (1.5, 1.6)]) == 4
    assert end_to_end.busy([]) == 0


def test_the_time_of_the_large_input_follows_from_the_rates_at_its_lengths(figures):
    names = by_name(figures)
    rates = [names[f"{model}, 202 tokens of {length}"].value for model, length in (("ESM-2 8M", 51), ("DNABERT-S", 35))]
    expected = 794_577 * (51 / rates[0] + 35 / rates[1]) / 60
    assert names["foreseen for both encoders: 794,577 frames of 150 bases"].value == pytest.approx(expected)


def test_what_the_time_does_not_suffice_for_is_listed():
    late = gpu.Sizes(budget_seconds=-1)
    device, *others = gpu.measure_on(CPU, late)
    assert device.what == "device"
    assert len(others) > 8
    assert all("were over" in figure.note and figure.values == () for figure in others)


def test_a_rung_that_fails_costs_only_itself(monkeypatch):
    """On a new card anything may fail: an operator, a driver, a library."""

    def fail(*_args):
        raise NotImplementedError("no such kernel\nwith a long story")
        yield

    monkeypatch.setattr(products, "measure", fail)
    monkeypatch.setattr(end_to_end, "measure", fail)
    torch.compiler.reset()
    figures = list(gpu.measure_on(CPU, TINY, broken_compiler))
    failed = [figure for figure in figures if "failed: NotImplementedError: no such kernel" in figure.note]
    assert len(failed) == 4
    assert by_name(figures)["ESM-2 8M, best rung"].value > 0
    assert "the compiler failed" in by_name(figures)["ESM-2 8M, compiled"].note


def test_arithmetic_is_that_of_the_encoders():
    """2 operations a weight; 5.66 G a token of ESM-2 3B, 0.17 of DNABERT-S; more with the length."""
    for shape in (esm2_shape("8M"), dnabert_s_shape(2)):
        encoder = random_encoder(shape, CPU, torch.bfloat16, seed=1)
        assert shape.num_layers * shape.layer_weights == steps_of(encoder).num_weights
        assert encoder.width == shape.width
    assert esm2_shape("3B").flop_per_token(0) == pytest.approx(5.66e9, rel=0.01)
    assert esm2_shape("3B").flop_per_token(101) == pytest.approx(5.70e9, rel=0.01)


def test_models_of_one_seed_are_equal_and_look_trained():
    """Norms are about one, states stay about as large as they are, so 16 bits suffice."""
    batch = dense_batch(20, 100, CPU, seed=2)
    one, other = (random_encoder(esm2_shape("8M"), CPU, torch.bfloat16, seed=1) for _ in range(2))
    embeddings = one.embed(batch)
    assert embeddings.shape == (5, 320)
    assert torch.equal(embeddings, other.embed(batch))
    assert 0.1 < embeddings.std() < 10


def test_without_a_gpu_the_command_says_so_in_one_line(tmp_path):
    if gpu.is_there():
        pytest.skip("there is one")
    ended = CliRunner().invoke(benchmark, ["--only", "gpu", "-o", str(tmp_path / "gpu.json")])
    assert ended.exit_code == 0, ended.output
    (figure,) = json.loads((tmp_path / "gpu.json").read_text())["figures"]
    assert (figure["section"], figure["values"]) == ("gpu", [])
    assert "no CUDA device" in figure["note"]


def test_a_call_that_is_over_at_once_is_made_often_enough_for_the_clock():
    calls = []
    rates = Bench(CPU, gpu.Sizes(seconds=0, run_seconds=0.01), None).rates({"": lambda: calls.append(1)}, 10)[""]
    assert len(rates) == 3
    assert len(calls) > 100


@pytest.mark.gpu
def test_on_a_gpu_every_rung_is_measured():
    """At a tiny size, with torch's own compiler and loader processes."""
    sizes = gpu.Sizes(
        **{field: getattr(TINY, field) for field in ("largest", "smaller", "dnabert_layers", "seconds")},
        token_counts=(1010, 2020),
        usual_tokens=2020,
        unit_rows=64,
        num_units=4,
        loader_workers=1,
    )
    figures = list(gpu.measure_on(torch.device("cuda", 0), sizes))
    missing = [(figure.what, figure.note) for figure in figures if not figure.values and figure.what != "device"]
    allowed = ("no kernel for mixed lengths",)
    assert [item for item in missing if not any(reason in item[1] for reason in allowed)] == []
    assert all(figure.agrees is not False for figure in figures)


def figures_of(output, section):
    lines = [json.loads(line) for line in (output / "gpu_check.jsonl").read_text().splitlines()]
    return [line for line in lines if line["section"] == section]


@pytest.mark.slow
def test_the_check_of_a_card_tries_its_own_parts_on_a_cpu(tmp_path):
    """Both encoders, the same bits in another batch, a row computed again; each figure is a line at once."""
    check = gpu_check.Check(tmp_path, begun=time.time(), budget=1000)
    gpu_check.environment(check)
    gpu_check.parity(check)
    whole = gpu_check.report(check)
    assert whole["bad"] == []
    assert [line["what"] for line in figures_of(tmp_path, "parity")] == [
        *("ESM-2, bfloat16", "DNABERT-S, bfloat16", "the same sequences in another batch"),
    ]
    assert figures_of(tmp_path, "nan")[0]["ok"]
    assert json.loads((tmp_path / "gpu_check.json").read_text())["figures"] == whole["figures"]


def test_a_section_that_fails_costs_only_itself(tmp_path):
    """A name that nobody knows, or no time: said in the report, and the exit code is 1."""
    arguments = ["--output", tmp_path, "--only", "environment", "--budget", 3]
    tests = Path(__file__).parents[1]
    paths = {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    command = [sys.executable, "-m", "benchmarks.gpu.check", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **paths})
    assert ended.returncode == 1, ended.stderr
    assert json.loads(ended.stdout)["bad"][0]["failed"] == "no time"


@pytest.mark.slow
def test_the_whole_check_of_a_card_passes_on_a_cpu(tmp_path):
    """Whole runs and a killed worker too."""
    check = gpu_check.Check(tmp_path, begun=time.time(), budget=10_000)
    for section in (gpu_check.run_tests, gpu_check.rates, gpu_check.predict, gpu_check.kill):
        section(check)
    assert gpu_check.report(check)["bad"] == []
