"""How many CPUs this process keeps busy when it computes or tokenises."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch

from virnucpro.lifeline import Closing

Item = TypeVar("Item")
Result = TypeVar("Result")

READ_AHEAD = 2
"""Items beside those that threads compute: one is read, one waits."""


def use_threads(number: int) -> None:
    """Let each operation of torch, and the byte-pair tokenizers, use so many; with several, last bits may differ.

    The tokenizers are told before they first see a batch, or not at all: they start their threads then, one for each
    CPU of the machine unless this is set, and keep them.
    """
    torch.set_num_threads(number)
    os.environ["RAYON_NUM_THREADS"] = str(number)


class ComputeThreads(Closing):
    """Threads that compute an item each. A context manager: leaving it ends them.

    A thread an item and not all threads for one: none of them waits for the others or for the disk, and a result does
    not depend on how many there are.

    Args:
        number: items computed at the same time.
        threads_each: that an operation of torch may use for one item.
        give_up: called when nobody wants the results any more (an error, an interrupt): work that takes long should
            then end soon, since its threads are waited for.
    """

    def __init__(self, number: int, *, threads_each: int = 1, give_up: Callable[[], None] = lambda: None) -> None:
        self.number = number
        self._give_up = give_up
        self._before = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(threads_each,))
        self._waiting: deque[Future[Any]] = deque()

    def close(self) -> None:
        """Give up what is under way and end the threads."""
        self._stop()
        self._pool.shutdown(wait=True)
        torch.set_num_threads(self._before)  # MKL has one setting for all threads

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """What ``work`` makes of each item, in order; ``items`` are read by the caller while others are computed."""
        if self.number == 1:
            yield from map(work, items)
            return
        try:
            for item in items:
                self._waiting.append(self._pool.submit(work, item))
                if len(self._waiting) == self.number + READ_AHEAD:
                    yield self._waiting.popleft().result()
            while self._waiting:
                yield self._waiting.popleft().result()
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        if self._waiting:
            self._give_up()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.cancel():
                wait([future])
