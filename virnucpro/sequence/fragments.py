"""Cutting records into overlapping fragments of one length, by the published rule.

A record of ``n`` bases becomes ``k = ceil(n / L)`` windows. The surplus ``k*L - n`` is spread as
overlap over the gaps between them, but divided by ``k`` where there are ``k - 1`` gaps, so that the
last window is often short. The released heads were trained on these windows.

Source: Li et al., Briefings in Bioinformatics 26(3), bbaf224, 2025, and its reference scripts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def windows_of(
    lengths: NDArray[np.int64], fragment_length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Windows of many records: (n,) how many each has, and (w,) start and stop of all, on their records.

    The published rule sums a list of gaps, ``upper`` for the first ``num_upper`` and ``lower`` for the others; this is
    the sum in closed form.
    """
    num_windows = -(-lengths // fragment_length)
    surplus = num_windows * fragment_length - lengths
    lower = surplus // np.maximum(num_windows, 1)
    num_upper = surplus - lower * (num_windows - 1)
    index = np.arange(num_windows.sum()) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    lower, num_upper, lengths = (np.repeat(values, num_windows) for values in (lower, num_upper, lengths))
    starts = index * (fragment_length - lower) - np.minimum(index, num_upper)
    return num_windows, starts, np.minimum(starts + fragment_length, lengths)


def windows(length: int, fragment_length: int) -> NDArray[np.int64]:
    """(k, 2) start and stop of every window of a record of ``length`` bases."""
    return np.column_stack(windows_of(np.array([length]), fragment_length)[1:])
