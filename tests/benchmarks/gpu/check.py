"""What ``.ci/gpu_check`` runs: parity, attention, memory, NaN, tests, rates, whole runs and a killed worker.

Each section is a process of its own, so that a broken CUDA context costs one of them. Every figure is a line of
``gpu_check.jsonl`` as soon as it is known. Without a card the same code runs on the CPU with small models.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks import gpu, inputs
from benchmarks.gpu.models import dnabert_s_shape, esm2_shape, packed_batch, random_tensors
from benchmarks.made_models import write_bundle
from virnucpro.encoders.attention import AlibiBias, dense_attention
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.compiled_layers import compile_layers
from virnucpro.encoders.device import describe, prepare
from virnucpro.encoders.dnabert_s import DnabertS
from virnucpro.encoders.esm2 import Esm2
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.batch import PackedBatch
from virnucpro.engine.loader import PackedUnit, pack_unit
from virnucpro.engine.packing import GreedyPacker
from virnucpro.machine.reads import write_reads

CPU = torch.device("cpu")
SECONDS = {"environment": 30, "parity": 130, "tests": 125, "rates": 210, "predict": 180, "kill": 110}
"""Sections, most valuable first, and the most that each may take."""
LENGTHS = {
    "one length": [101] * 24,
    "three lengths": [99] * 8 + [101] * 12 + [102] * 12,
    "eight lengths": sorted(list(range(60, 68)) * 4),
    "900 tokens": [900],
    "1,100 tokens": [1100],
    "one short": [12],
}
LIMITS = {torch.float32: (2e-5, 0.999999), torch.float16: (5e-3, 0.9999), torch.bfloat16: (3e-2, 0.999)}
"""Largest relative error and least cosine to float32 on the CPU."""


@dataclass(frozen=True)
class Check:
    """Where figures go, and until when there is time."""

    output: Path
    begun: float
    budget: float

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0) if torch.cuda.is_available() else CPU

    @property
    def is_small(self) -> bool:
        return self.device == CPU

    def seconds_left(self) -> float:
        return self.begun + self.budget - time.time()

    def put(self, section: str, what: str, **facts: Any) -> None:
        """Write one figure now."""
        line = {"section": section, "what": what, "at": round(time.time() - self.begun, 1), **facts}
        with (self.output / "gpu_check.jsonl").open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def attempt(self, section: str, what: str, call: Callable[[], dict[str, Any]]) -> None:
        """Write what ``call`` finds, or how it failed: on a card nobody has tried the others are still worth having."""
        try:
            self.put(section, what, **call())
        except Exception as error:  # noqa: BLE001
            self.put(section, what, failed=f"{type(error).__name__}: {str(error)[:300]}")


def environment(check: Check) -> None:
    """Versions, memory for loaders, a compiler."""
    versions = {}
    for name in ("torch", "triton", "numpy", "numba", "h5py", "tokenizers", "isal", "pysam", "flash-attn"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    shared = os.statvfs("/dev/shm")  # noqa: S108 - the place itself is asked about
    facts = {"python": platform.python_version(), "cpus": len(os.sched_getaffinity(0)), "compiler": shutil.which("cc")}
    facts |= {"shared_memory_mib": shared.f_blocks * shared.f_frsize >> 20}
    check.put("environment", "versions", **facts, **versions)
    check.put("environment", "device", **describe(check.device))


def parity(check: Check) -> None:
    """Both encoders against float32 on the CPU; then memory, NaN and attention."""
    prepare(check.device)
    batches = {what: packed_batch(np.array(lengths), CPU, 7) for what, lengths in LENGTHS.items()}
    for name in ("ESM-2", "DNABERT-S"):
        reference = _encoder(check, name, torch.float32, CPU)
        wanted = {what: reference.embed(batch) for what, batch in batches.items()}
        ways = [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, False), (torch.float16, False)]
        for dtype, is_compiled in ways[:1] if check.is_small else ways:
            what = f"{name}, {str(dtype).removeprefix('torch.')}{', compiled' * is_compiled}"
            check.attempt(
                "parity",
                what,
                lambda dtype=dtype, is_compiled=is_compiled, name=name, wanted=wanted: _compare(
                    check, _encoder(check, name, dtype, check.device), batches, wanted, dtype, is_compiled=is_compiled
                ),
            )
    check.attempt("parity", "the same sequences in another batch", lambda: _invariance(check))
    check.attempt("nan", "one row is computed again in float32", lambda: _not_a_number(check))
    if not check.is_small:
        check.attempt("memory", "batches are halved", lambda: _out_of_memory(check))
        check.attempt("attention", "kernels", lambda: _attention(check))


def _encoder(check: Check, name: str, dtype: torch.dtype, device: torch.device) -> Encoder:
    """Two layers as wide as those of ESM-2 3B, or DNABERT-S; smaller on a CPU."""
    if name == "ESM-2":
        width, heads = (320, 20) if check.is_small else (2560, 40)
        inputs.ESM2_SIZES["check"] = (2, width, heads)
        config, tensors = inputs.esm2_weights("check", 1)
    else:
        config, tensors = inputs.dnabert_s_weights(1 if check.is_small else 12, 1)
    there = {key: x.to(device, dtype if x.ndim == 2 else torch.float32) for key, x in tensors.items()}
    return Esm2.from_tensors(config, there) if name == "ESM-2" else DnabertS.from_tensors(config, there, None)


def _compare(
    check: Check,
    encoder: Encoder,
    batches: dict[str, PackedBatch],
    wanted: dict[str, torch.Tensor],
    dtype: torch.dtype,
    *,
    is_compiled: bool,
) -> dict[str, Any]:
    begun = time.time()
    if is_compiled and not compile_layers(encoder, check.device):
        return {"failed": "the compiler gave up"}
    seconds, found = time.time() - begun, {}
    for what, batch in batches.items():
        got, want = encoder.embed(batch.to(check.device)).cpu().double(), wanted[what].double()
        cosine = torch.cosine_similarity(got, want).min()
        found[what] = (float((got - want).norm() / want.norm()), float(cosine))
    error, cosine = max(e for e, _ in found.values()), min(c for _, c in found.values())
    most, least = LIMITS[dtype]
    return {
        "ok": error <= most and cosine >= least,
        "error": error,
        "cosine": cosine,
        "compiled_in_s": round(seconds, 1),
    }


def _invariance(check: Check) -> dict[str, Any]:
    encoder = _encoder(check, "ESM-2", torch.float32 if check.is_small else torch.bfloat16, check.device)
    few, many = (packed_batch(np.full(count, 101), check.device, 7) for count in (24, 48 if check.is_small else 648))
    one, other = encoder.embed(few), encoder.embed(many)[:24]
    same = torch.equal(one, other)
    return {"ok": same or not check.is_small, "equal_bits": same, "max_difference": float((one - other).abs().max())}


def _unit(encoder: Encoder, count: int, token_budget: int) -> PackedUnit:
    strings = inputs.random_strings(np.random.default_rng(3), b"ACDEFGHIKLMNPQRSTVWY", np.full(count, 99))
    return pack_unit(0, strings, encoder.tokenizer, GreedyPacker(token_budget))


def _pinned(check: Check, unit: PackedUnit) -> PackedUnit:
    return unit if check.is_small else unit.pin_memory()


def _not_a_number(check: Check) -> dict[str, Any]:
    encoder = _encoder(check, "ESM-2", torch.bfloat16, check.device)
    asked: list[str] = []

    class Spoilt:
        kind, alphabet, width = encoder.kind, encoder.alphabet, encoder.width
        cpu_token_budget, tokenizer = 1024, encoder.tokenizer

        def embed(self, batch: PackedBatch) -> torch.Tensor:
            found = encoder.embed(batch).clone()
            found[3] = float("nan")
            return found

    def reload(device: torch.device, dtype: torch.dtype) -> Encoder:
        asked.append(str(dtype))
        return _encoder(check, "ESM-2", dtype, device)

    unit = _pinned(check, _unit(encoder, 20, 100_000))
    ((_, found),) = AsyncInferenceRunner(Spoilt(), check.device, reload, torch.float16).embeddings([unit])
    return {"ok": bool(np.isfinite(found).all()) and asked == ["torch.float32"], "asked": asked}


def _out_of_memory(check: Check) -> dict[str, Any]:
    """A batch of 65,536 tokens with room for a quarter of it."""
    encoder = _encoder(check, "ESM-2", torch.bfloat16, check.device)
    large, little = (_unit(encoder, 1300, budget).pin_memory() for budget in (65_536, 8_192))
    ((_, expected),) = AsyncInferenceRunner(encoder, check.device).embeddings([little])
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(check.device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 2.2e9) / total)
    try:
        results = list(AsyncInferenceRunner(encoder, check.device).embeddings([large, large]))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    cosines = [torch.cosine_similarity(*map(torch.from_numpy, (found, expected))).min() for _, found in results]
    return {"ok": min(cosines).item() > 0.9999, "cosine": min(cosines).item()}


def _attention(check: Check) -> dict[str, Any]:
    """Each kernel's time for a batch, and for numbers of sequences that it never saw."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.backends.cuda.enable_cudnn_sdp(enabled=True)  # to measure what it would cost
    found: dict[str, Any] = {}
    for name, heads, length, bias in (("ESM-2", 40, 101, None), ("DNABERT-S", 12, 67, AlibiBias(12))):
        count = 65_536 // length
        states = torch.randn(3, count * length, heads, 64, device=check.device, dtype=torch.bfloat16)
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            if bias is not None and backend == SDPBackend.FLASH_ATTENTION:
                continue

            def attend(number: int, length: int = length, states: torch.Tensor = states, bias: Any = bias) -> float:
                begun = time.perf_counter()
                dense_attention(*states[:, : number * length], [(length, number)], bias)
                torch.cuda.synchronize()
                return 1000 * (time.perf_counter() - begun)

            try:
                with sdpa_kernel([backend]), torch.inference_mode():
                    attend(count)
                    new, known = [attend(number) for number in range(31, 43)], [attend(count) for _ in range(20)]
            except RuntimeError as error:
                found[f"{name}, {backend.name}"] = f"{error!s:.120}"
                continue
            found[f"{name}, {backend.name}"] = {"new_ms": float(np.median(new)), "known_ms": float(np.median(known))}
    return found


def run_tests(check: Check) -> None:
    """The suite's own tests of a card; without one they are collected."""
    names = ["unit/test_runner.py", "unit/test_compiled.py", "benchmarks/test_gpu_benchmark.py"]
    tests = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-x", "-p", "no:cacheprovider"]
    command += [*(["--collect-only"] if check.is_small else []), *(str(tests / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tests.parent)
    check.put("tests", "-m gpu", ok=done.returncode == 0, said=done.stdout[-600:])


def rates(check: Check) -> None:
    """Every rung of the benchmark."""
    until = min(check.seconds_left() - 150, SECONDS["rates"] - 20)  # whole runs and the kill want the rest
    sizes = gpu.Sizes(
        token_counts=(65_536,), seconds=0.3, unit_rows=8_192, num_units=4, loader_workers=1, budget_seconds=until
    )
    if check.is_small:
        sizes = gpu.Sizes(
            largest="8M",
            smaller="8M",
            dnabert_layers=1,
            token_counts=(101,),
            usual_tokens=202,
            unit_rows=4,
            num_units=3,
            loader_workers=0,
            seconds=0,
            run_seconds=0,
            budget_seconds=60,
        )
    for figure in gpu.measure_on(check.device, sizes):
        facts = {"unit": figure.unit, "value": figure.value if figure.values else None, "ratio": figure.ratio}
        check.put("rates", figure.what.strip(), **facts, reached=figure.is_reached, note=figure.note)


def predict(check: Check) -> None:
    """The program as users call it, with a model of published shape and random weights."""
    size, layers, num_frames = ("8M", 1, 60) if check.is_small else ("3B", 12, 50_000)
    with tempfile.TemporaryDirectory() as folder:
        bundle = _bundle(check, Path(folder) / "bundle", size, layers)
        reads = write_reads(Path(folder) / "reads.fasta", int(num_frames / 1.07), 300, 1.0, seed=5)
        begun = time.time()
        process = _start(
            check, reads, Path(folder) / "out", bundle, "--no-report", *(() if check.is_small else ("--compile",))
        )
        said = process.communicate()[1]
        facts: dict[str, Any] = {"ok": process.returncode == 0, "wall_s": round(time.time() - begun, 1)}
        if process.returncode == 0:
            record = json.loads((Path(folder) / "out" / "reads.run.json").read_text())
            rows, seconds = record["counts"]["num_rows"], record["seconds"]
            facts |= {"rows": rows, "seconds": seconds, "computed_on": record["hardware"]["computed_on"]}
            facts |= {"rows_a_second": round(rows / facts["wall_s"], 1)}
            facts |= {"rows_a_second_embedding": round(rows / max(seconds["embed"], 1e-9), 1)}
        check.put("predict", f"{num_frames:,} frames", **facts, said=said[-1200:])


def kill(check: Check) -> None:
    """A worker is killed once a unit is scored: the run ends well, with the same calls."""
    calls = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = _bundle(check, Path(folder) / "bundle", *(("8M", 1) if check.is_small else ("650M", 12)))
        reads = write_reads(Path(folder) / "few.fasta", 60 if check.is_small else 16_000, 300, 1.0, seed=6)
        more = ("--unit-rows", 16 if check.is_small else 1024, "--no-report", "--loader-workers", 1)
        for is_disturbed in (False, True):
            out = Path(folder) / f"out-{is_disturbed}"
            process = _start(check, reads, out, bundle, *more)
            was_killed = is_disturbed and _kill_a_worker(process, out)
            said = process.communicate()[1]
            if process.returncode:
                check.put("kill", "a worker", failed=f"exit {process.returncode}", said=said[-800:])
                return
            calls.append([line.split("\t")[:3] for line in (out / "few.sequences.tsv").read_text().splitlines()])
    check.put(
        "kill", "a worker", ok=was_killed and calls[0] == calls[1], killed=was_killed, sequences=len(calls[0]) - 1
    )


def _bundle(check: Check, folder: Path, size: str, layers: int) -> Path:
    shapes = {"nucleotide": dnabert_s_shape(layers), "protein": esm2_shape(size)}
    made = {}
    for role, shape in shapes.items():
        with torch.device("meta"):
            config, like = shape.make(1)
        made[role] = config, random_tensors(like, check.device, torch.bfloat16, 1)  # made where they will be used
    return write_bundle(folder, f"random-{size}", made, fragment_length=300)


def _start(check: Check, reads: Path, out: Path, bundle: Path, *more: object) -> subprocess.Popen[str]:
    command = ["predict", reads, "-o", out, "-m", bundle, "--no-progress", "--device", check.device.type, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "virnucpro", *map(str, command)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def _kill_a_worker(process: subprocess.Popen[str], out: Path) -> bool:
    while process.poll() is None:
        if list((out / "run" / "scores").glob("unit-*")):
            for child in psutil.Process(process.pid).children():
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()  # a process of a run that this check started
                    return True
        time.sleep(0.02)
    return False


def report(check: Check) -> dict[str, Any]:
    """One object of all that was written."""
    lines = [json.loads(line) for line in (check.output / "gpu_check.jsonl").read_text().splitlines()]
    bad = [line for line in lines if line.get("failed") or line.get("ok") is False]
    missed = [line["what"] for line in lines if line.get("reached") is False]
    seconds = round(time.time() - check.begun, 1)
    device = "cpu" if check.is_small else torch.cuda.get_device_name(0)
    whole = {
        "device": device,
        "seconds": seconds,
        "passed": not bad,
        "bad": bad,
        "goals_missed": missed,
        "figures": lines,
    }
    (check.output / "gpu_check.json").write_text(json.dumps(whole, indent=1))
    return whole


def _sections(check: Check, chosen: list[str], arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Each in a process of its own; yields those that failed as a whole, with the reason."""
    for section in chosen:
        most = check.budget if check.is_small else SECONDS[section]
        seconds = min(most, check.seconds_left() - 5)
        if seconds < 15:
            yield section, "no time"
            continue
        command = [sys.executable, "-m", "benchmarks.gpu.check", *arguments, "--section", section]
        with (check.output / f"{section}.err").open("w+") as err:
            process = subprocess.Popen(command, stderr=err, start_new_session=True)
            try:
                if process.wait(timeout=seconds):
                    err.seek(0)
                    yield section, err.read()[-600:]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # the group that this section began, and nothing else
                process.wait()
                yield section, f"stopped after {seconds:.0f} s"


def main() -> None:
    """Run the sections, or the one that a child was started for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=470.0, help="seconds")
    parser.add_argument("--only", default=",".join(SECONDS), help="sections, comma-separated")
    parser.add_argument("--begun", type=float, default=time.time(), help=argparse.SUPPRESS)
    parser.add_argument("--section", help=argparse.SUPPRESS)
    options = parser.parse_args()
    check = Check(options.output, options.begun, options.budget)
    calls = {
        "environment": environment,
        "parity": parity,
        "tests": run_tests,
        "rates": rates,
        "predict": predict,
        "kill": kill,
    }
    if options.section:
        calls[options.section](check)
        return
    check.output.mkdir(parents=True, exist_ok=True)
    (check.output / "gpu_check.jsonl").write_text("")
    arguments = ["--output", str(check.output), "--budget", str(check.budget), "--begun", str(check.begun)]
    for section, reason in _sections(check, options.only.split(","), arguments):
        check.put(section, "whole section", failed=reason)
    whole = report(check)
    print(json.dumps({key: value for key, value in whole.items() if key != "figures"}, default=str))
    sys.exit(not whole["passed"])


if __name__ == "__main__":
    main()
