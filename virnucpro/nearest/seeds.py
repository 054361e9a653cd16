"""Seeds of queries, and their index.

A seed is nine letters of ten at the places of ``PATTERN`` (or eight, ``SENSITIVE``). Read as a number of base 11 it has
32 bits, and so has its hash, which is that number times an odd one: hashes are equal where seeds are. The upper bits of
a hash name a bucket of the index; a filter of two bits a seed says of most seeds of the table that no query has them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel
from virnucpro.nearest.kernels import BLOCK, OWNER_BITS, SPAN, Index, read_block
from virnucpro.nearest.residues import SEED_LETTERS, mask
from virnucpro.nearest.table import with_breaks
from virnucpro.sequence.ragged import Ragged

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
_BITS_OF_A_PART = 15
"""A part of the index has 2^15 buckets: with their seeds and filter they fit the cache of a core."""
_BITS_AT_ONCE = 19
"""An index of up to 2^19 buckets is one part: its filter fits."""


def index_of(queries: Ragged, pattern: str) -> Index:
    """Index queries (residue codes)."""
    residues, starts = with_breaks(queries)
    mask(residues)
    owners = np.searchsorted(starts[1:] - 1, np.arange(0, len(residues), 1 << OWNER_BITS), side="right")
    factors = _factors(pattern)
    seeds = np.empty(len(residues), dtype=np.uint64)
    seeds = seeds[: _find(residues, factors, _COSTS, seeds)]
    bits = max(_FEWEST_BITS, len(seeds).bit_length() - 1)
    bounds = np.zeros((1 << bits) + 1, dtype=np.int32)
    seen = np.zeros(1 << (bits - 2), dtype=np.uint64)  # a word for each four buckets
    entries = np.zeros(len(seeds) + 1, dtype=np.uint64)
    most = _sort(seeds, 64 - bits, bounds, seen, entries)
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
        max(4 * BLOCK, most),
    )


def _factors(pattern: str) -> NDArray[np.uint32]:
    """(17,) what the letter at each place adds to a hash is that many times its number; 0 where it does not matter."""
    factors, factor = [], _MULTIPLIER
    for place in pattern:
        factors.append(factor if place == "1" else 0)
        factor = factor * _BASE % (1 << 32) if place == "1" else factor
    return np.array(factors, dtype=np.uint32)


@kernel
def _find(
    residues: NDArray[np.uint8], factors: NDArray[np.uint32], costs: NDArray[np.uint16], seeds: NDArray[np.uint64]
) -> int:
    """Write hash and place, 32 bits each, of all seeds that say enough; returns how many there are."""
    letters, whole = np.empty(BLOCK + SPAN, dtype=np.uint8), np.empty(BLOCK + SPAN, dtype=np.uint8)
    sums, totals = np.empty(BLOCK, dtype=np.uint32), np.empty(BLOCK, dtype=np.uint16)
    of_place = np.empty(BLOCK + SPAN, dtype=np.uint16)
    num_seeds = 0
    for start in range(0, len(residues) - SPAN + 1, BLOCK):
        count = min(BLOCK, len(residues) - SPAN + 1 - start)
        read_block(residues, start, count, factors, letters, whole, sums)
        for i in range(count + SPAN - 1):
            of_place[i] = costs[residues[start + i]]
        totals[:] = 0
        for k in range(SPAN):
            if factors[k]:
                for i in range(count):
                    totals[i] += of_place[i + k]
        for i in range(count):
            seeds[num_seeds] = np.uint64(sums[i]) << np.uint64(32) | np.uint64(start + i)
            num_seeds += whole[i + SPAN - 1] & (totals[i] >= LEAST_COST)
    return num_seeds


@kernel
def _sort(
    seeds: NDArray[np.uint64],
    shift: int,
    bounds: NDArray[np.int32],
    seen: NDArray[np.uint64],
    entries: NDArray[np.uint64],
) -> int:
    """Write the seeds by bucket, their filter, and where each bucket lies; returns how many the largest has."""
    bucket_of, last_bits = np.uint64(shift), np.uint64(63)
    for seed in seeds:
        bounds[(seed >> bucket_of) + np.uint64(1)] += 1
    most = 0
    for bucket in range(1, len(bounds)):
        most = max(most, bounds[bucket])
        bounds[bucket] += bounds[bucket - 1]
    for seed in seeds:
        bucket, number = seed >> bucket_of, seed >> np.uint64(32)
        entries[bounds[bucket]] = seed
        bounds[bucket] += 1
        marks = np.uint64(1) << (number & last_bits) | np.uint64(1) << (number >> np.uint64(6) & last_bits)
        seen[bucket >> np.uint64(2)] |= marks
    for bucket in range(len(bounds) - 1, 0, -1):  # each has moved to its end, which is where the next begins
        bounds[bucket] = bounds[bucket - 1]
    bounds[0] = 0
    return most
