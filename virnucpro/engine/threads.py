"""How many CPUs this process keeps busy when it computes or tokenises."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

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


def in_threads(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    num_threads: int,
    *,
    threads_each: int = 1,
    give_up: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """What ``work`` makes of each item, in order; each is computed by one thread while the next ones are read.

    A thread an item and not all threads for one: none of them waits for the others or for the disk, and a result does
    not depend on how many there are.

    Args:
        work: on an item.
        items: read as they are asked for, by the calling thread.
        num_threads: items computed at the same time.
        threads_each: that an operation of torch may use for one item.
        give_up: called when nobody wants the results any more (an error, an interrupt): work that takes long should
            then end soon, since its threads are waited for.
    """
    if num_threads == 1:
        yield from map(work, items)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(threads_each,)) as threads:
            waiting: deque[Future[Result]] = deque()
            try:
                for item in items:
                    waiting.append(threads.submit(work, item))
                    if len(waiting) == num_threads + READ_AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                if give_up is not None:
                    give_up()
                raise
    finally:
        torch.set_num_threads(before)
