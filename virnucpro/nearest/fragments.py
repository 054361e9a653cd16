"""Fragments as queries: their most open frames, and what else of them the evidence is weighed by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel
from virnucpro.nearest.residues import BREAK, CODES, MASKED
from virnucpro.sequence.ragged import Ragged, offsets_of

NUM_FRAMES = 2
"""Frames of a fragment that are searched with: those with the longest stop-free runs."""

_BASES = np.full(256, 4, dtype=np.uint8)
_BASES[np.frombuffer(b"ACGTUacgtu", dtype=np.uint8)] = [0, 1, 2, 3, 3, 0, 1, 2, 3, 3]
_STANDARD_CODE = b"KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
"""Residues of AAA, AAC .. TTT in the order A C G T (NCBI translation table 1)."""
_CODON_CODES = CODES[np.frombuffer(_STANDARD_CODE, dtype=np.uint8)]


@dataclass(frozen=True)
class Frames:
    """Frames of n fragments.

    Attributes:
        queries: n items of residue codes: the most open frames of a fragment, a break between them.
        open_runs: (n, 6) int32, residues in the longest stop-free run of each frame, the longest first.
        gc: (n,) float32, share of G and C among A, C, G and T.
    """

    queries: Ragged
    open_runs: NDArray[np.int32]
    gc: NDArray[np.float32]


def open_frames(letters: NDArray[np.uint8], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Frames:
    """Translate fragments.

    Args:
        letters: ASCII bases that hold all fragments.
        starts: (n,) where each begins.
        stops: (n,) where each ends.
    """
    lengths = np.maximum(NUM_FRAMES * ((stops - starts) // 3 + 1) - 1, 0)
    offsets = offsets_of(lengths)
    codes = np.full(offsets[-1], BREAK, dtype=np.uint8)
    runs = np.zeros((len(starts), 6), dtype=np.int32)
    gc = np.zeros(len(starts), dtype=np.float32)
    _translate(letters, starts, stops, offsets, codes, runs, gc)
    return Frames(Ragged(codes, offsets), runs, gc)


@kernel
def _codon(letters: NDArray[np.uint8], at: int, strand: int) -> int:
    """Residue code of the codon that begins at ``at`` and goes on by ``strand``, 1 or -1."""
    number = 0
    for _ in range(3):
        base = _BASES[letters[at]]
        if base == 4:
            return MASKED
        number = number * 4 + (base if strand == 1 else 3 - base)
        at += strand
    return int(_CODON_CODES[number])


@kernel
def _translate(
    letters: NDArray[np.uint8],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    offsets: NDArray[np.int64],
    codes: NDArray[np.uint8],
    runs: NDArray[np.int32],
    gc: NDArray[np.float32],
) -> None:
    longest = np.zeros(6, dtype=np.int32)
    for n in range(len(starts)):
        start, stop = starts[n], stops[n]
        strong, clear = 0, 0
        for i in range(start, stop):
            base = _BASES[letters[i]]
            clear += base < 4
            strong += base in (1, 2)  # a set, numba does not know
        gc[n] = strong / max(clear, 1)
        for frame in range(6):
            strand = 1 if frame < 3 else -1
            at = start + frame if frame < 3 else stop - 1 - (frame - 3)
            run, most = 0, 0
            for _ in range((stop - start - frame % 3) // 3):
                code = _codon(letters, at, strand)
                run = 0 if code == BREAK else run + 1
                most = max(most, run)
                at += 3 * strand
            longest[frame] = most
        order = np.argsort(-longest, kind="mergesort")
        runs[n] = longest[order]
        to = offsets[n]
        for frame in order[:NUM_FRAMES]:
            strand = 1 if frame < 3 else -1
            at = start + frame if frame < 3 else stop - 1 - (frame - 3)
            for _ in range((stop - start - frame % 3) // 3):
                codes[to] = _codon(letters, at, strand)
                to += 1
                at += 3 * strand
            to += 1
