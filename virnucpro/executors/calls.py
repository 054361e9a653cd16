"""Threads or processes that make single calls, for :mod:`virnucpro.parallel`."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from virnucpro.lifeline import follow_parent

Item = TypeVar("Item")
Result = TypeVar("Result")


def call_in_thread(call: Callable[[Item], Result], item: Item) -> Future[Result]:
    """Call in a thread of its own, that the end of the program does not wait for.

    The threads of ``concurrent.futures`` are joined when the interpreter ends: a Ctrl-C would wait for a server that
    does not answer.
    """
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()

    def work() -> None:
        try:
            future.set_result(call(item))
        except BaseException as error:  # noqa: BLE001 - top frame of the thread: who asked is told
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


@contextmanager
def call_processes(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Spawned processes for the block, whose calls, items and results are picklable; killed when the block fails."""
    pool = ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=follow_parent)
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):  # noqa: SLF001 - no public way to stop at once
            process.kill()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()
