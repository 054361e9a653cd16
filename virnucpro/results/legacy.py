"""The two files of the published program, equal in form and rule to what it writes.

``prediction_results.txt``: a line a kept frame. ``prediction_results_highestscore.csv`` (tab-separated):
a line a window, virus when the largest virus score over its frames is >= the largest other score;
windows are told apart by name alone, as published, so that equal ids fall together, and come sorted
by name. Windows without a kept frame, and frames that could not be computed, are in neither.
"""

from __future__ import annotations

import csv
import io

import numpy as np
from numpy.typing import NDArray

from virnucpro.results import schema, text
from virnucpro.sequence.ragged import Ragged

RESULT_COLUMNS = schema.LEGACY_RESULTS.header
HIGHEST_COLUMNS = schema.LEGACY_HIGHEST.header

_FRAME_LETTERS = 2
"""That a row's name has behind the name of its window."""
_QUOTED = tuple(b'"\t\r\n')


def result_lines(names: Ragged, scores: NDArray[np.float32]) -> bytes:
    """Lines of ``prediction_results.txt``; scores as the shortest text that reads back as the same float32."""
    virus = scores[:, 1] > scores[:, 0]  # of two equal scores the first wins, as argmax has it
    return text.lines(
        (names, text.words((b"others", b"virus"), virus), text.shortest(scores[:, 0]), text.shortest(scores[:, 1]))
    )


class HighestScores:
    """Largest scores a window, gathered over the run (memory grows with the number of windows)."""

    def __init__(self) -> None:
        self._windows: list[Ragged] = []
        self._best: list[NDArray[np.float32]] = []

    def add(self, names: Ragged, scores: NDArray[np.float32]) -> None:
        """Take in rows; the window's name is the row's less its last two letters."""
        windows, best = _highest(text.shortened(names, _FRAME_LETTERS), scores)
        self._windows.append(windows)
        self._best.append(best)

    def lines(self) -> bytes:
        """Lines of ``prediction_results_highestscore.csv``, quoted where a name needs it."""
        windows = Ragged.concatenate(self._windows)
        if not len(windows):
            return b""
        names = windows.to_bytes()
        order = np.array(sorted(range(len(names)), key=names.__getitem__))
        windows, best = _highest(text.taken(windows, order), np.concatenate(self._best)[order])
        if np.isin(windows.values, _QUOTED).any():
            windows = Ragged.from_bytes(map(_as_csv, windows.to_bytes()))
        return text.lines((windows, text.words((b"False", b"True"), best[:, 1] >= best[:, 0])))


def _highest(windows: Ragged, scores: NDArray[np.float32]) -> tuple[Ragged, NDArray[np.float32]]:
    """Of neighbours of one name only one, with the largest of their scores."""
    if not len(windows):
        return windows, scores
    begins = text.begins(windows)
    return text.taken(windows, begins), np.maximum.reduceat(scores, begins)


def _as_csv(name: bytes) -> bytes:
    """A cell of a CSV file with tabs, in quotation marks where it needs them."""
    line = io.StringIO()
    csv.writer(line, delimiter="\t", lineterminator="", quoting=csv.QUOTE_MINIMAL).writerow(
        [name.decode(errors="surrogateescape")]
    )
    return line.getvalue().encode(errors="surrogateescape")
