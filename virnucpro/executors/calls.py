"""Threads or processes that make single calls, for :mod:`virnucpro.parallel`."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

from virnucpro.lifeline import follow_parent

Result = TypeVar("Result")

_Task = tuple[Future[Any], Callable[[], Any]]


class DaemonThreads(Executor):
    """A pool of threads that the end of the program does not wait for.

    The threads of ``concurrent.futures`` are joined when the interpreter ends: a Ctrl-C would wait for a server that
    does not answer.
    """

    def __init__(self, num_threads: int) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._num_threads = num_threads
        self._threads: list[threading.Thread] = []

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:  # noqa: ANN401
        """See ``concurrent.futures.Executor.submit``."""
        future: Future[Result] = Future()
        self._tasks.put((future, lambda: fn(*args, **kwargs)))
        if len(self._threads) < self._num_threads:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See ``concurrent.futures.Executor.shutdown``."""
        while cancel_futures and not self._tasks.empty():
            task = self._tasks.get()
            if task is not None:
                task[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - top frame of the thread: who asked is told
                future.set_exception(error)


@contextmanager
def call_pool(num_workers: int, *, processes: bool) -> Iterator[Executor]:
    """A pool for the block. When the block fails, calls that wait are dropped, and processes are killed.

    Args:
        num_workers: calls at the same time.
        processes: spawned processes, not threads; calls, items and results must then be picklable.
    """
    pool: Executor = DaemonThreads(num_workers)
    if processes:
        pool = ProcessPoolExecutor(
            num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=follow_parent
        )
    try:
        yield pool
    except BaseException:
        if isinstance(pool, ProcessPoolExecutor):
            for process in list((pool._processes or {}).values()):  # noqa: SLF001 - no public way to stop at once
                process.kill()
        pool.shutdown(wait=processes, cancel_futures=True)
        raise
    pool.shutdown(wait=True)
