"""One loop around ``Work.process`` for every executor: what was taken when an error came is tried again, alone."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator

from virnucpro.errors import VirNucProError
from virnucpro.executors.base import Outcome, UnitFailed, Work, Worker


class Prefetched:
    """Passes units on and remembers those that were taken and have no outcome yet.

    Attributes:
        source_failed: whether whoever hands out the units raised. The error itself is not kept: it would hold its
            frames, and these would hold it.
    """

    def __init__(self, units: Iterable[int]) -> None:
        self._units = iter(units)
        self._taken: dict[int, None] = {}
        self.source_failed = False

    def __iter__(self) -> Iterator[int]:
        while True:
            try:
                unit = next(self._units)
            except StopIteration:
                return
            except BaseException:
                self.source_failed = True
                raise
            self._taken[unit] = None
            yield unit

    def settle(self, unit: int) -> None:
        """A unit has its outcome."""
        self._taken.pop(unit, None)

    def take_all(self) -> list[int]:
        """The units that have no outcome yet, in the order they were taken; they are forgotten here."""
        taken = list(self._taken)
        self._taken.clear()
        return taken


def process_all(work: Work, units: Iterable[int], worker: Worker) -> Iterator[Outcome]:
    """Every outcome of ``units``; an unforeseen error costs a unit only if it comes again when the unit is alone.

    Raises:
        VirNucProError: what the work raised.
        Exception: what came before any unit was taken, or from ``units`` itself.
    """
    prefetched = Prefetched(units)
    while True:
        try:
            for outcome in work.process(prefetched, worker):
                prefetched.settle(outcome.unit)
                yield outcome
        except VirNucProError:
            raise
        except Exception:
            suspects = prefetched.take_all()
            if prefetched.source_failed or not suspects:
                raise
            for unit in suspects:
                yield process_alone(work, unit, worker)
        else:
            return


def process_alone(work: Work, unit: int, worker: Worker) -> Outcome:
    """The outcome of one unit; an unforeseen error is its failure."""
    try:
        (outcome,) = work.process([unit], worker)
    except VirNucProError:
        raise
    except Exception:  # noqa: BLE001 - top frame of the work: whatever it raised is the reason
        return UnitFailed(unit, traceback.format_exc())
    return outcome
