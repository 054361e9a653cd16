"""Gaps: runs of N, or of other letters that name no base, which stand for bases that nobody has read.

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

from virnucpro.sequence.frames import are_other

SHORTEST_GAP_NT = 10
"""Fewer are bases that are ambiguous (GenBank takes ten N and more for a gap)."""
_GAP = re.compile(rb"[^ACGTUacgtu]{%d,}" % SHORTEST_GAP_NT)


@dataclass(frozen=True, eq=False)
class Gaps:
    """Where letters have gaps, those of one record or of several end to end."""

    starts: NDArray[np.int64]  # (g,) first letter of each, ascending
    stops: NDArray[np.int64]  # (g,) one after its last

    @classmethod
    def among(cls, others: NDArray[np.int64], offsets: NDArray[np.int64]) -> Gaps:
        """Those of records that lie end to end.

        Args:
            others: of ``others_of``.
            offsets: (n + 1,) where records begin, which ends a run.
        """
        if len(others) < SHORTEST_GAP_NT:
            return NO_GAPS
        records = np.searchsorted(offsets, others, side="right")
        bounds = np.flatnonzero((np.diff(others) > 1) | (np.diff(records) > 0)) + 1
        starts, stops = others[np.append(0, bounds)], others[np.append(bounds, len(others)) - 1] + 1
        is_gap = stops - starts >= SHORTEST_GAP_NT
        return cls(starts[is_gap], stops[is_gap])

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def _closed(self) -> NDArray[np.int64]:
        """(g + 1,) bases in the first gaps."""
        return np.concatenate([[0], np.cumsum(self.stops - self.starts)])

    def seams_in(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many were closed inside each of some stretches of the closed letters."""
        places = self.starts - self._closed[:-1]
        return np.searchsorted(places, stops) - np.searchsorted(places, starts, side="right")

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


NO_GAPS = Gaps(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def others_of(letters: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Where letters, normalised, are none of A, C, G and T."""
    return np.flatnonzero(are_other(letters))


@dataclass(frozen=True, eq=False)
class Records:
    """The letters of some records, end to end, without the gaps that were closed."""

    letters: NDArray[np.uint8]  # normalised
    offsets: NDArray[np.int64]  # (n + 1,) where records begin in them
    others: NDArray[np.int64]  # where they are none of A, C, G and T
    given: NDArray[np.int64]  # (n + 1,) where records began before
    gaps: Gaps = NO_GAPS  # those that were closed

    @classmethod
    def of(cls, letters: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Records:
        """As they are."""
        return cls(letters, offsets, others_of(letters), offsets)

    def close(self, gaps: Gaps) -> Records:
        """Without some gaps."""
        if not len(gaps):
            return self
        begun = np.searchsorted(gaps.starts, self.others, side="right")
        others = self.others[self.others >= np.append(0, gaps.stops)[begun]]
        return Records(gaps.close(self.letters), gaps.closed(self.offsets), gaps.closed(others), self.given, gaps)


def without_gaps(bases: bytes) -> bytes:
    """Bases in either case with their gaps closed."""
    return _GAP.sub(b"", bases)
