"""One loop around ``Work.process`` for every executor: an unforeseen error costs what was taken when it came."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from virnucpro.errors import VirNucProError
from virnucpro.executors.base import Outcome, Work, Worker


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
