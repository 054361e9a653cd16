"""Many byte strings, or token lists, in two arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ragged:
    """``n`` sequences of different lengths, laid end to end.

    Item ``i`` is ``values[offsets[i]:offsets[i + 1]]``. Names, bases and proteins are uint8
    (ASCII); tokens are int32. It exists because ten million Python objects do not fit in memory.
    """

    values: NDArray[Any]  # (total,) all items end to end
    offsets: NDArray[np.int64]  # (n + 1,) int64, from 0 to total; of a ``view`` from where its first item begins

    @classmethod
    def from_bytes(cls, items: Iterable[bytes]) -> Ragged:
        """Lay byte strings end to end as uint8."""
        items = list(items)
        return cls(
            np.frombuffer(b"".join(items), dtype=np.uint8),
            offsets_of(np.fromiter(map(len, items), dtype=np.int64, count=len(items))),
        )

    @classmethod
    def concatenate(cls, parts: Iterable[Ragged]) -> Ragged:
        """Join several of the same dtype, in order."""
        parts = list(parts)
        if not parts:
            return cls.from_bytes([])
        return cls(
            np.concatenate([part.values[part.offsets[0] : part.offsets[-1]] for part in parts]),
            offsets_of(np.concatenate([part.lengths for part in parts])),
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) length of each item."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    def slice(self, start: int, stop: int) -> Ragged:
        """Items ``start:stop``; the values are a view."""
        first, last = self.offsets[start], self.offsets[stop]
        return Ragged(self.values[first:last], self.offsets[start : stop + 1] - first)

    def view(self, start: int, stop: int) -> Ragged:
        """Items ``start:stop`` without a copy of anything, to be read one by one or as bytes."""
        return Ragged(self.values, self.offsets[start : stop + 1])

    def take(self, indices: NDArray[np.int64]) -> Ragged:
        """The items at ``indices``, in that order, as a copy."""
        ends = np.flatnonzero(np.diff(indices, append=-1) != 1)  # of runs of neighbours, which are copied in one go
        firsts = indices[np.concatenate([[0], ends[:-1] + 1])] if len(ends) else ends
        starts, stops = self.offsets[firsts].tolist(), self.offsets[indices[ends] + 1].tolist()
        parts = [self.values[start:stop] for start, stop in zip(starts, stops, strict=True)]
        return Ragged(np.concatenate([self.values[:0], *parts]), offsets_of(self.lengths[indices]))

    def keep(self, kept: NDArray[np.bool_]) -> Ragged:
        """As many items, those that are not ``kept`` (n,) emptied, as a copy."""
        lengths = np.where(kept, self.lengths, 0)
        return Ragged(self.values[np.repeat(kept, self.lengths)], offsets_of(lengths))

    def only(self, kept: NDArray[np.bool_]) -> Ragged:
        """The items that are ``kept`` (n,), in order, as a copy."""
        return Ragged(self.values[np.repeat(kept, self.lengths)], offsets_of(self.lengths[kept]))

    def bytes_at(self, places: NDArray[np.int64]) -> list[bytes]:
        """The items at ascending ``places`` as ``bytes`` (uint8 items only)."""
        if not len(places):
            return []
        first = self.offsets[places[0]]
        whole = self.values[first : self.offsets[places[-1] + 1]].tobytes()
        starts, stops = ((self.offsets[places + end] - first).tolist() for end in (0, 1))
        return [whole[start:stop] for start, stop in zip(starts, stops, strict=True)]

    def to_bytes(self) -> list[bytes]:
        """Each item as ``bytes`` (uint8 items only)."""
        whole = self.values[self.offsets[0] : self.offsets[-1]].tobytes()
        ends = (self.offsets - self.offsets[0]).tolist()
        return [whole[a:b] for a, b in pairwise(ends)]


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n + 1,) running sum of ``lengths`` that starts at 0."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
