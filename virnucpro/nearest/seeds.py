"""Seeds of queries, and their index.

A seed is nine letters of ten at the places of ``PATTERN`` (or eight, ``SENSITIVE``). Read as a number of base 11 it has
32 bits, and so has its hash, which is that number times an odd one: hashes are equal where seeds are. The upper bits of
a hash name a bucket of the index; a filter of two bits a seed says of most seeds of the table that no query has them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.nearest.kernels import BLOCK, OWNER_BITS, SPAN, Index
from virnucpro.nearest.residues import LETTERS, SEED_LETTERS, mask
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
_LETTERS = SEED_LETTERS.astype(np.uint32)
_PLACES_AT_A_TIME = 1 << 17
_FEWEST_BITS = 10


def index_of(queries: Ragged, pattern: str) -> Index:
    """Index queries (residue codes)."""
    residues, starts = with_breaks(queries)
    mask(residues)
    owners = np.searchsorted(starts[1:] - 1, np.arange(0, len(residues), 1 << OWNER_BITS), side="right")
    factors = _factors(pattern)
    entries = np.concatenate(
        [np.zeros(0, np.uint64)]
        + [_seeds(residues, at, factors) for at in range(0, len(residues) - SPAN + 1, _PLACES_AT_A_TIME)]
    )
    entries.sort()
    bits = max(_FEWEST_BITS, len(entries).bit_length() - 1)
    counts = np.bincount((entries >> np.uint64(64 - bits)).view(np.int64), minlength=1 << bits)
    bounds = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, dtype=np.int32, out=bounds[1:])
    marks = np.uint64(1) << (entries >> np.uint64(32) & np.uint64(63))
    marks |= np.uint64(1) << (entries >> np.uint64(38) & np.uint64(63))
    words = np.flatnonzero(counts.reshape(-1, 4).sum(axis=1))  # of the filter: four buckets each
    seen = np.zeros(1 << (bits - 2), dtype=np.uint64)
    if len(words):
        seen[words] = np.bitwise_or.reduceat(marks, bounds[4 * words])
    return Index(
        residues,
        starts[1:] - 1,
        owners,
        factors,
        34 - bits,
        32 - bits,
        seen,
        bounds,
        np.append(entries, np.uint64(0)),
        max(4 * BLOCK, int(counts.max())),
    )


def _factors(pattern: str) -> NDArray[np.uint32]:
    """(17,) what the letter at each place adds to a hash is that many times its number; 0 where it does not matter."""
    factors, factor = [], _MULTIPLIER
    for place in pattern:
        factors.append(factor if place == "1" else 0)
        factor = factor * _BASE % (1 << 32) if place == "1" else factor
    return np.array(factors, dtype=np.uint32)


def _seeds(residues: NDArray[np.uint8], at: int, factors: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Hash and place, 32 bits each, of the seeds that begin at some places from ``at`` on and say enough."""
    codes = residues[at : at + _PLACES_AT_A_TIME + SPAN - 1]
    count = len(codes) - SPAN + 1
    letters, costs = _LETTERS[codes], _COSTS[codes]
    num_others = offsets_of((codes >= len(LETTERS)).astype(np.int64))  # residues that are in no seed, before each place
    hashes, cost = np.zeros(count, dtype=np.uint32), np.zeros(count, dtype=np.uint16)
    for place in np.flatnonzero(factors).tolist():
        hashes += letters[place : place + count] * factors[place]
        cost += costs[place : place + count]
    places = np.flatnonzero((cost >= LEAST_COST) & (num_others[SPAN:] == num_others[:-SPAN]))
    return hashes[places].astype(np.uint64) << np.uint64(32) | (at + places).astype(np.uint64)
