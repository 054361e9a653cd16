"""What the nearest proteins of a fragment say, as log-odds of virus against host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.nearest.fragments import open_frames
from virnucpro.nearest.search import CELL, VIRUS, Hits, search_codes
from virnucpro.nearest.table import Table

LARGEST = 12.0
"""Evidence is cut here."""


@dataclass(frozen=True)
class Evidence:
    """How much the best score against viruses, and that against cells, count: linear between knots and lengths.

    Attributes:
        lengths: fragment lengths (nt), ascending.
        knots: scores, ascending; beyond the last one nothing is added.
        virus: log-odds at each knot, a line for each length.
        cell: the same of the best score against cells.
    """

    lengths: tuple[float, ...]
    knots: tuple[float, ...]
    virus: tuple[tuple[float, ...], ...]
    cell: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for values in (self.lengths, self.knots):
            if not values or list(values) != sorted(set(values)):
                raise ValueError("evidence: lengths and knots must ascend")
        for lines in (self.virus, self.cell):
            if len(lines) != len(self.lengths) or {len(line) for line in lines} != {len(self.knots)}:
                raise ValueError("evidence: a line for each length, a number for each knot")

    def log_odds(self, scores: NDArray[np.int32], lengths_nt: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,) log-odds.

        Args:
            scores: (n, 2) as ``search.Hits`` holds them.
            lengths_nt: (n,) of the fragments.
        """
        total = np.zeros(len(scores))
        for number in range(len(self.lengths)):
            share = np.interp(lengths_nt, self.lengths, np.arange(len(self.lengths)) == number)
            for side, lines in ((VIRUS, self.virus), (CELL, self.cell)):
                total += share * np.interp(scores[:, side], self.knots, lines[number])
        return np.clip(total, -LARGEST, LARGEST)


def read_evidence(content: Mapping[str, Any]) -> Evidence:
    """Evidence as ``bundle.yaml`` holds it.

    Raises:
        KeyError, TypeError, ValueError: it makes no sense.
    """
    lengths, knots = (tuple(map(float, content[name])) for name in ("lengths", "knots"))
    virus, cell = (tuple(tuple(map(float, line)) for line in content[name]) for name in ("virus", "cell"))
    return Evidence(lengths, knots, virus, cell)


def search_fragments(
    table: Table,
    letters: NDArray[np.uint8],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    num_threads: int = 1,
) -> Hits:
    """The nearest proteins of fragments ``letters[start:stop]`` (ASCII bases)."""
    return search_codes(table, open_frames(letters, starts, stops).queries, num_threads=num_threads)
