"""A pool of spawned processes for work that needs no device (merge): one unit a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from virnucpro.executors.base import Advance, Outcome, Work, Worker, ignore_progress
from virnucpro.executors.local import LocalExecutor
from virnucpro.executors.serial import SerialExecutor


class PoolExecutor(LocalExecutor):
    """Spawned processes on the CPU. With one process, or for one unit, the work is done in this process instead."""

    def __init__(self, num_processes: int) -> None:
        super().__init__([Worker(index, "cpu", 1) for index in range(num_processes)])

    def run(self, work: Work, units: Iterable[int], advance: Advance = ignore_progress) -> Iterator[Outcome]:
        """See ``Executor.run``. ``units`` is read no further ahead than keeps every process busy."""
        units = iter(units)
        first = list(islice(units, 2)) if self.num_workers > 1 else []
        if self.num_workers > 1 and len(first) == 2:
            yield from super().run(work, chain(first, units), advance)
            return
        with SerialExecutor("cpu", 1) as here:
            yield from here.run(work, chain(first, units), advance)
