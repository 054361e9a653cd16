"""``virnucpro profile``: what it measures adds up, what it saves is found again, and results stay what they are."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mixed_records, result_bytes, start, write_fasta
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from virnucpro import store
from virnucpro.benchmarks.inputs import random_strings
from virnucpro.bundles import load_bundle
from virnucpro.encoders import load_encoder, read_config
from virnucpro.encoders.letters import LetterTokenizer
from virnucpro.encoders.residue_conv import RESIDUE_CODES
from virnucpro.engine.loader import pack_unit
from virnucpro.engine.packing import GreedyPacker
from virnucpro.errors import ResourceError
from virnucpro.machine import profiles
from virnucpro.machine.arithmetic import TransformerShape, measure_matmul, transformer_shape
from virnucpro.machine.budgets import sweep_budgets
from virnucpro.machine.layouts import best_layout, layouts_of, sweep_layouts
from virnucpro.machine.loaders import best_loader, sweep_loaders
from virnucpro.machine.profiles import LayoutRate, LoaderRate
from virnucpro.machine.sample_units import draw_strings, store_units
from virnucpro.machine.timeline import PARTS, WAITING, measure_timeline
from virnucpro.stages.base import ROLES

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Profiles of tests lie in a cache of their own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("VIRNUCPRO_CACHE", str(folder))
    return folder


@pytest.fixture
def measured(virnucpro, tiny_bundle):
    """Measure the tiny model for a moment, with one thread."""

    def run(*more):
        ended = virnucpro("profile", "-m", tiny_bundle, "--device", "cpu", "--seconds", 0.5, "-t", 1, *more)
        assert ended.code == 0, ended.err
        return ended.out

    return run


def encoders_of(bundle, dtype=torch.float32):
    return {role: load_encoder(bundle.encoder(role), CPU, dtype) for role in ROLES}


def attention_flop(query, key, value, *_, out_shape=None, **__):
    """The count of torch itself, for the kernel of CPUs that it has no entry for."""
    del out_shape
    return sdpa_flop_count(query, key, value)


def test_the_formula_counts_what_the_encoders_compute(tiny_bundle, tmp_path):
    """Against the operations that torch itself counts, in bfloat16: it does not know our operator for float32."""
    bundle = load_bundle(str(tiny_bundle))
    strings = draw_strings(tmp_path, bundle, 12)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001 - named so by torch
    for role in ROLES:
        encoder = load_encoder(bundle.encoder(role), CPU, torch.bfloat16)
        (batch,) = pack_unit(0, strings[role], encoder.tokenizer, GreedyPacker(100_000)).batches
        with FlopCounterMode(display=False, custom_mapping={kernel: attention_flop}) as counter:
            encoder.embed(batch)
        shape = transformer_shape(read_config(bundle.encoder(role)))
        expected = shape.flop_per_token(np.array(batch.lengths)) * batch.num_tokens
        assert counter.get_total_flops() == pytest.approx(expected, rel=1e-6), role


def test_published_sizes_cost_what_is_published():
    """ESM-2 3B: 2 x 12 x 36 x 2560^2 a token, and attention on top."""
    shape = TransformerShape(width=2560, inner_width=10_240, num_layers=36, layer_weights=12 * 2560**2)
    assert shape.flop_per_token(np.array([1])) == pytest.approx(5.66e9, rel=0.01)
    assert shape.flop_per_token(np.array([168])) - shape.flop_per_token(np.array([0])) == 4 * 36 * 168 * 2560


def test_look_up_encoders_have_no_arithmetic_to_speak_of():
    bundle = load_bundle("lite")
    assert [transformer_shape(read_config(bundle.encoder(role))) for role in ROLES] == [None, None]


def test_a_matrix_rate_is_measured():
    shape = TransformerShape(width=64, inner_width=256, num_layers=1, layer_weights=1)
    assert measure_matmul(shape, (64, 128), CPU, torch.float32, 0.2) > 1e6


@pytest.mark.parametrize(
    ("threads", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 2), (2, 1)]),
        (6, [(1, 6), (2, 3), (4, 1), (6, 1)]),
        (8, [(1, 8), (2, 4), (4, 2), (8, 1)]),
    ],
)
def test_layouts_share_the_cpus_out(threads, expected):
    assert layouts_of(threads) == expected


def test_more_processes_must_be_worth_it():
    assert best_layout((LayoutRate(1, 2, 100.0, 1), LayoutRate(2, 1, 102.0, 1))).num_processes == 1
    assert best_layout((LayoutRate(1, 2, 100.0, 1), LayoutRate(2, 1, 150.0, 1))).num_processes == 2
    assert best_loader((LoaderRate(0, 100.0), LoaderRate(1, 102.0), LoaderRate(2, 104.0))) == 2


class Bounded:
    """An encoder with memory for so many tokens a batch; as fast as the batch is large."""

    kind, alphabet, width, cpu_token_budget = "bounded", "aa", 4, 2048
    tokenizer = LetterTokenizer(RESIDUE_CODES)

    def __init__(self, most_tokens, seconds_a_batch=0.0):
        self.most_tokens, self.seconds_a_batch = most_tokens, seconds_a_batch

    def embed(self, batch):
        if batch.num_tokens > self.most_tokens:
            raise torch.OutOfMemoryError(f"{batch.num_tokens} tokens")
        time.sleep(self.seconds_a_batch)
        return torch.zeros(len(batch.lengths), self.width)


@pytest.fixture
def config(tiny_bundle):
    """A config whose kind has no formula."""
    return replace(read_config(load_bundle(str(tiny_bundle)).protein), kind="bounded")


def proteins(num):
    """Different ones of 100 residues: a unit holds each but once."""
    return random_strings(np.random.default_rng(1), b"ACDEFGHIKLMNPQRSTVWY", np.full(num, 100))


def test_a_sweep_ends_where_the_memory_does(config):
    sweep = sweep_budgets(Bounded(4500, 0.01), config, proteins(800), CPU, torch.float32, 3.0)
    assert sweep.ended == "memory"
    assert [rate.token_budget for rate in sweep.rates] == [1024, 2048, 4096]
    assert sweep.best_budget == 4096
    assert {rate.mfu for rate in sweep.rates} == {None}


def test_a_sweep_ends_where_the_time_does(config):
    sweep = sweep_budgets(Bounded(10**9, 0.3), config, proteins(800), CPU, torch.float32, 0.1)
    assert sweep.ended == "time"
    assert [rate.token_budget for rate in sweep.rates] == [1024]
    assert sweep.best_budget == sweep.usual_budget == 2048


def test_a_sweep_without_memory_for_anything_says_so(config):
    with pytest.raises(ResourceError, match="1024 tokens"):
        sweep_budgets(Bounded(10), config, proteins(50), CPU, torch.float32, 1.0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_timeline_adds_up_to_the_wall_time(tiny_bundle, tmp_path, num_workers):
    bundle = load_bundle(str(tiny_bundle))
    units = store_units(tmp_path, bundle, 40, 3)
    timeline = measure_timeline(units, encoders_of(bundle), dict.fromkeys(ROLES, 2048), CPU, num_workers, is_half=False)
    assert set(timeline.seconds) == set(PARTS)
    assert sum(timeline.seconds.values()) == pytest.approx(timeline.wall_seconds)
    assert min(timeline.seconds.values()) >= -1e-6
    assert timeline.num_rows == sum(len(store.read_unit(units.run_dir.unit(unit))) for unit in (1, 2)) / 2
    assert (timeline.seconds[WAITING] > 0) == (num_workers > 0)


def test_loader_processes_are_compared(tiny_bundle, tmp_path):
    bundle = load_bundle(str(tiny_bundle))
    rates = sweep_loaders(
        store_units(tmp_path, bundle, 20, 3), encoders_of(bundle), dict.fromkeys(ROLES, 2048), CPU, 60
    )
    assert [rate.num_workers for rate in rates] == [0, 1, 2]
    assert all(rate.rows_per_second > 0 for rate in rates)


def test_layouts_are_measured_in_real_processes(tiny_bundle, tmp_path):
    bundle = load_bundle(str(tiny_bundle))
    units = store_units(tmp_path / "units", bundle, 20, 1)
    rates = sweep_layouts(tmp_path / "notes", units, bundle, "float32", dict.fromkeys(ROLES, 2048), 2, 90.0)
    assert [(rate.num_processes, rate.num_threads) for rate in rates] == [(1, 2), (2, 1)]
    assert all(rate.rows_per_second > 0 and rate.peak_bytes > 1 << 20 for rate in rates)


def test_a_profile_is_printed_saved_shown_and_forgotten(measured, virnucpro, tiny_bundle, cache):
    printed = measured()
    for words in ("nucleotide encoder (dnabert_s)", "protein encoder (esm2)", "TFLOP/s", "loader workers", "compute"):
        assert words in printed
    (path,) = (cache / "profiles").iterdir()
    assert json.loads(path.read_text())["schema"] == profiles.SCHEMA
    options = ("-m", tiny_bundle, "--device", "cpu")
    assert virnucpro("profile", "--show", *options).out.strip() in printed
    assert virnucpro("profile", "--forget", *options).out == "The profile is deleted.\n"
    assert list((cache / "profiles").iterdir()) == []
    assert virnucpro("profile", "--forget", *options).out == "There was no profile.\n"
    ended = virnucpro("profile", "--show", *options)
    assert (ended.code, ended.out) == (2, "")
    assert "there is no profile" in ended.err


def test_a_saved_profile_is_found_as_it_was(measured, tiny_bundle):
    printed = json.loads(measured("--json"))
    bundle = load_bundle(str(tiny_bundle))
    found = profiles.find(bundle, "cpu", "float32")
    assert found is not None
    assert found.token_budgets == printed["token_budgets"]
    assert set(found.token_budgets) == set(ROLES)
    assert json.loads(profiles.path_of(found.key).read_text()) == {"schema": profiles.SCHEMA, **printed}
    assert json.loads(json.dumps(asdict(found))) == printed
    assert profiles.find(bundle, "cpu", "bfloat16") is None
    assert profiles.find(load_bundle("lite"), "cpu", "float32") is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: "{",
        lambda content: json.dumps(content | {"schema": 99}),
        lambda content: json.dumps(content | {"key": content["key"] | {"device": "another"}}),
        lambda content: json.dumps(content | {"token_budgets": {"nucleotide": 0, "protein": 1024}}),
        lambda content: json.dumps(content | {"loader_workers": "2"}),
        lambda _: "[]",
    ],
)
def test_a_spoilt_profile_is_as_good_as_none(measured, tiny_bundle, cache, spoil):
    measured()
    bundle = load_bundle(str(tiny_bundle))
    (path,) = (cache / "profiles").iterdir()
    path.write_text(spoil(json.loads(path.read_text())))
    assert profiles.find(bundle, "cpu", "float32") is None


def test_a_profile_changes_no_result(measured, virnucpro, tiny_bundle, tmp_path):
    reads = write_fasta(tmp_path / "reads.fasta", mixed_records(12))
    for name in ("before", "after"):
        command = ("predict", reads, "-o", tmp_path / name, "-m", tiny_bundle, "--device", "cpu", "-t", 1)
        assert virnucpro(*command).code == 0
        measured()
    assert result_bytes(tmp_path / "before", "reads") == result_bytes(tmp_path / "after", "reads")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("-m", "nowhere"), 6),
        (("--device", "abacus"), 2),
        (("--show", "--forget"), 2),
        (("--seconds", "0"), 2),
        (("--dtype", "float16", "--device", "cpu"), 2),
    ],
)
def test_wrong_input_is_one_line_and_its_exit_code(virnucpro, options, code):
    ended = virnucpro("profile", *options)
    assert ended.code == code
    assert ended.err.strip().splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in ended.err


def test_ctrl_c_leaves_nothing_behind(tiny_bundle, tmp_path, cache):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary), "VIRNUCPRO_CACHE": str(cache)}
    command = ("profile", "-m", tiny_bundle, "--device", "cpu", "--seconds", 60, "-t", 2)
    process = start(*command, env=environment)
    deadline = time.monotonic() + 60
    while not list(temporary.glob("virnucpro-profile-*/rows")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert list(temporary.glob("virnucpro-*")) == []
    assert not (cache / "profiles").exists()
    assert not Path(f"/proc/{process.pid}").exists()
