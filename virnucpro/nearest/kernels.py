"""What is compiled of the search: the table streamed past an index of the queries' seeds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel, part_of_kernels
from virnucpro.nearest.residues import SCORES, SEED_LETTERS

SPAN = 17
"""Places of a seed."""
BLOCK = 2048
"""Places of the table that are looked at together: what is known of them fits a core's cache, and memory is waited for
once and not for each."""
OWNER_BITS = 6
"""Of a place among the queries, which say nothing of where to look for its query."""
LEAST_SCORE = 26
"""Alignments of a seed that score less are not extended."""
DROP = 14
"""An extension ends where its score has fallen by more than this below its best."""


END, LEFT_OUT, DIAGONAL, LOOKED, SCORE, FOUND = 0, 1, 2, 3, 4, 6
"""Of a query's state: where the query ends, the proteins that do not count, the diagonal of its last alignment and how
far that one looked, the best scores against viruses and cells, and the proteins that have them."""


class Proteins(NamedTuple):
    """Proteins to search in: residues and starts as in ``table.Table``, a number and a side for each."""

    residues: NDArray[np.uint8]
    starts: NDArray[np.int64]
    folds: NDArray[np.int32]
    is_viral: NDArray[np.bool_]


class Index(NamedTuple):
    """Queries and their seeds by hash.

    Attributes:
        residues: masked codes of the queries, with breaks around each.
        ends: (n,) where each query ends.
        owners: the query at each 64th place, or the first one behind it.
        factors: (17,) uint32, by which the letters of a seed make its hash.
        filter_shift: from a hash to its word of ``seen``,
        bucket_shift: and to its bucket.
        seen: the filter, words with two bits for each seed.
        bounds: where the seeds of each bucket lie in ``entries``.
        entries: hash and place of each seed, 32 bits each, rising; and one more.
        room: pairs of seeds that are looked at together, no fewer than a bucket has.
    """

    residues: NDArray[np.uint8]
    ends: NDArray[np.int64]
    owners: NDArray[np.int64]
    factors: NDArray[np.uint32]
    filter_shift: int
    bucket_shift: int
    seen: NDArray[np.uint64]
    bounds: NDArray[np.int32]
    entries: NDArray[np.uint64]
    room: int


class Work(NamedTuple):
    """What a thread knows of a block, and of each query (``states``, (n, 8), a cache line each, see ``END``)."""

    letters: NDArray[np.uint8]
    whole: NDArray[np.uint8]
    sums: NDArray[np.uint32]
    hashes: NDArray[np.uint64]
    places: NDArray[np.int64]
    bounds: NDArray[np.int64]
    firsts: NDArray[np.uint64]
    pairs: NDArray[np.int64]
    scores: NDArray[np.int32]
    states: NDArray[np.int64]

    @classmethod
    def of(cls, index: Index, left_out: NDArray[np.int32]) -> Work:
        """Room for the work; ``left_out`` is the number of proteins that do not count for each query."""
        states = np.zeros((len(left_out), 8), dtype=np.int64)
        states[:, END], states[:, LEFT_OUT] = index.ends, left_out
        states[:, DIAGONAL], states[:, FOUND : FOUND + 2] = -(1 << 60), -1
        return cls(
            letters=np.empty(BLOCK + SPAN, dtype=np.uint8),
            whole=np.empty(BLOCK + SPAN, dtype=np.uint8),
            sums=np.empty(BLOCK, dtype=np.uint32),
            hashes=np.empty(BLOCK + 1, dtype=np.uint64),
            places=np.empty(BLOCK + 1, dtype=np.int64),
            bounds=np.empty((BLOCK, 2), dtype=np.int64),
            firsts=np.empty(BLOCK, dtype=np.uint64),
            pairs=np.empty((index.room + 1, 2), dtype=np.int64),
            scores=np.empty(index.room + 1, dtype=np.int32),
            states=states,
        )


@part_of_kernels
def _pass_filter(
    table: NDArray[np.uint8],
    start: int,
    count: int,
    index: Index,
    work: Work,
) -> int:
    """Hashes of seeds that begin at ``count`` places of the table and that queries may have; returns how many."""
    letters, whole, sums, hashes, places = work.letters, work.whole, work.sums, work.hashes, work.places
    last_other = -1
    for i in range(count + SPAN - 1):
        code = table[start + i]
        letters[i] = SEED_LETTERS[code]
        last_other = i if code >= 20 else last_other
        whole[i] = i - last_other > SPAN - 1
    for i in range(count):
        sums[i] = 0
    for k in range(SPAN):
        factor = index.factors[k]
        if factor:
            for i in range(count):
                sums[i] += letters[i + k] * factor
    shift, last_bits = np.uint64(index.filter_shift), np.uint64(63)
    num_passed = 0
    for i in range(count):
        number = np.uint64(sums[i])
        word = index.seen[number >> shift]
        is_seen = (word >> (number & last_bits)) & (word >> ((number >> np.uint64(6)) & last_bits))
        hashes[num_passed] = number
        places[num_passed] = start + i
        num_passed += (is_seen & np.uint64(whole[i + SPAN - 1])) != 0
    return num_passed


@part_of_kernels
def _join(
    entries: NDArray[np.uint64],
    bounds: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    places: NDArray[np.int64],
    k: int,
    count: int,
    pairs: NDArray[np.int64],
) -> tuple[int, int]:
    """Places in the queries and in the table of the seeds ``k`` to ``count``, as many as there is room for.

    Returns:
        How many pairs, and the first seed that there was no room for.
    """
    num_pairs = 0
    while k < count and num_pairs + bounds[k, 1] - bounds[k, 0] < len(pairs):
        for i in range(bounds[k, 0], bounds[k, 1]):
            pairs[num_pairs, 0], pairs[num_pairs, 1] = np.int64(entries[i] & np.uint64(0xFFFFFFFF)), places[k]
            num_pairs += (entries[i] >> np.uint64(32)) == hashes[k]
        k += 1
    return num_pairs, k


@part_of_kernels
def _score_seeds(
    query: NDArray[np.uint8],
    table: NDArray[np.uint8],
    pairs: NDArray[np.int64],
    num_pairs: int,
    scores: NDArray[np.int32],
) -> None:
    """Scores of the alignments of the seeds alone."""
    for k in range(num_pairs):  # brings what is read next from memory, many at a time
        scores[k] = query[pairs[k, 0]]
    for k in range(num_pairs):
        q, t = pairs[k, 0], pairs[k, 1]
        score = 0
        for j in range(SPAN):
            score += SCORES[(np.int64(query[q + j]) << 5) | table[t + j]]
        scores[k] = score


@part_of_kernels
def _extend(query: NDArray[np.uint8], q: int, table: NDArray[np.uint8], t: int, score: int) -> tuple[int, int]:
    """Best score of an alignment through a seed at ``q`` and ``t``, and how far right of ``t`` it was looked."""
    best, total, j = score, score, SPAN
    while True:
        total += SCORES[(np.int64(query[q + j]) << 5) | table[t + j]]
        if total > best:
            best = total
        elif total < best - DROP:
            break
        j += 1
    right = j
    total, j = best, 1
    while True:
        total += SCORES[(np.int64(query[q - j]) << 5) | table[t - j]]
        if total > best:
            best = total
        elif total < best - DROP:
            break
        j += 1
    return best, right


@part_of_kernels
def _keep_best(proteins: Proteins, index: Index, work: Work, num_pairs: int, protein: int) -> int:
    """Extend the seeds that score enough; returns the protein of the last of these, ``protein`` or a later one.

    A seed on the diagonal of the query's last alignment, within what that one looked at, is passed over.
    """
    pairs, states = work.pairs, work.states
    for pair in range(num_pairs):
        if work.scores[pair] < LEAST_SCORE:
            continue
        q, t = pairs[pair, 0], pairs[pair, 1]
        owner = index.owners[q >> OWNER_BITS]
        while states[owner, END] <= q:
            owner += 1
        while proteins.starts[protein + 1] <= t:
            protein += 1
        state = states[owner]
        is_looked_at = state[DIAGONAL] == t - q and t <= state[LOOKED]
        if is_looked_at or (state[LEFT_OUT] >= 0 and state[LEFT_OUT] == proteins.folds[protein]):
            continue
        score, right = _extend(index.residues, q, proteins.residues, t, work.scores[pair])
        state[DIAGONAL], state[LOOKED] = t - q, t + right
        side = 0 if proteins.is_viral[protein] else 1
        if score > state[SCORE + side]:
            state[SCORE + side], state[FOUND + side] = score, protein
    return protein


@kernel
def stream(first: int, last: int, proteins: Proteins, index: Index, work: Work) -> None:
    """Stream proteins past the index and keep the best of each query in the states of ``work``."""
    table, hashes, bounds = proteins.residues, work.hashes, work.bounds
    protein = first
    end = proteins.starts[last] - SPAN + 1
    for start in range(proteins.starts[first], end, BLOCK):
        count = _pass_filter(table, start, min(BLOCK, end - start), index, work)
        for k in range(count):
            bucket = hashes[k] >> np.uint64(index.bucket_shift)
            bounds[k, 0], bounds[k, 1] = index.bounds[bucket], index.bounds[bucket + np.uint64(1)]
        for k in range(count):  # brings what is read next from memory, many at a time
            work.firsts[k] = index.entries[bounds[k, 0]]
        k = int(np.int64(0))  # as a plain 0 the parts would be compiled for it and for all others
        while k < count:
            num_pairs, k = _join(index.entries, bounds, hashes, work.places, k, count, work.pairs)
            _score_seeds(index.residues, table, work.pairs, num_pairs, work.scores)
            protein = _keep_best(proteins, index, work, num_pairs, protein)
