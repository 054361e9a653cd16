"""How many processes should read, tokenise and pack ahead of each encoder."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from virnucpro.encoders.base import Encoder
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.loader import unit_loader
from virnucpro.engine.packing import GreedyPacker
from virnucpro.machine.profiles import LoaderRate
from virnucpro.machine.sample_units import StoredUnits
from virnucpro.stages.base import ROLES
from virnucpro.stages.embed import UnitStrings

WORKER_COUNTS = (0, 1, 2)
_GAIN = 1.03


def sweep_loaders(
    units: StoredUnits,
    encoders: Mapping[str, Encoder],
    token_budgets: Mapping[str, int],
    device: torch.device,
    seconds: float,
) -> tuple[LoaderRate, ...]:
    """Embed the units with 0, 1 and 2 loader processes an encoder; 0 is measured whatever it takes."""
    deadline = time.perf_counter() + seconds
    rates: list[LoaderRate] = []
    longest = 0.0
    for num_workers in WORKER_COUNTS:
        start = time.perf_counter()
        if rates and start + longest > deadline:
            break
        rates.append(LoaderRate(num_workers, _rate(units, encoders, token_budgets, device, num_workers)))
        longest = max(longest, time.perf_counter() - start)
    return tuple(rates)


def best_loader(rates: tuple[LoaderRate, ...]) -> int:
    """The fewest processes, unless more are 3 % faster: each takes the memory of an interpreter."""
    best = rates[0]
    for rate in rates[1:]:
        if rate.rows_per_second > _GAIN * best.rows_per_second:
            best = rate
    return best.num_workers


def _rate(
    units: StoredUnits,
    encoders: Mapping[str, Encoder],
    token_budgets: Mapping[str, int],
    device: torch.device,
    num_workers: int,
) -> float:
    streams = []
    for role in ROLES:
        encoder = encoders[role]
        loader = unit_loader(
            UnitStrings(units.run_dir, role),
            encoder.tokenizer,
            GreedyPacker(token_budgets[role]),
            range(units.num_units),
            num_workers,
            pin_memory=device.type == "cuda",
        )
        streams.append(AsyncInferenceRunner(encoder, device).embeddings(loader))
    num_rows, start = 0, 0.0
    for number, embedded in enumerate(zip(*streams, strict=True)):
        if number == 0:  # the start of the processes is paid once a run, not once a unit
            start = time.perf_counter()
        else:
            num_rows += len(embedded[0][1])
    return num_rows / (time.perf_counter() - start)
