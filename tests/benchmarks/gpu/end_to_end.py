"""Both encoders on frames of 300 bases, through loader workers, packing and the runner, as in a run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import SECTION, Bench
from benchmarks.gpu.models import Shape
from benchmarks.inputs import random_strings
from benchmarks.measure import Figure, Goal
from virnucpro.encoders.base import Alphabet
from virnucpro.encoders.esm2 import RESIDUES
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.loader import unit_loader
from virnucpro.engine.packing import GreedyPacker
from virnucpro.sequence.ragged import Ragged
from virnucpro.stages.embed import usual_token_budget

_FRAME_NT = 300
_FRAME_AA = (100, 99, 99)  # of the three frames of a strand
_FRAMES_GOAL = 950.0
_MOST_IDLE_PERCENT = 2.0

_COPIES = ("Memcpy", "Memset")


def measure(bench: Bench, protein: Shape, dna: Shape) -> Iterator[Figure]:
    """Frames a second once all processes have started, and the share of that time the device computed nothing."""
    sizes = bench.sizes
    streams = []
    for shape in (dna, protein):
        encoder = bench.encoder(shape)
        loader = unit_loader(
            _Frames(encoder.alphabet, sizes.unit_rows, sizes.seed),
            encoder.tokenizer,
            GreedyPacker(usual_token_budget(encoder, bench.device, "bfloat16")),
            range(sizes.num_units),
            sizes.loader_workers,
            pin_memory=bench.is_cuda,
        )
        streams.append(AsyncInferenceRunner(encoder, bench.device).embeddings(loader))
    units = zip(*streams, strict=True)
    next(units)
    bench.wait()
    # On a card the second unit is under way when the first one is handed over.
    num_frames = sizes.unit_rows * (sizes.num_units - (2 if bench.is_cuda else 1))
    with profile(activities=[ProfilerActivity.CUDA if bench.is_cuda else ProfilerActivity.CPU]) as recorded:
        begun = time.perf_counter()
        for _ in units:
            pass
        bench.wait()
        seconds = time.perf_counter() - begun
    kind = DeviceType.CUDA if bench.is_cuda else DeviceType.CPU
    kernels = [
        (event.time_range.start, event.time_range.end)
        for event in recorded.events() or ()
        if event.device_type == kind and not event.name.startswith(_COPIES)
    ]
    what = f"DNABERT-S and {protein.name}, {num_frames:,} frames of {_FRAME_NT} b, end to end"
    note = f"{sizes.loader_workers} loader processes an encoder; the goal is an H200's"
    yield Figure(SECTION, what, "frames/s", (num_frames / seconds,), goal=Goal(least=_FRAMES_GOAL), note=note)
    yield Figure(
        SECTION,
        "  of it the device computed nothing",
        "%",
        (100 * (1 - busy(kernels) / (1e6 * seconds)),),
        goal=Goal(most=_MOST_IDLE_PERCENT),
        note="between kernels too, where the host makes it wait",
    )


def busy(spans: Iterable[tuple[float, float]]) -> float:
    """Length of what spans (start, end) cover together."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


@dataclass(frozen=True)
class _Frames:
    """Makes the strings of a unit; read in loader workers."""

    alphabet: Alphabet
    num_rows: int
    seed: int

    def __call__(self, unit: int) -> Ragged:
        rng = np.random.default_rng([self.seed, unit])
        if self.alphabet == "nt":
            return random_strings(rng, b"ACGT", np.full(self.num_rows, _FRAME_NT))
        return random_strings(rng, RESIDUES[:20], np.resize(np.array(_FRAME_AA), self.num_rows))
