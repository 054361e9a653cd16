"""What is compiled of the search: the table streamed past an index of the queries' seeds.

Memory is what a search waits for, so the seeds of a large index are sorted into parts that fit a core's cache: those of
the queries once, those of the table a chunk at a time, part after part. What is found in a chunk is brought back into
the order of the table before it is extended, so that what a query gets does not depend on the parts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel, part_of_kernels
from virnucpro.nearest.residues import SCORES, SEED_LETTERS

SPAN = 17
"""Places of a seed."""
BLOCK = 2048
"""Places of the table, or seeds, that are looked at together: what is known of them fits a core's cache, and memory is
waited for once and not for each."""
CHUNK = 1 << 21
"""Places of the table whose seeds are sorted together, where the index has several parts."""
OWNER_BITS = 6
"""Of a place among the queries, which say nothing of where to look for its query."""
LEAST_SCORE = 26
"""Alignments of a seed that score less are not extended."""
DROP = 14
"""An extension ends where its score has fallen by more than this below its best."""
_GROUP = 256
"""Alignments that are looked at one after the other once all that they read has been brought into the cache: memory is
waited for by many at a time. (Places are unsigned, since for a signed one numba asks whether it counts from the end.)
"""
_DIGIT_BITS = 11
# A call of np.uint64 takes numba longer than anything else: numbers that kernels shift by are made here.
HALF, _ONE, _SIX, _LAST_BITS, _LOW = (np.uint64(number) for number in (32, 1, 6, 63, 0xFFFFFFFF))
_SPAN, _TO_LAST, _DIGIT = np.uint64(SPAN), np.uint64(SPAN - 1), np.uint64((1 << _DIGIT_BITS) - 1)
_OWNER_BITS, _SCORE_BITS = np.uint64(OWNER_BITS), np.uint64(5)


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
        part_shift: from a hash to its part,
        filter_shift: to its word of ``seen``,
        bucket_shift: and to its bucket.
        seen: the filter, words with two bits for each seed.
        bounds: where the seeds of each bucket lie in ``entries``.
        entries: hash and place of each seed, 32 bits each, by bucket and place; and one more.
        room: pairs of seeds that are looked at together, no fewer than a bucket has.
    """

    residues: NDArray[np.uint8]
    ends: NDArray[np.int64]
    owners: NDArray[np.int64]
    factors: NDArray[np.uint32]
    part_shift: int
    filter_shift: int
    bucket_shift: int
    seen: NDArray[np.uint64]
    bounds: NDArray[np.int32]
    entries: NDArray[np.uint64]
    room: int

    @property
    def num_parts(self) -> int:
        """Parts of the index."""
        return 1 << (32 - self.part_shift)


class Work(NamedTuple):
    """What a thread knows of a chunk, and of each query (``states``, (n, 8), a cache line each, see ``END``).

    ``seeds`` (parts, room) are those of the table in a chunk by the part that queries may have them in, and ``found``
    are alignments; both as 32 bits and a place: the hash and the place in the table, the place in the table and the one
    among the queries. Places in the table count from the start of the chunk.
    """

    letters: NDArray[np.uint8]
    whole: NDArray[np.uint8]
    sums: NDArray[np.uint32]
    num_seeds: NDArray[np.int64]
    seeds: NDArray[np.uint64]
    bounds: NDArray[np.int64]
    firsts: NDArray[np.uint64]
    pairs: NDArray[np.uint64]
    found: NDArray[np.uint64]
    sorted: NDArray[np.uint64]
    states: NDArray[np.int64]

    @classmethod
    def of(cls, index: Index, left_out: NDArray[np.int32]) -> Work:
        """Room for the work; ``left_out`` is the number of proteins that do not count for each query."""
        states = np.zeros((len(left_out), 8), dtype=np.int64)
        states[:, END], states[:, LEFT_OUT] = index.ends, left_out
        states[:, DIAGONAL], states[:, FOUND : FOUND + 2] = -(1 << 60), -1
        parts = index.num_parts
        most = max(index.room, BLOCK if parts == 1 else CHUNK // 4)
        return cls(
            letters=np.empty(BLOCK + SPAN, dtype=np.uint8),
            whole=np.empty(BLOCK + SPAN, dtype=np.uint8),
            sums=np.empty(BLOCK, dtype=np.uint32),
            num_seeds=np.empty(parts, dtype=np.int64),
            seeds=np.empty((parts, 2 * BLOCK if parts == 1 else 2 * CHUNK // parts), dtype=np.uint64),
            bounds=np.empty((BLOCK, 2), dtype=np.int64),
            firsts=np.empty(BLOCK, dtype=np.uint64),
            pairs=np.empty(index.room + 1, dtype=np.uint64),
            found=np.empty(most, dtype=np.uint64),
            sorted=np.empty(most, dtype=np.uint64),
            states=states,
        )


@part_of_kernels
def read_block(
    residues: NDArray[np.uint8],
    start: int,
    count: int,
    factors: NDArray[np.uint32],
    letters: NDArray[np.uint8],
    whole: NDArray[np.uint8],
    sums: NDArray[np.uint32],
) -> None:
    """Hash of the seed that begins at each of ``count`` places, and at its end whether all its places have letters."""
    last_other = -1
    for i in range(count + SPAN - 1):
        code = residues[start + i]
        letters[i] = SEED_LETTERS[code]
        last_other = i if code >= 20 else last_other
        whole[i] = i - last_other > SPAN - 1
    for i in range(count):
        sums[i] = 0
    for k in range(SPAN):
        factor = factors[k]
        if factor:
            for i in range(count):
                sums[i] += letters[i + k] * factor


@part_of_kernels
def _score(one: np.uint8, other: np.uint8) -> int:
    """Of a pair of residues."""
    return int(SCORES[np.uint64(one) << _SCORE_BITS | np.uint64(other)])


@part_of_kernels
def marks_of(number: np.uint64) -> np.uint64:
    """The two bits (or one) that a seed with this hash sets in its word of the filter."""
    return _ONE << (number & _LAST_BITS) | _ONE << ((number >> _SIX) & _LAST_BITS)


@part_of_kernels
def _may_have(index: Index, number: np.uint64) -> int:
    """1 where a query may have the seed with this hash."""
    marks = marks_of(number)
    return int((index.seen[number >> np.uint64(index.filter_shift)] & marks) == marks)


@part_of_kernels
def _sort_seeds(table: NDArray[np.uint8], start: int, size: int, index: Index, work: Work) -> bool:
    """Write the seeds of a chunk of the table by part; whether there was room for them.

    Of an index with one part, which fits the cache, those that no query has are left out at once.
    """
    sums, whole, seeds, num_seeds = work.sums, work.whole, work.seeds, work.num_seeds
    for part in range(len(num_seeds)):
        num_seeds[part] = 0
    shift = np.uint64(index.part_shift)
    for at in range(start, start + size, BLOCK):
        for part in range(len(num_seeds)):
            if num_seeds[part] + BLOCK > seeds.shape[1]:
                return False
        count = min(BLOCK, start + size - at)
        read_block(table, at, count, index.factors, work.letters, whole, sums)
        first = at - start
        if len(num_seeds) == 1:
            passed = num_seeds[0]
            for i in range(count):
                number = np.uint64(sums[i])
                seeds[0, passed] = number << HALF | np.uint64(first + i)
                passed += _may_have(index, number) & whole[i + SPAN - 1]
            num_seeds[0] = passed
            continue
        for i in range(count):
            number = np.uint64(sums[i])
            of_seed = number >> shift
            seeds[of_seed, num_seeds[of_seed]] = number << HALF | np.uint64(first + i)
            num_seeds[of_seed] += whole[i + SPAN - 1]
    return True


@part_of_kernels
def _join(index: Index, work: Work, part: int, first: int, k: int, count: int) -> tuple[int, int]:
    """Alignments of the seeds from ``k`` to ``count`` of those behind ``first``, as many as there is room for.

    Returns:
        How many, and the first seed that there was no room for.
    """
    entries, bounds, pairs = index.entries, work.bounds, work.pairs
    num_pairs = 0
    while k < count and num_pairs + bounds[k, 1] - bounds[k, 0] < len(pairs):
        seed = work.seeds[part, first + k]
        number, place = seed >> HALF, (seed & _LOW) << HALF
        for i in range(bounds[k, 0], bounds[k, 1]):
            pairs[num_pairs] = place | (entries[i] & _LOW)
            num_pairs += (entries[i] >> HALF) == number
        k += 1
    return num_pairs, k


@part_of_kernels
def _score_pairs(table: NDArray[np.uint8], start: int, index: Index, work: Work, num_pairs: int, num_found: int) -> int:
    """Keep the alignments whose seeds alone score enough; returns how many there are now."""
    query, pairs, found = index.residues, work.pairs, work.found
    base = np.uint64(start)
    for first in range(0, num_pairs, _GROUP):
        last = min(first + _GROUP, num_pairs)
        brought = np.uint8(0)
        for k in range(first, last):
            q, t = pairs[k] & _LOW, base + (pairs[k] >> HALF)
            brought |= query[q] | query[q + _TO_LAST] | table[t] | table[t + _TO_LAST]
        work.firsts[0] = brought
        for k in range(first, last):
            q, t = pairs[k] & _LOW, base + (pairs[k] >> HALF)
            score = 0
            for j in range(SPAN):
                score += _score(query[q + np.uint64(j)], table[t + np.uint64(j)])
            found[num_found] = pairs[k]
            num_found += score >= LEAST_SCORE
    return num_found


@part_of_kernels
def _look_up(table: NDArray[np.uint8], start: int, index: Index, work: Work) -> int:
    """Find the alignments of the seeds of a chunk that score enough; -1 where there is no room for all."""
    seeds, num_found = work.seeds, int(np.int64(0))  # a plain 0 would be a type of its own: parts are compiled for it
    for part in range(len(work.num_seeds)):
        passed = int(work.num_seeds[part])
        if len(work.num_seeds) > 1:
            passed = 0
            for i in range(work.num_seeds[part]):
                seeds[part, passed] = seeds[part, i]
                passed += _may_have(index, seeds[part, i] >> HALF)
        for first in range(0, passed, BLOCK):
            count = min(BLOCK, passed - first)
            for k in range(count):
                bucket = seeds[part, first + k] >> np.uint64(32 + index.bucket_shift)
                work.bounds[k, 0], work.bounds[k, 1] = index.bounds[bucket], index.bounds[bucket + _ONE]
            for k in range(count):  # brings what is read next from memory, many at a time
                work.firsts[k] = index.entries[work.bounds[k, 0]]
            k = int(np.int64(0))
            while k < count:
                num_pairs, k = _join(index, work, part, first, k, count)
                if num_found + num_pairs > len(work.found):
                    return -1
                num_found = _score_pairs(table, start, index, work, num_pairs, num_found)
    return num_found


@part_of_kernels
def _by_place(found: NDArray[np.uint64], other: NDArray[np.uint64], count: int) -> None:
    """Sort alignments by their place in the table, in place; those of one place stay in order."""
    counts = np.empty(1 << _DIGIT_BITS, dtype=np.int64)
    for shift in (32, 32 + _DIGIT_BITS):
        for digit in range(len(counts)):
            counts[digit] = 0
        for i in range(count):
            counts[(found[i] >> np.uint64(shift)) & _DIGIT] += 1
        total = 0
        for digit in range(len(counts)):
            counts[digit], total = total, total + counts[digit]
        for i in range(count):
            which = (found[i] >> np.uint64(shift)) & _DIGIT
            other[counts[which]] = found[i]
            counts[which] += 1
        found, other = other, found


@part_of_kernels
def _extend(query: NDArray[np.uint8], q: np.uint64, table: NDArray[np.uint8], t: np.uint64) -> tuple[int, int]:
    """Best score of an alignment through a seed at ``q`` and ``t``, and how far right of ``t`` it was looked."""
    total = 0
    for j in range(SPAN):
        total += _score(query[q + np.uint64(j)], table[t + np.uint64(j)])
    best, at, other = total, q + _SPAN, t + _SPAN
    while True:
        total += _score(query[at], table[other])
        if total > best:
            best = total
        elif total < best - DROP:
            break
        at, other = at + _ONE, other + _ONE
    right = int(other - t)
    total, at, other = best, q - _ONE, t - _ONE
    while True:
        total += _score(query[at], table[other])
        if total > best:
            best = total
        elif total < best - DROP:
            break
        at, other = at - _ONE, other - _ONE
    return best, right


@part_of_kernels
def _keep_best(proteins: Proteins, start: int, index: Index, work: Work, num_found: int, protein: int) -> int:
    """Extend alignments of a chunk; returns the protein of the last of these, ``protein`` or a later one.

    A seed on the diagonal of the query's last alignment, within what that one looked at, is passed over.
    """
    found, states, query, table = work.found, work.states, index.residues, proteins.residues
    base = np.uint64(start)
    for first in range(0, num_found, _GROUP):
        last = min(first + _GROUP, num_found)
        brought = np.int64(0)
        for k in range(first, last):
            q, t = found[k] & _LOW, base + (found[k] >> HALF)
            brought |= states[index.owners[q >> _OWNER_BITS], END]
            brought |= query[q] | query[q + _SPAN] | table[t] | table[t + _SPAN]
        work.firsts[0] = np.uint64(brought)
        for k in range(first, last):
            q, t = found[k] & _LOW, base + (found[k] >> HALF)
            owner = index.owners[q >> _OWNER_BITS]
            while states[owner, END] <= np.int64(q):
                owner += 1
            while proteins.starts[protein + 1] <= np.int64(t):
                protein += 1
            diagonal, left_out = np.int64(t) - np.int64(q), states[owner, LEFT_OUT]
            is_looked_at = states[owner, DIAGONAL] == diagonal and np.int64(t) <= states[owner, LOOKED]
            if is_looked_at or (left_out >= 0 and left_out == proteins.folds[protein]):
                continue
            score, right = _extend(query, q, table, t)
            states[owner, DIAGONAL], states[owner, LOOKED] = diagonal, np.int64(t) + right
            side = 0 if proteins.is_viral[protein] else 1
            if score > states[owner, SCORE + side]:
                states[owner, SCORE + side], states[owner, FOUND + side] = score, protein
    return protein


@kernel
def stream(first: int, last: int, proteins: Proteins, index: Index, work: Work) -> None:
    """Stream proteins past the index and keep the best of each query in the states of ``work``."""
    protein = first
    start, end = proteins.starts[first], proteins.starts[last] - SPAN + 1
    most = CHUNK if len(work.num_seeds) > 1 else BLOCK
    size = most
    while start < end:
        size = min(size, end - start)
        num_found = -1
        if _sort_seeds(proteins.residues, start, size, index, work):
            num_found = _look_up(proteins.residues, start, index, work)
        if num_found < 0:
            size = (size + 1) // 2
            continue
        if len(work.num_seeds) > 1:
            _by_place(work.found, work.sorted, num_found)
        protein = _keep_best(proteins, start, index, work, num_found, protein)
        start += size
        size = min(2 * size, most)
