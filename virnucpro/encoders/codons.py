"""Codons of the six frames as numbers, and the n-grams that the small encoders count."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.sequence.frames import AMINO_ACIDS

AMBIGUOUS_BASE = 4
NUM_CODONS = 64
NO_CODON = 64
"""A codon that holds a letter other than A C G T, or a place beyond the end of a frame."""

RESIDUES = "ACDEFGHIKLMNPQRSTVWY*"
"""Residue codes 0..20; 20 is a stop codon."""
NO_RESIDUE = 21
STOP = 20

KMER = 8
MIN_LENGTH_NT = 30
"""Shorter strings are filled with ambiguous bases, so that every bag and frame exists."""

CLASS_GROUPS = ("AGPST", "C", "DENQ", "FWY", "HKR", "ILMV", "*")
"""Classes of amino acids that replace one another most easily (six, and stop), after Murphy et al. 2000."""
NUM_CLASSES = len(CLASS_GROUPS)

BASE_CODES = np.full(256, AMBIGUOUS_BASE, dtype=np.int32)
BASE_CODES[np.frombuffer(b"ACGTUacgtu", dtype=np.uint8)] = [0, 1, 2, 3, 3, 0, 1, 2, 3, 3]

CODON_RESIDUES = np.array([RESIDUES.index(letter) for letter in AMINO_ACIDS.decode()] + [NO_RESIDUE], dtype=np.int64)
"""(65,) codon code to residue code."""

RESIDUE_CLASSES = np.array(
    [next(i for i, group in enumerate(CLASS_GROUPS) if letter in group) for letter in RESIDUES] + [NUM_CLASSES],
    dtype=np.int64,
)
"""(22,) residue code to class; 7 is no class."""


class Bags(NamedTuple):
    """N-grams of B fragments as numbers; 0 is none. The rows of frames are fragment by fragment, six each."""

    ngrams: torch.Tensor  # (6 B, N - 3) amino-acid 4-grams, for N codons a frame
    classes: torch.Tensor  # (6 B, N - 5) 6-grams of amino-acid classes
    pairs: torch.Tensor  # (6 B, N - 1) codon pairs
    kmers: torch.Tensor  # (B, L - 7) canonical 8-mers
    openness: torch.Tensor  # (6 B, 2) float32, codons in the longest stop-free stretch and stop codons, both over N


@cache
def canonical_kmers(length: int) -> tuple[NDArray[np.int64], int]:
    """Number k-mers so that a k-mer and its reverse complement are one.

    Returns:
        (4**length + 1,) int64, from a k-mer and 1 to its number (0 stays 0), and how many numbers there are.
    """
    kmers = np.arange(4**length)
    reverse = np.zeros_like(kmers)
    for place in range(length):
        reverse = 4 * reverse + 3 - (kmers >> 2 * place & 3)
    is_lesser = kmers <= reverse
    numbers = np.cumsum(is_lesser)[np.minimum(kmers, reverse)]
    return np.concatenate([[0], numbers]), int(is_lesser.sum()) + 1


def table_sizes() -> dict[str, int]:
    """Rows of a table over each kind of n-gram, by the field of ``Bags`` that numbers them; row 0 is no n-gram's."""
    return {
        "ngrams": len(RESIDUES) ** 4 + 1,
        "classes": NUM_CLASSES**6 + 1,
        "pairs": NUM_CODONS**2 + 1,
        "kmers": canonical_kmers(KMER)[1],
    }
