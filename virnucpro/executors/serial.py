"""All units one after the other in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from virnucpro.executors.attempts import process_all
from virnucpro.executors.base import Advance, Kept, Outcome, Work, Worker, ignore_progress


class SerialExecutor:
    """The simplest executor."""

    num_workers = 1

    def __init__(self, device: str, num_threads: int) -> None:
        self.device, self.num_threads = device, num_threads
        self._kept = Kept()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kept.close()

    def start(self, work: Work) -> None:
        """See ``Executor.start``; this process has something else to do."""

    def run(self, work: Work, units: Iterable[int], advance: Advance = ignore_progress) -> Iterator[Outcome]:
        """See ``Executor.run``; in the order given."""
        return process_all(work, units, Worker(0, self.device, self.num_threads, advance, self._kept))
