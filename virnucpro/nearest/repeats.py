"""Repeats at the ends of viruses.

Integration doubles the site, so that one copy lies at either end of a provirus. A circular genome that was assembled
ends with the bases it begins with; some linear ones end with their reverse complement.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel
from virnucpro.nearest.path import INWARD_NT, OUTWARD_NT

SITE_DTYPE = np.dtype([("sequence", "i8"), ("start", "i8"), ("stop", "i8"), ("length", "i4")])
"""A repeat: its record, the first base of the left copy, one after the last base of the right one, and its length."""

SHORTEST_NT = 16
LONGEST_NT = 200
"""Longer ones are elements that occur twice."""
MOST_SITES = 20
"""Of a region; the longest are kept."""
SHORTEST_TERMINAL_NT = 20
"""Of the repeat at both ends of a whole sequence; the length that CheckV asks for."""
_LONGEST_TERMINAL_NT = 20_000
_COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")
_SLACK_NT = 3000  # by which the ends of the final region may differ from those that are asked for
_FEWEST_TRIPLETS = 8
_ROOM = 4096


def find_sites(letters: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.void]:
    """(s,) SITE_DTYPE, repeats with one copy near either end of ``start:stop``; their record is 0.

    Args:
        letters: ASCII bases of the record.
        start: of a region.
        stop: of it.
    """
    middle = (start + stop) // 2
    left = slice(max(0, start - OUTWARD_NT - _SLACK_NT), min(middle, start + INWARD_NT + _SLACK_NT))
    right = slice(max(middle, stop - INWARD_NT - _SLACK_NT), min(len(letters), stop + OUTWARD_NT + _SLACK_NT))
    upper = letters & np.uint8(0xDF)
    found = np.empty((_ROOM, 3), dtype=np.int64)
    count = _common(upper[left], upper[right], SHORTEST_NT, LONGEST_NT, found)
    sites = np.zeros(count, dtype=SITE_DTYPE)
    sites["start"], sites["length"] = left.start + found[:count, 0], found[:count, 2]
    sites["stop"] = right.start + found[:count, 1] + found[:count, 2]
    copies = (upper[first : first + length] for _, first, _, length in sites.tolist())
    sites = sites[np.array([_num_triplets(copy) >= _FEWEST_TRIPLETS for copy in copies], dtype=np.bool_)]
    return sites[np.lexsort((sites["stop"], sites["start"], -sites["length"]))][:MOST_SITES]


def terminal_repeat(bases: bytes) -> bytes:
    """``DTR`` if a sequence ends with what it begins with, ``ITR`` if with its reverse complement; empty if neither.

    Repeats have 20 bases to 20 kb, at most half of the sequence, and are not of low complexity.

    Args:
        bases: of the sequence, in either case.
    """
    if len(bases) < 2 * SHORTEST_TERMINAL_NT:
        return b""
    longest = min(len(bases) // 2, _LONGEST_TERMINAL_NT)
    head, tail = bases[:longest].upper(), bases[-longest:].upper()
    seed = head[:SHORTEST_TERMINAL_NT]
    if seed.translate(None, b"ACGT") or _num_triplets(np.frombuffer(seed, np.uint8)) < _FEWEST_TRIPLETS:
        return b""
    place = tail.find(seed)
    while place >= 0:
        if head.startswith(tail[place:]):
            return b"DTR"
        place = tail.find(seed, place + 1)
    return b"ITR" if tail.translate(_COMPLEMENT)[::-1].startswith(seed) else b""


def _num_triplets(letters: NDArray[np.uint8]) -> int:
    return len(set(zip(letters, letters[1:], letters[2:], strict=False)))


@kernel
def _common(
    left: NDArray[np.uint8], right: NDArray[np.uint8], shortest: int, longest: int, found: NDArray[np.int64]
) -> int:
    """Write starts and length of maximal common substrings of A, C, G and T; returns how many there was room for."""
    runs = np.zeros(len(right) + 1, dtype=np.int32)  # of the last base of ``left``, by the place behind it in ``right``
    count = 0
    for i in range(len(left) + 1):
        base = left[i] if i < len(left) else 0
        is_base = base in (65, 67, 71, 84)
        for j in range(len(right), -1, -1):
            run = runs[j]
            goes_on = is_base and j < len(right) and right[j] == base
            if not goes_on and shortest <= run <= longest and count < len(found):
                found[count, 0], found[count, 1], found[count, 2] = i - run, j - run, run
                count += 1
            if j < len(right):
                runs[j + 1] = run + 1 if goes_on else 0
        runs[0] = 0
    return count
