"""The longest stretch that drawn sequences share with real records, by seeds and exact extension."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from virnucpro.encoders.codons import AMBIGUOUS_BASE
from virnucpro.training.genomes import Genomes
from virnucpro.training.sampling import reverse_complement

SEED_NT = 16
"""Shorter shared stretches are not looked for: chance alone gives them."""


def longest_shared_nt(drawn: Iterable[NDArray[np.uint8]], genomes: Genomes) -> int:
    """Bases in the longest stretch of ``drawn``, on either strand, that occurs in any record as well.

    Stretches are exact and end at ambiguous bases; ``SEED_NT - 1`` stands for anything shorter than a seed.
    """
    gap = np.array([AMBIGUOUS_BASE], dtype=np.uint8)
    both = np.concatenate([part for codes in drawn for part in (codes, gap, reverse_complement(codes[None])[0], gap)])
    return int(_longest_shared(both, *_index_seeds(both), genomes.codes, genomes.offsets))


_TABLE_BITS = 22


@njit
def _index_seeds(drawn: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Chains of places: ``first`` by the seed's slot, then ``following`` by the place; -1 ends a chain."""
    first = np.full(1 << _TABLE_BITS, -1, dtype=np.int32)
    following = np.full(len(drawn), -1, dtype=np.int32)
    seed = 0
    num_clear = 0
    for i in range(len(drawn)):
        seed = (seed << 2 | (drawn[i] & 3)) & ((1 << 2 * SEED_NT) - 1)
        num_clear = num_clear + 1 if drawn[i] < AMBIGUOUS_BASE else 0
        if num_clear >= SEED_NT:
            slot = _slot(seed)
            following[i] = first[slot]
            first[slot] = i
    return first, following


@njit
def _slot(seed: int) -> int:
    """Fibonacci hashing of a seed (Knuth, The Art of Computer Programming 3, 6.4)."""
    return ((seed * 2654435769) & 0xFFFFFFFF) >> (32 - _TABLE_BITS)


@njit
def _longest_shared(
    drawn: NDArray[np.uint8],
    first: NDArray[np.int32],
    following: NDArray[np.int32],
    codes: NDArray[np.uint8],
    offsets: NDArray[np.int64],
) -> int:
    longest = SEED_NT - 1
    for record in range(len(offsets) - 1):
        seed = 0
        num_clear = 0
        for i in range(offsets[record], offsets[record + 1]):
            seed = (seed << 2 | (codes[i] & 3)) & ((1 << 2 * SEED_NT) - 1)
            num_clear = num_clear + 1 if codes[i] < AMBIGUOUS_BASE else 0
            if num_clear < SEED_NT:
                continue
            place = first[_slot(seed)]
            while place >= 0:
                back = 0
                # A stretch is measured where it ends, so that a repeat is not walked through at each of its bases.
                ends = i + 1 == offsets[record + 1] or codes[i + 1] != drawn[place + 1] or codes[i + 1] > 3
                while ends and back < num_clear and place >= back and codes[i - back] == drawn[place - back]:
                    back += 1
                longest = max(longest, back)
                place = following[place]
    return longest
