"""The best ungapped alignment of each query to a protein of a virus, and to one of a cell.

The seeds of a batch of queries are indexed and the table is streamed past them: nothing is built from the table, so a
small input waits for one pass over it (decision 20). What a query gets depends on the query and the table alone, not on
the other queries, on the batches they are cut into or on the threads, which share the table.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from virnucpro.nearest.kernels import FOUND, SCORE, Index, Proteins, Work, stream
from virnucpro.nearest.residues import CODES
from virnucpro.nearest.seeds import PATTERN, index_of
from virnucpro.nearest.table import Table
from virnucpro.sequence.ragged import Ragged

VIRUS, CELL = 0, 1
"""Columns of what is found."""
NONE = -1
"""No protein; no group left out."""
MOST_POSITIONS = 1 << 24
"""Residues of queries that are indexed at a time: some 300 MB with their index."""

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
    pattern: str = PATTERN,
) -> Hits:
    """The same for residue codes (uint8), with seeds of any ``pattern`` of 17 places but the third."""
    folds = table.group_of_protein if folds is None else folds.astype(np.int32)
    left_out = np.full(len(queries), NONE, dtype=np.int32) if left_out is None else left_out.astype(np.int32)
    scores = np.zeros((len(queries), 2), dtype=np.int32)
    found = np.full((len(queries), 2), NONE, dtype=np.int32)
    parts = _cut(table.starts, num_threads)
    searched = Proteins(table.residues, table.starts, folds, table.is_viral)
    for start, stop in _batches(queries):
        scan = partial(
            _scan, searched, index_of(queries.slice(start, stop), pattern, num_threads), left_out[start:stop]
        )
        if len(parts) == 1:
            found_by = [scan(parts[0])]
        else:
            with ThreadPoolExecutor(len(parts)) as pool:
                found_by = list(pool.map(scan, parts))
        for part_scores, part_found in found_by:  # in the table's order, so that the first of equal ones stays
            better = part_scores > scores[start:stop]
            scores[start:stop][better] = part_scores[better]
            found[start:stop][better] = part_found[better]
    return Hits(scores, found)


def _scan(
    proteins: Proteins, index: Index, left_out: NDArray[np.int32], part: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Scores and proteins (n, 2) of a range of proteins of the table."""
    work = Work.of(index, left_out)
    stream(*part, proteins, index, work)
    return work.states[:, SCORE : SCORE + 2], work.states[:, FOUND : FOUND + 2]


def _batches(queries: Ragged) -> list[tuple[int, int]]:
    """Ranges of whole queries, each of at most ``MOST_POSITIONS`` residues, or one query."""
    ends = [0]
    while ends[-1] < len(queries):
        limit = queries.offsets[ends[-1]] + MOST_POSITIONS
        ends.append(max(ends[-1] + 1, int(np.searchsorted(queries.offsets, limit, side="right")) - 1))
    return list(pairwise(ends))


def _cut(starts: NDArray[np.int64], count: int) -> list[tuple[int, int]]:
    """Ranges of proteins, about as many residues each."""
    bounds = np.searchsorted(starts, np.linspace(1, starts[-1], max(count, 1) + 1)).tolist()
    return [(first, last) for first, last in pairwise(bounds) if first < last] or [(0, 0)]
