"""Which fragments say nothing of their sequence, and what that makes of the sequence.

A masked fragment has no rows and no score, so that it is in no call, region or rate. Gaps (N), low complexity and
tandem repeats look like no genome a model has learnt from: what it says of them is arbitrary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro.sequence.complexity import are_repetitive
from virnucpro.sequence.fragments import windows_of
from virnucpro.sequence.frames import COMPLEMENT
from virnucpro.sequence.gaps import Records
from virnucpro.sequence.ragged import offsets_of
from virnucpro.sequence.table import Mask, Status

_WITH_BOTH_ENDS = 2
"""Windows of the longest record of which one window may hold the same end twice."""
_AMBIGUOUS_NT = 10
"""Of so many letters of a fragment one may be ambiguous. Frames go on through such letters: with a fifth of them
scattered in it 84 of 120 hosts were virus, with a tenth 5, and 1 where fragments with more are masked."""
_SEAM_NT = 25
"""Of so many letters there may be one place where a gap was closed. What is sewn together of shorter pieces cannot be
read: 37 of 60 viruses of which four fifths were masked in stretches of 10 to 40 bases were not virus."""
_SEED_NT = 8  # of a direct repeat: where it may begin is found by its first bases


@dataclass(frozen=True)
class Masking:
    """When a fragment is masked."""

    # records with fewer bases, or fewer of A C G T, get no call; a fragment needs as many of A C G T, or half of its
    # length if that is less
    min_length: int
    # fragments of low complexity, or that repeat themselves, are masked, and those of which less than half are A C G T:
    # reading frames go on through N, so that the rest would look coding
    find_repetitive: bool
    # then that holds for fragments of which less than nine tenths are A C G T, or that have too many gaps
    gaps_are_closed: bool = False


def mask_windows(
    records: Records, fragment_length: int, masking: Masking
) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Look at all windows of some records.

    Args:
        records: their letters.
        fragment_length: nt.
        masking: what is masked.

    Returns:
        (w,) ``Mask`` of each window, and (n,) ``Status`` of each record.
    """
    letters, offsets, others = records.letters, records.offsets, records.others
    lengths = np.diff(offsets)
    num_windows, starts, stops = windows_of(lengths, fragment_length)
    first = np.repeat(offsets[:-1], num_windows)
    starts, stops = starts + first, stops + first
    num_clear = _count_clear(others, starts, stops)
    least = min(masking.min_length, (fragment_length + 1) // 2)
    mask = np.where(num_clear < least, Mask.FEW_BASES, Mask.NONE).astype(np.uint8)
    if masking.find_repetitive:
        size = stops - starts
        most = size // (_AMBIGUOUS_NT if masking.gaps_are_closed else 2)
        has_many = _SEAM_NT * records.gaps.seams_in(starts, stops) > size
        mask[(size - num_clear > most) | has_many] = Mask.FEW_BASES
        looked_at = np.flatnonzero(mask == Mask.NONE)
        repetitive = looked_at[are_repetitive(letters, starts[looked_at], stops[looked_at])]
        of = np.repeat(np.arange(len(lengths)), num_windows)[repetitive]
        mask[repetitive] = Mask.REPETITIVE
        short = num_windows[of] <= _WITH_BOTH_ENDS
        repetitive, of = repetitive[short], of[short]
        ends = _before_repeated_ends(letters, offsets, of)
        is_meant = are_repetitive(letters, starts[repetitive], np.minimum(stops[repetitive], ends))
        mask[repetitive[~is_meant]] = Mask.NONE
    clear_of_records = _count_clear(others, offsets[:-1], offsets[1:])
    status = _statuses(np.diff(records.given), num_windows, mask, masking, clear_of_records)
    is_callable = (status == Status.OK) | (status == Status.REPETITIVE)
    mask[np.repeat(~is_callable, num_windows) & (mask == Mask.NONE)] = Mask.FEW_BASES
    return mask, status


def _count_clear(others: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) how many letters of each stretch are A, C, G or T; ``others`` says where all other letters are."""
    num_other = np.searchsorted(others, stops) - np.searchsorted(others, starts) if len(others) else 0
    return np.asarray(stops - starts - num_other, dtype=np.int64)


def _statuses(
    lengths: NDArray[np.int64],
    num_windows: NDArray[np.int64],
    mask: NDArray[np.uint8],
    masking: Masking,
    num_clear: NDArray[np.int64],
) -> NDArray[np.int8]:
    """(n,) ``Status`` of records: repetitive are those half of whose windows are, of those with enough bases."""
    has_few, repeats = (_count_of(mask == kind, num_windows) for kind in (Mask.FEW_BASES, Mask.REPETITIVE))
    num_judged = num_windows - has_few
    return np.select(
        [
            lengths == 0,
            lengths < masking.min_length,
            (num_clear < masking.min_length) | (num_judged == 0),
            2 * repeats >= np.maximum(num_judged, 1),
        ],
        [Status.EMPTY, Status.TOO_SHORT, Status.AMBIGUOUS, Status.REPETITIVE],
        Status.OK,
    ).astype(np.int8)


def _count_of(is_counted: NDArray[np.bool_], num_windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) how many of each record's windows are counted."""
    totals = offsets_of(is_counted.astype(np.int64))
    ends = offsets_of(num_windows)
    return np.asarray(totals[ends[1:]] - totals[ends[:-1]])


def _before_repeated_ends(
    letters: NDArray[np.uint8], offsets: NDArray[np.int64], records: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(n,) where records end without the second of their terminal repeats, if they have such.

    A circular contig ends with the bases it begins with, a linear virus with their reverse complement.
    """
    bounds = zip(offsets[records].tolist(), offsets[records + 1].tolist(), strict=True)
    ends = [stop - terminal_repeat_length(letters[start:stop].tobytes()) for start, stop in bounds]
    return np.array(ends, dtype=np.int64)


def terminal_repeat_length(bases: bytes) -> int:
    """Length of the longest repeat at both ends, direct or inverted, of at most half of the bases; 0 without one."""
    half = len(bases) // 2
    turned = bases.translate(COMPLEMENT)[::-1]
    inverted = next((i for i in range(half) if bases[i] != turned[i]), half)
    begin = bases[:_SEED_NT]
    at = bases.find(begin, len(bases) - half)
    while at >= 0 and not bases.startswith(bases[at:]):
        at = bases.find(begin, at + 1)
    shorter = (length for length in range(min(half, _SEED_NT - 1), 0, -1) if bases.endswith(bases[:length]))
    return max(inverted, next(shorter, 0) if at < 0 else len(bases) - at)
