"""Finding identical strings: records of a whole run, and rows of one unit.

Strings are told apart by 128 bits of XXH3: not cryptographic, but at ten million records two different ones share it
with a chance of 1e-25.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from virnucpro.sequence.ragged import Ragged

_LEFT_OVER_DTYPE = np.dtype([("hash", "u8", (2,)), ("number", "i8"), ("source", "i8")])
_BLOCK = 1 << 17  # items left over that are looked at together: 4 MB
_FILL = 0.9  # of the room, on average: shares of a hash are not quite equal


def hash_strings(items: Iterable[bytes]) -> NDArray[np.uint64]:
    """(n, 2) 128 bits of each item."""
    return np.frombuffer(b"".join(map(xxh3_128_digest, items)), dtype="<u8").reshape(-1, 2)


def distinct(strings: Ragged) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Group identical byte strings, exactly.

    Returns:
        ``first``: where each distinct string is first seen, rising; ``inverse``: (n,) the group of
        each string, so that ``strings[first[inverse[i]]] == strings[i]``.
    """
    groups: dict[bytes, int] = {}
    inverse = np.array([groups.setdefault(item, len(groups)) for item in strings.to_bytes()], dtype=np.int64)
    return np.unique(inverse, return_index=True)[1], inverse


class _LeftOver:
    """Items that no table had room for, in a file, in order of their numbers: 32 bytes each.

    Args:
        path: of the file, which is written from the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_items = 0
        self.delete()

    def __len__(self) -> int:
        return self._num_items

    def add(self, hashes: NDArray[np.uint64], numbers: NDArray[np.int64]) -> None:
        items = np.empty(len(numbers), dtype=_LEFT_OVER_DTYPE)
        items["hash"] = hashes
        items["number"] = items["source"] = numbers
        with self._path.open("ab") as stream:
            stream.write(items.tobytes())
        self._num_items += len(items)

    def blocks(self) -> Iterator[NDArray[np.void]]:
        """All items, some at a time; what is changed in them by the time the next are asked for is kept."""
        for first in range(0, self._num_items, _BLOCK):
            offset = first * _LEFT_OVER_DTYPE.itemsize
            items = np.fromfile(self._path, _LEFT_OVER_DTYPE, _BLOCK, offset=offset)
            before = items["source"].copy()
            yield items
            if not np.array_equal(items["source"], before):
                with self._path.open("r+b") as stream:
                    stream.seek(offset)
                    stream.write(items.tobytes())

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)


class SequenceIndex:
    """The first number seen with each content, in a table that grows up to a fixed size.

    Once three quarters of the most slots are taken nothing more is added. What is not in the table is then its own
    source, though an earlier item may have the same content: it is computed again, which costs time and never a result.
    With a file for what is left over, ``late_sources`` finds such copies in the end, in the same memory. A slot takes
    4 bytes, an entry 24. The table is one of open addresses, of which all items take a step at a time.

    Args:
        max_slots: a power of two.
        left_over: file for items that a full table has no room for; where None they are forgotten.
    """

    def __init__(self, max_slots: int = 1 << 21, left_over: Path | None = None) -> None:
        if max_slots < 4 or max_slots & (max_slots - 1):
            raise ValueError(f"max_slots must be a power of two of at least 4, not {max_slots}")
        self._max_slots = max_slots
        self._left_over = _LeftOver(left_over) if left_over is not None else None
        self._num_entries = 0
        self._slots = np.zeros(min(max_slots, 1 << 12), dtype=np.int32)  # number of an entry from 1, or 0
        most = max_slots // 4 * 3
        self._hashes = np.empty((most, 2), dtype=np.uint64)  # takes memory only as it is filled
        self._numbers = np.empty(most, dtype=np.int64)

    def find_sources(self, hashes: NDArray[np.uint64], first_number: int) -> NDArray[np.int64]:
        """(n,) number of the first item with the same hash, or the item's own where it is the first.

        Args:
            hashes: (n, 2) from :func:`hash_strings`.
            first_number: number of the first of them; they count up from it.
        """
        numbers = np.arange(first_number, first_number + len(hashes))
        num_before = self._num_entries
        sources = self._find(hashes, numbers)
        if self._left_over is not None and self._num_entries == len(self._numbers):
            left = np.flatnonzero(sources == numbers)[self._num_entries - num_before :]
            if len(left):
                self._left_over.add(hashes[left], numbers[left])
        return sources

    def late_sources(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Items left over whose content an earlier one has: some at a time their numbers, rising, and their sources.

        Give the table up for it: each share of all hashes, chosen so that it has room, goes through one of its own.
        """
        if self._left_over is None or not len(self._left_over):
            return
        self._slots, self._hashes = np.empty(0, dtype=np.int32), np.empty((0, 2), dtype=np.uint64)
        num_shares = int(len(self._left_over) / (_FILL * (self._max_slots // 4 * 3))) + 1
        for share in range(num_shares):
            index = SequenceIndex(self._max_slots)
            for items in self._left_over.blocks():
                shares = (items["hash"][:, 1] >> np.uint64(32)) * np.uint64(num_shares) >> np.uint64(32)
                wanted = np.flatnonzero(shares == share)
                items["source"][wanted] = index._find(items["hash"][wanted], items["number"][wanted])
        for items in self._left_over.blocks():
            copies = items[items["source"] != items["number"]]
            if len(copies):
                yield np.ascontiguousarray(copies["number"]), np.ascontiguousarray(copies["source"])

    def close(self) -> None:
        """Delete what was left over."""
        if self._left_over is not None:
            self._left_over.delete()

    def _find(self, hashes: NDArray[np.uint64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        _, first, inverse = np.unique(hashes[:, 0], return_index=True, return_inverse=True)
        order = np.argsort(first)  # the earlier have the first claim on room
        first = first[order]
        found, slots = self._look_up(hashes[first])
        sources = numbers[first].copy()
        is_known = found >= 0
        sources[is_known] = self._numbers[found[is_known]]
        new = np.flatnonzero(~is_known)[: len(self._numbers) - self._num_entries]
        self._add(hashes[first[new]], numbers[first[new]], slots[new])
        is_held = is_known.copy()
        is_held[new] = True
        places = np.empty(len(first), dtype=np.int64)
        places[order] = np.arange(len(first))
        mine = places[inverse]
        # half of the hash may fall together: the other half says whether it is the same content
        is_same = hashes[:, 1] == np.where(is_known, self._hashes[found, 1], hashes[first, 1])[mine]
        return np.where(is_same & is_held[mine], sources[mine], numbers)

    def _look_up(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) entry with the same first half of each hash, -1 without one; and the slot where it is or belongs."""
        last = len(self._slots) - 1
        slots = (hashes[:, 0] & np.uint64(last)).astype(np.int64)
        found = np.full(len(hashes), -1, dtype=np.int64)
        left = np.arange(len(hashes))
        while len(left):
            entries = self._slots[slots[left]].astype(np.int64) - 1
            is_taken = entries >= 0
            is_same = is_taken & (self._hashes[entries, 0] == hashes[left, 0])
            found[left[is_same]] = entries[is_same]
            left = left[is_taken & ~is_same]
            slots[left] = (slots[left] + 1) & last
        return found, slots

    def _add(self, hashes: NDArray[np.uint64], numbers: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Add entries that are not there, different ones, at or behind the empty ``slots``."""
        entries = np.arange(self._num_entries, self._num_entries + len(hashes))
        self._hashes[entries], self._numbers[entries] = hashes, numbers
        self._num_entries += len(hashes)
        if self._num_entries > len(self._slots) // 4 * 3 and len(self._slots) < self._max_slots:
            while len(self._slots) < self._max_slots and self._num_entries > len(self._slots) // 4 * 3:
                self._slots = np.zeros(2 * len(self._slots), dtype=np.int32)
            entries = np.arange(self._num_entries)
            slots = (self._hashes[entries, 0] & np.uint64(len(self._slots) - 1)).astype(np.int64)
        self._place(entries, slots)

    def _place(self, entries: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        last = len(self._slots) - 1
        while len(entries):
            is_free = self._slots[slots] == 0
            self._slots[slots[is_free]] = entries[is_free] + 1
            is_left = self._slots[slots] != entries + 1  # the slot was taken, or another took it just now
            entries, slots = entries[is_left], (slots[is_left] + 1) & last
