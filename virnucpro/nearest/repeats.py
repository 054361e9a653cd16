"""Repeats at the ends of viruses.

Integration doubles the site, so that one copy lies at either end of a provirus. A circular genome that was assembled
ends with the bases it begins with; some linear ones end with their reverse complement.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

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
_SAYS_CIRCULAR = re.compile(rb"\b(?:circular=(?:true|yes|y)|topology=circular)\b", re.IGNORECASE)
_ROOM = 4096
_IS_BASE = np.isin(np.arange(256), list(b"ACGT"))
_BASES = np.full(256, 4, dtype=np.int64)
_BASES[list(b"ACGT")] = range(4)


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
    starts, others, lengths = _common(upper[left], upper[right])
    sites = np.zeros(len(starts), dtype=SITE_DTYPE)
    sites["start"], sites["length"] = left.start + starts, lengths
    sites["stop"] = right.start + others + lengths
    copies = (upper[first : first + length] for _, first, _, length in sites.tolist())
    sites = sites[np.array([_num_triplets(copy) >= _FEWEST_TRIPLETS for copy in copies], dtype=np.bool_)]
    return sites[np.lexsort((sites["stop"], sites["start"], -sites["length"]))][:MOST_SITES]


def topology(bases: bytes, description: bytes) -> bytes:
    """What says that a sequence is a whole genome, or has one of its ends; empty if nothing does.

    ``DTR`` and ``ITR`` as of ``terminal_repeat``; ``circular`` if the header says so (``circular=true`` of Unicycler,
    ``circular=yes`` of metaMDBG, ``topology=circular`` of NCBI); ``polyA`` if it ends with 20 A or begins with 20 T, as
    many RNA viruses do.

    Args:
        bases: of the sequence, in either case.
        description: the rest of its header.
    """
    ends = bases[-SHORTEST_TERMINAL_NT:].upper(), bases[:SHORTEST_TERMINAL_NT].upper()
    has_tail = ends[0] == b"A" * SHORTEST_TERMINAL_NT or ends[1] == b"T" * SHORTEST_TERMINAL_NT
    is_circular = _SAYS_CIRCULAR.search(description) is not None
    return terminal_repeat(bases) or (b"circular" if is_circular else b"polyA" if has_tail else b"")


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


def _common(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> tuple[NDArray[np.int64], ...]:
    """Starts in both and lengths of maximal common strings of A, C, G and T, as many as there is room for.

    A common string begins where words agree and the letters before them do not.
    """
    (words, before), (others, other_before) = _words(left), _words(right)
    order = np.argsort(others * 5 + other_before, kind="stable")
    keys = (others * 5 + other_before)[order]
    is_word = words >= 0
    low, high = (np.searchsorted(keys, words * 5 + place) for place in (0, 5))
    is_inside = before < 4  # what lies before the first letter, or is no base, agrees with nothing
    same_low, same_high = (np.where(is_inside, np.searchsorted(keys, words * 5 + before + k), high) for k in (0, 1))
    first, second = (
        (np.repeat(np.arange(len(words)), counts), order[np.repeat(begins, counts) + _count_up(counts)])
        for begins, counts in ((low, (same_low - low) * is_word), (same_high, (high - same_high) * is_word))
    )
    at, to = (np.concatenate(both) for both in zip(first, second, strict=True))
    lengths = np.full(len(at), SHORTEST_NT)
    alive = np.arange(len(at))
    left, right = (np.append(letters, end).astype(np.uint8) for letters, end in ((left, 0), (right, 1)))
    while len(alive):
        ends = at[alive] + lengths[alive], to[alive] + lengths[alive]
        goes_on = (left[ends[0]] == right[ends[1]]) & _IS_BASE[left[ends[0]]] & (lengths[alive] <= LONGEST_NT)
        alive = alive[goes_on]
        lengths[alive] += 1
    kept = lengths <= LONGEST_NT
    at, to, lengths = at[kept], to[kept], lengths[kept]
    some = np.lexsort((-(to + lengths), at + lengths))[:_ROOM]
    return at[some], to[some], lengths[some]


def _words(letters: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of the ``SHORTEST_NT`` bases from each place on, -1 where one is none, and the base before; 4 is none."""
    bases = _BASES[letters]
    count = max(0, len(bases) - SHORTEST_NT + 1)
    words = np.zeros(count, dtype=np.int64)
    is_word = np.ones(count, dtype=np.bool_)
    for k in range(SHORTEST_NT):
        words = words * 4 + bases[k : k + count]
        is_word &= bases[k : k + count] < 4
    return np.where(is_word, words, -1), np.append(4, bases)[:count]


def _count_up(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 to n - 1 for each count n."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
