"""A pool of spawned processes for work that needs no device (merge).

``concurrent.futures`` and not ``multiprocessing.Pool``: when a worker is killed the former raises
``BrokenProcessPool`` within a tenth of a second, the latter waits for ever.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from virnucpro.errors import WorkerError
from virnucpro.executors.base import UnitDone, Work, Worker
from virnucpro.executors.serial import SerialExecutor

_log = logging.getLogger(__name__)
_MAX_BREAKS = 2


@dataclass(frozen=True)
class PoolExecutor:
    """One unit a task, on the CPU. One process or one unit runs in this process instead.

    Attributes:
        num_processes: how many at most.
    """

    num_processes: int

    def run(self, work: Work, units: Sequence[int]) -> Iterator[UnitDone]:
        """See ``Executor.run``."""
        if min(self.num_processes, len(units)) <= 1:
            yield from SerialExecutor("cpu", 1).run(work, units)
            return
        left = list(units)
        for _ in range(_MAX_BREAKS):
            try:
                for done in self._run_once(work, list(left)):
                    left.remove(done.unit)
                    yield done
            except BrokenProcessPool:
                _log.warning("a pool worker was killed; %d units go back", len(left))
            else:
                return
        yield from self._run_apart(work, left)

    def _run_apart(self, work: Work, units: Sequence[int]) -> Iterator[UnitDone]:
        """Each unit in a process of its own, so that the one that kills it is known and the others are done."""
        killers = []
        for unit in units:
            try:
                yield from self._run_once(work, [unit])
            except BrokenProcessPool:
                killers.append(unit)
        if killers:
            raise WorkerError(f"units {killers} kill the process they run in, again and again.")

    def _run_once(self, work: Work, units: Sequence[int]) -> Iterator[UnitDone]:
        pool = ProcessPoolExecutor(
            min(self.num_processes, len(units)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
        )
        finished = False
        try:
            futures: list[Future[UnitDone]] = [pool.submit(_do_one, work, unit) for unit in units]
            for future in as_completed(futures):
                yield future.result()
            finished = True
        finally:
            if not finished:
                for process in list(pool._processes.values()):  # noqa: SLF001 - no public way to stop at once
                    process.kill()
            pool.shutdown(wait=True, cancel_futures=True)


def _do_one(work: Work, unit: int) -> UnitDone:
    (done,) = work.process([unit], Worker(0, "cpu", 1))
    return done
