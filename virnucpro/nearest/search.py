"""The best ungapped alignment of each query to a protein of a virus, and to one of a cell.

The seeds of a batch of queries are indexed and the table is streamed past them: nothing is built from the table, so a
small input waits for one pass over it (decision 20). What a query gets depends on the query and the table alone, not on
the other queries, on the batches they are cut into or on the threads, which share the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from virnucpro.nearest.kernels import (
    BLOCK,
    DIAGONAL,
    END,
    FOUND,
    LEFT_OUT,
    NUM_STATES,
    SCORE,
    SPAN,
    keep_best,
    look_up,
    sort_seeds,
)
from virnucpro.nearest.residues import CODES, SCORES, SEED_LETTERS
from virnucpro.nearest.seeds import MOST_IN_ONE_PART, Index, index_of
from virnucpro.nearest.table import Table
from virnucpro.sequence.ragged import Ragged, offsets_of

VIRUS, CELL = 0, 1
"""Columns of what is found."""
NONE = -1
"""No protein; no group left out."""
MOST_POSITIONS = 1 << 24
"""Residues of queries that are indexed at a time: some 300 MB with their index."""
_CHUNK, _SORTED_CHUNK = 1 << 18, 1 << 21
"""Places of the table that are looked at together, where the index has one part and where it has several."""

_BITS_A_POINT, _BITS_AT_ZERO = 0.4588, 2.9  # lambda 0.318 and K 0.134 of ungapped BLOSUM62, in bits


@dataclass(frozen=True)
class Hits:
    """What is nearest to n queries.

    Attributes:
        scores: (n, 2) int32, BLOSUM62 score of the best alignment to a virus and to a cell; 0 where there is none.
        proteins: (n, 2) int32, number of that protein in the table, the first of several; -1 where there is none.
    """

    scores: NDArray[np.int32]
    proteins: NDArray[np.int32]

    def after(self, count: int) -> Hits:
        """Those of all queries but the first ``count``."""
        return Hits(self.scores[count:], self.proteins[count:])

    @property
    def bits(self) -> NDArray[np.float32]:
        """(n, 2) the scores in bits; 0 where there is none."""
        bits = _BITS_A_POINT * self.scores + _BITS_AT_ZERO
        return np.where(self.scores > 0, bits, 0).astype(np.float32)


def search(
    table: Table,
    proteins: Ragged,
    *,
    folds: NDArray[np.int32] | None = None,
    left_out: NDArray[np.int32] | None = None,
    num_threads: int = 1,
) -> Hits:
    """Search proteins.

    Args:
        table: to search in.
        proteins: n queries in ASCII. A stop (``*``) breaks alignments, what is no amino acid matches nothing.
        folds: (proteins of the table,) a number for each, by default that of its group.
        left_out: (n,) proteins with this number do not count for the query; -1 leaves out none.
        num_threads: that share the work.
    """
    return search_codes(
        table, Ragged(CODES[proteins.values], proteins.offsets), folds=folds, left_out=left_out, num_threads=num_threads
    )


def search_codes(
    table: Table,
    queries: Ragged,
    *,
    folds: NDArray[np.int32] | None = None,
    left_out: NDArray[np.int32] | None = None,
    num_threads: int = 1,
    is_sensitive: NDArray[np.bool_] | None = None,
) -> Hits:
    """The same for residue codes (uint8), ``is_sensitive`` (n,) says which queries have more sensitive seeds."""
    folds = table.group_of_protein if folds is None else folds.astype(np.int32)
    left_out = np.full(len(queries), NONE, dtype=np.int32) if left_out is None else left_out.astype(np.int32)
    scores = np.zeros((len(queries), 2), dtype=np.int32)
    found = np.full((len(queries), 2), NONE, dtype=np.int32)
    parts = _cut(table.starts, num_threads)
    for mine, num_sensitive in _batches(
        queries, np.zeros(len(queries), np.bool_) if is_sensitive is None else is_sensitive
    ):
        index = index_of(queries.take(mine), num_sensitive, num_threads)
        scan = partial(_scan, table, folds, index, left_out[mine])
        with ThreadPoolExecutor(len(parts)) as pool:
            for part_scores, part_found in pool.map(scan, parts):  # in order, so that the first of equal ones stays
                better = part_scores > scores[mine]
                scores[mine] = np.where(better, part_scores, scores[mine])
                found[mine] = np.where(better, part_found, found[mine])
    return Hits(scores, found)


def _scan(
    table: Table, folds: NDArray[np.int32], index: Index, left_out: NDArray[np.int32], part: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stream a range of proteins past the index: scores and proteins (n, 2)."""
    states = np.zeros((len(left_out), NUM_STATES), dtype=np.int64)
    states[:, END], states[:, LEFT_OUT] = index.ends, left_out
    states[:, DIAGONAL], states[:, FOUND : FOUND + 2] = -(1 << 60), NONE
    parts = index.num_parts
    largest = _SORTED_CHUNK if parts > 1 else _CHUNK
    room = 2 * largest // parts if parts > 1 else largest + BLOCK
    letters, sums = np.empty(BLOCK + SPAN, np.uint8), np.empty(BLOCK, np.uint32)
    num_seeds, seeds = np.empty(parts, np.int64), np.empty((parts, room), np.int64)
    bounds, brought = np.empty((BLOCK, 2), np.int64), np.zeros(BLOCK, np.int64)
    pairs, found = np.empty(index.room + 1, np.int64), np.empty(max(index.room, largest // 4), np.int64)
    hashed = (index.places, index.factors, len(index.places), SEED_LETTERS, letters, sums)
    by_part = (parts, room, num_seeds, seeds)
    filtered = (index.seen, index.filter_shift)
    looked_up = (index.buckets, index.bucket_shift, index.entries, index.also, index.also_from, SEED_LETTERS, SCORES)
    size, protein = largest, part[0]
    start, end = int(table.starts[part[0]]), int(table.starts[part[1]]) - SPAN + 1
    while start < end:
        size = min(size, end - start)
        num_found = -1
        if sort_seeds(table.residues, start, size, *hashed, *filtered, index.part_shift, *by_part):
            work = (bounds, brought, pairs, len(pairs), found, len(found))
            num_found = look_up(table.residues, start, index.residues, *filtered, *looked_up, *by_part, *work)
        if num_found < 0:
            size = (size + 1) // 2
            continue
        if parts > 1:
            found[:num_found].sort()
        whose = (table.starts, folds, table.is_viral)
        to_queries = (index.residues, index.owners, SCORES, brought, found, num_found, states)
        protein = keep_best(table.residues, start, *whose, *to_queries, protein)
        start += size
        size = min(2 * size, largest)
    return states[:, SCORE : SCORE + 2], states[:, FOUND : FOUND + 2]


def _batches(queries: Ragged, is_sensitive: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Numbers of queries that are searched together, at most ``MOST_POSITIONS`` residues or one query.

    The sensitive ones come first; how many those are is the second item. They have batches of their own, except where
    all queries have a small index: one pass over the table then costs far more than what their seeds find besides.
    """
    kinds = [np.flatnonzero(is_sensitive), np.flatnonzero(~is_sensitive)]
    if len(queries.values) < MOST_IN_ONE_PART:
        yield np.concatenate(kinds), len(kinds[0])
        return
    for kind, numbers in zip((True, False), kinds, strict=True):
        offsets = offsets_of(queries.lengths[numbers])
        done = 0
        while done < len(numbers):
            stop = max(done + 1, int(np.searchsorted(offsets, offsets[done] + MOST_POSITIONS, side="right")) - 1)
            yield numbers[done:stop], (stop - done) * kind
            done = stop


def _cut(starts: NDArray[np.int64], count: int) -> list[tuple[int, int]]:
    """Ranges of proteins, about as many residues each."""
    bounds = np.searchsorted(starts, np.linspace(1, starts[-1], max(count, 1) + 1)).tolist()
    return [(first, last) for first, last in pairwise(bounds) if first < last] or [(0, 0)]
