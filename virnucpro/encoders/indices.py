"""N-gram numbers of fragments and how conserved their stretches are, compiled: one pass on a CPU.

For a network on another device they are counted on the CPU too, and copied.
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

_KMER_NUMBERS = canonical_kmers(KMER)[0].astype(np.int32)
_COMPLEMENTS = np.array([3, 2, 1, 0, AMBIGUOUS_BASE], dtype=np.int8)
_LETTER_BITS = 3
"""Of a letter of a stretch."""


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
    strands = np.full((count, 2, 3 * num_codons + 5), AMBIGUOUS_BASE, dtype=np.int8)
    strands[:, 0, :length] = codes
    strands[:, 1, :length] = _COMPLEMENTS[codes[:, ::-1]]
    residues = np.empty((count, 6, num_codons), dtype=np.uint8)
    ngrams = np.empty((count * 6, num_codons - 3), dtype=np.int32)
    classes = np.empty((count * 6, num_codons - 5), dtype=np.int32)
    pairs = np.empty((count * 6, num_codons - 1), dtype=np.int32)
    kmers = np.empty((count, length - KMER + 1), dtype=np.int32)
    openness = np.empty((count * 6, 2), dtype=np.float32)
    tables = _KMER_NUMBERS, CODON_RESIDUES, RESIDUE_CLASSES
    over_rows(_index, count, strands, length, *tables, residues, ngrams, classes, pairs, kmers, openness)
    if keep < 1:
        generator = np.random.default_rng(seed)
        for numbers in (ngrams, classes, pairs, kmers):
            numbers[generator.random(numbers.shape, dtype=np.float32) >= keep] = 0
    bags = Bags(*(torch.from_numpy(array) for array in (ngrams, classes, pairs, kmers, openness)))
    return bags, torch.from_numpy(residues)


def read_fragments(codes: torch.Tensor) -> tuple[Bags, torch.Tensor]:
    """All n-grams of (B, L) base codes, on their device, and (6 B, N) uint8 residue codes of their frames."""
    bags, residues = index_bags(codes.to("cpu", torch.uint8).numpy(), 1.0, 0)
    return Bags(*(numbers.to(codes.device) for numbers in bags)), residues.flatten(0, 1)


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
        letters: (22,) letter of a stretch of each residue, 0 to 7; 8 is none.
        length: of a stretch.
        stretches: packed levels of all stretches, four a byte.
        levels: (4,) what two bits stand for.
        low: a level below it is counted as low.

    Returns:
        (F, 4).
    """
    sums = np.zeros((len(residues), 4), dtype=np.float32)
    residues = np.ascontiguousarray(residues)
    low = float(np.float32(low))
    over_rows(_sum_stretches, len(residues), residues, residues.shape[1], letters, length, stretches, levels, low, sums)
    return sums


@kernel
def _sum_stretches(
    first: int,
    stop: int,
    residues: NDArray[np.uint8],
    num_residues: int,
    letters: NDArray[np.int64],
    length: int,
    stretches: NDArray[np.uint8],
    levels: NDArray[np.float32],
    low: float,
    sums: NDArray[np.float32],
) -> None:
    last_number = (1 << _LETTER_BITS * length) - 1
    for frame in range(first, stop):
        run, number = 0, 0
        total, num_above, num_low, count = sums[4 * frame], 0, 0, 0
        for i in range(frame * num_residues, (frame + 1) * num_residues):
            letter = letters[residues[i]]
            if letter == 1 << _LETTER_BITS:
                run = 0
                continue
            run += 1
            number = ((number << _LETTER_BITS) | letter) & last_number
            if run >= length:
                level = levels[(stretches[number >> 2] >> (2 * (number & 3))) & 3]
                total += level
                num_above += level > 0
                num_low += level < low
                count += 1
        sums[4 * frame], sums[4 * frame + 1] = total, num_above
        sums[4 * frame + 2], sums[4 * frame + 3] = num_low, count


@kernel
def _index(
    first: int,
    stop: int,
    strands: NDArray[np.int8],
    length: int,
    kmer_numbers: NDArray[np.int32],
    codon_residues: NDArray[np.int64],
    residue_classes: NDArray[np.int64],
    residues: NDArray[np.uint8],
    ngrams: NDArray[np.int32],
    classes: NDArray[np.int32],
    pairs: NDArray[np.int32],
    kmers: NDArray[np.int32],
    openness: NDArray[np.float32],
) -> None:
    """Fill what ``index_bags`` gives of the fragments ``first`` to ``stop``."""
    num_codons = length // 3
    strand_nt = 3 * num_codons + 5
    for fragment in range(first, stop):
        number, run = 0, 0
        for i in range(length):
            base = strands[2 * fragment * strand_nt + i]
            number = ((number << 2) | (base & 3)) & (4**KMER - 1)
            run = 0 if base == AMBIGUOUS_BASE else run + 1
            if i >= KMER - 1:
                kmers[fragment * (length - KMER + 1) + i - KMER + 1] = kmer_numbers[number + 1] if run >= KMER else 0
        for row in range(6 * fragment, 6 * fragment + 6):
            longest, open_run, stops = 0, 0, 0
            run, ngram, of_classes, before = 0, 0, 0, NO_CODON
            at = row // 3 * strand_nt + row % 3
            for i in range(num_codons):
                a, b, c = strands[at], strands[at + 1], strands[at + 2]
                at += 3
                codon = NO_CODON if (a | b | c) & AMBIGUOUS_BASE else (a << 4) | (b << 2) | c
                residue = codon_residues[codon]
                residues[row * num_codons + i] = residue
                open_run = open_run + 1 if residue < STOP else 0
                longest = max(longest, open_run)
                stops += residue == STOP
                run = 0 if residue == NO_RESIDUE else run + 1
                ngram = (ngram * 21 + residue) % 21**4
                of_classes = (of_classes * NUM_CLASSES + residue_classes[residue]) % NUM_CLASSES**6
                if i >= 1:
                    is_pair = max(before, codon) < NO_CODON
                    pairs[row * (num_codons - 1) + i - 1] = before * 64 + codon + 1 if is_pair else 0
                if i >= 3:
                    ngrams[row * (num_codons - 3) + i - 3] = ngram + 1 if run >= 4 else 0
                if i >= 5:
                    classes[row * (num_codons - 5) + i - 5] = of_classes + 1 if run >= 6 else 0
                before = codon
            openness[2 * row] = longest / num_codons
            openness[2 * row + 1] = stops / num_codons
