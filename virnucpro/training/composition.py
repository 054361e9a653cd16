"""First vectors of n-grams, from counts over the training genomes.

How often a group of genomes (a class of hosts, a family of viruses) uses an n-gram, relative to all groups, is
a table of log-ratios (n-grams, groups). Its leading directions are where training starts from: one pass of
counting saves the many passes in which gradients would find the same (correspondence analysis;
Benzécri 1973).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.encoders.codons import (
    AMBIGUOUS_BASE,
    CODON_RESIDUES,
    KMER,
    NUM_CLASSES,
    RESIDUE_CLASSES,
    STOP,
    canonical_kmers,
    table_sizes,
)
from virnucpro.kernels import kernel
from virnucpro.training.genomes import VIRUS, Genomes

MIN_RUN = 50
"""Codons of a stop-free stretch that counts as coding."""

SMOOTHING = (2e5, 1e5, 2e4, 5e4)
"""Counts of the average group that are added to each group's own."""


def first_vectors(genomes: Genomes, widths: tuple[int, int, int, int]) -> tuple[NDArray[np.float32], ...]:
    """Vectors of amino-acid 4-grams, 6-grams of classes, codon pairs and canonical 8-mers, of the given widths.

    Counts only records of the splits in ``genomes``; amino acids and codons are counted in stop-free stretches of
    ``MIN_RUN`` codons or more, in all six frames. Number 0 gets the zero vector.
    """
    groups, members = record_groups(genomes)
    tables = count_ngrams(genomes, members, len(groups))
    return tuple(
        _leading_directions(table, width, smoothing)
        for table, width, smoothing in zip(tables, widths, SMOOTHING, strict=True)
    )


def count_ngrams(
    genomes: Genomes, members: NDArray[np.int64], num_groups: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Counts (groups, n-grams) of amino-acid 4-grams, 6-grams of classes, codon pairs and canonical 8-mers."""
    ngrams, classes, pairs, kmers = (np.zeros((num_groups, size), dtype=np.float32) for size in table_sizes().values())
    _count(
        genomes.codes,
        genomes.offsets,
        members,
        CODON_RESIDUES,
        RESIDUE_CLASSES,
        canonical_kmers(KMER)[0].numpy(),
        ngrams,
        classes,
        pairs,
        kmers,
    )
    return ngrams, classes, pairs, kmers


def record_groups(genomes: Genomes) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Names of the groups (a class of hosts, a family of viruses), and the group of each record."""
    names = [
        f"{kind}/{group}" if kind == VIRUS else kind
        for kind, group in zip(genomes.classes.tolist(), genomes.groups.tolist(), strict=True)
    ]
    groups, members = np.unique(names, return_inverse=True)
    return groups, members


def _leading_directions(counts: NDArray[np.float32], width: int, smoothing: float) -> NDArray[np.float32]:
    """(n-grams, width) float32 from (groups, n-grams) counts; columns beyond the number of groups are zero."""
    counts[:, 0] = 0
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    background = share.mean(axis=0, dtype=np.float64)
    ratio = (counts + smoothing * background) / (counts.sum(axis=1, keepdims=True) + smoothing)
    logs = np.log(np.maximum(ratio, 1e-30) / np.maximum(background, 1e-30))
    logs[:, background == 0] = 0
    logs -= (logs * background).sum(axis=1, keepdims=True)
    strengths, directions = np.linalg.eigh((logs * background) @ logs.T)
    order = np.argsort(-strengths)[:width]
    vectors = logs.T @ (directions[:, order] / np.maximum(strengths[order], 1e-12) ** 0.25)
    vectors[background == 0] = 0
    vectors /= np.sqrt((vectors**2 * background[:, None]).sum(axis=0).mean())
    padded = np.zeros((counts.shape[1], width), dtype=np.float32)
    padded[:, : vectors.shape[1]] = vectors
    return padded


@kernel
def _count(
    codes: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    groups: NDArray[np.int64],
    codon_residues: NDArray[np.int64],
    residue_classes: NDArray[np.int64],
    kmer_numbers: NDArray[np.int64],
    ngrams: NDArray[np.float32],
    classes: NDArray[np.float32],
    pairs: NDArray[np.float32],
    kmers: NDArray[np.float32],
) -> None:
    """Add the n-grams of every record to its group's row."""
    for record in range(len(offsets) - 1):
        group = groups[record]
        forward = codes[offsets[record] : offsets[record + 1]]
        _count_kmers(forward, kmer_numbers, kmers[group])
        reverse = forward[::-1].copy()
        for i in range(len(reverse)):
            if reverse[i] != AMBIGUOUS_BASE:
                reverse[i] = 3 - reverse[i]
        for strand in (forward, reverse):
            for frame in range(3):
                _count_frame(
                    strand[frame:], codon_residues, residue_classes, ngrams[group], classes[group], pairs[group]
                )


@kernel
def _count_kmers(bases: NDArray[np.uint8], kmer_numbers: NDArray[np.int64], kmers: NDArray[np.float32]) -> None:
    valid, index = 0, 0
    for base in bases:
        index = (index * 4 + base) % 4**KMER
        valid = 0 if base == AMBIGUOUS_BASE else valid + 1
        if valid >= KMER:
            kmers[kmer_numbers[index + 1]] += 1
        if valid == 0:
            index = 0


@kernel
def _count_frame(
    bases: NDArray[np.uint8],
    codon_residues: NDArray[np.int64],
    residue_classes: NDArray[np.int64],
    ngrams: NDArray[np.float32],
    classes: NDArray[np.float32],
    pairs: NDArray[np.float32],
) -> None:
    """Count one frame: the stop-free stretches of ``MIN_RUN`` codons or more."""
    num_codons = len(bases) // 3
    codons = np.empty(num_codons, dtype=np.int64)
    first = 0
    for i in range(num_codons + 1):
        if i < num_codons:
            one, two, three = bases[3 * i], bases[3 * i + 1], bases[3 * i + 2]
            if max(one, two, three) < AMBIGUOUS_BASE:
                codons[i] = 16 * one + 4 * two + three
                if codon_residues[codons[i]] != STOP:
                    continue
        if i - first >= MIN_RUN:
            _count_run(codons[first:i], codon_residues, residue_classes, ngrams, classes, pairs)
        first = i + 1


@kernel
def _count_run(
    codons: NDArray[np.int64],
    codon_residues: NDArray[np.int64],
    residue_classes: NDArray[np.int64],
    ngrams: NDArray[np.float32],
    classes: NDArray[np.float32],
    pairs: NDArray[np.float32],
) -> None:
    for k in range(len(codons) - 1):
        pairs[codons[k] * 64 + codons[k + 1] + 1] += 1
    for k in range(len(codons) - 3):
        index = 0
        for codon in codons[k : k + 4]:
            index = index * 21 + codon_residues[codon]
        ngrams[index + 1] += 1
    for k in range(len(codons) - 5):
        index = 0
        for codon in codons[k : k + 6]:
            index = index * NUM_CLASSES + residue_classes[codon_residues[codon]]
        classes[index + 1] += 1
