"""Gaps: runs of N, which stand for bases that nobody has read.

How many N a gap has says little (100 where its length is unknown), and what lies on either side of it belongs together.
Records are cut into fragments and read for genes with their gaps closed, so that a gap changes neither; places on the
closed letters are then said on the record as it was given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

SHORTEST_GAP_NT = 10
"""Fewer N are bases that are ambiguous (GenBank takes ten and more for a gap)."""
_N = ord("N")
_GAP = re.compile(rb"[Nn]{%d,}" % SHORTEST_GAP_NT)


@dataclass(frozen=True, eq=False)
class Gaps:
    """Where letters have gaps, those of one record or of several end to end."""

    starts: NDArray[np.int64]  # (g,) first N of each, ascending
    stops: NDArray[np.int64]  # (g,) one after its last

    @classmethod
    def find(cls, letters: NDArray[np.uint8], offsets: NDArray[np.int64] | None = None) -> Gaps:
        """Those of letters that are normalised; ``offsets`` (n + 1,) say where records begin, which end a run."""
        if letters.tobytes().find(b"N" * SHORTEST_GAP_NT) < 0:
            return NO_GAPS
        is_n = letters == _N
        begins, ends = is_n.copy(), is_n.copy()
        begins[1:] &= ~is_n[:-1]
        ends[:-1] &= ~is_n[1:]
        borders = np.zeros(0, dtype=np.int64) if offsets is None else offsets[(offsets > 0) & (offsets < len(letters))]
        begins[borders], ends[borders - 1] = is_n[borders], is_n[borders - 1]
        starts, stops = np.flatnonzero(begins), np.flatnonzero(ends) + 1
        is_gap = stops - starts >= SHORTEST_GAP_NT
        return cls(starts[is_gap], stops[is_gap])

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def _closed(self) -> NDArray[np.int64]:
        """(g + 1,) bases in the first gaps."""
        return np.concatenate([[0], np.cumsum(self.stops - self.starts)])

    def close(self, letters: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The letters without the gaps."""
        if not len(self):
            return letters
        bounds = zip([0, *self.stops.tolist()], [*self.starts.tolist(), len(letters)], strict=True)
        return np.concatenate([letters[start:stop] for start, stop in bounds])

    def closed(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where places lie on the closed letters; one in a gap where the gap was."""
        if not len(self):
            return places
        before = np.searchsorted(self.starts, places)
        behind = np.maximum(np.append(0, self.stops)[before] - places, 0)  # of the gap that a place lies in
        return np.asarray(places - self._closed[before] + behind, dtype=np.int64)

    def opened(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where stretches of the closed letters, none of them empty, lie on the letters as they were given."""
        if not len(self):
            return starts, stops
        places = self.starts - self._closed[:-1]
        return (
            starts + self._closed[np.searchsorted(places, starts, side="right")],
            stops + self._closed[np.searchsorted(places, stops, side="left")],
        )


def without_gaps(bases: bytes) -> bytes:
    """Bases in either case with their gaps closed."""
    return _GAP.sub(b"", bases)


NO_GAPS = Gaps(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
