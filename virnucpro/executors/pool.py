"""A pool of spawned processes for work that needs no device (merge).

``concurrent.futures`` and not ``multiprocessing.Pool``: when a worker is killed the former raises
``BrokenProcessPool`` within a tenth of a second, the latter waits for ever.
"""

from __future__ import annotations

import logging
import multiprocessing
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Self

from virnucpro.errors import VirNucProError
from virnucpro.executors.base import MAX_FAILURES, Advance, Outcome, UnitFailed, Work, Worker, ignore_progress
from virnucpro.executors.serial import SerialExecutor
from virnucpro.lifeline import follow_parent

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PoolExecutor:
    """One unit a task, on the CPU. One process or one unit runs in this process instead.

    Attributes:
        num_processes: how many at most.
    """

    num_processes: int

    @property
    def num_workers(self) -> int:
        """See ``Executor.num_workers``."""
        return self.num_processes

    def run(self, work: Work, units: Iterable[int], advance: Advance = ignore_progress) -> Iterator[Outcome]:
        """See ``Executor.run``. ``units`` is read no further ahead than keeps every process busy."""
        units = iter(units)
        if self.num_processes <= 1:
            yield from SerialExecutor("cpu", 1).run(work, units, advance)
            return
        first = list(islice(units, 2))
        if len(first) < 2:
            yield from SerialExecutor("cpu", 1).run(work, first, advance)
            return
        with _Tasks(work, self.num_processes) as tasks:
            for unit in chain(first, units):
                tasks.submit(unit)
                yield from tasks.outcomes(at_most_open=2 * self.num_processes)
            yield from tasks.outcomes(at_most_open=0)


@dataclass
class _Tasks:
    """Units under way in a pool, which is made anew when a killed process has broken it."""

    work: Work
    num_processes: int
    _pool: ProcessPoolExecutor | None = None
    _open: dict[Future[Outcome], int] = field(default_factory=dict)
    _alone: deque[int] = field(default_factory=deque)
    _failures: Counter[int] = field(default_factory=Counter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def submit(self, unit: int) -> None:
        """Give a unit to the pool."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.num_processes,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=follow_parent,
            )
        try:
            self._open[self._pool.submit(_do_one, self.work, unit)] = unit
        except BrokenProcessPool:
            self._alone.append(unit)
            if not self._open:  # else those under way will tell
                self._close()

    def outcomes(self, at_most_open: int) -> Iterator[Outcome]:
        """Outcomes that are there; wait for more while more than ``at_most_open`` units are under way."""
        while self._open or self._alone:
            if not self._open:
                # Suspects one at a time: the next break then has one unit to blame.
                self.submit(self._alone.popleft())
                continue
            must_wait = self._alone or len(self._open) > at_most_open
            done, _ = wait(self._open, timeout=None if must_wait else 0, return_when=FIRST_COMPLETED)
            if not done:
                return
            for future in done:
                unit = self._open.pop(future, None)
                if unit is not None:
                    yield from self._settle(unit, future)

    def _settle(self, unit: int, future: Future[Outcome]) -> Iterator[Outcome]:
        try:
            yield future.result()
        except VirNucProError:
            raise
        except BrokenProcessPool:
            yield from self._recover(unit)
        except Exception as error:  # noqa: BLE001 - top frame of the task: whatever it raised is the reason
            yield from self._fail(unit, "".join(traceback.format_exception(error)))

    def _recover(self, unit: int) -> Iterator[Outcome]:
        """A killed process takes the pool with it: all that was under way is under suspicion."""
        units = sorted([unit, *self._open.values()])
        self._open.clear()
        self._close()
        _log.warning("a pool process was killed; units %s go back", units)
        for suspect in units:
            yield from self._fail(suspect, "its process was killed, among others and alone")

    def _fail(self, unit: int, reason: str) -> Iterator[Outcome]:
        self._failures[unit] += 1
        if self._failures[unit] >= MAX_FAILURES:
            yield UnitFailed(unit, reason)
        else:
            self._alone.append(unit)

    def _close(self) -> None:
        if self._pool is None:
            return
        if self._open:
            for process in list(self._pool._processes.values()):  # noqa: SLF001 - no public way to stop at once
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None


def _do_one(work: Work, unit: int) -> Outcome:
    (outcome,) = work.process([unit], Worker(0, "cpu", 1))
    return outcome
