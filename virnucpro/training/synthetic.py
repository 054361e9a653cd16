"""Sequences that no organism has: random, shuffled, repetitive. They are not viral, and a model must be shown so."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.encoders.codons import CODON_RESIDUES, NUM_CODONS, STOP

_CODONS = np.flatnonzero(CODON_RESIDUES[:NUM_CODONS] != STOP)
_LONGEST_MOTIF_NT = 12


def synthesise(originals: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Make a fragment of no organism for each original: random, open, shuffled or repetitive, a quarter each.

    Args:
        originals: (B, L) uint8 base codes of real fragments, of viruses and hosts alike; L >= 3.
        generator: of everything random.

    Returns:
        (B, L) uint8 base codes.
    """
    makers = (random_bases, open_bases, shuffled_bases, repeated_motifs)
    kinds = generator.integers(0, len(makers), size=len(originals))
    made = np.empty_like(originals)
    for kind, make in enumerate(makers):
        some = kinds == kind
        made[some] = make(originals[some], generator)
    return made


def random_bases(originals: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Independent bases; each fragment has its own composition (Dirichlet around equal shares)."""
    shares = generator.dirichlet(np.full(4, 6.0), size=len(originals))
    lots = generator.random(originals.shape)
    made: NDArray[np.uint8] = (lots[:, :, None] > np.cumsum(shares, axis=1)[:, None, :3]).sum(axis=2).astype(np.uint8)
    return made


def open_bases(originals: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Random codons without a stop, from a random place in the codon on: one frame is open from end to end."""
    count, length = originals.shape
    shares = generator.dirichlet(np.full(4, 6.0), size=count)
    bases = np.stack([_CODONS // 16, _CODONS // 4 % 4, _CODONS % 4], axis=1)
    weights = shares[:, bases].prod(axis=2)
    ends = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    num_codons = length // 3 + 2
    made = np.empty((count, length), dtype=np.uint8)
    for number in range(count):
        drawn = np.searchsorted(ends[number, :-1], generator.random(num_codons))
        lead = int(generator.integers(0, 3))
        made[number] = bases[drawn].reshape(-1)[lead : lead + length]
    reverse = generator.random(count) < 0.5
    made[reverse] = 3 - made[reverse, ::-1]
    return made


def shuffled_bases(originals: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """The original's own pieces of 1 to 4 bases in another order: its composition without its message."""
    count, length = originals.shape
    made = np.empty_like(originals)
    for number in range(count):
        size = int(generator.integers(1, 5))
        whole = length // size * size
        pieces = originals[number, :whole].reshape(-1, size)
        made[number, :whole] = pieces[generator.permutation(len(pieces))].reshape(-1)
        made[number, whole:] = originals[number, whole:]
    return made


def repeated_motifs(originals: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """One motif of 1 to 12 bases over and over, some bases replaced."""
    count, length = originals.shape
    made = np.empty_like(originals)
    for number in range(count):
        motif = generator.integers(0, 4, size=int(generator.integers(1, _LONGEST_MOTIF_NT + 1)))
        made[number] = np.resize(motif, length)
    replaced = generator.random(made.shape) < generator.random((count, 1)) * 0.15
    made[replaced] = generator.integers(0, 4, size=int(replaced.sum()))
    return made
