"""Many calls at the same time: bounded, in order, tried again, limited, cancelled."""

from __future__ import annotations

import asyncio
import doctest
import os
import threading
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro import parallel
from virnucpro.errors import UsageError, WorkerError
from virnucpro.parallel import (
    CallCancelledError,
    RateLimit,
    Retry,
    chunk_list,
    run_levels,
    run_parallel,
    run_parallel_async,
)


class Together:
    """A call that counts how many of it are under way, and returns when ``until`` of them have been."""

    def __init__(self, until: int) -> None:
        self.until, self.now, self.most = until, 0, 0
        self.changed = threading.Condition()

    def __call__(self, item):
        with self.changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.most >= self.until, timeout=20)
            self.now -= 1
        return -item


class Flaky:
    """Fails the first ``failures`` times for each item."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.failures, self.error, self.calls = failures, error or ValueError("not yet"), Counter()

    def __call__(self, item):
        self.calls[item] += 1
        if self.calls[item] <= self.failures:
            raise self.error
        return item


SOON = Retry(attempts=3, first_wait_seconds=0.001)


@given(st.lists(st.integers(), max_size=40), st.integers(1, 9))
def test_results_are_those_of_a_loop_in_its_order(items, max_concurrent):
    assert run_parallel(iter(items), str, max_concurrent) == list(map(str, items))


def test_as_many_calls_run_together_as_asked_for_and_never_more():
    call = Together(until=4)
    assert run_parallel(range(20), call, 4) == [-item for item in range(20)]
    assert call.most == 4


def test_slow_calls_do_not_change_the_order():
    first_may_end = threading.Event()

    def call(item):
        if item == 0:
            assert first_may_end.wait(20)
        if item == 3:
            first_may_end.set()
        return item

    assert run_parallel(range(4), call, 2) == [0, 1, 2, 3]


def test_the_first_failure_ends_the_run_and_names_its_item():
    called = []

    def call(item):
        called.append(item)
        raise KeyError(item)

    with pytest.raises(KeyError, match="0") as raised:
        run_parallel(range(1000), call, 1)
    assert raised.value.__notes__ == ["item 0: 0"]
    assert len(called) < 1000


def test_failures_are_results_where_asked():
    results = run_parallel("a1b", int, 2, return_exceptions=True)
    assert results[1] == 1
    assert [type(result) for result in results] == [ValueError, int, ValueError]


def test_a_call_that_fails_is_made_again():
    call = Flaky(failures=2)
    assert run_parallel("ab", call, 2, retry=SOON) == ["a", "b"]
    assert call.calls == {"a": 3, "b": 3}


def test_attempts_end_and_other_errors_get_none():
    call = Flaky(failures=3)
    with pytest.raises(ValueError, match="not yet"):
        run_parallel("a", call, retry=SOON)
    assert call.calls == {"a": 3}
    call = Flaky(failures=1)
    with pytest.raises(ValueError, match="not yet"):
        run_parallel("a", call, retry=Retry(on=(OSError,)))
    assert call.calls == {"a": 1}


def test_waits_grow_up_to_the_longest_and_a_server_may_ask_for_more():
    retry = Retry(attempts=6, first_wait_seconds=1, factor=3, longest_wait_seconds=10)
    error = OSError()
    assert [retry.wait_seconds(failures, error) for failures in range(1, 7)] == [1, 3, 9, 10, 10, None]
    error.retry_after_seconds = 25
    assert retry.wait_seconds(1, error) == 25


@given(st.lists(st.floats(0, 5), max_size=50), st.integers(1, 5), st.floats(0.1, 10))
def test_no_stretch_of_time_has_more_starts_than_the_limit(pauses, calls, seconds):
    now = 0.0
    limit = RateLimit(calls, seconds, clock=lambda: now)
    starts = []
    for pause in pauses:
        now += pause
        starts.append(now + limit.reserve())
    assert starts == sorted(starts)
    for early, late in zip(starts, starts[calls:], strict=False):
        assert late - early >= seconds - 1e-6


def test_a_rate_limit_holds_over_runs_and_attempts():
    limit = RateLimit(2, 0.05)
    begun = []

    def call(item):
        begun.append(item)
        if len(begun) == 1:
            raise OSError
        return item

    start = time.monotonic()
    run_parallel("ab", call, 4, rate_limit=limit, retry=SOON)
    run_parallel("cd", call, 4, rate_limit=limit)
    assert len(begun) == 5  # the fifth begins in the third stretch
    assert time.monotonic() - start >= 0.1


def test_progress_is_told_after_each_item():
    told = []
    run_parallel("abc", str, 1, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_progress_callback_that_raises_loses_nothing():
    told = []

    def progress(done, total):
        told.append((done, total))
        raise RuntimeError

    assert run_parallel("abc", str, 1, progress=progress) == ["a", "b", "c"]
    assert told == [(1, 3)]


def test_a_bar_is_drawn_on_a_terminal_alone(capfd):
    assert run_parallel("abc", str, desc="letters") == ["a", "b", "c"]
    assert "letters" not in capfd.readouterr().err


def test_a_cancelled_run_begins_no_further_call():
    cancel = threading.Event()
    called = []

    def call(item):
        called.append(item)
        cancel.set()
        return item

    with pytest.raises(CallCancelledError) as raised:
        run_parallel(range(100), call, 1, cancel=cancel)
    assert (raised.value.num_done, raised.value.num_items) == (1, 100)
    assert called == [0]
    results = run_parallel(range(3), call, 1, cancel=cancel, return_exceptions=True)
    assert all(isinstance(result, CallCancelledError) for result in results)


def test_cancelling_ends_the_wait_for_another_attempt():
    cancel = threading.Event()

    def call(item):
        cancel.set()
        raise ValueError(item)

    with pytest.raises(CallCancelledError):
        run_parallel("a", call, retry=Retry(first_wait_seconds=3600, longest_wait_seconds=3600), cancel=cancel)


def own_process(item):
    return item, os.getpid()


def kill_process(item):
    os._exit(item)


def test_processes_answer_in_order_too():
    results = run_parallel(range(5), own_process, 2, processes=True)
    assert [item for item, _ in results] == [0, 1, 2, 3, 4]
    assert os.getpid() not in {process for _, process in results}


def test_a_killed_process_is_one_clear_error_whatever_was_asked():
    with pytest.raises(WorkerError, match="was killed"):
        run_parallel(range(3), kill_process, 2, processes=True, return_exceptions=True, retry=SOON)


def test_coroutines_run_in_the_loop_of_the_caller():
    async def call(item):
        await asyncio.sleep(0)
        return item, asyncio.get_running_loop()

    async def main():
        results = await run_parallel_async("ab", call, 2)
        assert results == [(item, asyncio.get_running_loop()) for item in "ab"]

    asyncio.run(main())


def test_a_blocking_run_works_inside_a_running_loop():
    """As in a notebook."""

    async def main():
        return run_parallel("ab", str.upper, 2)

    assert asyncio.run(main()) == ["A", "B"]


def test_a_coroutine_that_fails_cancels_the_others():
    ended = []

    async def call(item):
        if item:
            raise OSError(item)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            ended.append(item)
            raise

    with pytest.raises(OSError, match="1"):
        asyncio.run(run_parallel_async([0, 1], call, 2))
    assert ended == [0]


def test_no_items_are_no_calls():
    assert run_parallel([], kill_process, processes=True) == []
    assert run_levels([], kill_process) == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: run_parallel("a", str, 0),
        lambda: chunk_list("a", 0),
        lambda: RateLimit(0),
        lambda: Retry(attempts=0),
    ],
)
def test_what_cannot_be_followed_is_a_clear_error(wrong):
    with pytest.raises(UsageError, match="at least"):
        wrong()


@given(st.lists(st.integers()), st.integers(1, 10))
def test_chunks_are_full_but_the_last_and_hold_everything(items, size):
    chunks = chunk_list(items, size)
    assert [item for chunk in chunks for item in chunk] == items
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert all(chunks)


@given(st.dictionaries(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=4)), st.lists(st.integers(0, 9)))
def test_levels_are_those_of_a_breadth_first_search(graph, roots):
    """Circles included: each item is called once, at its least distance from the first level."""
    distance, level, depth = {}, set(roots), 0
    while level:
        distance |= dict.fromkeys(level, depth)
        level = {found for item in level for found in graph.get(item, []) if found not in distance}
        depth += 1
    levels = run_levels(roots, lambda item: graph.get(item, []), 3)
    assert {item: number for number, items in enumerate(levels) for item in items} == distance
    assert all(found == graph.get(item, []) for items in levels for item, found in items.items())


def test_a_failed_item_leads_nowhere_and_levels_can_be_bounded():
    def call(item):
        if item == 2:
            raise ValueError(item)
        return [item + 1]

    levels = run_levels([0], call, return_exceptions=True)
    assert [list(level) for level in levels] == [[0], [1], [2]]
    assert isinstance(levels[2][2], ValueError)
    assert len(run_levels([3], call, max_levels=4)) == 4


def test_thousands_of_items():
    assert run_parallel(range(20_000), abs, 4) == list(range(20_000))


def test_the_examples_of_the_module_are_true():
    assert doctest.testmod(parallel).failed == 0
    assert doctest.testmod(parallel).attempted > 3
