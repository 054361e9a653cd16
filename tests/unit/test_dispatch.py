"""Who has which unit: none is lost, none is done for nothing, whatever happens to the workers."""

from __future__ import annotations

import heapq
import itertools
import random
import tracemalloc
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.executors.base import MAX_FAILURES
from virnucpro.executors.dispatch import Dispatch


@dataclass
class Cluster:
    """Workers that take a unit a minute or so, die, are cut off, and come back.

    Attributes:
        num_units: of the run.
        num_workers: at the beginning.
        seed: of the random numbers.
        dying: share of calls during which the worker dies.
        hanging: share of calls that never come back, without anybody being told.
        bad: units that fail each time.
        settled: units in the order they were settled.
        failed: units that failed for good.
        num_calls: in all.
        most_in_hand: units at a time.
        now: simulated seconds.
    """

    num_units: int
    num_workers: int
    seed: int = 0
    dying: float = 0.0
    hanging: float = 0.0
    bad: frozenset[int] = frozenset()
    settled: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    num_calls: int = 0
    most_in_hand: int = 0
    now: float = 0.0

    def run(self):
        self.rng = random.Random(self.seed)
        self.dispatch = Dispatch(range(self.num_units), overdue_seconds=300.0)
        self.events, self.order, self.looks = [], itertools.count(), False
        idle = self.num_workers
        while True:
            while idle and self.hand_out():
                idle -= 1
            if self.dispatch.is_finished:
                return self
            if idle and not self.looks:
                self.looks = True
                self.later(5.0, self.look)
            self.now, _, act, arguments = heapq.heappop(self.events)
            idle += act(*arguments)

    def later(self, seconds, act, *arguments):
        heapq.heappush(self.events, (self.now + seconds, next(self.order), act, arguments))

    def hand_out(self):
        call = self.num_calls
        unit = self.dispatch.take(call, self.now)
        if unit is None:
            return False
        self.num_calls += 1
        self.most_in_hand = max(self.most_in_hand, self.dispatch.num_in_hand)
        seconds, fate = self.rng.uniform(30, 90), self.rng.random()
        if fate < self.dying:
            self.later(seconds, self.lose, call)
        if fate < self.dying + self.hanging:
            self.later(seconds + 60, self.join)
        else:
            self.later(seconds, self.end, call, unit)
        return True

    def look(self):
        self.looks = False
        return 0

    def join(self):
        return 1

    def lose(self, call):
        self.dispatch.lose(call)
        return 0

    def end(self, call, unit):
        if unit in self.bad:
            failure = self.dispatch.blame(call, "bad")
            self.failed += [failure.unit] if failure else []
        elif self.dispatch.settle(call, self.now):
            self.settled.append(unit)
        return 1


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 200),
    st.integers(1, 20),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from([0.0, 0.1]),
    st.sets(st.integers(0, 200), max_size=4),
)
def test_every_unit_is_settled_once(num_units, num_workers, seed, dying, hanging, bad):
    """Or has failed as often as it may; dying machines are not held against a unit."""
    cluster = Cluster(num_units, num_workers, seed, dying, hanging, frozenset(bad)).run()
    bad = {unit for unit in bad if unit < num_units}
    assert sorted(cluster.settled) == sorted(set(range(num_units)) - bad)
    assert sorted(cluster.failed) == sorted(bad)


def test_nothing_is_done_twice_where_nothing_dies():
    """As many calls as units."""
    cluster = Cluster(1000, 10).run()
    assert (len(cluster.settled), cluster.num_calls) == (1000, 1000)


def test_a_unit_is_tried_as_often_as_it_may():
    """And its failure says why."""
    dispatch = Dispatch([7])
    for attempt in range(MAX_FAILURES):
        assert dispatch.take(attempt, 0.0) == 7
        failure = dispatch.blame(attempt, f"reason {attempt}")
    assert (failure.unit, failure.reason) == (7, f"reason {MAX_FAILURES - 1}")
    assert dispatch.take("another", 0.0) is None
    assert dispatch.is_finished


def test_a_copy_of_an_overdue_unit_and_the_first_result_counts():
    """Not before it takes three times as long as others, nor before the least time; another one as long after that."""
    dispatch = Dispatch(range(3), overdue_seconds=10.0)
    assert [dispatch.take(call, 0.0) for call in "abc"] == [0, 1, 2]
    assert dispatch.take("d", 5.0) is None
    assert dispatch.settle("a", 6.0)
    assert dispatch.take("d", 17.9) is None
    assert dispatch.take("d", 18.0) == 1
    assert dispatch.take("e", 18.0) == 2
    assert dispatch.take("f", 35.9) is None
    assert dispatch.take("f", 36.0) == 1
    assert dispatch.settle("d", 40.0)
    assert not dispatch.settle("b", 41.0)
    dispatch.lose("f")
    dispatch.lose("c")
    assert not dispatch.is_finished
    assert dispatch.settle("e", 42.0)
    assert dispatch.is_finished


def test_units_are_asked_for_when_somebody_can_do_them():
    """From a generator that has no end."""
    dispatch = Dispatch(itertools.count())
    assert [dispatch.take(call, 0.0) for call in range(5)] == [0, 1, 2, 3, 4]
    assert dispatch.num_in_hand == 5


@pytest.mark.slow
@pytest.mark.parametrize(("dying", "hanging"), [(0.01, 0.001), (0.1, 0.01)])
def test_a_hundred_thousand_units_on_thousands_of_workers_that_die(dying, hanging):
    """None is lost; memory depends on the workers; see docs/scaling.md for the figures."""
    tracemalloc.start()
    cluster = Cluster(100_000, 4_000, seed=1, dying=dying, hanging=hanging).run()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sorted(cluster.settled) == list(range(100_000))
    assert cluster.failed == []
    assert cluster.most_in_hand <= 2 * 4_000  # those of machines that are cut off count until they are overdue
    assert cluster.num_calls < 100_000 * (1 + 2 * (dying + hanging)) + 4_000
    assert peak_bytes < 32 << 20
    print(f"{dying}, {hanging}: {cluster.num_calls} calls, {cluster.now:.0f} s, {peak_bytes / 1e6:.1f} MB")  # noqa: T201
