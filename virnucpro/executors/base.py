"""The seam between work and where it runs. Executors know no biology and import no torch."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar

from virnucpro.errors import VirNucProError

MAX_FAILURES = 3
"""Attempts at a unit whose process dies: one among others, then alone, so that no neighbour is blamed for its fate."""

Advance = Callable[[int, int], None]
"""Told a unit and how many more of its rows are computed, now and then, before the unit is done."""
_T = TypeVar("_T")


def ignore_progress(unit: int, num_rows: int) -> None:
    """Advance for those who do not ask how far a unit is."""
    del unit, num_rows


class Kept(ExitStack):
    """What work opens or loads and needs again: files, threads, weights. All of it is closed with its worker."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """What ``make`` returned when this was first called with ``key``."""
        if key not in self._made:
            self._made[key] = make()
        made: _T = self._made[key]
        return made

    def close(self) -> None:
        """Close and forget everything."""
        self._made.clear()
        super().close()


@dataclass(frozen=True)
class Worker:
    """The place a piece of work runs in."""

    index: int  # 0.. among the workers of one executor
    device: str  # ``cpu``, ``cuda:1``, ``mps``
    num_threads: int  # CPU threads this worker may use
    advance: Advance = ignore_progress  # told how far a unit is
    # closed when the worker ends; each worker has its own, in its own process
    kept: Kept = field(default_factory=Kept, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[Worker], tuple[int, str, int]]:
        return Worker, (self.index, self.device, self.num_threads)


@dataclass(frozen=True)
class UnitDone:
    """A unit is finished and its file is on disk."""

    unit: int  # its number
    num_rows: int  # how many rows were computed for it


@dataclass(frozen=True)
class UnitFailed:
    """A unit cannot be done, and others can: the work said so, or it raised or killed its process again and again."""

    unit: int  # its number
    reason: str  # what happened, for people


Outcome = UnitDone | UnitFailed


class Work(Protocol):
    """What is done with units. Picklable: it holds paths and settings, no open files or weights."""

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[Outcome]:
        """Do each unit of ``units`` and yield it when its file is in place, or when it is known that it cannot be.

        ``units`` may be lazy and may be read ahead. Doing a unit twice gives the same bytes. Whatever has to be closed
        belongs to ``worker.kept``: a generator that is dropped in the middle may never get to its own clean-up.
        """
        ...


class Executor(Protocol):
    """Runs work on units, somewhere. A context manager: leaving it kills and joins whatever it started."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    @property
    def num_workers(self) -> int:
        """How many units are done at the same time."""
        ...

    def start(self, work: Work) -> None:
        """Begin whatever ``work`` does before its first unit, such as loading weights, beside what this process does.

        The next ``run`` of the same work picks it up. Where nothing can be begun, nothing happens.
        """
        ...

    def run(self, work: Work, units: Iterable[int], advance: Advance = ignore_progress) -> Iterator[Outcome]:
        """Yield each unit once, in any order, when it is done or has failed for good.

        A unit whose work raises an unforeseen error, or whose process dies, is tried again, alone. One run at a time:
        a new one ends what is left of the one before.

        Raises:
            VirNucProError: what the work raised; it ends the run at once.
            WorkerError: processes die before they begin.
        """
        ...


@dataclass(frozen=True)
class Raised:
    """The work raised what nobody foresaw, with these units in hand."""

    units: tuple[int, ...]
    reason: str  # the traceback


def attempt(work: Work, units: Iterable[int], worker: Worker) -> Iterator[Outcome | Raised]:
    """What becomes of ``units``; an unforeseen error comes last, and units after those in hand were not asked for.

    Raises:
        VirNucProError: what the work raised.
        Exception: what came before any unit was taken, or from ``units`` itself.
    """
    in_hand: dict[int, None] = {}  # in the order they were taken
    source_failed = False

    def taken() -> Iterator[int]:
        nonlocal source_failed
        try:
            for unit in units:
                in_hand[unit] = None
                yield unit
        except Exception:
            source_failed = True
            raise

    try:
        for outcome in work.process(taken(), worker):
            in_hand.pop(outcome.unit, None)
            yield outcome
    except VirNucProError:
        raise
    except Exception:
        if source_failed or not in_hand:
            raise
        raised = Raised(tuple(in_hand), traceback.format_exc())
    else:
        return
    yield raised  # not above: while it is suspended the error would hold its frames, and these would hold it
