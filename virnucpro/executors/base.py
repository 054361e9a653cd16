"""The seam between work and where it runs. Executors know no biology and import no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

MAX_FAILURES = 3
"""Attempts at a unit whose process dies: one among others, then alone, so that no neighbour is blamed for its fate."""

Advance = Callable[[int, int], None]
"""Told a unit and how many more of its rows are computed, now and then, before the unit is done."""


def ignore_progress(unit: int, num_rows: int) -> None:
    """Advance for those who do not ask how far a unit is."""
    del unit, num_rows


@dataclass(frozen=True)
class Worker:
    """The place a piece of work runs in.

    Attributes:
        index: 0.. among the workers of one executor.
        device: ``cpu``, ``cuda:1``, ``mps`` ...
        num_threads: CPU threads this worker may use.
        advance: told how far a unit is.
    """

    index: int
    device: str
    num_threads: int
    advance: Advance = ignore_progress


@dataclass(frozen=True)
class UnitDone:
    """A unit is finished and its file is on disk.

    Attributes:
        unit: its number.
        num_rows: how many rows were computed for it.
    """

    unit: int
    num_rows: int


@dataclass(frozen=True)
class UnitFailed:
    """A unit cannot be done, and others can: the work said so, or it raised or killed its process again and again.

    Attributes:
        unit: its number.
        reason: what happened, for people.
    """

    unit: int
    reason: str


Outcome = UnitDone | UnitFailed


class Work(Protocol):
    """What is done with units. Picklable: it holds paths and settings, no open files or weights."""

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[Outcome]:
        """Do each unit of ``units`` and yield it when its file is in place, or when it is known that it cannot be.

        ``units`` may be lazy and may be read ahead. Doing a unit twice gives the same bytes.
        """
        ...


class Executor(Protocol):
    """Runs work on units, somewhere."""

    @property
    def num_workers(self) -> int:
        """How many units are done at the same time."""
        ...

    def run(self, work: Work, units: Iterable[int], advance: Advance = ignore_progress) -> Iterator[Outcome]:
        """Yield each unit once, in any order, when it is done or has failed for good.

        A unit whose work raises an unforeseen error, or whose process dies, is tried again, alone.

        Raises:
            VirNucProError: what the work raised; it ends the run at once.
            WorkerError: processes die before they begin.
        """
        ...
