"""``virnucpro profile``: what it measures adds up, what it saves is found again, and results stay what they are."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import mixed_records, result_bytes, start, write_fasta

from virnucpro.bundles import load_bundle
from virnucpro.encoders.letters import LetterTokenizer
from virnucpro.encoders.residue_conv import RESIDUE_CODES
from virnucpro.errors import ResourceError
from virnucpro.executors.base import Worker
from virnucpro.machine import profiles
from virnucpro.machine.profile import (
    ProfileSettings,
    _measure_layout,
    _smallest_as_good,
    best_layout,
    layouts_of,
    sweep_budgets,
    sweep_layouts,
)
from virnucpro.machine.profiles import BudgetRate, LayoutRate, Sweep
from virnucpro.machine.reads import store_units
from virnucpro.sequence.ragged import Ragged
from virnucpro.stages.base import ROLES
from virnucpro.stages.embed import EmbedSettings, EmbedWork

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


@pytest.mark.parametrize(
    ("device", "threads", "expected"),
    [
        ("cpu", 1, [(1, 1, 0)]),
        ("cpu", 2, [(1, 2, 0), (2, 1, 0)]),
        ("cpu", 6, [(1, 6, 0), (2, 3, 0), (4, 1, 0), (6, 1, 0)]),
        ("cpu", 8, [(1, 8, 0), (2, 4, 0), (4, 2, 0), (8, 1, 0)]),
        ("cuda:0", 8, [(1, 8, 0), (1, 8, 1), (1, 8, 2), (1, 8, 4)]),
    ],
)
def test_layouts_share_the_cpus_out(device, threads, expected):
    assert layouts_of(device, threads) == expected


def test_more_processes_must_be_worth_it():
    one, two = LayoutRate(1, 2, 0, 100.0, 1), LayoutRate(2, 1, 0, 102.0, 1)
    assert best_layout((one, two)) == one
    assert best_layout((one, replace(two, rows_per_second=150.0))).num_processes == 2


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


def proteins(num):
    """Different ones of 100 residues: a unit holds each only once."""
    rng = random.Random(1)
    return Ragged.from_bytes([bytes(rng.choices(b"ACDEFGHIKLMNPQRSTVWY", k=100)) for _ in range(num)])


def test_a_sweep_ends_where_the_memory_does():
    sweep = sweep_budgets(Bounded(4500, 0.01), proteins(800), CPU, "float32", 60.0)
    assert sweep.ended == "memory"
    assert [rate.token_budget for rate in sweep.rates] == [1024, 2048, 4096]
    assert sweep.best_budget in (1024, 2048, 4096)


def test_a_sweep_without_time_keeps_the_usual_budget():
    """The smallest is measured whatever it takes."""
    sweep = sweep_budgets(Bounded(10**9), proteins(800), CPU, "float32", 0.0)
    assert sweep.ended == "time"
    assert [rate.token_budget for rate in sweep.rates] == [1024]
    assert sweep.best_budget == sweep.usual_budget == 2048


def test_a_sweep_without_memory_for_anything_says_so():
    with pytest.raises(ResourceError, match="1024 tokens"):
        sweep_budgets(Bounded(10), proteins(50), CPU, "float32", 1.0)


def test_the_smallest_budget_that_is_as_good_is_taken():
    rates = [BudgetRate(1024, 90.0, 1.0), BudgetRate(2048, 98.0, 1.0), BudgetRate(4096, 100.0, 1.0)]
    assert _smallest_as_good(tuple(rates)) == 2048


def test_layouts_are_measured_in_real_processes(tiny_bundle, tmp_path):
    """At least the first one, whatever it takes."""
    settings = ProfileSettings(load_bundle(str(tiny_bundle)), "cpu", "float32", 2, 1.0)
    sweeps = {role: Sweep(role, 2048, 2048, "all tried", (BudgetRate(2048, 1e4, 100.0),)) for role in ROLES}
    rates = sweep_layouts(tmp_path, settings, sweeps)
    assert [(rate.num_processes, rate.num_threads) for rate in rates] == [(1, 2), (2, 1)][: len(rates)]
    assert all(rate.rows_per_second > 0 and rate.peak_bytes > 1 << 20 for rate in rates)


def test_processes_of_a_layout_work_at_the_same_time(tiny_bundle, tmp_path):
    """On the same units, as often as the time allows."""
    bundle = load_bundle(str(tiny_bundle))
    run_dir = store_units(tmp_path / "units", bundle, 20, 2)
    embed = EmbedWork(run_dir, bundle, "float32", EmbedSettings(dict.fromkeys(ROLES, 2048), 0))
    rate, num_bytes = _measure_layout(embed, [Worker(seat, "cpu", 1) for seat in range(2)], 0.1)
    assert rate > 0
    assert num_bytes > 1 << 20


def test_a_profile_is_printed_saved_shown_and_forgotten(measured, virnucpro, tiny_bundle, cache):
    printed = measured()
    for words in ("nucleotide encoder (dnabert_s)", "protein encoder (esm2)", "loader workers", "predict now takes"):
        assert words in printed
    (path,) = (cache / "profiles").iterdir()
    assert json.loads(path.read_text())["schema"] == 2
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
    assert json.loads(profiles.path_of(found.key).read_text()) == printed
    assert json.loads(json.dumps(asdict(found))) == printed
    assert profiles.find(bundle, "cpu", "bfloat16") is None
    assert profiles.find(load_bundle("lite"), "cpu", "float32") is None


SPOILT = [
    lambda _: "{",
    lambda content: json.dumps(content | {"schema": 99}),
    lambda content: json.dumps(content | {"key": content["key"] | {"device": "another"}}),
    lambda content: json.dumps(content | {"token_budgets": {"nucleotide": 0, "protein": 1024}}),
    lambda content: json.dumps(content | {"loader_workers": "2"}),
    lambda _: "[]",
    lambda _: "[" * 100_000,
    lambda content: json.dumps(content | {"threads": 10**30}),
]


def test_a_spoilt_profile_is_as_good_as_none(measured, tiny_bundle, cache):
    measured()
    bundle = load_bundle(str(tiny_bundle))
    (path,) = (cache / "profiles").iterdir()
    content = json.loads(path.read_text())
    assert profiles.find(bundle, "cpu", "float32") is not None
    for spoil in SPOILT:
        path.write_text(spoil(content))
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
