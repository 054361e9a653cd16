"""The seam between work and where it runs. Executors know no biology and import no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Worker:
    """The place a piece of work runs in.

    Attributes:
        index: 0.. among the workers of one executor.
        device: ``cpu``, ``cuda:1``, ``mps`` ...
        num_threads: CPU threads this worker may use.
    """

    index: int
    device: str
    num_threads: int


@dataclass(frozen=True)
class UnitDone:
    """A unit is finished and its file is on disk.

    Attributes:
        unit: its number.
        num_rows: how many rows were computed for it.
    """

    unit: int
    num_rows: int


class Work(Protocol):
    """What is done with units. Picklable: it holds paths and settings, no open files or weights."""

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[UnitDone]:
        """Do each unit of ``units`` and yield it when its file is in place.

        ``units`` may be lazy and may be read ahead. Doing a unit twice gives the same bytes.
        """
        ...


class Executor(Protocol):
    """Runs work on units, somewhere."""

    def run(self, work: Work, units: Sequence[int]) -> Iterator[UnitDone]:
        """Yield each unit once, in any order, as it is done.

        Raises:
            VirNucProError: what the work raised.
            WorkerError: a unit failed twice because its worker died.
        """
        ...
