"""All units one after the other in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from virnucpro.executors.base import UnitDone, Work, Worker


@dataclass(frozen=True)
class SerialExecutor:
    """The simplest executor.

    Attributes:
        device: where the work runs.
        num_threads: CPU threads it may use.
    """

    device: str
    num_threads: int

    def run(self, work: Work, units: Sequence[int]) -> Iterator[UnitDone]:
        """See ``Executor.run``; in the order given."""
        return work.process(iter(units), Worker(0, self.device, self.num_threads))
