"""What is compiled of the search: the seeds of a chunk of the table, what they find, and the best of it.

Memory is what a search waits for, so the seeds of a large index are sorted into parts that fit a core's cache: those of
the queries once, those of the table a chunk at a time, part after part. What is found in a chunk is brought back into
the order of the table before it is extended, so that what a query gets does not depend on the parts.

Hashes and places are 32 bits of one number each; numbers are signed, since numba makes a float of a signed and an
unsigned one. The kernels share the names of their arguments:

table, query: residue codes of the table and of the queries; ``scores`` (1024,) of their pairs, ``seed_letters`` (32,).
start, size: the chunk of the table; places in it are counted from its start.
places, factors, seen, buckets, entries, also, also_from, owners and the shifts: as of ``seeds.Index``.
num_seeds, seeds: (num_parts,) and (num_parts, room), the seeds of the chunk.
found: (most_found,) alignments, as place in the chunk and place in the queries.
letters, sums, bounds, brought, pairs: to work in. What is read into ``brought`` is near when it is needed.
proteins, folds, is_viral: where each begins in the table, the number that a query may leave out, and its side.
states: (queries, 8), see ``END``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel
from virnucpro.nearest.residues import NO_LETTER

SPAN = 17
"""Places of a seed."""
BLOCK = 2048
"""Places of the table, or seeds, that are looked at together: what is known of them fits a core's cache, and memory is
waited for once and not for each."""
OWNER_BITS = 6
"""Of a place among the queries, which say nothing of where to look for its query."""
LEAST_SCORE = 26
"""Alignments of a seed that score less are not extended."""
DROP = 14
"""An extension ends where its score has fallen by more than this below its best."""
LOW = 0xFFFFFFFF
_GROUP = 256
"""Alignments that are looked at one after the other once all that they read has been brought into the cache: memory is
waited for by many at a time."""

NUM_STATES = 8
END, LEFT_OUT, DIAGONAL, LOOKED, SCORE, FOUND = 0, 1, 2, 3, 4, 6
"""Of a query's state (a cache line): where the query ends, the proteins that do not count, the diagonal of its last
alignment and how far that one looked, the best scores against viruses and cells, and the proteins that have them."""


def read_block(
    residues: NDArray[np.uint8],
    start: int,
    count: int,
    places: NDArray[np.int64],
    factors: NDArray[np.uint32],
    weight: int,
    seed_letters: NDArray[np.uint8],
    letters: NDArray[np.uint8],
    sums: NDArray[np.uint32],
) -> None:
    """Hash of the seed that begins at each of ``count`` places, some of which may hold what is no letter."""
    for i in range(count + SPAN - 1):
        letters[i] = seed_letters[residues[start + i]]
    for i in range(count):
        sums[i] = 0
    for k in range(weight):
        place, factor = places[k], factors[k]
        for i in range(count):
            sums[i] += letters[place + i] * factor


@kernel
def sort_seeds(
    table: NDArray[np.uint8],
    start: int,
    size: int,
    places: NDArray[np.int64],
    factors: NDArray[np.uint32],
    weight: int,
    seed_letters: NDArray[np.uint8],
    letters: NDArray[np.uint8],
    sums: NDArray[np.uint32],
    seen: NDArray[np.int64],
    filter_shift: int,
    part_shift: int,
    num_parts: int,
    room: int,
    num_seeds: NDArray[np.int64],
    seeds: NDArray[np.int64],
) -> int:
    """Write hash and place in the chunk of the seeds of a chunk of the table, by part; 1 if there was room, else 0.

    Of an index with one part, which fits the cache, most seeds that no query has are left out at once.
    """
    for part in range(num_parts):
        num_seeds[part] = 0
    for at in range(start, start + size, BLOCK):
        for part in range(num_parts):
            if num_seeds[part] + BLOCK > room:
                return 0
        count = min(BLOCK, start + size - at)
        read_block(table, at, count, places, factors, weight, seed_letters, letters, sums)
        if num_parts == 1:
            passed = num_seeds[0]
            for i in range(count):
                number = sums[i] + 0
                seeds[passed] = number << 32 | (at - start + i)
                passed += (seen[number >> filter_shift] >> (number & 63)) & 1
            num_seeds[0] = passed
            continue
        for i in range(count):
            number = sums[i] + 0
            part = number >> part_shift
            seeds[part * room + num_seeds[part]] = number << 32 | (at - start + i)
            num_seeds[part] += letters[i] < NO_LETTER  # what is masked would fill one part
    return 1


@kernel
def look_up(  # noqa: C901, PLR0912 - functions that it called would be compiled twice
    table: NDArray[np.uint8],
    start: int,
    query: NDArray[np.uint8],
    seen: NDArray[np.int64],
    filter_shift: int,
    buckets: NDArray[np.int32],
    bucket_shift: int,
    entries: NDArray[np.int64],
    also: int,
    also_from: int,
    seed_letters: NDArray[np.uint8],
    scores: NDArray[np.int8],
    num_parts: int,
    room: int,
    num_seeds: NDArray[np.int64],
    seeds: NDArray[np.int64],
    bounds: NDArray[np.int64],
    brought: NDArray[np.int64],
    pairs: NDArray[np.int64],
    num_pairs_at_once: int,
    found: NDArray[np.int64],
    most_found: int,
) -> int:
    """Write the alignments of the seeds of a chunk that score enough, as place in the chunk and place in the queries.

    Returns:
        How many; -1 if there is no room for all.
    """
    num_found = 0
    for part in range(num_parts):
        at = part * room
        passed = at
        for i in range(at, at + num_seeds[part]):
            number = (seeds[i] >> 32) & LOW
            word = seen[number >> filter_shift]
            seeds[passed] = seeds[i]
            passed += (word >> (number & 63)) & (word >> ((number >> 6) & 63)) & 1
        while at < passed:
            count = min(BLOCK, passed - at)
            for k in range(count):
                bucket = ((seeds[at + k] >> 32) & LOW) >> bucket_shift
                bounds[2 * k], bounds[2 * k + 1] = buckets[bucket], buckets[bucket + 1]
            for k in range(count):
                brought[k] = entries[bounds[2 * k]]
            k = 0
            while k < count:
                num_pairs = 0
                while k < count and num_pairs + bounds[2 * k + 1] - bounds[2 * k] < num_pairs_at_once:
                    seed = seeds[at + k]
                    for i in range(bounds[2 * k], bounds[2 * k + 1]):
                        pairs[num_pairs] = (seed & LOW) << 32 | (entries[i] & LOW)
                        num_pairs += (entries[i] ^ seed) >> 32 == 0
                    k += 1
                if num_found + num_pairs > most_found:
                    return -1
                for first in range(0, num_pairs, _GROUP):
                    last, near = min(first + _GROUP, num_pairs), 0
                    for i in range(first, last):
                        q, t = pairs[i] & LOW, start + (pairs[i] >> 32)
                        near |= query[q] | query[q + SPAN - 1] | table[t] | table[t + SPAN - 1]
                    brought[0], scored = near, num_found
                    for i in range(first, last):
                        q, t = pairs[i] & LOW, start + (pairs[i] >> 32)
                        score = 0
                        for j in range(SPAN):
                            score += scores[query[q + j] << 5 | table[t + j]]
                        found[scored] = pairs[i]
                        scored += score >= LEAST_SCORE
                    for i in range(num_found, scored):
                        q, t = found[i] & LOW, start + (found[i] >> 32)
                        is_seed = q < also_from or seed_letters[query[q + also]] == seed_letters[table[t + also]]
                        for j in range(SPAN):
                            is_seed &= table[t + j] < 20
                        found[num_found] = found[i]
                        num_found += is_seed
            at += count
    return num_found


@kernel
def keep_best(  # noqa: C901 - likewise
    table: NDArray[np.uint8],
    start: int,
    proteins: NDArray[np.int64],
    folds: NDArray[np.int32],
    is_viral: NDArray[np.bool_],
    query: NDArray[np.uint8],
    owners: NDArray[np.int64],
    scores: NDArray[np.int8],
    brought: NDArray[np.int64],
    found: NDArray[np.int64],
    num_found: int,
    states: NDArray[np.int64],
    protein: int,
) -> int:
    """Extend the alignments of a chunk and keep the best of each query.

    A seed on the diagonal of the query's last alignment, within what that one looked at, is passed over. ``protein`` is
    one that does not begin behind the chunk.

    Returns:
        The protein of the last alignment.
    """
    for first in range(0, num_found, _GROUP):
        last, near = min(first + _GROUP, num_found), 0
        for i in range(first, last):
            q, t = found[i] & LOW, start + (found[i] >> 32)
            near |= query[q] | query[q + SPAN] | table[t] | table[t + SPAN]
            near |= states[owners[q >> OWNER_BITS] * NUM_STATES]
        brought[0] = near
        for i in range(first, last):
            q, t = found[i] & LOW, start + (found[i] >> 32)
            owner = owners[q >> OWNER_BITS]
            while states[owner * NUM_STATES + END] <= q:
                owner += 1
            while proteins[protein + 1] <= t:
                protein += 1
            state = owner * NUM_STATES
            left_out = states[state + LEFT_OUT]
            if states[state + DIAGONAL] == t - q and t <= states[state + LOOKED]:
                continue
            if left_out >= 0 and left_out == folds[protein]:
                continue
            total = 0
            for j in range(SPAN):
                total += scores[query[q + j] << 5 | table[t + j]]
            best = total
            for side in range(2):  # to the right, then to the left
                step = 1 - 2 * side
                at = -1 if side else SPAN
                total = best
                while total >= best - DROP:
                    total += scores[query[q + at] << 5 | table[t + at]]
                    best = max(best, total)
                    at += step
                if side == 0:
                    states[state + DIAGONAL], states[state + LOOKED] = t - q, t + at - 1
            state += 1 - is_viral[protein]
            if best > states[state + SCORE]:
                states[state + SCORE], states[state + FOUND] = best, protein
    return protein
