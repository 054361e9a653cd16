"""Seeds of queries, and their index.

A seed is nine letters of ten at the places of ``PATTERN`` (or eight, ``SENSITIVE``). Read as a number of base 11 it has
32 bits, and so has its hash, which is that number times an odd one: hashes are equal where seeds are. The upper bits of
a hash name a bucket of the index; a filter of two bits a seed says of most seeds of the table that no query has them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel
from virnucpro.nearest.kernels import BLOCK, HALF, OWNER_BITS, SPAN, Index, marks_of, read_block
from virnucpro.nearest.residues import SEED_LETTERS, mask
from virnucpro.nearest.table import with_breaks
from virnucpro.sequence.ragged import Ragged, offsets_of

PATTERN = "11010010110001011"
"""Places of a seed that must agree; source: chosen on dev among patterns of its weight (EXPERIMENTS.md)."""
SENSITIVE = "11010010100001011"
"""The same of a seed that finds more, in two to three times the time."""
LEAST_COST = 18_000
"""Seeds that chance finds more often than once in 2^18 places (thousandths of a bit) are none."""

_BASE, _MULTIPLIER = 11, 0x9E3779B1
_SHARES = np.array([0.110, 0.205, 0.013, 0.072, 0.022, 0.260, 0.082, 0.045, 0.122, 0.080])
_COSTS = np.zeros(len(SEED_LETTERS), dtype=np.uint16)
_COSTS[:20] = np.round(-1000 * np.log2(_SHARES))[SEED_LETTERS[:20]]
_FEWEST_BITS = 10
_RANGES = 1 << 8
"""Of hashes, by their upper bits, within which the seeds of an index are sorted."""
_RANGE_SHIFT = np.uint64(56)
_BITS_OF_A_PART = 15
"""A part of the index has 2^15 buckets: with their seeds and filter they fit the cache of a core."""
_BITS_AT_ONCE = 19
"""An index of up to 2^19 buckets is one part: its filter fits."""


def index_of(queries: Ragged, pattern: str, num_threads: int = 1) -> Index:
    """Index queries (residue codes)."""
    residues, starts = with_breaks(queries)
    owners = np.searchsorted(starts[1:] - 1, np.arange(0, len(residues), 1 << OWNER_BITS), side="right")
    factors = _factors(pattern)
    cuts = starts[np.searchsorted(starts, np.linspace(1, starts[-1], num_threads + 1))]
    with ThreadPoolExecutor(num_threads) as pool:
        found = list(pool.map(lambda first, stop: _seeds(residues, first, stop, factors), cuts, cuts[1:]))
        starts_of_ranges = offsets_of(np.sum([_count(seeds) for seeds in found], axis=0))
        bits = max(_FEWEST_BITS, int(starts_of_ranges[-1]).bit_length() - 1)
        bounds = np.full((1 << bits) + 1, starts_of_ranges[-1], dtype=np.int32)
        seen = np.zeros(1 << (bits - 2), dtype=np.uint64)  # a word for each four buckets
        entries = np.zeros(starts_of_ranges[-1] + 1, dtype=np.uint64)
        spread = np.empty(starts_of_ranges[-1], dtype=np.uint64)

        def sort(first: int, stop: int) -> int:
            """Index some ranges of hashes; returns how many seeds the largest bucket has."""
            places = starts_of_ranges.copy()
            for seeds in found:
                _spread(seeds, (first, stop), places, spread)
            return _sort(spread, starts_of_ranges, (first, stop), 64 - bits, bounds, seen, entries)

        ranges = np.linspace(0, _RANGES, num_threads + 1).astype(np.int64)
        room = max(4 * BLOCK, *pool.map(sort, ranges, ranges[1:]))
    part_bits = bits - _BITS_OF_A_PART if bits > _BITS_AT_ONCE else 0
    return Index(
        residues,
        starts[1:] - 1,
        owners,
        factors,
        32 - part_bits,
        34 - bits,
        32 - bits,
        seen,
        bounds,
        entries,
        room,
    )


def _factors(pattern: str) -> NDArray[np.uint32]:
    """(17,) what the letter at each place adds to a hash is that many times its number; 0 where it does not matter."""
    factors, factor = [], _MULTIPLIER
    for place in pattern:
        factors.append(factor if place == "1" else 0)
        factor = factor * _BASE % (1 << 32) if place == "1" else factor
    return np.array(factors, dtype=np.uint32)


def _seeds(residues: NDArray[np.uint8], first: int, stop: int, factors: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Mask some whole queries, in place, and find their seeds: hash and place, 32 bits each."""
    part = residues[first:stop]
    mask(part)
    seeds = np.empty(len(part), dtype=np.uint64)
    letters, whole = np.empty((2, BLOCK + SPAN), dtype=np.uint8)
    of_place, totals = np.empty((2, BLOCK + SPAN), dtype=np.uint16)
    sums = np.empty(BLOCK, dtype=np.uint32)
    return seeds[: _find(part, first, factors, _COSTS, letters, whole, sums, of_place, totals, seeds)]


@kernel
def _find(
    residues: NDArray[np.uint8],
    first: int,
    factors: NDArray[np.uint32],
    costs: NDArray[np.uint16],
    letters: NDArray[np.uint8],
    whole: NDArray[np.uint8],
    sums: NDArray[np.uint32],
    of_place: NDArray[np.uint16],
    totals: NDArray[np.uint16],
    seeds: NDArray[np.uint64],
) -> int:
    """Write all seeds that say enough, their places counted from ``first``; returns how many there are."""
    num_seeds = 0
    for start in range(0, len(residues) - SPAN + 1, BLOCK):
        count = min(BLOCK, len(residues) - SPAN + 1 - start)
        read_block(residues, start, count, factors, letters, whole, sums)
        for i in range(count + SPAN - 1):
            of_place[i] = costs[residues[start + i]]
        for i in range(count):
            totals[i] = 0
        for k in range(SPAN):
            if factors[k]:
                for i in range(count):
                    totals[i] += of_place[i + k]
        for i in range(count):
            seeds[num_seeds] = np.uint64(sums[i]) << HALF | np.uint64(first + start + i)
            num_seeds += whole[i + SPAN - 1] & (totals[i] >= LEAST_COST)
    return num_seeds


@kernel
def _count(seeds: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many seeds each range of hashes has."""
    counts = np.zeros(_RANGES, dtype=np.int64)
    for seed in seeds:
        counts[seed >> _RANGE_SHIFT] += 1
    return counts


@kernel
def _spread(
    seeds: NDArray[np.uint64], ranges: tuple[int, int], places: NDArray[np.int64], spread: NDArray[np.uint64]
) -> None:
    """Write the seeds of some ranges of hashes to their range: what is known of its buckets then fits the cache."""
    for seed in seeds:
        part = np.int64(seed >> _RANGE_SHIFT)
        if ranges[0] <= part < ranges[1]:
            spread[places[part]] = seed
            places[part] += 1


@kernel
def _sort(
    spread: NDArray[np.uint64],
    starts: NDArray[np.int64],
    ranges: tuple[int, int],
    shift: int,
    bounds: NDArray[np.int32],
    seen: NDArray[np.uint64],
    entries: NDArray[np.uint64],
) -> int:
    """Write the seeds of some ranges of hashes by bucket, their filter, and where each bucket begins.

    Returns:
        How many seeds the largest bucket has.
    """
    of_bucket = np.uint64(shift)
    most, num_buckets = 0, (len(bounds) - 1) // _RANGES
    for part in range(ranges[0], ranges[1]):
        first, stop = part * num_buckets, (part + 1) * num_buckets
        for bucket in range(first, stop):
            bounds[bucket] = 0
        for i in range(starts[part], starts[part + 1]):
            bounds[spread[i] >> of_bucket] += 1
        total = int(starts[part])
        for bucket in range(first, stop):
            count = int(bounds[bucket])
            most = max(most, count)
            bounds[bucket] = total
            total += count
        for i in range(starts[part], starts[part + 1]):
            bucket, number = int(spread[i] >> of_bucket), spread[i] >> HALF
            entries[bounds[bucket]] = spread[i]
            bounds[bucket] += 1
            seen[bucket >> 2] |= marks_of(number)
        for bucket in range(stop - 1, first, -1):  # each has moved to its end, where the next one begins
            bounds[bucket] = bounds[bucket - 1]
        bounds[first] = starts[part]
    return most
