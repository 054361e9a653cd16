"""One call for each of many items, several at the same time, in order.

    >>> from virnucpro.parallel import run_parallel
    >>> run_parallel(["a", "b"], str.upper, max_concurrent=2)
    ['A', 'B']

:func:`run_parallel` takes a blocking call, :func:`run_parallel_async` a coroutine function. Both do the same:

1. Items are taken in order; a semaphore lets ``max_concurrent`` of them be under way.
2. Before each attempt the rate limit is asked for a time to start.
3. A call that raises is tried again as ``retry`` says; its place in the semaphore is kept while it waits, so that
   a server that is too busy is not given another item instead.
4. Results come back in the order of the items. The first failure ends the run, or is the item's result.
5. When ``cancel`` is set no call is begun any more; those under way end.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypedDict, TypeVar, Unpack, overload

from virnucpro.errors import UsageError, VirNucProError, WorkerError
from virnucpro.executors.calls import call_in_thread, call_processes
from virnucpro.progress import in_notebook

__all__ = [
    "CallCancelledError",
    "CallOptions",
    "RateLimit",
    "Retry",
    "chunk_list",
    "run_levels",
    "run_parallel",
    "run_parallel_async",
]

_LOG = logging.getLogger(__name__)
_SECONDS_A_LOOK = 0.05
"""How often a call that waits for its turn looks whether it is still wanted."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Key = TypeVar("Key", bound=Hashable)
Progress = Callable[[int, int], None]
"""Told how many items are done, and of how many."""


class CallCancelledError(VirNucProError):
    """Calls that were not made because the run was cancelled."""

    def __init__(self, num_done: int, num_items: int) -> None:
        self.num_done = num_done
        self.num_items = num_items
        super().__init__(num_done, num_items)

    def __str__(self) -> str:
        return f"cancelled after {self.num_done:,} of {self.num_items:,} calls."


@dataclass(frozen=True)
class Retry:
    """When a call that raised is made again.

    An error with an attribute ``retry_after_seconds`` (what a server asked for) is given at least that long.

    Attributes:
        attempts: in all; 1 never tries again.
        first_wait_seconds: after the first failure.
        factor: by which each wait is longer than the one before.
        longest_wait_seconds: between two attempts, unless the error asks for more.
        on: errors that are worth another attempt.
    """

    attempts: int = 3
    first_wait_seconds: float = 0.5
    factor: float = 2.0
    longest_wait_seconds: float = 60.0
    on: tuple[type[Exception], ...] = (Exception,)

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_wait_seconds < 0 or self.factor < 1:
            raise UsageError("a retry needs at least one attempt, and waits that do not become shorter.")

    def wait_seconds(self, num_failures: int, error: Exception) -> float | None:
        """Seconds to wait after the latest of ``num_failures`` failures in a row; None to give up."""
        if num_failures >= self.attempts or not isinstance(error, self.on):
            return None
        wait = min(self.first_wait_seconds * self.factor ** (num_failures - 1), self.longest_wait_seconds)
        return max(wait, float(getattr(error, "retry_after_seconds", None) or 0.0))


_ONCE = Retry(attempts=1)


@dataclass
class RateLimit:
    """At most so many calls begin within any stretch of time; one object may serve several runs and threads.

    Attributes:
        calls: how many.
        seconds: length of the stretch.
        clock: seconds that never go back.
    """

    calls: int
    seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _starts: deque[float] = field(init=False, repr=False)
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.calls < 1 or self.seconds < 0:
            raise UsageError("a rate limit needs at least one call, and a stretch of time that is not negative.")
        self._starts = deque(maxlen=self.calls)

    def reserve(self) -> float:
        """Take the next free start; returns the seconds until then."""
        with self._lock:
            now = self.clock()
            start = now if len(self._starts) < self.calls else max(now, self._starts[0] + self.seconds)
            self._starts.append(start)
            return start - now


class _Cancel(Protocol):
    def is_set(self) -> bool: ...


class CallOptions(TypedDict, total=False):
    """Options of all functions here; each may be left out.

    Attributes:
        retry: which failures are tried again; by default none.
        rate_limit: how many calls may begin within a stretch of time.
        progress: told how many items are done and of how many; one that raises is told nothing more.
        cancel: when set (a ``threading.Event``), no further call is begun.
    """

    retry: Retry | None
    rate_limit: RateLimit | None
    progress: Progress | None
    cancel: _Cancel | None


@overload
def run_parallel(
    items: Iterable[Item],
    call: Callable[[Item], Result],
    max_concurrent: int = ...,
    desc: str | None = ...,
    *,
    return_exceptions: Literal[False] = ...,
    processes: bool = ...,
    **options: Unpack[CallOptions],
) -> list[Result]: ...


@overload
def run_parallel(
    items: Iterable[Item],
    call: Callable[[Item], Result],
    max_concurrent: int = ...,
    desc: str | None = ...,
    *,
    return_exceptions: bool,
    processes: bool = ...,
    **options: Unpack[CallOptions],
) -> list[Result | Exception]: ...


def run_parallel(
    items: Iterable[Item],
    call: Callable[[Item], Result],
    max_concurrent: int = 8,
    desc: str | None = None,
    *,
    return_exceptions: bool = False,
    processes: bool = False,
    **options: Unpack[CallOptions],
) -> Sequence[Result | Exception]:
    """Call ``call`` on each item, ``max_concurrent`` at the same time.

    Works inside a running event loop too (a notebook).

    Args:
        items: what it is called on.
        call: blocking.
        max_concurrent: calls under way at the same time.
        desc: name of a progress bar (a terminal or a notebook); None draws none.
        return_exceptions: put the error of a call that failed in the place of its result.
        processes: call in spawned processes; ``call``, items and results must be picklable then.
        **options: see :class:`CallOptions`.

    Returns:
        A result for each item, in order.

    Raises:
        Exception: what the first failed call raised, unless ``return_exceptions``; calls not begun are dropped.
        CallCancelledError: ``cancel`` was set before all were done, unless ``return_exceptions``.
        WorkerError: a process was killed.
        UsageError: fewer than one call at a time.
    """
    todo = list(items)
    _at_least_one("max_concurrent", max_concurrent)
    try:
        num_workers = min(max_concurrent, max(1, len(todo)))
        with call_processes(num_workers) if processes else nullcontext() as pool:

            async def called(item: Item) -> Result:
                return await asyncio.wrap_future(pool.submit(call, item) if pool else call_in_thread(call, item))

            async def run() -> Sequence[Result | Exception]:
                return await run_parallel_async(
                    todo, called, max_concurrent, desc, return_exceptions=return_exceptions, **options
                )

            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return asyncio.run(run())
            with ThreadPoolExecutor(1) as thread:  # a thread has one event loop, and here it is somebody else's
                return thread.submit(lambda: asyncio.run(run())).result()
    except BrokenExecutor as error:
        raise WorkerError("a process that made calls was killed (out of memory?); use fewer at a time.") from error


@overload
async def run_parallel_async(
    items: Iterable[Item],
    call: Callable[[Item], Awaitable[Result]],
    max_concurrent: int = ...,
    desc: str | None = ...,
    *,
    return_exceptions: Literal[False] = ...,
    **options: Unpack[CallOptions],
) -> list[Result]: ...


@overload
async def run_parallel_async(
    items: Iterable[Item],
    call: Callable[[Item], Awaitable[Result]],
    max_concurrent: int = ...,
    desc: str | None = ...,
    *,
    return_exceptions: bool,
    **options: Unpack[CallOptions],
) -> list[Result | Exception]: ...


async def run_parallel_async(
    items: Iterable[Item],
    call: Callable[[Item], Awaitable[Result]],
    max_concurrent: int = 8,
    desc: str | None = None,
    *,
    return_exceptions: bool = False,
    **options: Unpack[CallOptions],
) -> Sequence[Result | Exception]:
    """As :func:`run_parallel`, with a coroutine function and in the event loop of the caller.

    When the first failure ends the run, calls under way are cancelled.
    """
    todo = list(items)
    _at_least_one("max_concurrent", max_concurrent)
    cancel, semaphore = options.get("cancel"), asyncio.Semaphore(max_concurrent)
    results: dict[int, Result | Exception] = {}

    with _shown(desc, len(todo), options.get("progress")) as advance:

        async def one(index: int, item: Item) -> None:
            try:
                results[index] = await _attempts(call, item, options)
            except Exception as error:
                if not return_exceptions or isinstance(error, BrokenExecutor):
                    error.add_note(f"item {index}: {item!r:.200}")
                    raise
                results[index] = error
            finally:
                semaphore.release()
            advance()

        try:
            async with asyncio.TaskGroup() as tasks:
                for index, item in enumerate(todo):
                    await semaphore.acquire()
                    if cancel is not None and cancel.is_set():
                        break
                    tasks.create_task(one(index, item))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
    cancelled = CallCancelledError(len(results), len(todo))
    if len(results) < len(todo) and not return_exceptions:
        raise cancelled
    return [results.get(index, cancelled) for index in range(len(todo))]


async def _attempts(call: Callable[[Item], Awaitable[Result]], item: Item, options: CallOptions) -> Result:
    """Call until it answers, is not tried again, or is not wanted any more."""
    retry, rate_limit, cancel = options.get("retry") or _ONCE, options.get("rate_limit"), options.get("cancel")
    num_failures = 0
    while True:
        if rate_limit is not None:
            await _wait(rate_limit.reserve(), cancel)
        try:
            return await call(item)
        except Exception as error:
            num_failures += 1
            wait = None if isinstance(error, BrokenExecutor) else retry.wait_seconds(num_failures, error)
            if wait is None:
                raise
            _LOG.debug("attempt %d failed (%s); the next in %.1f s", num_failures, type(error).__name__, wait)
        await _wait(wait, cancel)


async def _wait(seconds: float, cancel: _Cancel | None) -> None:
    """Sleep; the task is cancelled as soon as ``cancel`` is set."""
    end = time.monotonic() + seconds
    while cancel is None or not cancel.is_set():
        left = end - time.monotonic()
        if left <= 0:
            return
        await asyncio.sleep(left if cancel is None else min(left, _SECONDS_A_LOOK))
    raise asyncio.CancelledError


def _at_least_one(name: str, number: int) -> None:
    if number < 1:
        raise UsageError(f"{name}: at least 1, not {number}.")


@contextmanager
def _shown(desc: str | None, num_items: int, progress: Progress | None) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each item; it moves the bar and tells ``progress``."""
    num_done = 0

    def advance() -> None:
        nonlocal num_done, progress
        num_done += 1
        if bar is not None:
            bar.update()
        if progress is not None:
            try:
                progress(num_done, num_items)
            except Exception:  # noqa: BLE001 - somebody else's function, and the work is worth more than its answer
                _LOG.warning("the progress callback raised and is not called again; the work continues", exc_info=True)
                progress = None

    with ExitStack() as stack:
        bar = None
        if desc is not None:
            from tqdm.auto import tqdm  # noqa: PLC0415 - a bar of the notebook is made of widgets, which take their time

            bar = stack.enter_context(tqdm(total=num_items, desc=desc, disable=False if in_notebook() else None))
        yield advance


def chunk_list(items: Iterable[Item], size: int) -> list[list[Item]]:
    """Cut items into lists of ``size``, the last one with what is left.

    >>> chunk_list("abcde", 2)
    [['a', 'b'], ['c', 'd'], ['e']]

    Raises:
        UsageError: ``size`` is below 1.
    """
    _at_least_one("size", size)
    todo = list(items)
    return [todo[start : start + size] for start in range(0, len(todo), size)]


def run_levels(
    items: Iterable[Key],
    call: Callable[[Key], Iterable[Key]],
    max_concurrent: int = 8,
    desc: str | None = None,
    *,
    key: Callable[[Key], Hashable] | None = None,
    max_levels: int | None = None,
    return_exceptions: bool = False,
    **options: Unpack[CallOptions],
) -> list[dict[Key, list[Key] | Exception]]:
    """Call ``call`` on all items of a level at once; what these yield, without what was seen before, is the next level.

    >>> run_levels([6], lambda number: [number // 2, number // 3])
    [{6: [3, 2]}, {3: [1, 1], 2: [1, 0]}, {1: [0, 0], 0: [0, 0]}]

    Args:
        items: the first level.
        call: from an item to those it leads to; blocking.
        max_concurrent: calls under way at the same time.
        desc: name of the progress bars; None draws none.
        key: items with the same one are the same, and the first of them is called; None compares the items.
        max_levels: most levels; what the last one yields is not called. None ends when nothing new is yielded, which
            circles do.
        return_exceptions: an item whose call failed has its error, and leads nowhere.
        **options: see :class:`CallOptions`.

    Returns:
        For each level its items in the order they were first met, each with all that it yielded.

    Raises:
        Exception: see :func:`run_parallel`.
    """
    levels: list[dict[Key, list[Key] | Exception]] = []
    seen = set[Hashable]()

    def unseen(found: Iterable[Key]) -> list[Key]:
        fresh: dict[Hashable, Key] = {}
        for item in found:
            name = item if key is None else key(item)
            if name not in seen:
                fresh.setdefault(name, item)
        seen.update(fresh)
        return list(fresh.values())

    level = unseen(items)
    while level and (max_levels is None or len(levels) < max_levels):
        name = None if desc is None else f"{desc} {len(levels) + 1}"
        answers = run_parallel(
            level, lambda item: list(call(item)), max_concurrent, name, return_exceptions=return_exceptions, **options
        )
        levels.append(dict(zip(level, answers, strict=True)))
        level = unseen(found for answer in answers if not isinstance(answer, Exception) for found in answer)
    return levels
