"""Measurements of ``virnucpro profile``: token budgets and processes, found by running a little of the real thing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from virnucpro.bundles import Bundle
from virnucpro.encoders import load_encoder
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.device import synchronise
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.loader import PackedUnit, pack_unit
from virnucpro.engine.packing import GreedyPacker
from virnucpro.engine.threads import use_threads
from virnucpro.errors import ResourceError, VirNucProError, WorkerError
from virnucpro.executors.base import UnitDone, Worker
from virnucpro.executors.local import LocalExecutor
from virnucpro.executors.serial import SerialExecutor
from virnucpro.machine.profiles import BudgetRate, LayoutRate, Profile, Sweep, key_of
from virnucpro.machine.reads import draw_strings, store_units
from virnucpro.resources import free_memory_bytes, held_memory_bytes
from virnucpro.sequence.ragged import Ragged
from virnucpro.stages.base import ROLES
from virnucpro.stages.embed import EmbedSettings, EmbedWork, Source, read_strings, usual_token_budget

CPU_BUDGETS = tuple(1024 << power for power in range(7))
GPU_BUDGETS = tuple(8192 << power for power in range(5))
_GPU_LOADERS = (0, 1, 2, 4)
_SWEPT_ROWS = 4096
_NUM_UNITS = 2
_SHORTEST_RUN_SECONDS = 0.15  # of shorter runs the clock and the neighbours decide
_UNIT_SECONDS, _WINDOW_SECONDS = 0.3, 2.0
_MOST_RUNS = 7
_MOST_WITHOUT_GAIN = 2
_AS_GOOD, _GAIN = 0.97, 1.03


@dataclass(frozen=True)
class ProfileSettings:
    """What is to be measured."""

    bundle: Bundle
    device: str  # torch's name of it
    dtype: str  # torch's name of the float type
    threads: int  # CPU threads in all
    seconds: float  # about how long. Every measurement is taken at least once, which may take longer.


def measure(settings: ProfileSettings) -> Profile:
    """Measure everything and make the profile; nothing is saved.

    Raises:
        ModelError: an encoder cannot be loaded.
        ResourceError: not even the smallest batch fits the memory.
    """
    use_threads(settings.threads)
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    with TemporaryDirectory(prefix="virnucpro-profile-") as name:
        folder = Path(name)
        strings = draw_strings(folder / "rows", settings.bundle, _SWEPT_ROWS)
        sweeps: dict[str, Sweep] = {}
        for role in ROLES:
            encoder = load_encoder(settings.bundle.encoder(role), device, dtype)
            sweeps[role] = sweep_budgets(encoder, strings[role], device, settings.dtype, settings.seconds / 4)
        layouts = sweep_layouts(folder, settings, sweeps)
    best = best_layout(layouts)
    return Profile(
        key=key_of(settings.bundle, settings.device, settings.dtype),
        model=settings.bundle.name,
        token_budgets={role: sweep.best_budget for role, sweep in sweeps.items()},
        loader_workers=best.loader_workers,
        num_processes=best.num_processes,
        threads=settings.threads,
        sweeps=sweeps,
        layouts=layouts,
    )


def sweep_budgets(encoder: Encoder, strings: Ragged, device: torch.device, dtype: str, seconds: float) -> Sweep:
    """Try token budgets in ascending order; then those that worked again, in turns, so that noise hits all of them.

    Raises:
        ResourceError: not even the smallest token budget fits the memory.
    """
    deadline = time.perf_counter() + seconds
    usual = usual_token_budget(encoder, device, dtype)
    budgets = sorted({*(CPU_BUDGETS if device.type == "cpu" else GPU_BUDGETS), usual})
    lengths = encoder.tokenizer(strings).lengths
    units: dict[int, PackedUnit] = {}
    rates: dict[int, list[float]] = {}
    ended, fastest, num_without_gain = "all tried", 0.0, 0
    for budget in budgets:
        wanted_tokens = max(budget, int(fastest * _SHORTEST_RUN_SECONDS))
        num_rows = min(len(strings), int(lengths.cumsum().searchsorted(wanted_tokens)) + 1)
        unit = pack_unit(0, strings.slice(0, num_rows), encoder.tokenizer, GreedyPacker(budget))
        if fastest and time.perf_counter() + 2 * unit.num_tokens / fastest > deadline:
            ended = "time"
            break
        try:  # the runner would halve a batch that does not fit: the largest is tried alone, which warms the caches too
            encoder.embed(max(unit.batches, key=lambda batch: batch.num_tokens).to(device))
        except torch.OutOfMemoryError:
            ended = "memory"
            break
        units[budget], rates[budget] = unit, [_tokens_per_second(encoder, unit, device)]
        num_without_gain = 0 if rates[budget][0] > fastest / _AS_GOOD else num_without_gain + 1
        fastest = max(fastest, rates[budget][0])
        if num_without_gain == _MOST_WITHOUT_GAIN and budget >= usual:
            ended = "no gain"
            break
    if not rates:
        raise ResourceError(
            f"{device} has no memory for a batch of {budgets[0]} tokens of the {encoder.kind} encoder. Close other "
            "programs, or measure another --device."
        )
    a_round = sum(unit.num_tokens / rates[budget][0] for budget, unit in units.items())
    for _ in range(_MOST_RUNS - 1):
        if time.perf_counter() + a_round > deadline:
            break
        for budget, unit in units.items():
            rates[budget].append(_tokens_per_second(encoder, unit, device))
    found = tuple(BudgetRate(b, median(rates[b]), median(rates[b]) / float(lengths.mean())) for b in rates)
    best = usual if ended == "time" and usual not in rates else _smallest_as_good(found)
    return Sweep(encoder.kind, usual, best, ended, found)


def _smallest_as_good(rates: tuple[BudgetRate, ...]) -> int:
    fastest = max(rate.tokens_per_second for rate in rates)
    return min(rate.token_budget for rate in rates if rate.tokens_per_second >= _AS_GOOD * fastest)


def _tokens_per_second(encoder: Encoder, unit: PackedUnit, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    for _ in AsyncInferenceRunner(encoder, device).embeddings([unit]):
        pass
    return unit.num_tokens / (time.perf_counter() - start)


@dataclass(frozen=True)
class _FewUnits:
    """Reads some stored units over and over, under ever new numbers."""

    strings: Source

    def __call__(self, unit: int) -> Ragged:
        return self.strings(unit % _NUM_UNITS)


@dataclass(frozen=True)
class _EmbedFewUnits:
    """Embeds them as a run does, and keeps nothing; see ``executors.base.Work``."""

    embed: EmbedWork

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[UnitDone]:
        """Embed each unit."""
        sources = {role: _FewUnits(partial(read_strings, self.embed.run_dir, role)) for role in ROLES}
        for (unit, embedding), *_others in self.embed.embeddings(units, sources, worker):
            yield UnitDone(unit, len(embedding))


def layouts_of(device: str, threads: int) -> list[tuple[int, int, int]]:
    """(processes, threads of each, loader workers) to try.

    On a CPU 1 x N, 2 x N/2 and so on to N x 1, without loader workers, which would only compete with the encoders.
    On a GPU one process, with 0 to 4 loader workers for each encoder.
    """
    if device != "cpu":
        return [(1, threads, workers) for workers in _GPU_LOADERS]
    counts = [1 << power for power in range(threads.bit_length()) if 1 << power < threads]
    return [(processes, threads // processes, 0) for processes in [*counts, threads]]


def sweep_layouts(folder: Path, settings: ProfileSettings, sweeps: Mapping[str, Sweep]) -> tuple[LayoutRate, ...]:
    """Measure layouts in real processes until they get slower, do not fit the memory, or half of the time is over."""
    deadline = time.perf_counter() + settings.seconds / 2
    layouts = layouts_of(settings.device, settings.threads)
    budgets = {role: sweep.best_budget for role, sweep in sweeps.items()}
    a_row = sum(1 / max(rate.rows_per_second for rate in sweep.rates) for sweep in sweeps.values())
    num_rows = max(1, min(_SWEPT_ROWS, int(_UNIT_SECONDS / a_row)))
    run_dir = store_units(folder / "units", settings.bundle, num_rows, _NUM_UNITS)
    window = min(_WINDOW_SECONDS, settings.seconds / len(layouts) / 3)
    rates: list[LayoutRate] = []
    longest = 0.0
    for processes, threads, loader_workers in layouts:
        start = time.perf_counter()
        if rates and (start + longest > deadline or processes * rates[-1].peak_bytes >= free_memory_bytes()):
            break
        embed = EmbedWork(run_dir, settings.bundle, settings.dtype, EmbedSettings(budgets, loader_workers))
        workers = [Worker(seat, settings.device, threads) for seat in range(processes)]
        found = _measure_layout(embed, workers, window)
        if found is None:
            break
        rate, peak_bytes = found
        rates.append(LayoutRate(processes, threads, loader_workers, rate, peak_bytes))
        longest = max(longest, time.perf_counter() - start)
        if len(rates) > 1 and rate < rates[-2].rows_per_second:
            break
    return tuple(rates)


def best_layout(rates: tuple[LayoutRate, ...]) -> LayoutRate:
    """The fewest processes, unless more are 3 % faster: each holds an interpreter, or the model too."""
    best = rates[0]
    for rate in rates[1:]:
        if rate.rows_per_second > _GAIN * best.rows_per_second:
            best = rate
    return best


def _measure_layout(work: EmbedWork, workers: list[Worker], seconds: float) -> tuple[float, int] | None:
    """Rows a second of all workers together, and the memory of one; None if several processes fail, as without memory.

    They embed the same units over and over, and are measured once each has had time for two.
    """
    is_over = False
    num_done = num_rows = num_bytes = 0
    start, rate = time.perf_counter(), 0.0
    try:
        # As a run has it: this process alone, unless there are several or they own loader processes.
        is_serial = len(workers) == 1 and not work.settings.loader_workers
        here = SerialExecutor(workers[0].device, workers[0].num_threads)
        with here if is_serial else LocalExecutor(workers) as executor:
            units = takewhile(lambda _: not is_over, count())
            for done in executor.run(_EmbedFewUnits(work), units):
                if not isinstance(done, UnitDone):
                    raise WorkerError(f"the encoders cannot be measured:\n{done.reason}")
                num_done += 1
                if num_done <= 2 * len(workers):
                    start = time.perf_counter()
                elif not is_over:
                    num_rows += done.num_rows
                    took = time.perf_counter() - start
                    rate, is_over = num_rows / took, took > seconds
                    num_bytes = held_memory_bytes(os.getpid()) // len(workers) if is_over else 0
    except VirNucProError:
        if len(workers) == 1:
            raise
        return None
    return rate, num_bytes
