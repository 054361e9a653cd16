"""N-gram numbers of fragments and how conserved their stretches are, compiled: what a CPU does in one pass.

Tensor operations do the same on any device (``tests/unit/test_training.py`` and ``test_profiles.py``
hold the two together), with dozens of passes over arrays that the cache does not hold. For training, n-grams are
dropped on the way.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.encoders.codons import (
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
from virnucpro.encoders.row_passes import over_rows
from virnucpro.kernels import kernel

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
    over_rows(_index, count, codes, threshold, np.uint64(seed), residues, ngrams, classes, pairs, kmers, openness)
    bags = Bags(*(torch.from_numpy(array) for array in (ngrams, classes, pairs, kmers, openness)))
    return bags, torch.from_numpy(residues)


def sum_stretches(
    residues: NDArray[np.uint8],
    letters: NDArray[np.int64],
    length: int,
    stretches: NDArray[np.uint8],
    levels: NDArray[np.float32],
    low: float,
) -> NDArray[np.float32]:
    """Over the stretches of each frame: sum of levels, how many are above 0, how many below ``low``, how many in all.

    Args:
        residues: (F, N) residue codes.
        letters: (22,) letter of a stretch of each residue; the largest is none.
        length: of a stretch.
        stretches: packed levels of all stretches, four a byte.
        levels: (4,) what two bits stand for.
        low: a level below it is counted as low.

    Returns:
        (F, 4).
    """
    sums = np.zeros((len(residues), 4), dtype=np.float32)
    over_rows(_sum_stretches, len(residues), residues, letters, length, stretches, levels, np.float32(low), sums)
    return sums


@kernel
def _sum_stretches(
    first: int,
    stop: int,
    residues: NDArray[np.uint8],
    letters: NDArray[np.int64],
    length: int,
    stretches: NDArray[np.uint8],
    levels: NDArray[np.float32],
    low: np.float32,
    sums: NDArray[np.float32],
) -> None:
    num_letters = letters.max()
    size = num_letters**length
    for frame in range(first, stop):
        run, number = 0, 0
        for residue in residues[frame]:
            letter = letters[residue]
            if letter == num_letters:
                run, number = 0, 0
                continue
            run += 1
            number = (number * num_letters + letter) % size
            if run >= length:
                level = levels[(stretches[number >> 2] >> (2 * (number & 3))) & 3]
                sums[frame, 0] += level
                sums[frame, 1] += level > 0
                sums[frame, 2] += level < low
                sums[frame, 3] += 1


@kernel
def _draw(state: np.uint64) -> np.uint64:
    """Next state of a xorshift generator (Marsaglia 2003)."""
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    return state ^ (state << np.uint64(17))


@kernel
def _draw_if(state: np.uint64, threshold: np.uint64) -> np.uint64:
    """Next state, where anything can be dropped at all."""
    return _draw(state) if threshold <= np.uint64(0xFFFFFFFF) else state


@kernel
def _is_kept(state: np.uint64, threshold: np.uint64) -> bool:
    return bool(((state >> np.uint64(16)) & np.uint64(0xFFFFFFFF)) < threshold)


@kernel
def _index(
    first: int,
    stop: int,
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
    codons = np.empty(codes.shape[1] // 3, dtype=np.int64)
    for fragment in range(first, stop):
        state = (seed * np.uint64(0x9E3779B97F4A7C15)) ^ (np.uint64(fragment + 1) * np.uint64(0xBF58476D1CE4E5B9))
        state = state | np.uint64(1)
        for _ in range(4):
            state = _draw(state)
        state = _index_kmers(codes[fragment], threshold, state, kmers[fragment])
        for frame in range(6):
            row = fragment * 6 + frame
            _read_frame(codes[fragment], frame, codons, residues[fragment, frame], openness[row])
            state = _index_pairs(codons, threshold, state, pairs[row])
            state = _index_residues(residues[fragment, frame], 4, False, threshold, state, ngrams[row])
            state = _index_residues(residues[fragment, frame], 6, True, threshold, state, classes[row])


@kernel
def _index_kmers(
    bases: NDArray[np.uint8], threshold: np.uint64, state: np.uint64, kmers: NDArray[np.int32]
) -> np.uint64:
    index, valid = 0, 0
    for i in range(len(bases)):
        index = (index * 4 + (bases[i] & 3)) & (4**KMER - 1)
        valid = 0 if bases[i] == AMBIGUOUS_BASE else valid + 1
        if i >= KMER - 1:
            state = _draw_if(state, threshold)
            kmers[i - KMER + 1] = _KMER_NUMBERS[index + 1] if valid >= KMER and _is_kept(state, threshold) else 0
    return state


@kernel
def _read_frame(
    bases: NDArray[np.uint8],
    frame: int,
    codons: NDArray[np.int64],
    residues: NDArray[np.uint8],
    openness: NDArray[np.float32],
) -> None:
    """Codons and residues of frame 0..5; its longest open run and its stops, over the number of codons."""
    length, num_codons = len(bases), len(codons)
    longest, run, stops = 0, 0, 0
    for i in range(num_codons):
        codon = 0
        for at in range(3 * i + frame % 3, 3 * i + frame % 3 + 3):
            base = AMBIGUOUS_BASE
            if at < length:
                base = bases[at] if frame < 3 else bases[length - 1 - at]
                if frame >= 3 and base != AMBIGUOUS_BASE:
                    base = 3 - base
            codon = NO_CODON if base == AMBIGUOUS_BASE or codon >= NO_CODON else codon * 4 + base
        codons[i] = codon
        residues[i] = CODON_RESIDUES[codon]
        run = run + 1 if residues[i] < STOP else 0
        longest = max(longest, run)
        stops += residues[i] == STOP
    openness[0] = longest / num_codons
    openness[1] = stops / num_codons


@kernel
def _index_pairs(
    codons: NDArray[np.int64], threshold: np.uint64, state: np.uint64, pairs: NDArray[np.int32]
) -> np.uint64:
    for i in range(len(pairs)):
        state = _draw_if(state, threshold)
        whole = max(codons[i], codons[i + 1]) < NO_CODON
        pairs[i] = codons[i] * 64 + codons[i + 1] + 1 if whole and _is_kept(state, threshold) else 0
    return state


@kernel
def _index_residues(
    residues: NDArray[np.uint8],
    length: int,
    by_class: bool,
    threshold: np.uint64,
    state: np.uint64,
    numbers: NDArray[np.int32],
) -> np.uint64:
    """N-grams of residues, or of their classes."""
    for i in range(len(numbers)):
        state = _draw_if(state, threshold)
        number = -1
        if _is_kept(state, threshold):
            number = 0
            for residue in residues[i : i + length]:
                if residue == NO_RESIDUE:
                    number = -1
                    break
                number = number * NUM_CLASSES + RESIDUE_CLASSES[residue] if by_class else number * 21 + residue
        numbers[i] = number + 1
    return state
