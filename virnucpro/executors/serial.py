"""All units one after the other in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from virnucpro.executors.attempts import process_all
from virnucpro.executors.base import Advance, Outcome, Work, Worker, ignore_progress


@dataclass(frozen=True)
class SerialExecutor:
    """The simplest executor.

    Attributes:
        device: where the work runs.
        num_threads: CPU threads it may use.
    """

    device: str
    num_threads: int

    @property
    def num_workers(self) -> int:
        """See ``Executor.num_workers``."""
        return 1

    def run(self, work: Work, units: Iterable[int], advance: Advance = ignore_progress) -> Iterator[Outcome]:
        """See ``Executor.run``; in the order given."""
        return process_all(work, units, Worker(0, self.device, self.num_threads, advance))
