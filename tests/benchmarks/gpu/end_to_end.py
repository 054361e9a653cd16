"""Both encoders on frames of 300 bases, through loader workers, packing and the runner, as in a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.bench import SECTION, Bench
from benchmarks.gpu.models import Shape
from benchmarks.inputs import random_strings
from benchmarks.measure import Figure, Goal
from virnucpro.encoders.base import Alphabet, Encoder, Tokenizer
from virnucpro.encoders.esm2 import RESIDUES
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.batch import PackedBatch
from virnucpro.engine.loader import unit_loader
from virnucpro.engine.packing import GreedyPacker
from virnucpro.sequence.ragged import Ragged
from virnucpro.stages.embed import usual_token_budget

_FRAME_NT = 300
_FRAME_AA = (100, 99, 99)  # of the three frames of a strand
_FRAMES_GOAL = 950.0
_MOST_IDLE_PERCENT = 2.0

Event = Any
"""A ``torch.cuda.Event``, or a ``_HostEvent`` where the device has none."""


def measure(bench: Bench, protein: Shape, dna: Shape) -> Iterator[Figure]:
    """Frames a second once all processes have started, and the share of that time the device had no batch."""
    sizes = bench.sizes
    timeline = _Timeline(bench.device)
    streams = []
    for shape in (dna, protein):
        encoder = _Timed(bench.encoder(shape), timeline)
        loader = unit_loader(
            _Frames(encoder.alphabet, sizes.unit_rows, sizes.seed),
            encoder.tokenizer,
            GreedyPacker(usual_token_budget(encoder, bench.device, "bfloat16")),
            range(sizes.num_units),
            sizes.loader_workers,
            pin_memory=bench.is_cuda,
        )
        streams.append(AsyncInferenceRunner(encoder, bench.device).embeddings(loader))
    for number, _ in enumerate(zip(*streams, strict=True)):
        if number == 0:
            timeline.forget()
    bench.wait()
    seconds = timeline.seconds()
    num_frames = timeline.num_rows() // len(streams)
    what = f"DNABERT-S and {protein.name}, {num_frames:,} frames of {_FRAME_NT} b, end to end"
    note = f"{sizes.loader_workers} loader processes an encoder; the goal is an H200's"
    yield Figure(SECTION, what, "frames/s", (num_frames / seconds,), goal=Goal(least=_FRAMES_GOAL), note=note)
    yield Figure(
        SECTION,
        "  of it the device had no batch",
        "%",
        (100 * (1 - timeline.busy_seconds() / seconds),),
        goal=Goal(most=_MOST_IDLE_PERCENT),
        note="by the device's own clock, from the first batch to the end of the last",
    )


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


@dataclass
class _Timeline:
    """When the device began and ended each batch."""

    device: torch.device
    spans: list[tuple[Event, Event, int]] = field(default_factory=list)

    def mark(self) -> Event:
        """Now, in the order of the device's work."""
        if self.device.type != "cuda":
            return _HostEvent(time.perf_counter())
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def forget(self) -> None:
        """Begin anew, with the next batch."""
        self.spans.clear()

    def num_rows(self) -> int:
        """Rows of all batches."""
        return sum(num_rows for *_, num_rows in self.spans)

    def seconds(self) -> float:
        """From the begin of the first batch to the end of the last."""
        return _between(self.spans[0][0], self.spans[-1][1])

    def busy_seconds(self) -> float:
        """Of all batches, each from its begin to its end."""
        return sum(_between(begun, ended) for begun, ended, _ in self.spans)


class _Timed:
    """An encoder whose batches are written down in a timeline."""

    def __init__(self, encoder: Encoder, timeline: _Timeline) -> None:
        self.kind: str = encoder.kind
        self.alphabet: Alphabet = encoder.alphabet
        self.width: int = encoder.width
        self.cpu_token_budget: int = encoder.cpu_token_budget
        self._encoder, self._timeline = encoder, timeline

    @property
    def tokenizer(self) -> Tokenizer:
        return self._encoder.tokenizer

    def embed(self, batch: PackedBatch) -> torch.Tensor:
        begun = self._timeline.mark()
        embeddings = self._encoder.embed(batch)
        self._timeline.spans.append((begun, self._timeline.mark(), len(batch.rows)))
        return embeddings


@dataclass(frozen=True)
class _HostEvent:
    """A moment on the host's clock, for a device that works in step with it."""

    seconds: float

    def elapsed_time(self, end_event: _HostEvent) -> float:
        """Milliseconds, as those of CUDA."""
        return 1000 * (end_event.seconds - self.seconds)


def _between(begun: Event, ended: Event) -> float:
    """Seconds; once the device has come to both."""
    return float(begun.elapsed_time(ended)) / 1000
