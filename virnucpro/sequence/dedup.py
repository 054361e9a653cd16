"""Finding identical strings: records of a whole run, and rows of one unit.

The hash is MurmurHash3 x64 128 (Austin Appleby, public domain): not cryptographic, but at ten million
records two different ones share it with a chance of 1e-25.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.sequence.compiled import compiled
from virnucpro.sequence.ragged import Ragged

_C1 = np.uint64(0x87C37B91114253D5)
_C2 = np.uint64(0x4CF5AD432745937F)
_MIX1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX2 = np.uint64(0xC4CEB9FE1A85EC53)

# A slot of an index is the number of an entry, from 1, below the upper half of its hash.
_ENTRY = np.uint64(0xFFFFFFFF)


@compiled
def _rotate(word: np.uint64, bits: int) -> np.uint64:
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@compiled
def _mix(word: np.uint64) -> np.uint64:
    word ^= word >> np.uint64(33)
    word *= _MIX1
    word ^= word >> np.uint64(33)
    word *= _MIX2
    return word ^ (word >> np.uint64(33))


@compiled
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


@compiled
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


@compiled
def _find_or_add(
    slots: NDArray[np.uint64],
    entries: NDArray[np.uint64],
    num_entries: int,
    hashes: NDArray[np.uint64],
    wanted: NDArray[np.bool_],
    first_number: int,
    sources: NDArray[np.int64],
) -> int:
    """Fill ``sources``; returns how many entries there are then, at most ``len(entries)``."""
    last = np.uint64(len(slots) - 1)
    # A first look at every slot, for its own sake: these wait for the memory all at once, those below one by one.
    for i in range(len(hashes)):
        sources[i] = np.int64(slots[hashes[i, 0] & last])
    for i in range(len(hashes)):
        sources[i] = first_number + i
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
            entries[num_entries, 2] = np.uint64(first_number + i)
            num_entries += 1
            slots[slot] = (h1 & ~_ENTRY) | np.uint64(num_entries)
    return num_entries


@compiled
def _place(slots: NDArray[np.uint64], entries: NDArray[np.uint64]) -> None:
    """Fill empty slots."""
    last = np.uint64(len(slots) - 1)
    for i in range(len(entries)):
        slot = entries[i, 0] & last
        while slots[slot] != 0:
            slot = (slot + np.uint64(1)) & last
        slots[slot] = (entries[i, 0] & ~_ENTRY) | np.uint64(i + 1)


class SequenceIndex:
    """The first number seen with each content, in a table that grows up to a fixed size.

    Once three quarters of the most slots are taken nothing more is added: later duplicates of what is
    not in the table are then computed again, which costs time and never a result. A slot takes 8 bytes,
    an entry 24.

    Args:
        max_slots: a power of two.
    """

    def __init__(self, max_slots: int = 1 << 22) -> None:
        if max_slots < 4 or max_slots & (max_slots - 1):
            raise ValueError(f"max_slots must be a power of two of at least 4, not {max_slots}")
        self._max_slots = max_slots
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
        self._reserve(len(hashes))
        sources = np.empty(len(hashes), dtype=np.int64)
        self._num_entries = _find_or_add(
            self._slots, self._entries, self._num_entries, hashes, wanted, first_number, sources
        )
        return sources

    def _reserve(self, num_items: int) -> None:
        num_slots = len(self._slots)
        while num_slots < self._max_slots and num_slots // 4 * 3 < self._num_entries + num_items:
            num_slots *= 2
        if num_slots > len(self._slots):
            self._slots = np.zeros(num_slots, dtype=np.uint64)
            _place(self._slots, self._entries[: self._num_entries])


@compiled
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
