"""The two files of the published program, equal in form and rule to what it writes.

``prediction_results.txt``: a line a kept frame. ``prediction_results_highestscore.csv`` (tab-separated):
a line a window, virus when the largest virus score over its frames is >= the largest other score;
windows are told apart by name alone, as published, so that equal ids fall together, and come sorted
by name. Windows without a kept frame, and frames that could not be computed, are in neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from virnucpro.results.formats import Cells

_FRAME_LETTERS = 2
"""That the name of a row has after that of its window."""


def result_cells(names: Sequence[bytes], scores: NDArray[np.float32]) -> Cells:
    """Lines of ``prediction_results.txt``; scores as the shortest text that reads back as the same float32."""
    virus = scores[:, 1] > scores[:, 0]  # of two equal scores the first wins, as argmax has it
    others, viral = (scores[:, column].astype("S32").tolist() for column in (0, 1))
    return names, [b"virus" if is_virus else b"others" for is_virus in virus.tolist()], others, viral


def highest_cells(rows: Iterable[tuple[Sequence[bytes], NDArray[np.float32]]]) -> Cells:
    """Lines of ``prediction_results_highestscore.csv``, quoted if a name needs it.

    Args:
        rows: names of rows and their scores, part by part. Memory grows with the number of windows.
    """
    highest: dict[bytes, tuple[float, float]] = {}
    for names, scores in rows:
        for name, other, virus in zip(names, *scores.T.tolist(), strict=True):
            window = name[:-_FRAME_LETTERS]
            best = highest.get(window)
            highest[window] = (other, virus) if best is None else (max(best[0], other), max(best[1], virus))
    windows = sorted(highest)
    calls = [b"True" if highest[window][1] >= highest[window][0] else b"False" for window in windows]
    return [_as_csv(window) for window in windows], calls


def _as_csv(name: bytes) -> bytes:
    """A cell of a CSV file with tabs, in quotation marks if it needs them."""
    return b'"%b"' % name.replace(b'"', b'""') if b'"' in name or b"\t" in name else name
