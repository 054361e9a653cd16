"""How the CPUs of a machine are best shared out: few processes with many threads, or many with few."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from virnucpro.bundles import Bundle
from virnucpro.encoders import load_encoder
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.loader import PackedUnit, pack_unit
from virnucpro.engine.packing import GreedyPacker
from virnucpro.engine.threads import use_threads
from virnucpro.errors import VirNucProError, WorkerError
from virnucpro.executors.base import UnitDone, Worker
from virnucpro.executors.local import LocalExecutor
from virnucpro.machine.machine import peak_memory_bytes
from virnucpro.machine.profiles import LayoutRate
from virnucpro.machine.sample_units import StoredUnits
from virnucpro.registry.checkup import free_memory_bytes
from virnucpro.stages.base import ROLES
from virnucpro.stages.embed import UnitStrings

_GAIN = 1.03
_LONGEST_START_SECONDS = 300.0
_SHORTEST_WINDOW_SECONDS, _LONGEST_WINDOW_SECONDS = 1.0, 4.0
_POLL_SECONDS = 0.01
_FEWEST = 2
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class EmbedForAWhile:
    """Embeds unit 0 again and again, once all processes are ready; see ``executors.base.Work``.

    A unit's number is the seat of a process: there are as many as processes, and none ends before all have begun.

    Attributes:
        folder: where seats say that they are ready, and then what they did.
        units: at least one.
        bundle: the model.
        dtype: torch's name of the float type.
        token_budgets: role to tokens in a batch.
        num_seats: processes.
        seconds: how long; whole rounds, at least one.
    """

    folder: Path
    units: StoredUnits
    bundle: Bundle
    dtype: str
    token_budgets: Mapping[str, int]
    num_seats: int
    seconds: float

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[UnitDone]:
        """Take a seat, wait for the others, and work."""
        use_threads(worker.num_threads)
        for seat in units:
            work = [self._load(role) for role in ROLES]
            _embed(work)
            self._wait_for_all(seat)
            num_rows, start = 0, time.perf_counter()
            while time.perf_counter() - start < self.seconds:
                num_rows += _embed(work)
            rate = num_rows / (time.perf_counter() - start)
            note = {"rows_per_second": rate, "peak_bytes": peak_memory_bytes()}
            (self.folder / f"done-{seat}").write_text(json.dumps(note), encoding="utf-8")
            yield UnitDone(seat, num_rows)

    def _load(self, role: str) -> tuple[Encoder, PackedUnit]:
        encoder = load_encoder(self.bundle.encoder(role), _CPU, getattr(torch, self.dtype))
        strings = UnitStrings(self.units.run_dir, role)(0)
        return encoder, pack_unit(0, strings, encoder.tokenizer, GreedyPacker(self.token_budgets[role]))

    def _wait_for_all(self, seat: int) -> None:
        (self.folder / f"ready-{seat}").touch()
        start = time.perf_counter()
        while len(list(self.folder.glob("ready-*"))) < self.num_seats:
            if time.perf_counter() - start > _LONGEST_START_SECONDS:
                raise WorkerError(f"{self.num_seats} processes were started, and not all of them got ready.")
            time.sleep(_POLL_SECONDS)


def layouts_of(threads: int) -> list[tuple[int, int]]:
    """(processes, threads of each) that use ``threads`` CPUs: 1 x N, 2 x N/2 and so on to N x 1."""
    counts = []
    count = 1
    while count < threads:
        counts.append(count)
        count *= 2
    return [(processes, threads // processes) for processes in [*counts, threads]]


def sweep_layouts(
    folder: Path,
    units: StoredUnits,
    bundle: Bundle,
    dtype: str,
    token_budgets: Mapping[str, int],
    threads: int,
    seconds: float,
) -> tuple[LayoutRate, ...]:
    """Measure layouts in real processes, until more processes gain nothing, do not fit, or time is short.

    Args:
        folder: for the notes of the processes.
        units: at least one.
        bundle: the model.
        dtype: torch's name of the float type.
        token_budgets: role to tokens in a batch.
        threads: CPU threads in all, more than one.
        seconds: budget; the first two layouts are measured whatever it takes.
    """
    deadline = time.perf_counter() + seconds
    layouts = layouts_of(threads)
    # the rest goes to starting the processes
    window = min(_LONGEST_WINDOW_SECONDS, max(_SHORTEST_WINDOW_SECONDS, seconds / len(layouts) / 3))
    rates: list[LayoutRate] = []
    longest = 0.0
    for num_processes, num_threads in layouts:
        start = time.perf_counter()
        is_late = len(rates) >= _FEWEST and start + longest > deadline
        if is_late or (rates and not _fits(num_processes, rates[-1].peak_bytes)):
            break
        notes = folder / str(num_processes)
        notes.mkdir(parents=True)
        work = EmbedForAWhile(notes, units, bundle, dtype, dict(token_budgets), num_processes, window)
        rate = _measure(work, num_threads)
        if rate is None:
            break
        rates.append(rate)
        longest = max(longest, time.perf_counter() - start)
        if len(rates) > 1 and rate.rows_per_second < rates[-2].rows_per_second:
            break
    return tuple(rates)


def best_layout(rates: tuple[LayoutRate, ...]) -> LayoutRate:
    """The fewest processes, unless more are 3 % faster: each holds the model and an interpreter."""
    best = rates[0]
    for rate in rates[1:]:
        if rate.rows_per_second > _GAIN * best.rows_per_second:
            best = rate
    return best


def _measure(work: EmbedForAWhile, num_threads: int) -> LayoutRate | None:
    """All seats together; None where several processes do not go at all, as without memory."""
    workers = [Worker(seat, "cpu", num_threads) for seat in range(work.num_seats)]
    try:
        for done in LocalExecutor(workers).run(work, range(work.num_seats)):
            if not isinstance(done, UnitDone):
                return None
    except VirNucProError:
        if work.num_seats == 1:
            raise
        return None
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in work.folder.glob("done-*")]
    rate = sum(float(note["rows_per_second"]) for note in notes)
    return LayoutRate(work.num_seats, num_threads, rate, max(int(note["peak_bytes"]) for note in notes))


def _fits(num_processes: int, peak_bytes: int) -> bool:
    """Whether the memory that is free takes so many; mapped weights are shared, so this errs on the safe side."""
    free = free_memory_bytes()
    return free is None or num_processes * peak_bytes < free


def _embed(work: list[tuple[Encoder, PackedUnit]]) -> int:
    num_rows = 0
    for encoder, unit in work:
        ((_, embedding),) = AsyncInferenceRunner(encoder, _CPU).embeddings([unit])
        num_rows = len(embedding)
    return num_rows
