"""Finding identical strings: records of a whole run, and rows of one unit.

The hash is MurmurHash3 x64 128 (Austin Appleby, public domain): not cryptographic, but at ten million
records two different ones share it with a chance of 1e-25.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel
from virnucpro.sequence.ragged import Ragged

_C1 = np.uint64(0x87C37B91114253D5)
_C2 = np.uint64(0x4CF5AD432745937F)
_MIX1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX2 = np.uint64(0xC4CEB9FE1A85EC53)

# A slot of an index is the number of an entry, from 1, below the upper half of its hash.
_ENTRY = np.uint64(0xFFFFFFFF)

_LEFT_OVER_DTYPE = np.dtype([("hash", "u8", (2,)), ("number", "i8"), ("source", "i8")])
_BLOCK = 1 << 17  # items left over that are looked at together: 4 MB
_FILL = 0.9  # of the room, on average: shares of a hash are not quite equal


@kernel
def _rotate(word: np.uint64, bits: int) -> np.uint64:
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@kernel
def _mix(word: np.uint64) -> np.uint64:
    word ^= word >> np.uint64(33)
    word *= _MIX1
    word ^= word >> np.uint64(33)
    word *= _MIX2
    return word ^ (word >> np.uint64(33))


@kernel
def _word(values: NDArray[np.uint8], at: int) -> np.uint64:
    """Eight bytes, little endian, written so that the compiler makes one load of it."""
    return (
        np.uint64(values[at])
        | (np.uint64(values[at + 1]) << np.uint64(8))
        | (np.uint64(values[at + 2]) << np.uint64(16))
        | (np.uint64(values[at + 3]) << np.uint64(24))
        | (np.uint64(values[at + 4]) << np.uint64(32))
        | (np.uint64(values[at + 5]) << np.uint64(40))
        | (np.uint64(values[at + 6]) << np.uint64(48))
        | (np.uint64(values[at + 7]) << np.uint64(56))
    )


@kernel
def hash_strings(values: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(n, 2) MurmurHash3 x64 128 (seed 0) of each item of a ragged array of bytes."""
    hashes = np.empty((len(offsets) - 1, 2), dtype=np.uint64)
    for i in range(len(hashes)):
        item = values[offsets[i] : offsets[i + 1]]
        length = len(item)
        whole = length // 16 * 16
        h1 = np.uint64(0)
        h2 = np.uint64(0)
        for at in range(0, whole, 16):
            h1 ^= _rotate(_word(item, at) * _C1, 31) * _C2
            h1 = (_rotate(h1, 27) + h2) * np.uint64(5) + np.uint64(0x52DCE729)
            h2 ^= _rotate(_word(item, at + 8) * _C2, 33) * _C1
            h2 = (_rotate(h2, 31) + h1) * np.uint64(5) + np.uint64(0x38495AB5)
        k1 = np.uint64(0)
        k2 = np.uint64(0)
        for j in range(length - whole):
            if j < 8:
                k1 |= np.uint64(item[whole + j]) << np.uint64(8 * j)
            else:
                k2 |= np.uint64(item[whole + j]) << np.uint64(8 * j - 64)
        h2 ^= _rotate(k2 * _C2, 33) * _C1
        h1 ^= _rotate(k1 * _C1, 31) * _C2
        h1 ^= np.uint64(length)
        h2 ^= np.uint64(length)
        h1 += h2
        h2 += h1
        h1 = _mix(h1)
        h2 = _mix(h2)
        h1 += h2
        h2 += h1
        hashes[i, 0] = h1
        hashes[i, 1] = h2
    return hashes


@kernel
def _find_or_add(
    slots: NDArray[np.uint64],
    entries: NDArray[np.uint64],
    num_entries: int,
    hashes: NDArray[np.uint64],
    wanted: NDArray[np.bool_],
    numbers: NDArray[np.int64],
    sources: NDArray[np.int64],
) -> int:
    """Fill ``sources``; returns how many entries there are then, at most ``len(entries)``."""
    last = np.uint64(len(slots) - 1)
    # A first look at every slot, for its own sake: these wait for the memory all at once, those below one by one.
    for i in range(len(hashes)):
        sources[i] = np.int64(slots[hashes[i, 0] & last])
    for i in range(len(hashes)):
        sources[i] = numbers[i]
        if not wanted[i]:
            continue
        h1, h2 = hashes[i, 0], hashes[i, 1]
        slot = h1 & last
        while slots[slot] != 0:
            entry = slots[slot] & _ENTRY
            # most others are told apart here, without a look at their entries
            if (slots[slot] ^ h1) <= _ENTRY and entries[entry - 1, 0] == h1 and entries[entry - 1, 1] == h2:
                sources[i] = np.int64(entries[entry - 1, 2])
                break
            slot = (slot + np.uint64(1)) & last
        if slots[slot] == 0 and num_entries < len(entries):
            entries[num_entries, 0] = h1
            entries[num_entries, 1] = h2
            entries[num_entries, 2] = np.uint64(numbers[i])
            num_entries += 1
            slots[slot] = (h1 & ~_ENTRY) | np.uint64(num_entries)
    return num_entries


@kernel
def _place(slots: NDArray[np.uint64], entries: NDArray[np.uint64]) -> None:
    """Fill empty slots."""
    last = np.uint64(len(slots) - 1)
    for i in range(len(entries)):
        slot = entries[i, 0] & last
        while slots[slot] != 0:
            slot = (slot + np.uint64(1)) & last
        slots[slot] = (entries[i, 0] & ~_ENTRY) | np.uint64(i + 1)


class _LeftOver:
    """Items that no table had room for, in a file, in order of their numbers: 32 bytes each.

    Args:
        path: of the file, which is written anew.
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
    8 bytes, an entry 24.

    Args:
        max_slots: a power of two.
        left_over: file for items that a full table has no room for; where None they are forgotten.
    """

    def __init__(self, max_slots: int = 1 << 22, left_over: Path | None = None) -> None:
        if max_slots < 4 or max_slots & (max_slots - 1):
            raise ValueError(f"max_slots must be a power of two of at least 4, not {max_slots}")
        self._max_slots = max_slots
        self._left_over = _LeftOver(left_over) if left_over is not None else None
        self._num_entries = 0
        self._slots = np.zeros(min(max_slots, 1 << 12), dtype=np.uint64)
        self._entries = np.empty((max_slots // 4 * 3, 3), dtype=np.uint64)  # takes memory only as it is filled

    def find_sources(
        self, hashes: NDArray[np.uint64], first_number: int, wanted: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """(n,) number of the first item with the same hash, or the item's own where it is the first.

        Args:
            hashes: (n, 2) from :func:`hash_strings`.
            first_number: number of the first of them; they count up from it.
            wanted: (n,) False for items that are neither looked up nor added.
        """
        if wanted is None:
            wanted = np.ones(len(hashes), dtype=np.bool_)
        numbers = np.arange(first_number, first_number + len(hashes))
        num_before = self._num_entries
        sources = self._find(hashes, numbers, wanted)
        if self._left_over is not None and self._num_entries == len(self._entries):
            left = np.flatnonzero(wanted & (sources == numbers))[self._num_entries - num_before :]
            if len(left):
                self._left_over.add(hashes[left], numbers[left])
        return sources

    def late_sources(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Items left over whose content an earlier one has: some at a time their numbers, rising, and their sources.

        Give the table up for it: each share of all hashes, chosen so that it has room, goes through one of its own.
        """
        if self._left_over is None or not len(self._left_over):
            return
        self._slots, self._entries = np.empty(0, dtype=np.uint64), np.empty((0, 3), dtype=np.uint64)
        num_shares = int(len(self._left_over) / (_FILL * (self._max_slots // 4 * 3))) + 1
        for share in range(num_shares):
            index = SequenceIndex(self._max_slots)
            for items in self._left_over.blocks():
                shares = (items["hash"][:, 1] >> np.uint64(32)) * np.uint64(num_shares) >> np.uint64(32)
                wanted = shares == share
                numbers = np.ascontiguousarray(items["number"])
                sources = index._find(np.ascontiguousarray(items["hash"]), numbers, wanted)
                items["source"][wanted] = sources[wanted]
        for items in self._left_over.blocks():
            copies = items[items["source"] != items["number"]]
            if len(copies):
                yield np.ascontiguousarray(copies["number"]), np.ascontiguousarray(copies["source"])

    def close(self) -> None:
        """Delete what was left over."""
        if self._left_over is not None:
            self._left_over.delete()

    def _find(
        self, hashes: NDArray[np.uint64], numbers: NDArray[np.int64], wanted: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        self._reserve(len(hashes))
        sources = np.empty(len(hashes), dtype=np.int64)
        self._num_entries = _find_or_add(
            self._slots, self._entries, self._num_entries, hashes, wanted, numbers, sources
        )
        return sources

    def _reserve(self, num_items: int) -> None:
        num_slots = len(self._slots)
        while num_slots < self._max_slots and num_slots // 4 * 3 < self._num_entries + num_items:
            num_slots *= 2
        if num_slots > len(self._slots):
            self._slots = np.zeros(num_slots, dtype=np.uint64)
            _place(self._slots, self._entries[: self._num_entries])


@kernel
def _group(
    values: NDArray[np.uint8], offsets: NDArray[np.int64], hashes: NDArray[np.uint64], num_slots: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    last = np.uint64(num_slots - 1)
    slots = np.zeros(num_slots, dtype=np.int64)  # group + 1
    first = np.empty(len(hashes), dtype=np.int64)
    inverse = np.empty(len(hashes), dtype=np.int64)
    num_groups = 0
    for i in range(len(hashes)):
        slot = hashes[i, 0] & last
        length = offsets[i + 1] - offsets[i]
        while True:
            group = slots[slot] - 1
            if group < 0:
                group = num_groups
                slots[slot] = group + 1
                first[group] = i
                num_groups += 1
                break
            j = first[group]
            if hashes[j, 0] == hashes[i, 0] and offsets[j + 1] - offsets[j] == length:
                is_same = True
                for k in range(length):
                    if values[offsets[i] + k] != values[offsets[j] + k]:
                        is_same = False
                        break
                if is_same:
                    break
            slot = (slot + np.uint64(1)) & last
        inverse[i] = group
    return first[:num_groups].copy(), inverse


def distinct(strings: Ragged) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Group identical byte strings, exactly (equal hashes are verified byte by byte).

    Returns:
        ``first``: where each distinct string is first seen, rising; ``inverse``: (n,) the group of
        each string, so that ``strings[first[inverse[i]]] == strings[i]``.
    """
    hashes = hash_strings(strings.values, strings.offsets)
    return _group(strings.values, strings.offsets, hashes, 1 << max(2, (2 * len(strings)).bit_length()))
