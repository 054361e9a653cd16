"""One kernel over all rows, on as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch

_ROWS_A_THREAD = 64  # below, handing over takes longer than the work


def over_rows(kernel: Callable[..., None], num_rows: int, *arguments: object) -> None:
    """Call ``kernel(start, stop, *arguments)`` for all rows, on as many threads as torch uses."""
    num_threads = min(torch.get_num_threads(), max(1, num_rows // _ROWS_A_THREAD))
    if num_threads == 1:
        kernel(0, num_rows, *arguments)
        return
    bounds = np.linspace(0, num_rows, num_threads + 1).astype(np.int64)
    parts = [_threads(num_threads).submit(kernel, *bounds[i : i + 2], *arguments) for i in range(num_threads)]
    for part in parts:
        part.result()


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    # Not numba's own threads: their usual layer ends the process when two threads of it compute at the same time.
    return ThreadPoolExecutor(count, thread_name_prefix="row-passes")
