"""Seeds of queries, and their index.

A seed is nine letters of ten at the places of ``PATTERN`` (or eight, ``SENSITIVE``). Read as a number of base 11 it has
32 bits, and so has its hash, which is that number times an odd one: hashes are equal where seeds are. The upper bits of
a hash name a bucket of the index; a filter of two bits a seed says of most seeds of the table that no query has them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel
from virnucpro.nearest.kernels import BLOCK, LOW, OWNER_BITS, SPAN, read_block
from virnucpro.nearest.residues import NO_LETTER, SEED_LETTERS, mask
from virnucpro.nearest.table import with_breaks
from virnucpro.sequence.ragged import Ragged, offsets_of

PATTERN = "11010010110001011"
"""Places of a seed that must agree; source: chosen on dev among patterns of its weight (EXPERIMENTS.md)."""
SENSITIVE = "11010010100001011"
"""The same of a seed that finds more, in two to three times the time: all of its places are some of those above."""
_ALSO = next(place for place in range(SPAN) if PATTERN[place] != SENSITIVE[place])
LEAST_COST = 18_000
"""Seeds that chance finds more often than once in 2^18 places (thousandths of a bit) are none."""

_BASE, _MULTIPLIER = 11, 0x9E3779B1
_SHARES = np.array([0.110, 0.205, 0.013, 0.072, 0.022, 0.260, 0.082, 0.045, 0.122, 0.080])
_COSTS = np.zeros(NO_LETTER + 1, dtype=np.uint16)
_COSTS[: len(_SHARES)] = np.round(-1000 * np.log2(_SHARES))
_FEWEST_BITS = 10
_RANGE_BITS = 8
"""Of hashes, the upper ones: within ranges of hashes the seeds of an index are sorted."""
_LAST_RANGE = (1 << _RANGE_BITS) - 1
_BITS_OF_A_PART = 15
"""A part of the index has 2^15 buckets: with their seeds and filter they fit the cache of a core."""
_BITS_AT_ONCE = 19
"""An index of up to 2^19 buckets is one part: its filter fits."""
MOST_IN_ONE_PART = 1 << (_BITS_AT_ONCE + 1)
"""Fewer seeds than this are one part."""


class Index(NamedTuple):
    """Queries and their seeds by hash.

    Attributes:
        residues: masked codes of the queries, with breaks around each.
        ends: (n,) where each query ends.
        owners: the query at each 64th place, or the first one behind it.
        places: of a seed that matter,
        factors: uint32, by which the letters there make its hash.
        also: a place of a seed that must agree as well
        also_from: for queries from this place on.
        part_shift: from a hash to its part,
        filter_shift: to its word of ``seen``,
        bucket_shift: and to its bucket.
        seen: the filter, words with two bits for each seed.
        buckets: where the seeds of each bucket lie in ``entries``.
        entries: hash and place of each seed, 32 bits each, by bucket and place; and one more.
        room: pairs of seeds that are looked at together, no fewer than a bucket has.
    """

    residues: NDArray[np.uint8]
    ends: NDArray[np.int64]
    owners: NDArray[np.int64]
    places: NDArray[np.int64]
    factors: NDArray[np.uint32]
    also: int
    also_from: int
    part_shift: int
    filter_shift: int
    bucket_shift: int
    seen: NDArray[np.int64]
    buckets: NDArray[np.int32]
    entries: NDArray[np.int64]
    room: int

    @property
    def num_parts(self) -> int:
        """Parts of the index."""
        return 1 << (32 - self.part_shift)


def index_of(queries: Ragged, num_sensitive: int = 0, num_threads: int = 1) -> Index:
    """Index queries (residue codes), of which the first ``num_sensitive`` have more sensitive seeds.

    Both kinds are found by the places that both patterns have; the other ones must agree where theirs does besides.
    """
    residues, starts = with_breaks(queries)
    owners = np.searchsorted(starts[1:] - 1, np.arange(0, len(residues), 1 << OWNER_BITS), side="right")
    places, factors = _places(SENSITIVE if num_sensitive else PATTERN)
    first_other = int(starts[num_sensitive])
    cuts = np.unique(
        np.append(starts[np.searchsorted(starts, np.linspace(1, starts[-1], num_threads + 1))], first_other)
    )
    with ThreadPoolExecutor(num_threads) as pool:

        def find(first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            weighed = _places(SENSITIVE if first < first_other else PATTERN)[0]
            return _seeds(residues, first, stop, places, factors, weighed)

        found = list(pool.map(find, cuts[:-1].tolist(), cuts[1:].tolist()))
        ranges = offsets_of(np.sum([np.zeros(1 << _RANGE_BITS, np.int64), *(counts for _, counts in found)], axis=0))
        num_seeds = int(ranges[-1])
        bits = max(_FEWEST_BITS, num_seeds.bit_length() - 1)
        buckets = np.full((1 << bits) + 1, num_seeds, dtype=np.int32)
        seen = np.zeros(1 << (bits - 2), dtype=np.int64)  # a word for each four buckets
        entries = np.zeros(num_seeds + 1, dtype=np.int64)
        spread = np.empty(num_seeds, dtype=np.int64)

        def sort(first: int, stop: int) -> int:
            """Index some ranges of hashes; returns how many seeds the largest bucket has."""
            filled = ranges.copy()
            for seeds, _ in found:
                _spread(seeds, len(seeds), first, stop, filled, spread)
            return _sort(spread, ranges, first, stop, 32 - bits, buckets, seen, entries)

        shares = np.linspace(0, 1 << _RANGE_BITS, num_threads + 1).astype(int).tolist()
        room = max(4 * BLOCK, *pool.map(sort, shares, shares[1:]))
    part_bits = bits - _BITS_OF_A_PART if bits > _BITS_AT_ONCE else 0
    shifts = (32 - part_bits, 34 - bits, 32 - bits)
    return Index(
        residues, starts[1:] - 1, owners, places, factors, _ALSO, first_other, *shifts, seen, buckets, entries, room
    )


def _places(pattern: str) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Places of a seed that matter; what the letter at each adds to a hash is a factor times its number."""
    places = np.flatnonzero(np.array(list(pattern)) == "1")
    factors = [_MULTIPLIER * _BASE**k % (1 << 32) for k in range(len(places))]
    return places, np.array(factors, dtype=np.uint32)


def _seeds(
    residues: NDArray[np.uint8],
    first: int,
    stop: int,
    places: NDArray[np.int64],
    factors: NDArray[np.uint32],
    weighed: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Mask some whole queries, in place, and find their seeds: hash and place, 32 bits each.

    Returns:
        The seeds, and how many each range of hashes has.
    """
    part = residues[first:stop]
    mask(part)
    seeds, counts = np.empty(len(part), np.int64), np.zeros(1 << _RANGE_BITS, np.int64)
    work = (np.empty(BLOCK + SPAN, np.uint8), np.empty(BLOCK, np.uint32), *np.empty((2, BLOCK + SPAN), np.uint16))
    hashed = (places, factors, len(places), SEED_LETTERS, weighed, len(weighed), _COSTS)
    return seeds[: _find(part, len(part), first, *hashed, *work, counts, seeds)], counts


@kernel
def _find(
    residues: NDArray[np.uint8],
    num_residues: int,
    first: int,
    places: NDArray[np.int64],
    factors: NDArray[np.uint32],
    weight: int,
    seed_letters: NDArray[np.uint8],
    weighed: NDArray[np.int64],
    num_weighed: int,
    costs: NDArray[np.uint16],
    letters: NDArray[np.uint8],
    sums: NDArray[np.uint32],
    of_place: NDArray[np.uint16],
    totals: NDArray[np.uint16],
    counts: NDArray[np.int64],
    seeds: NDArray[np.int64],
) -> int:
    """Write all seeds that say enough, their places counted from ``first``; returns how many there are."""
    num_seeds, last_other = 0, -1
    for i in range(min(SPAN - 1, num_residues)):
        if residues[i] >= 20:
            last_other = i
    for start in range(0, num_residues - SPAN + 1, BLOCK):
        count = min(BLOCK, num_residues - SPAN + 1 - start)
        read_block(residues, start, count, places, factors, weight, seed_letters, letters, sums)
        for i in range(count + SPAN - 1):
            of_place[i] = costs[letters[i]]
        for i in range(count):
            totals[i] = 0
        for k in range(num_weighed):
            for i in range(count):
                totals[i] += of_place[weighed[k] + i]
        for i in range(count):
            last_other = start + i + SPAN - 1 if residues[start + i + SPAN - 1] >= 20 else last_other
            is_seed = (last_other < start + i) & (totals[i] >= LEAST_COST)
            seeds[num_seeds] = (sums[i] + 0) << 32 | (first + start + i)
            num_seeds += is_seed
            counts[sums[i] >> (32 - _RANGE_BITS)] += is_seed
    return num_seeds


@kernel
def _spread(
    seeds: NDArray[np.int64],
    num_seeds: int,
    first: int,
    stop: int,
    filled: NDArray[np.int64],
    spread: NDArray[np.int64],
) -> None:
    """Write the seeds of some ranges of hashes to their range: what is known of its buckets then fits the cache."""
    for i in range(num_seeds):
        part = (seeds[i] >> (64 - _RANGE_BITS)) & _LAST_RANGE
        if first <= part < stop:
            spread[filled[part]] = seeds[i]
            filled[part] += 1


@kernel
def _sort(
    spread: NDArray[np.int64],
    ranges: NDArray[np.int64],
    first: int,
    stop: int,
    shift: int,
    buckets: NDArray[np.int32],
    seen: NDArray[np.int64],
    entries: NDArray[np.int64],
) -> int:
    """Write the seeds of some ranges of hashes by bucket, their filter, and where each bucket begins.

    Returns:
        How many seeds the largest bucket has.
    """
    most, num_buckets = 0, 1 << (32 - shift - _RANGE_BITS)
    for part in range(first, stop):
        for bucket in range(part * num_buckets, (part + 1) * num_buckets):
            buckets[bucket] = 0
        for i in range(ranges[part], ranges[part + 1]):
            buckets[((spread[i] >> 32) & LOW) >> shift] += 1
        total = ranges[part]
        for bucket in range(part * num_buckets, (part + 1) * num_buckets):
            count = buckets[bucket]
            most = max(most, count)
            buckets[bucket] = total
            total += count
        for i in range(ranges[part], ranges[part + 1]):
            number = (spread[i] >> 32) & LOW
            bucket = number >> shift
            entries[buckets[bucket]] = spread[i]
            buckets[bucket] += 1
            seen[bucket >> 2] |= 1 << (number & 63) | 1 << ((number >> 6) & 63)
        for bucket in range((part + 1) * num_buckets - 1, part * num_buckets, -1):  # each has moved to its end
            buckets[bucket] = buckets[bucket - 1]
        buckets[part * num_buckets] = ranges[part]
    return most
