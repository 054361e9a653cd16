"""What is counted in genomes, and the first vectors of n-grams made of it.

How often a group of genomes (a class of hosts, a family of viruses) uses an n-gram, relative to all groups, is
a table of log-ratios (n-grams, groups). Its leading directions are where training starts from: one pass of
counting saves the many passes in which gradients would find the same (correspondence analysis;
Benzécri 1973).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from virnucpro.encoders.codons import (
    AMBIGUOUS_BASE,
    CODON_RESIDUES,
    KMER,
    NO_CODON,
    NUM_CLASSES,
    NUM_CODONS,
    RESIDUE_CLASSES,
    STOP,
    canonical_kmers,
    table_sizes,
)
from virnucpro.nearest.codons import read_codons
from virnucpro.training.genomes import LETTERS, VIRUS, Genomes

MIN_RUN = 50
"""Codons of a stop-free run that counts as coding."""

SMOOTHING = (2e5, 1e5, 2e4, 5e4)
"""Counts of the average group that are added to each group's own."""

_CLOSED = CODON_RESIDUES >= STOP
"""(65,) whether a codon ends a run: a stop, or one that is ambiguous."""


def open_runs(codes: NDArray[np.uint8], shortest: int) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Stop-free runs of ``shortest`` codons or more in the six frames of (n,) base codes.

    Yields:
        Start and stop on the forward strand, and the codons (0..63).
    """
    forward, opposite = (codons[: len(codes) - 2] for codons in read_codons(LETTERS[codes]))
    for strand, codons in ((1, forward), (-1, opposite[::-1])):
        for frame in range(3):
            of_frame = codons[frame::3]
            ends = np.concatenate([[-1], np.flatnonzero(_CLOSED[of_frame]), [len(of_frame)]])
            for run in np.flatnonzero(np.diff(ends) > shortest).tolist():
                first, last = int(ends[run]) + 1, int(ends[run + 1])
                start, stop = frame + 3 * first, frame + 3 * last
                place = (start, stop) if strand == 1 else (len(codes) - stop, len(codes) - start)
                yield *place, of_frame[first:last]


def open_codons(codes: NDArray[np.uint8], shortest: int) -> NDArray[np.uint8]:
    """The codons of all :func:`open_runs` of a record, one run after another with ``NO_CODON`` between them."""
    gap = np.array([NO_CODON], dtype=np.uint8)
    return np.concatenate([gap, *(part for *_, run in open_runs(codes, shortest) for part in (run, gap))])


def words(digits: NDArray[np.uint8], base: int, length: int) -> NDArray[np.int64]:
    """Numbers, in order, of the words of ``length`` digits in (n,) ``digits`` whose digits are all below ``base``."""
    count = max(len(digits) - length + 1, 0)
    numbers, are_clear = np.zeros(count, dtype=np.int64), np.ones(count, dtype=np.bool_)
    for place in range(length):
        part = digits[place : place + count]
        numbers *= base
        numbers += part
        are_clear &= part < base
    return numbers[are_clear]


def first_vectors(genomes: Genomes, widths: Sequence[int]) -> tuple[NDArray[np.float32], ...]:
    """Vectors of amino-acid 4-grams, 6-grams of classes, codon pairs and canonical 8-mers, of the given widths.

    Counts only records of the splits in ``genomes``. Number 0 gets the zero vector.
    """
    groups, members = record_groups(genomes)
    tables = count_ngrams(genomes, members, len(groups))
    return tuple(
        _leading_directions(table, width, smoothing)
        for table, width, smoothing in zip(tables, widths, SMOOTHING, strict=True)
    )


def count_ngrams(genomes: Genomes, members: NDArray[np.int64], num_groups: int) -> tuple[NDArray[np.float32], ...]:
    """Counts (groups, n-grams) of amino-acid 4-grams, 6-grams of classes, codon pairs and canonical 8-mers.

    Amino acids and codons are counted in stop-free runs of ``MIN_RUN`` codons or more, in all six frames.
    """
    tables = tuple(np.zeros((num_groups, size), dtype=np.float32) for size in table_sizes().values())
    residues = CODON_RESIDUES.astype(np.uint8)
    classes = RESIDUE_CLASSES.astype(np.uint8)[residues]
    kmers = canonical_kmers(KMER)[0]
    for codes, group in zip(genomes, members.tolist(), strict=True):
        codons = open_codons(codes, MIN_RUN)
        found = (
            words(residues[codons], STOP + 1, 4) + 1,
            words(classes[codons], NUM_CLASSES, 6) + 1,
            words(codons, NUM_CODONS, 2) + 1,
            kmers[words(codes, AMBIGUOUS_BASE, KMER) + 1],
        )
        for table, numbers in zip(tables, found, strict=True):
            np.add.at(table[group], numbers, np.float32(1))
    return tables


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
