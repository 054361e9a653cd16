"""Whether a stretch of bases says little: low complexity, or the same words over and over."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.sequence.frames import OTHER_LETTER, codes_of

WORD_NT = 12
HIGHEST_REPEATED_SHARE = 0.2
"""Share of a fragment's 12-mers, either strand, that occur in it more than once: real viruses of 150 to 3,000 bases
stay below it but for 1 in 200."""
HIGHEST_DUST = 3.0
"""Mean over windows of 64 triplets of the score of DUST (Morgulis et al. 2006, J Comput Biol 13: 1028)."""

_HALF_WINDOW = 32
"""Triplets: each window of 64 shares half of them with the next."""
_NUM_TRIPLETS = 64
_SHORT_NT = 8
_NO_WORD = 0xFFFF  # the number of no 8-mer: that of T alone is the greater of two
_SCREENED_SHARE = 0.05
"""Of 8-mers that recur: random bases have 2 %, and what is repetitive far more."""
_LONGEST_SCREENED_NT = 2000  # of longer ones too many 8-mers recur by chance
_BATCH_NT = 1 << 18  # looked at together: the arrays of so many stay in a core's cache


def are_repetitive(
    letters: NDArray[np.uint8], starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each stretch of normalised letters is of low complexity or repeats itself.

    Args:
        letters: of all stretches, which may overlap.
        starts: (n,) where each begins.
        stops: (n,) where each ends.

    Returns:
        (n,) bool; false for stretches of at most ``WORD_NT`` bases.
    """
    lengths = stops - starts
    found = np.zeros(len(starts), dtype=np.bool_)
    left = np.flatnonzero(lengths > WORD_NT)
    left = left[np.argsort(lengths[left], kind="stable")]  # so that little is filled up
    while len(left):
        longest = int(lengths[left[: _BATCH_NT // int(lengths[left[0]]) + 1]].max())
        batch, left = np.split(left, [max(1, _BATCH_NT // longest)])
        codes = codes_of_each(letters, starts[batch], lengths[batch])
        is_suspect = _may_be_repetitive(codes, lengths[batch])
        codes, batch = codes[is_suspect], batch[is_suspect]
        is_simple = mean_dust(codes, lengths[batch]) > HIGHEST_DUST
        found[batch] = is_simple | (repeated_share(codes) > HIGHEST_REPEATED_SHARE)
    return found


def codes_of_each(
    letters: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """(n, longest) codes 0 to 3 of A C G T, 4 for other letters and behind the end of a stretch."""
    longest = int(lengths.max(initial=0))
    num_lacking = int(starts.max(initial=0)) + longest - len(letters)
    if num_lacking > 0:
        first = int(starts.min())
        letters, starts = np.pad(letters[first:], (0, num_lacking)), starts - first
    codes = codes_of(np.lib.stride_tricks.sliding_window_view(letters, longest)[starts])
    if (lengths < longest).any():
        codes[np.arange(longest) >= lengths[:, None]] = OTHER_LETTER
    return codes


def _may_be_repetitive(codes: NDArray[np.uint8], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) false for stretches of which few 8-mers recur, which are quick to sort.

    A word of 12 that recurs has 8-mers that do, and what is of low complexity repeats short words.
    """
    words = _short_words(codes)
    num_words = lengths - _SHORT_NT + 1
    num_filled = words.shape[1] - num_words
    if num_filled.any():
        words[np.arange(words.shape[1]) >= num_words[:, None]] = _NO_WORD
    words.sort(axis=1)
    num_alike = (words[:, 1:] == words[:, :-1]).sum(axis=1, dtype=np.uint16) - np.maximum(num_filled - 1, 0)
    return np.asarray((lengths > _LONGEST_SCREENED_NT) | (num_alike > _SCREENED_SHARE * num_words))


def _short_words(codes: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """(n, longest - 7) number of each 8-mer or of its reverse complement, the lesser; other letters count as A."""
    forward: NDArray[Any] = codes.ravel() & 3
    backward: NDArray[Any] = 3 - forward
    for size, dtype in ((1, np.uint8), (2, np.uint8), (4, np.uint16)):  # words of twice the size, from one and the next
        forward, backward = forward.astype(dtype, copy=False), backward.astype(dtype, copy=False)
        forward, backward = (
            forward[:-size] * 4**size | forward[size:],
            backward[size:] * 4**size | backward[:-size],
        )
    words = np.append(np.minimum(forward, backward), np.zeros(_SHORT_NT - 1, dtype=np.uint16))
    return words.reshape(codes.shape)[:, : 1 - _SHORT_NT]


def repeated_share(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n,) share of the 12-mers that occur in their stretch more than once, on either strand; 0 without 12-mers."""
    words = _canonical_words(codes)
    words.sort(axis=1)
    is_word = words >= 0
    is_like_next = (words[:, 1:] == words[:, :-1]) & is_word[:, 1:]
    is_repeated = np.zeros(words.shape, dtype=np.bool_)
    is_repeated[:, 1:] = is_like_next
    is_repeated[:, :-1] |= is_like_next
    num_words = np.count_nonzero(is_word, axis=1)
    return np.asarray(np.count_nonzero(is_repeated, axis=1) / np.maximum(num_words, 1))


def _canonical_words(codes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """(n, longest - 11) the lesser of the numbers of each 12-mer and its reverse complement; -1 with another letter."""
    if codes.shape[1] < WORD_NT:
        return np.empty((len(codes), 0), dtype=np.int32)
    forward = (codes & 3).astype(np.int32)
    backward = 3 - forward
    four, four_back = forward, backward
    for size in (1, 2, 4):  # words of twice the size, from one and the next
        four, four_back = forward, backward
        forward = (forward[:, :-size] << 2 * size) | forward[:, size:]
        backward = (backward[:, size:] << 2 * size) | backward[:, :-size]
    words = np.minimum((forward[:, :-4] << 8) | four[:, 8:], (four_back[:, 8:] << 16) | backward[:, :-4])
    is_unknown = codes == OTHER_LETTER
    if is_unknown.any():
        words[_windowed(is_unknown, WORD_NT)] = -1
    return np.asarray(words)


def _windowed(is_unknown: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """(n, width - size + 1) whether there is any among so many neighbours."""
    num_before = np.zeros((len(is_unknown), is_unknown.shape[1] + 1), dtype=np.int32)
    np.cumsum(is_unknown, axis=1, out=num_before[:, 1:])
    return np.asarray(num_before[:, size:] != num_before[:, :-size])


def mean_dust(codes: NDArray[np.uint8], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) mean score of DUST over windows of 64 triplets: 0.5 for random bases, 31 for one base over and over.

    A window is two halves, each counted once: the pairs of equal triplets in it are those within a half and those
    between the two.

    Args:
        codes: (n, longest) from :func:`codes_of_each`.
        lengths: (n,) bases of each stretch, at least 3.
    """
    num_stretches, num_triplets = len(codes), codes.shape[1] - 2
    num_halves = max(2, num_triplets // _HALF_WINDOW)
    triplets = (codes[:, :-2] & 3) << 4 | (codes[:, 1:-1] & 3) << 2 | codes[:, 2:] & 3
    triplets = triplets[:, : num_halves * _HALF_WINDOW]
    bins = triplets.astype(np.int64)
    bins += np.arange(triplets.shape[1]) // _HALF_WINDOW * _NUM_TRIPLETS
    bins += np.arange(num_stretches)[:, None] * (num_halves * _NUM_TRIPLETS)
    is_unknown = codes == OTHER_LETTER
    if is_unknown.any():
        bins = bins[~_windowed(is_unknown, 3)[:, : triplets.shape[1]]]
    counts = np.bincount(bins.ravel(), minlength=num_stretches * num_halves * _NUM_TRIPLETS)
    halves = counts.reshape(num_stretches, num_halves, _NUM_TRIPLETS).astype(np.float32)
    within = np.einsum("nht,nht->nh", halves, halves)
    between = np.einsum("nht,nht->nh", halves[:, :-1], halves[:, 1:])
    sizes = halves.sum(axis=2)
    num_in_window = sizes[:, :-1] + sizes[:, 1:]
    pairs = (within[:, :-1] + within[:, 1:] + 2 * between - num_in_window) / 2
    scores = pairs.astype(np.float64) / np.maximum(num_in_window - 1, 1)
    num_windows = np.maximum(1, (lengths - 2) // _HALF_WINDOW - 1)
    scores[np.arange(num_halves - 1) >= num_windows[:, None]] = 0
    return np.asarray(scores.sum(axis=1) / num_windows)
