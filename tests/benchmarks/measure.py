"""How a figure is taken: contestants take turns, and what is reported is a median and a ratio."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

MIN_RUNS = 3
_COSTS = ("s", "ms", "GiB", "MiB")
"""Units of what a run takes."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how large.

    Attributes:
        seconds: budget of each contestant; every one has at least ``MIN_RUNS`` timed runs whatever they take.
        threads: CPU threads of what is not measured on one core.
        model: bundle of the sections that run the program.
        num_records: reads of 300 bases that extraction gets.
        esm2: names of ESM-2 sizes, ``8M`` ...
        dnabert_layers: 12 is the published depth.
        num_strings: proteins and fragments that the encoders get.
        num_rows: features of the results section.
        predict_reads: reads of the run from end to end.
        memory_reads: numbers of reads whose peak memory is compared, ascending.
        read_length: of those reads, in bases.
        seed: of all that is generated.
    """

    seconds: float
    threads: int
    model: str
    num_records: int
    esm2: tuple[str, ...]
    dnabert_layers: int
    num_strings: int
    num_rows: int
    predict_reads: int
    memory_reads: tuple[int, ...]
    read_length: int
    seed: int = 1


@dataclass(frozen=True)
class Goal:
    """What a figure should reach.

    Attributes:
        least: smallest value.
        most: largest value.
        least_ratio: smallest ratio to the peer.
        most_ratio: largest ratio to the peer.
    """

    least: float | None = None
    most: float | None = None
    least_ratio: float | None = None
    most_ratio: float | None = None


@dataclass(frozen=True)
class Point:
    """Where a figure lies on a curve of its section.

    Attributes:
        series: the curve; one curve holds figures of one unit.
        x: the size it was measured at.
        x_name: what that is a number of, in the plural.
    """

    series: str
    x: float
    x_name: str


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        section: it belongs to.
        what: was measured.
        unit: of the values.
        values: one for each run of ours, none where it was not measured.
        peer: what it is held against.
        peer_values: one for each run of the peer.
        ratio: ours to the peer, the median over runs that were neighbours in time.
        goal: what should be reached.
        max_difference: largest difference between the two outputs (a count where they are text).
        tolerance: what that difference may be.
        note: what a reader must know.
        point: its place on a curve, where it is one of several sizes.
    """

    section: str
    what: str
    unit: str
    values: tuple[float, ...]
    peer: str = ""
    peer_values: tuple[float, ...] = ()
    ratio: float | None = None
    goal: Goal = Goal()
    max_difference: float | None = None
    tolerance: float | None = None
    note: str = ""
    point: Point | None = None

    @property
    def value(self) -> float | None:
        """Median of ours."""
        return median(self.values) if self.values else None

    @property
    def peer_value(self) -> float | None:
        """Median of the peer's."""
        return median(self.peer_values) if self.peer_values else None

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ratio to the peer of each pair of neighbouring runs; none where they are no pairs."""
        if len(self.values) != len(self.peer_values):
            return ()
        return tuple(ours / theirs for ours, theirs in zip(self.values, self.peer_values, strict=True))

    @property
    def is_more_better(self) -> bool | None:
        """Whether the larger of two values is the better one; None where neither unit nor goal tells."""
        if self.unit.endswith("/s"):
            return True
        if self.unit in _COSTS or self.goal.most is not None or self.goal.most_ratio is not None:
            return False
        return None if self.goal.least is None and self.goal.least_ratio is None else True

    @property
    def agrees(self) -> bool | None:
        """Whether both outputs are equal within the tolerance; None where nothing was compared."""
        if self.max_difference is None or self.tolerance is None:
            return None
        return self.max_difference <= self.tolerance

    @property
    def is_reached(self) -> bool | None:
        """Whether every goal is reached; None where there is none, or nothing to hold against it."""
        bounds = [
            *((self.value, least, 1) for least in [self.goal.least]),
            *((self.value, most, -1) for most in [self.goal.most]),
            *((self.ratio, least, 1) for least in [self.goal.least_ratio]),
            *((self.ratio, most, -1) for most in [self.goal.most_ratio]),
        ]
        met = [sign * (value - bound) >= 0 for value, bound, sign in bounds if value is not None and bound is not None]
        return all(met) if met else None


def take_turns(
    contestants: Mapping[str, Callable[[], float]],
    seconds: float,
    *,
    before: Mapping[str, Callable[[], None]] | None = None,
    after: Mapping[str, Callable[[], None]] | None = None,
    warm_up: bool = True,
) -> dict[str, tuple[float, ...]]:
    """Run contestants one after the other, again and again, so that a busy machine slows all of them.

    Args:
        contestants: name to a function that does its work once and says how much that was.
        seconds: budget of each.
        before: what a contestant does before each of its runs, off the clock.
        after: and after each.
        warm_up: let each run once before, untimed; needless where a run takes long and starts processes anyway.

    Returns:
        Name to the rates of its runs: amount a second, in order.
    """

    def timed(name: str) -> float:
        (before or {}).get(name, _do_nothing)()
        begun = time.perf_counter()
        amount = contestants[name]()
        rate = amount / (time.perf_counter() - begun)
        (after or {}).get(name, _do_nothing)()
        return rate

    for name in contestants if warm_up else ():
        timed(name)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    start = time.perf_counter()
    runs = 0
    while runs < MIN_RUNS or time.perf_counter() - start < seconds * len(contestants):
        for name in contestants:
            rates[name].append(timed(name))
        runs += 1
    return {name: tuple(values) for name, values in rates.items()}


def _do_nothing() -> None:
    """Be ready."""


def ratio_of(values: tuple[float, ...], peer_values: tuple[float, ...]) -> float:
    """Median of the ratios of neighbouring runs."""
    return median(ours / theirs for ours, theirs in zip(values, peer_values, strict=True))


@contextmanager
def one_core() -> Iterator[bool]:
    """Keep this thread on one CPU where the system allows it; gives whether it does."""
    if not hasattr(os, "sched_setaffinity"):
        yield False
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield True
    finally:
        os.sched_setaffinity(0, before)
