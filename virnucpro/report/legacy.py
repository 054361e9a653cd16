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

from virnucpro.report import schema

RESULT_COLUMNS = schema.LEGACY_RESULTS.header
HIGHEST_COLUMNS = schema.LEGACY_HIGHEST.header


def result_lines(names: list[bytes], scores: NDArray[np.float32]) -> bytes:
    """Lines of ``prediction_results.txt``; scores as the shortest text that reads back as the same float32."""
    virus = (scores[:, 1] > scores[:, 0]).tolist()  # of two equal scores the first wins, as argmax has it
    columns = zip(names, virus, map(str, scores[:, 0]), map(str, scores[:, 1]), strict=True)
    return b"".join(
        b"%b\t%b\t%b\t%b\n" % (name, b"virus" if is_virus else b"others", other.encode(), score.encode())
        for name, is_virus, other, score in columns
    )


class HighestScores:
    """Largest scores a window, gathered over the run (memory grows with the number of windows)."""

    def __init__(self) -> None:
        self._best: dict[bytes, tuple[float, float]] = {}

    def add(self, names: list[bytes], scores: NDArray[np.float32]) -> None:
        """Take in rows; the window's name is the row's less its last two letters."""
        for name, (other, virus) in zip(names, scores.tolist(), strict=True):
            window = name[:-2]
            best_other, best_virus = self._best.get(window, (0.0, 0.0))
            self._best[window] = (max(best_other, other), max(best_virus, virus))

    def lines(self) -> bytes:
        """Lines of ``prediction_results_highestscore.csv``, quoted where a name needs it."""
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
        for window in sorted(self._best):
            other, virus = self._best[window]
            writer.writerow((window.decode(errors="surrogateescape"), virus >= other))
        return text.getvalue().encode(errors="surrogateescape")
