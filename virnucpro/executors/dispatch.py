"""Which unit is in whose hands, on machines that come and go.

Plain arithmetic: it starts nothing and reads no clock, so that it can be tried with any number of units and workers.

1. A call takes the next unit: one that was given back, else a new one, else a copy of one that is overdue, for its
   machine may be cut off.
2. The first call that settles a unit is its result; later ones are ignored.
3. A call whose place is lost gives its unit back, without blame.
4. A call that raised, or whose process was killed while its machine lived, blames its unit; after ``MAX_FAILURES`` the
   unit has failed.

Only what is in hand is remembered, so that memory depends on the number of workers and not on that of units.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from statistics import median

from virnucpro.executors.base import MAX_FAILURES, UnitFailed

_OVERDUE_FACTOR = 3.0
_WINDOW = 101
"""Durations that the median is taken of, the last ones."""


class Dispatch:
    """The units of one run.

    Args:
        units: those to be done; asked for one by one, when somebody is there to do them.
        overdue_seconds: no copy of a unit is handed out before it took so long, and thrice the median of the last ones.
    """

    def __init__(self, units: Iterable[int], *, overdue_seconds: float = 60.0) -> None:
        self._units = iter(units)
        self._is_exhausted = False
        self._overdue_seconds = overdue_seconds
        self._returned: deque[int] = deque()
        self._in_hand: dict[int, _InHand] = {}  # in the order they were first taken
        self._calls: dict[Hashable, tuple[int, float]] = {}  # to unit and when it was taken
        self._failures: Counter[int] = Counter()
        self._seconds: deque[float] = deque(maxlen=_WINDOW)

    @property
    def is_finished(self) -> bool:
        """Whether every unit is settled; calls may still be on their way, whose results nobody needs."""
        return self._is_exhausted and not self._returned and not self._in_hand

    @property
    def num_in_hand(self) -> int:
        """Units that were taken and are not settled."""
        return len(self._in_hand)

    def take(self, call: Hashable, now: float) -> int | None:
        """The unit that ``call`` is to do, or None where there is none at present."""
        unit = self._returned.popleft() if self._returned else self._next()
        if unit is None:
            unit = self._overdue(now)
        if unit is not None:
            self._calls[call] = (unit, now)
            held = self._in_hand.setdefault(unit, _InHand(now))
            held.calls.add(call)
            held.last_taken = now
        return unit

    def rename(self, call: Hashable, name: Hashable) -> None:
        """Know a call by another name from now on; one whose unit is settled stays forgotten."""
        if call in self._calls:
            unit, _ = self._calls[name] = self._calls.pop(call)
            self._in_hand[unit].calls.remove(call)
            self._in_hand[unit].calls.add(name)

    def settle(self, call: Hashable, now: float) -> bool:
        """A call came back with its unit; whether it is the first one that did."""
        if call not in self._calls:
            return False
        unit, taken = self._calls[call]
        self._seconds.append(now - taken)
        self._forget(unit)
        return True

    def lose(self, call: Hashable) -> None:
        """The place of a call is gone: its unit goes back, unless it is settled or in other hands too."""
        unit, _ = self._calls.pop(call, (None, 0.0))
        if unit is not None:
            self._drop(unit, call)

    def blame(self, call: Hashable, reason: str) -> UnitFailed | None:
        """A call failed by its unit; the failure, where that was once too often."""
        if call not in self._calls:
            return None
        unit, _ = self._calls.pop(call)
        self._failures[unit] += 1
        if self._failures[unit] >= MAX_FAILURES:
            self._forget(unit)
            return UnitFailed(unit, reason)
        self._drop(unit, call)
        return None

    def _drop(self, unit: int, call: Hashable) -> None:
        """Take a call from a unit, which goes back when that was the last one."""
        calls = self._in_hand[unit].calls
        calls.remove(call)
        if not calls:
            del self._in_hand[unit]
            self._returned.append(unit)

    def _forget(self, unit: int) -> None:
        """A unit is settled: whatever its other calls come back with is ignored."""
        for call in self._in_hand.pop(unit).calls:
            self._calls.pop(call, None)
        self._failures.pop(unit, None)

    def _next(self) -> int | None:
        if self._is_exhausted:
            return None
        unit = next(self._units, None)
        self._is_exhausted = unit is None
        return unit

    def _overdue(self, now: float) -> int | None:
        """A unit that takes so long that its machine may be cut off; another copy has to wait as long again."""
        usual = median(self._seconds) if self._seconds else self._overdue_seconds
        limit = max(self._overdue_seconds, _OVERDUE_FACTOR * usual)
        for unit, held in self._in_hand.items():
            if now - held.first_taken < limit:
                return None
            if now - held.last_taken >= limit:
                return unit
        return None


class _InHand:
    """A unit that was taken: when, and by which calls."""

    def __init__(self, now: float) -> None:
        self.first_taken = self.last_taken = now
        self.calls: set[Hashable] = set()
