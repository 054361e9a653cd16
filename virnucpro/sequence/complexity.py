"""Whether a sequence says little: low complexity, or the same words over and over."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.sequence.compiled import compiled

WORD_NT = 12
HIGHEST_REPEATED_SHARE = 0.2
"""Share of a sequence's 12-mers, either strand, that occur in it more than once: real viruses of 150 to 3,000 bases
stay below it but for 1 in 200."""
HIGHEST_DUST = 3.0
"""Mean over windows of 64 triplets of the score of DUST (Morgulis et al. 2006, J Comput Biol 13: 1028)."""
LONGEST_NT = 50_000
"""Longer sequences are not looked at: a chromosome has repeats, and is none."""

_WINDOW = 64
_STEP = 32
_UNKNOWN = 4
_SLOTS_A_WORD = 2
_SPREAD = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio (Knuth): neighbouring words go to distant slots


def _code_of_letter() -> NDArray[np.uint8]:
    codes = np.full(256, _UNKNOWN, dtype=np.uint8)
    codes[np.frombuffer(b"ACGT", dtype=np.uint8)] = range(4)
    return codes


_CODES = _code_of_letter()


@compiled
def are_repetitive(letters: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each item, normalised letters, repeats itself.

    Args:
        letters: of all items.
        offsets: (n + 1,) where items begin and end.

    Returns:
        (n,) bool; false for items longer than ``LONGEST_NT``.
    """
    found = np.zeros(len(offsets) - 1, dtype=np.bool_)
    longest = 0
    for item in range(len(found)):
        length = offsets[item + 1] - offsets[item]
        if length <= LONGEST_NT:
            longest = max(longest, length)
    num_slots = 1
    while num_slots < _SLOTS_A_WORD * longest:
        num_slots *= 2
    words, slots, seen = np.empty(longest, np.int64), np.full(num_slots, -1), np.zeros(num_slots, np.bool_)
    for item in range(len(found)):
        bases = letters[offsets[item] : offsets[item + 1]]
        if WORD_NT < len(bases) <= LONGEST_NT:
            found[item] = (
                mean_dust(bases) > HIGHEST_DUST or _repeated_share(bases, words, slots, seen) > HIGHEST_REPEATED_SHARE
            )
    return found


@compiled
def repeated_share(bases: NDArray[np.uint8]) -> float:
    """Share of the 12-mers of ``bases`` that occur in them more than once, on either strand; 0 where there is none."""
    num_slots = 1
    while num_slots < _SLOTS_A_WORD * len(bases):
        num_slots *= 2
    return _repeated_share(bases, np.empty(len(bases), np.int64), np.full(num_slots, -1), np.zeros(num_slots, np.bool_))


@compiled
def _repeated_share(
    bases: NDArray[np.uint8], words: NDArray[np.int64], slots: NDArray[np.int64], seen: NDArray[np.bool_]
) -> float:
    """As ``repeated_share``, with a hash table that is empty (-1) before and after.

    Args:
        bases: of one sequence.
        words: room for a number a base.
        slots: the word in each slot, a power of two of them and more than words.
        seen: whether the word of a slot was counted as a repeated one.
    """
    num_words = _canonical_words(bases, words)
    mask = len(slots) - 1
    repeated = 0
    for i in range(num_words):
        slot = _find(slots, words[i], mask)
        if slots[slot] < 0:
            slots[slot] = words[i]
            seen[slot] = False
        else:
            repeated += 1 if seen[slot] else 2  # the first of its kind counts when its second comes
            seen[slot] = True
    for i in range(num_words):
        _clear(slots, words[i], mask)
    return repeated / num_words if num_words else 0.0


@compiled
def _canonical_words(bases: NDArray[np.uint8], words: NDArray[np.int64]) -> int:
    """Fill ``words`` with the numbers of the 12-mers without other letters, of the lesser strand; return how many."""
    num_words, forward, backward, clear = 0, 0, 0, 0
    for letter in bases:
        code = int(_CODES[letter])
        clear = 0 if code == _UNKNOWN else clear + 1
        forward = (forward * 4 + (code & 3)) & (4**WORD_NT - 1)
        backward = (backward >> 2) + ((3 - (code & 3)) << (2 * WORD_NT - 2))
        if clear >= WORD_NT:
            words[num_words] = min(forward, backward)
            num_words += 1
    return num_words


@compiled
def _find(slots: NDArray[np.int64], word: int, mask: int) -> int:
    """The slot that holds the word, or the empty one where it belongs."""
    slot = int((np.uint64(word) * np.uint64(_SPREAD)) >> np.uint64(32)) & mask
    while slots[slot] >= 0 and slots[slot] != word:
        slot = (slot + 1) & mask
    return slot


@compiled
def _clear(slots: NDArray[np.int64], word: int, mask: int) -> None:
    """Empty the slots from where the word belongs to the next empty one: all words go, so none is lost on the way."""
    slot = int((np.uint64(word) * np.uint64(_SPREAD)) >> np.uint64(32)) & mask
    while slots[slot] >= 0:
        slots[slot] = -1
        slot = (slot + 1) & mask


@compiled
def mean_dust(bases: NDArray[np.uint8]) -> float:
    """Mean score of DUST over windows of 64 triplets: 0.5 for random bases, 31 for one base over and over."""
    counts = np.zeros(64, dtype=np.int64)
    total, num_windows, start = 0.0, 0, 0
    while start == 0 or start + _WINDOW + 2 <= len(bases):
        counts[:] = 0
        score, num_triplets, word, clear = 0, 0, 0, 0
        for i in range(start, min(start + _WINDOW + 2, len(bases))):
            code = int(_CODES[bases[i]])
            clear = 0 if code == _UNKNOWN else clear + 1
            word = (word * 4 + (code & 3)) & 63
            if clear >= 3:
                score += counts[word]
                counts[word] += 1
                num_triplets += 1
        total += score / max(num_triplets - 1, 1)
        num_windows += 1
        start += _STEP
    return total / num_windows
