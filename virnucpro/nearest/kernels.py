"""What is compiled of the search.

A seed is nine letters of ten at the places of ``PATTERN`` (or eight, ``SENSITIVE``), four bits each in one number. The
upper bits of its hash name a bucket of the index; a filter of two bits a seed says of most seeds of the table that no
query has them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel
from virnucpro.nearest.residues import SCORES, SEED_LETTERS

PATTERN = "11010010110001011"
"""Places of a seed that must agree; source: chosen on dev among patterns of its weight (EXPERIMENTS.md)."""
SENSITIVE = "11010010100001011"
"""The same of a seed that finds more, in two to three times the time."""
SPAN = len(PATTERN)
NO_SEED = -1
"""Where no seed begins."""
BLOCK = 2048
"""Places of the table that are looked at together, so that memory is waited for once and not for each."""
LEAST_SCORE = 26
"""Alignments of a seed that score less are not extended."""
DROP = 14
"""An extension ends where its score has fallen by more than this below its best."""

_SHARES = (0.110, 0.205, 0.013, 0.072, 0.022, 0.260, 0.082, 0.045, 0.122, 0.080)
_COSTS = np.zeros(16, dtype=np.int64)
_COSTS[:10] = np.round(-1000 * np.log2(_SHARES))
LEAST_COST = 18_000
"""Seeds that chance finds more often than once in 2^18 places (thousandths of a bit) are none."""


def letters_of(pattern: str) -> np.uint64:
    """The letters of a seed that must agree, but for the first one: place 1 in the highest of 16 times four bits."""
    return np.uint64(sum(15 << 4 * (SPAN - 1 - place) for place in range(1, SPAN) if pattern[place] == "1"))


class Proteins(NamedTuple):
    """Proteins to search in: residues and starts as in ``table.Table``, a number and a side for each."""

    residues: NDArray[np.uint8]
    starts: NDArray[np.int64]
    folds: NDArray[np.int32]
    is_viral: NDArray[np.bool_]


class Index(NamedTuple):
    """Seeds of queries by their hashes.

    Attributes:
        letters: of the seeds, see ``letters_of``.
        bits: of a bucket's number.
        seen: the filter, a word of it for eight buckets.
        bounds: (2^bits + 1,) where the seeds of each bucket lie in ``entries``.
        entries: (seeds, 3), each seed, its place and its query, those of a bucket in the order of their places.
    """

    letters: np.uint64
    bits: int
    seen: NDArray[np.uint64]
    bounds: NDArray[np.int32]
    entries: NDArray[np.int64]


@kernel
def _seed(window: np.uint64, first: np.uint64, letters: np.uint64) -> np.uint64:
    """A seed as a number, from the letters of its places 1 to 16, four bits each, and of place 0."""
    return (window & letters) | (first << np.uint64(56))


@kernel
def _hash(seed: np.uint64) -> np.uint64:
    return seed * np.uint64(0x9E3779B97F4A7C15)


@kernel
def _filter_bits(number: np.uint64) -> np.uint64:
    """The two bits of a hash in its word of the filter."""
    one = np.uint64(1)
    return (one << ((number >> np.uint64(20)) & np.uint64(63))) | (one << ((number >> np.uint64(26)) & np.uint64(63)))


@kernel
def find_seeds(residues: NDArray[np.uint8], letters: np.uint64) -> NDArray[np.int64]:
    """(n,) the seed that begins at each place; ``NO_SEED`` where there is none, or one that says too little."""
    seeds = np.full(len(residues), NO_SEED, dtype=np.int64)
    window, run = np.uint64(0), 0
    for i in range(len(residues)):
        code = residues[i]
        first = window >> np.uint64(60)
        window = (window << np.uint64(4)) | SEED_LETTERS[code]
        run = run + 1 if code < 20 else 0
        if run < 17:
            continue
        cost = _COSTS[first]
        for place in range(16):
            shift = np.uint64(4 * place)
            if (letters >> shift) & np.uint64(15):
                cost += _COSTS[(window >> shift) & np.uint64(15)]
        if cost >= LEAST_COST:
            seeds[i - 16] = np.int64(_seed(window, first, letters))
    return seeds


@kernel
def fill_index(seeds: NDArray[np.int64], owners: NDArray[np.int32], bits: int, letters: np.uint64) -> Index:
    """Index seeds as ``find_seeds`` gives them, (n,); the owner of each place is its query."""
    shift = np.uint64(64 - bits)
    bounds = np.zeros((1 << bits) + 1, dtype=np.int32)
    seen = np.zeros(1 << (bits - 3), dtype=np.uint64)
    for i in range(len(seeds)):
        if seeds[i] != NO_SEED:
            number = _hash(np.uint64(seeds[i]))
            bounds[(number >> shift) + np.uint64(1)] += 1
            seen[number >> (shift + np.uint64(3))] |= _filter_bits(number)
    for i in range(len(bounds) - 1):
        bounds[i + 1] += bounds[i]
    entries = np.empty((bounds[-1], 3), dtype=np.int64)
    ends = bounds[:-1].copy()
    for i in range(len(seeds)):
        if seeds[i] != NO_SEED:
            bucket = _hash(np.uint64(seeds[i])) >> shift
            entry = ends[bucket]
            entries[entry, 0] = seeds[i]
            entries[entry, 1] = i
            entries[entry, 2] = owners[i]
            ends[bucket] = entry + 1
    return Index(letters, bits, seen, bounds, entries)


@kernel
def _pass_filter(
    table: NDArray[np.uint8],
    start: int,
    stop: int,
    index: Index,
    seeds: NDArray[np.uint64],
    places: NDArray[np.int64],
) -> int:
    """Seeds of the table that begin in ``start`` to ``stop`` and that queries may have; returns how many."""
    window, run, count = np.uint64(0), 0, 0
    for i in range(start, stop + 16):
        code = table[i]
        first, window = window >> np.uint64(60), (window << np.uint64(4)) | SEED_LETTERS[code]
        seeds[count] = _seed(window, first, index.letters)
        places[count] = i - 16
        run = (run + 1) * (code < 20)
        count += run >= 17
    shift = np.uint64(67 - index.bits)
    num_seeds, count = count, 0
    for i in range(num_seeds):  # a loop of its own, so that memory is waited for once and not for each
        number = _hash(seeds[i])
        wanted = _filter_bits(number)
        seeds[count] = seeds[i]
        places[count] = places[i]
        count += (index.seen[number >> shift] & wanted) == wanted
    return count


@kernel
def _join(
    seeds: NDArray[np.uint64],
    places: NDArray[np.int64],
    count: int,
    index: Index,
    firsts: NDArray[np.int32],
    lasts: NDArray[np.int32],
    pairs: NDArray[np.int64],
) -> tuple[int, int]:
    """Entry of the index and place in the table of each common seed, as many as there is room for.

    Returns:
        How many pairs, and how many of the ``count`` seeds they are of.
    """
    shift = np.uint64(64 - index.bits)
    for k in range(count):
        bucket = _hash(seeds[k]) >> shift
        firsts[k] = index.bounds[bucket]
        lasts[k] = index.bounds[bucket + np.uint64(1)]
    num_pairs = 0
    for k in range(count):
        if num_pairs + lasts[k] - firsts[k] > len(pairs):
            return num_pairs, k
        seed = np.int64(seeds[k])
        for entry in range(firsts[k], lasts[k]):
            pairs[num_pairs, 0] = entry
            pairs[num_pairs, 1] = places[k]
            num_pairs += index.entries[entry, 0] == seed
    return num_pairs, count


@kernel
def _score_seeds(
    query: NDArray[np.uint8],
    table: NDArray[np.uint8],
    entries: NDArray[np.int64],
    pairs: NDArray[np.int64],
    num_pairs: int,
    seeds: NDArray[np.int32],
) -> None:
    """Scores of the alignments of the seeds alone."""
    for k in range(num_pairs):  # brings what is read next from memory, many at a time
        seeds[k] = query[entries[pairs[k, 0], 1]]
    for k in range(num_pairs):
        q, t = entries[pairs[k, 0], 1], pairs[k, 1]
        score = 0
        for j in range(17):
            score += SCORES[(np.int64(query[q + j]) << 5) | table[t + j]]
        seeds[k] = score


@kernel
def extend(query: NDArray[np.uint8], q: int, table: NDArray[np.uint8], t: int, score: int) -> tuple[int, int]:
    """Best score of an alignment through a seed at ``q`` and ``t``, and how far right of ``t`` it was looked."""
    best, total, j = score, score, 17
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


@kernel
def stream(
    first: int,
    last: int,
    proteins: Proteins,
    query: NDArray[np.uint8],
    index: Index,
    left_out: NDArray[np.int32],
    scores: NDArray[np.int32],
    found: NDArray[np.int32],
) -> None:
    """Stream proteins past the index and keep the best of each query, in ``scores`` and ``found``.

    A seed on the diagonal of the query's last alignment, within what that one looked at, is passed over.
    """
    table, starts, entries = proteins.residues, proteins.starts, index.entries
    diagonals = np.full(len(left_out), -(1 << 60), dtype=np.int64)
    looked = np.zeros(len(left_out), dtype=np.int64)
    table_seeds, places = np.empty(BLOCK + 17, dtype=np.uint64), np.empty(BLOCK + 17, dtype=np.int64)
    firsts, lasts = np.empty(BLOCK + 17, dtype=np.int32), np.empty(BLOCK + 17, dtype=np.int32)
    most = max(4 * BLOCK, np.diff(index.bounds).max() + 1)
    pairs, seeds = np.empty((most, 2), dtype=np.int64), np.empty(most, dtype=np.int32)
    protein = first
    end = starts[last] - 16
    for start in range(starts[first], end, BLOCK):
        count = _pass_filter(table, start, min(start + BLOCK, end), index, table_seeds, places)
        done = 0
        while done < count:
            num_pairs, used = _join(table_seeds[done:], places[done:], count - done, index, firsts, lasts, pairs)
            done += used
            _score_seeds(query, table, entries, pairs, num_pairs, seeds)
            for k in range(num_pairs):
                if seeds[k] < LEAST_SCORE:
                    continue
                q, owner, t = entries[pairs[k, 0], 1], entries[pairs[k, 0], 2], pairs[k, 1]
                while starts[protein + 1] <= t:
                    protein += 1
                diagonal = t - q
                if diagonals[owner] == diagonal and t <= looked[owner]:
                    continue
                if left_out[owner] >= 0 and left_out[owner] == proteins.folds[protein]:
                    continue
                score, right = extend(query, q, table, t, seeds[k])
                diagonals[owner] = diagonal
                looked[owner] = t + right
                side = 0 if proteins.is_viral[protein] else 1
                if score > scores[owner, side]:
                    scores[owner, side] = score
                    found[owner, side] = protein
