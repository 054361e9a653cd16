"""N-gram numbers of training batches, compiled.

The encoder makes them with tensor operations, on any device; those are 40 % of a training step on a CPU. This does the
same in one pass over the bases (``tests/test_training.py`` holds the two together), and drops n-grams on the way.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.encoders.six_frame import (
    AMBIGUOUS_BASE,
    CODON_RESIDUES,
    KMER,
    NO_CODON,
    NO_RESIDUE,
    NUM_CLASSES,
    RESIDUE_CLASSES,
    STOP,
    Bags,
    canonical_kmers,
)

_KMER_NUMBERS = canonical_kmers(KMER)[0].numpy().astype(np.int32)


def index_bags(codes: NDArray[np.uint8], keep: float, seed: int) -> tuple[Bags, torch.Tensor]:
    """Bags of (B, L) base codes, and the residues of their frames.

    Args:
        codes: 0..4, L >= ``MIN_LENGTH_NT``.
        keep: share of the n-grams that stay.
        seed: of what is dropped.

    Returns:
        The bags, and (B, 6, L // 3) uint8 residue codes.
    """
    count, length = codes.shape
    num_codons = length // 3
    residues = np.empty((count, 6, num_codons), dtype=np.uint8)
    ngrams = np.empty((count * 6, num_codons - 3), dtype=np.int32)
    classes = np.empty((count * 6, num_codons - 5), dtype=np.int32)
    pairs = np.empty((count * 6, num_codons - 1), dtype=np.int32)
    kmers = np.empty((count, length - KMER + 1), dtype=np.int32)
    openness = np.empty((count * 6, 2), dtype=np.float32)
    threshold = np.uint64(min(keep, 1.0) * 2.0**32)
    _index(codes, threshold, np.uint64(seed), residues, ngrams, classes, pairs, kmers, openness)
    bags = Bags(*(torch.from_numpy(array) for array in (ngrams, classes, pairs, kmers, openness)))
    return bags, torch.from_numpy(residues)


@numba.njit(inline="always")
def _draw(state: np.uint64) -> np.uint64:  # pragma: no cover - compiled
    """Next state of a xorshift generator (Marsaglia 2003)."""
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    state ^= state << np.uint64(17)
    return state


@numba.njit(nogil=True, cache=True)
def _index(  # noqa: C901, PLR0912 - pragma: no cover - compiled; one pass over the bases is its point
    codes: NDArray[np.uint8],
    threshold: np.uint64,
    seed: np.uint64,
    residues: NDArray[np.uint8],
    ngrams: NDArray[np.int32],
    classes: NDArray[np.int32],
    pairs: NDArray[np.int32],
    kmers: NDArray[np.int32],
    openness: NDArray[np.float32],
) -> None:
    length = codes.shape[1]
    num_codons = length // 3
    low = np.uint64(0xFFFFFFFF)
    for fragment in range(len(codes)):
        state = (seed * np.uint64(0x9E3779B97F4A7C15)) ^ (np.uint64(fragment + 1) * np.uint64(0xBF58476D1CE4E5B9))
        state = state | np.uint64(1)
        for _ in range(4):
            state = _draw(state)
        bases = codes[fragment]
        index, valid = 0, 0
        for i in range(length):
            index = (index * 4 + (bases[i] & 3)) & (4**KMER - 1)
            valid = 0 if bases[i] == AMBIGUOUS_BASE else valid + 1
            if i >= KMER - 1:
                state = _draw(state)
                is_kept = (valid >= KMER) and ((state >> np.uint64(16)) & low) < threshold
                kmers[fragment, i - KMER + 1] = _KMER_NUMBERS[index + 1] if is_kept else 0
        codons = np.empty(num_codons, dtype=np.int64)
        for frame in range(6):
            row = fragment * 6 + frame
            longest, run, stops = 0, 0, 0
            for i in range(num_codons):
                codon = 0
                for k in range(3):
                    at = 3 * i + frame % 3 + k
                    base = AMBIGUOUS_BASE
                    if at < length:
                        base = bases[at] if frame < 3 else bases[length - 1 - at]
                        if frame >= 3 and base != AMBIGUOUS_BASE:
                            base = 3 - base
                    codon = NO_CODON if base == AMBIGUOUS_BASE or codon >= NO_CODON else codon * 4 + base
                codons[i] = codon
                residue = CODON_RESIDUES[codon]
                residues[fragment, frame, i] = residue
                run = run + 1 if residue < STOP else 0
                longest = max(longest, run)
                stops += residue == STOP
            openness[row, 0] = longest / num_codons
            openness[row, 1] = stops / num_codons
            for i in range(num_codons - 1):
                state = _draw(state)
                is_kept = ((state >> np.uint64(16)) & low) < threshold
                whole = max(codons[i], codons[i + 1]) < NO_CODON
                pairs[row, i] = codons[i] * 64 + codons[i + 1] + 1 if whole and is_kept else 0
            for i in range(num_codons - 3):
                state = _draw(state)
                number = 0
                if ((state >> np.uint64(16)) & low) < threshold:
                    for k in range(4):
                        residue = residues[fragment, frame, i + k]
                        if residue == NO_RESIDUE:
                            number = -1
                            break
                        number = number * 21 + residue
                    number += 1
                ngrams[row, i] = number
            for i in range(num_codons - 5):
                state = _draw(state)
                number = 0
                if ((state >> np.uint64(16)) & low) < threshold:
                    for k in range(6):
                        residue = residues[fragment, frame, i + k]
                        if residue == NO_RESIDUE:
                            number = -1
                            break
                        number = number * NUM_CLASSES + RESIDUE_CLASSES[residue]
                    number += 1
                classes[row, i] = number
