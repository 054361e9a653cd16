"""All units one after the other in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from virnucpro.executors.base import Advance, Kept, Outcome, Raised, UnitFailed, Work, Worker, attempt, ignore_progress
from virnucpro.lifeline import Closing


class SerialExecutor(Closing):
    """The simplest executor."""

    num_workers = 1

    def __init__(self, device: str, num_threads: int) -> None:
        self.device, self.num_threads = device, num_threads
        self._kept = Kept()

    def close(self) -> None:
        """Close what the work kept."""
        self._kept.close()

    def start(self, work: Work) -> None:
        """See ``Executor.start``; this process has something else to do."""

    def run(self, work: Work, units: Iterable[int], advance: Advance = ignore_progress) -> Iterator[Outcome]:
        """See ``Executor.run``; in the order given. What an error came with is tried again, alone."""
        worker = Worker(0, self.device, self.num_threads, advance, self._kept)
        units, is_over = iter(units), False
        while not is_over:
            is_over = True
            for said in attempt(work, units, worker):
                if not isinstance(said, Raised):
                    yield said
                    continue
                is_over = False
                for unit in said.units:
                    (alone,) = attempt(work, [unit], worker)
                    yield UnitFailed(unit, alone.reason) if isinstance(alone, Raised) else alone
