"""``--threads`` holds for all that computes or tokenises, in this process and in those beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import psutil
import pytest
from tiny_models import byte_pair_tokenizer

from virnucpro.encoders.dnabert_s import DnabertSTokenizer
from virnucpro.engine.loader import unit_loader
from virnucpro.engine.packing import GreedyPacker
from virnucpro.engine.threads import ComputeThreads
from virnucpro.executors.local import LocalExecutor
from virnucpro.executors.serial import SerialExecutor
from virnucpro.run.units import _embed_executor
from virnucpro.sequence.ragged import Ragged
from virnucpro.settings import Runtime
from virnucpro.stages.embed import settings_for

TASKS = Path("/proc/self/task")
with_tasks = pytest.mark.skipif(not TASKS.exists(), reason="the system does not tell its threads")


def num_begun_by(tokenizer, strings):
    """Threads that a tokenizer starts for a batch."""
    before = len([*TASKS.iterdir()])
    tokenizer(strings)
    return len([*TASKS.iterdir()]) - before


@dataclass(frozen=True)
class Strings:
    """A picklable source."""

    def __call__(self, unit):
        del unit
        return Ragged.from_bytes([b"ACGT" * 50 + b"G" * k for k in range(500)])


@dataclass(frozen=True)
class SaysThreads:
    """Tokenises, and gives the number of threads that this began as its only token."""

    tokenizer: DnabertSTokenizer

    def __call__(self, strings):
        begun = num_begun_by(self.tokenizer, strings)
        return Ragged(np.full(len(strings), begun, dtype=np.int32), np.arange(len(strings) + 1))


@with_tasks
def test_byte_pairs_are_found_by_as_many_threads_as_asked_for():
    """In a process of its own: threads of the tokenizers are started once."""
    code = (
        "import sys, torch; sys.path[:0] = sys.argv[3:]; import test_threads as t\n"
        "from virnucpro.engine.threads import use_threads\n"
        "use_threads(int(sys.argv[1]))\n"
        "print(t.num_begun_by(t.DnabertSTokenizer(sys.stdin.read()), t.Strings()(0)), torch.get_num_threads())"
    )
    command = [sys.executable, "-c", code, "3", "--", *map(str, Path(__file__).parents[:2])]
    ended = subprocess.run(
        command, check=True, capture_output=True, text=True, input=byte_pair_tokenizer(), env=without_settings()
    )
    assert ended.stdout.split() == ["3", "3"]


@with_tasks
def test_a_loader_process_tokenises_with_one_thread(monkeypatch):
    """There are several of them beside the one that embeds."""
    monkeypatch.setenv("RAYON_NUM_THREADS", "3")  # as the process that embeds has it
    tokenizer = SaysThreads(DnabertSTokenizer(byte_pair_tokenizer()))
    (unit,) = unit_loader(Strings(), tokenizer, GreedyPacker(1_000), [0], num_workers=1)
    assert {int(token) for batch in unit.batches for token in batch.input_ids} == {1}


def without_settings():
    return {name: value for name, value in os.environ.items() if name not in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")}


@pytest.mark.parametrize(
    ("threads", "parallel", "expected"),
    [(1, False, [1]), (8, False, [8]), (1, True, [1]), (2, True, [1, 1]), (6, True, [3, 3]), (16, True, [4] * 4)],
)
def test_processes_on_the_cpu_share_the_threads(threads, parallel, expected):
    settings = settings_for(["cpu"], {}, Runtime().loader_workers)
    assert settings.loader_workers == 0
    executor = _embed_executor(["cpu"], threads, settings, 0, parallel=parallel)
    if isinstance(executor, SerialExecutor):
        assert [executor.num_threads] == expected
    else:
        assert isinstance(executor, LocalExecutor)
        assert [worker.num_threads for worker in executor.workers] == expected


@pytest.mark.parametrize("num_gpus", [1, 2, 8])
def test_each_encoder_of_a_gpu_has_one_loader_process(num_gpus):
    """More would take units ahead that another GPU could do. Whoever asks for more gets them."""
    devices = [f"cuda:{number}" for number in range(num_gpus)]
    assert settings_for(devices, {}, None).loader_workers == 1
    assert settings_for(devices, {}, 3).loader_workers == 3


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_a_device_is_driven_by_a_process_of_its_own(device):
    """Its errors may stay: that process then ends, and the run does not."""
    executor = _embed_executor([device], 4, settings_for([device], {}, 0), 0, parallel=False)
    assert isinstance(executor, LocalExecutor)


def test_items_in_threads_come_in_order_and_are_given_up_together():
    """Work that waits is told when nobody wants it any more, and is waited for."""
    with ComputeThreads(4) as threads:
        assert list(threads.map(lambda item: item * 2, range(50))) == [2 * item for item in range(50)]
    told, ended = Event(), []

    def work(item):
        if item == 0:
            raise ValueError(item)
        ended.append(told.wait(timeout=60))

    with pytest.raises(ValueError, match="0"), ComputeThreads(2, give_up=told.set) as threads:
        list(threads.map(work, range(50)))
    assert ended == [True] * len(ended)
    assert len(ended) < 5


def test_leaving_the_threads_half_way_gives_up_what_is_under_way():
    """Although the results are still referred to: no generator has to be collected for it."""
    told = Event()
    with ComputeThreads(2, give_up=told.set) as threads:
        results = threads.map(lambda item: item == 0 or told.wait(timeout=60), range(50))
        assert next(results)
    assert told.is_set()
    del results


@with_tasks
def test_workers_load_the_model_while_sequences_are_read(tiny_bundle, tmp_path):
    """The input ends only when a worker holds the weights; the run record says how each worker computed."""
    command = [sys.executable, "-m", "virnucpro", "predict", "-", "-o", tmp_path / "out", "-m", tiny_bundle]
    command += ["--device", "cpu", "--parallel", "--threads", 2, "--no-report"]
    with subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        while not any(holds(child, tiny_bundle / "protein.safetensors") for child in children_of(run)):
            assert run.poll() is None
            time.sleep(0.05)
        run.communicate(b">one\n%b\n" % (b"GCATTA" * 100))
    assert run.returncode == 0
    (how,) = json.loads((tmp_path / "out" / "stdin.run.json").read_text())["hardware"]["computed_on"]
    assert "cpu in float32; " in how
    assert how.endswith("attention of mixed lengths: dense, length by length")
    assert "protein: esm2, layers not compiled, batches of 1,024 tokens" in how


def children_of(run):
    return psutil.Process(run.pid).children(recursive=True)


def holds(process, path):
    """Whether a process has mapped a file."""
    try:
        return str(path) in Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return False
