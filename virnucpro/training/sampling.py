"""Random fragments of genomes: by class, by family, from both strands; made ahead of the step that takes them.

Sequences that no organism has are made of them: random, shuffled, repetitive. They are not viral, and a model must be
shown so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from virnucpro.encoders.codons import AMBIGUOUS_BASE, CODON_RESIDUES, NUM_CODONS, STOP
from virnucpro.training.genomes import VIRUS, Genomes

Batch = TypeVar("Batch")
_CODONS = np.flatnonzero(CODON_RESIDUES[:NUM_CODONS] != STOP)
_LONGEST_MOTIF_NT = 12


@dataclass(frozen=True)
class Pool:
    """Groups of records to draw from."""

    records: NDArray[np.int64]  # record numbers, group by group
    group_starts: NDArray[np.int64]  # (groups + 1,) where each group begins in ``records``
    weights: NDArray[np.float64]  # (groups,) probability of each group; sums to 1


def virus_pool(genomes: Genomes, split: str) -> Pool:
    """Families of one split, weighted by the square root of their bases (a few families hold most bases)."""
    return _pool_of_groups(genomes, (genomes.classes == VIRUS) & (genomes.splits == split))


def genus_pool(genomes: Genomes, class_name: str) -> Pool:
    """Genera of one class of hosts, weighted by the square root of their bases."""
    return _pool_of_groups(genomes, genomes.classes == class_name)


def _pool_of_groups(genomes: Genomes, is_chosen: NDArray[np.bool_]) -> Pool:
    records = np.flatnonzero(is_chosen)
    names, members = np.unique(genomes.groups[records], return_inverse=True)
    order = np.argsort(members, kind="stable")
    bases = np.bincount(members, weights=genomes.lengths[records], minlength=len(names))
    starts = np.concatenate([[0], np.cumsum(np.bincount(members, minlength=len(names)))])
    return Pool(records[order], starts, np.sqrt(bases) / np.sqrt(bases).sum())


def host_pool(genomes: Genomes, class_name: str) -> Pool:
    """One class of hosts as a single group: every base is as likely as any other."""
    records = np.flatnonzero(genomes.classes == class_name)
    return Pool(records, np.array([0, len(records)]), np.ones(1))


def merge_pools(pools: list[Pool], shares: list[float]) -> Pool:
    """One pool of all groups; ``shares`` are the probabilities of the pools and are scaled to sum to 1."""
    total = sum(shares)
    first = np.cumsum([0, *(len(pool.records) for pool in pools)])
    starts = [pool.group_starts[:-1] + start for pool, start in zip(pools, first, strict=False)]
    return Pool(
        np.concatenate([pool.records for pool in pools]),
        np.concatenate([*starts, first[-1:]]),
        np.concatenate([pool.weights * (share / total) for pool, share in zip(pools, shares, strict=True)]),
    )


def sample_fragments(
    genomes: Genomes, pool: Pool, length: int, count: int, generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw fragments of one length, each strand as likely.

    A group is drawn by its weight, then a place in it, every place alike. Groups without a record
    of ``length`` bases are left out.

    Returns:
        (count, length) uint8 base codes, and the (count,) record numbers.
    """
    places = np.maximum(genomes.lengths[pool.records] - length + 1, 0)
    ends = np.cumsum(places)
    group_ends = np.concatenate([[0], ends])[pool.group_starts]
    weights = np.where(np.diff(group_ends) > 0, pool.weights, 0.0)
    groups = generator.choice(len(weights), size=count, p=weights / weights.sum())
    low, high = group_ends[groups], group_ends[groups + 1]
    place = low + (generator.random(count) * (high - low)).astype(np.int64)
    which = np.searchsorted(ends, place, side="right")
    starts = genomes.offsets[pool.records[which]] + place - (ends - places)[which]
    fragments = genomes.codes[starts[:, None] + np.arange(length)]
    reverse = generator.random(count) < 0.5
    fragments[reverse] = reverse_complement(fragments[reverse])
    return fragments, pool.records[which]


def reverse_complement(fragments: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reverse complement of (B, L) base codes; the ambiguous code stays."""
    flipped = fragments[:, ::-1]
    return np.where(flipped == AMBIGUOUS_BASE, flipped, 3 - flipped).astype(np.uint8)


def mutate(fragments: NDArray[np.uint8], generator: np.random.Generator, highest_rate: float) -> None:
    """Replace bases at random, in place: each fragment at its own rate between 0 and ``highest_rate``.

    One replacement in 50 is an ambiguous base.
    """
    rates = generator.random(len(fragments)) * highest_rate
    fragment, position = np.nonzero(generator.random(fragments.shape, dtype=np.float32) < rates[:, None])
    letters = generator.integers(0, 4, size=len(fragment)).astype(np.uint8)
    letters[generator.random(len(fragment)) < 0.02] = AMBIGUOUS_BASE
    fragments[fragment, position] = letters


def prefetch(make: Callable[[int], Batch], step: int) -> Iterator[Batch]:
    """Batches from ``step`` on, without end, each made of its number alone; a thread of its own keeps two ready."""
    with ThreadPoolExecutor(1) as thread:
        ready = [thread.submit(make, step + k) for k in range(2)]
        for following in count(step + 2):
            yield ready.pop(0).result()
            ready.append(thread.submit(make, following))


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
