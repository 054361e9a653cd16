"""Where the time of a unit goes, from its file to its shards, both encoders one after the other as in a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.compiled_layers import steps_of
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.batch import PackedBatch
from virnucpro.engine.loader import PackedUnit, pack_unit, unit_loader
from virnucpro.engine.packing import GreedyPacker
from virnucpro.machine.machine import synchronise
from virnucpro.machine.profiles import (
    COMPUTE,
    COPYING,
    OTHER,
    PACKING,
    PARTS,
    READING,
    WAITING,
    WRITING,
    Timeline,
)
from virnucpro.machine.sample_units import StoredUnits
from virnucpro.stages.base import ROLES
from virnucpro.stages.embed import UnitStrings

_SHARD = {"unit_digest": "measured", "fingerprint": "measured"}


class _Stopwatch:
    """Adds up the seconds of parts; what several threads do at the same time counts once.

    Attributes:
        seconds: part to seconds.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._lock = Lock()
        self._num_running = dict.fromkeys(PARTS, 0)
        self._begun = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        with self._lock:
            if not self._num_running[part]:
                self._begun[part] = time.perf_counter()
            self._num_running[part] += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_running[part] -= 1
                if not self._num_running[part]:
                    self.seconds[part] += time.perf_counter() - self._begun[part]


class _TimedEncoder:
    """An encoder with a clock; the device is waited for after each batch, so that its work is counted whole."""

    def __init__(self, encoder: Encoder, device: torch.device, watch: _Stopwatch) -> None:
        self.kind, self.alphabet, self.width = encoder.kind, encoder.alphabet, encoder.width
        self.cpu_token_budget, self.tokenizer = encoder.cpu_token_budget, encoder.tokenizer
        self.steps = steps_of(encoder)
        self._encoder, self._device, self._watch = encoder, device, watch

    def embed(self, batch: PackedBatch) -> torch.Tensor:
        with self._watch.on(COMPUTE):
            embedding = self._encoder.embed(batch)
            synchronise(self._device)
        return embedding


def measure_timeline(
    units: StoredUnits,
    encoders: Mapping[str, Encoder],
    token_budgets: Mapping[str, int],
    device: torch.device,
    num_workers: int,
    *,
    is_half: bool,
) -> Timeline:
    """Embed all units and write their shards; the first only warms up.

    Args:
        units: at least two.
        encoders: role to encoder, on ``device``.
        token_budgets: role to tokens in a batch.
        device: where.
        num_workers: loader processes of each encoder.
        is_half: shards are kept in 16 bits.
    """
    watch = _Stopwatch()
    streams = [
        _embeddings(role, units, encoders[role], token_budgets[role], device, num_workers, watch) for role in ROLES
    ]
    num_rows, start = 0, time.perf_counter()
    for number in range(units.num_units):
        for role, stream in zip(ROLES, streams, strict=True):
            unit, embedding = next(stream)
            num_rows += len(embedding) if role == ROLES[0] else 0
            with watch.on(WRITING):
                array = embedding.astype(np.float16 if is_half else np.float32, copy=False)
                path = units.run_dir.embedding(role, unit)
                store.write_arrays(path, "embedding", {"embedding": array}, _SHARD)
        if number == 0:
            watch.seconds = dict.fromkeys(PARTS, 0.0)
            num_rows, start = 0, time.perf_counter()
    wall_seconds = time.perf_counter() - start
    watch.seconds[OTHER] = wall_seconds - sum(watch.seconds.values())
    count = units.num_units - 1
    return Timeline(num_rows / count, wall_seconds / count, {part: s / count for part, s in watch.seconds.items()})


def _embeddings(
    role: str,
    units: StoredUnits,
    encoder: Encoder,
    token_budget: int,
    device: torch.device,
    num_workers: int,
    watch: _Stopwatch,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """One encoder's embeddings; what the runner takes beside waiting and computing is copying and checking."""
    source, packer = UnitStrings(units.run_dir, role), GreedyPacker(token_budget)

    def packed() -> Iterator[PackedUnit]:
        if num_workers == 0:
            for unit in range(units.num_units):
                with watch.on(READING):
                    strings = source(unit)
                with watch.on(PACKING):
                    ready = pack_unit(unit, strings, encoder.tokenizer, packer)
                yield ready
            return
        is_pinned = device.type == "cuda"
        numbers = range(units.num_units)
        loader = iter(unit_loader(source, encoder.tokenizer, packer, numbers, num_workers, pin_memory=is_pinned))
        while True:
            with watch.on(WAITING):
                waited = next(loader, None)
            if waited is None:
                return
            yield waited

    runner = AsyncInferenceRunner(_TimedEncoder(encoder, device, watch), device).embeddings(packed())
    inside = (READING, PACKING, WAITING, COMPUTE)
    while True:
        before = sum(watch.seconds[part] for part in inside)
        start = time.perf_counter()
        embedded = next(runner, None)
        spent = time.perf_counter() - start
        watch.seconds[COPYING] += spent - (sum(watch.seconds[part] for part in inside) - before)
        if embedded is None:
            return
        yield embedded
