"""Batches made ahead of the step that takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TypeVar

Batch = TypeVar("Batch")


def prefetch(make: Callable[[int], Batch], step: int) -> Iterator[Batch]:
    """Batches from ``step`` on, without end, each made of its number alone; a thread of its own keeps two ready."""
    with ThreadPoolExecutor(1) as thread:
        ready = [thread.submit(make, step + k) for k in range(2)]
        for following in count(step + 2):
            yield ready.pop(0).result()
            ready.append(thread.submit(make, following))
