"""Residues as numbers, how alike they are, and which stretches of them say nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel

LETTERS = "ARNDCQEGHILKMFPSTWYV"
"""Amino acids 0..19, in the order of BLOSUM62."""
MASKED = 20
"""A residue of low complexity, or an unknown one: it matches nothing, and no alignment ends at it."""
BREAK = 21
"""A stop, or the end of a protein: alignments end at it."""
NUM_CODES = 32
"""Codes take five bits."""

CODES = np.full(256, MASKED, dtype=np.uint8)
"""(256,) residue code of each ASCII byte."""
CODES[np.frombuffer(LETTERS.encode() + LETTERS.lower().encode(), dtype=np.uint8)] = [*range(20), *range(20)]
CODES[ord("*")] = BREAK

ALPHABET = ("KR", "EDNQ", "C", "G", "H", "ILVM", "FYW", "P", "ST", "A")
"""The ten letters of seeds: residues that replace one another most easily count as one (Murphy et al. 2000)."""
NO_LETTER = 15
SEED_LETTERS = np.full(NUM_CODES, NO_LETTER, dtype=np.uint8)
"""(32,) residue code to letter of a seed."""
SEED_LETTERS[:20] = [next(i for i, group in enumerate(ALPHABET) if residue in group) for residue in LETTERS]

_BLOSUM62 = """
 4 -1 -2 -2  0 -1 -1  0 -2 -1 -1 -1 -1 -2 -1  1  0 -3 -2  0
-1  5  0 -2 -3  1  0 -2  0 -3 -2  2 -1 -3 -2 -1 -1 -3 -2 -3
-2  0  6  1 -3  0  0  0  1 -3 -3  0 -2 -3 -2  1  0 -4 -2 -3
-2 -2  1  6 -3  0  2 -1 -1 -3 -4 -1 -3 -3 -1  0 -1 -4 -3 -3
 0 -3 -3 -3  9 -3 -4 -3 -3 -1 -1 -3 -1 -2 -3 -1 -1 -2 -2 -1
-1  1  0  0 -3  5  2 -2  0 -3 -2  1  0 -3 -1  0 -1 -2 -1 -2
-1  0  0  2 -4  2  5 -2  0 -3 -3  1 -2 -3 -1  0 -1 -3 -2 -2
 0 -2  0 -1 -3 -2 -2  6 -2 -4 -4 -2 -3 -3 -2  0 -2 -2 -3 -3
-2  0  1 -1 -3  0  0 -2  8 -3 -3 -1 -2 -1 -2 -1 -2 -2  2 -3
-1 -3 -3 -3 -1 -3 -3 -4 -3  4  2 -3  1  0 -3 -2 -1 -3 -1  3
-1 -2 -3 -4 -1 -2 -3 -4 -3  2  4 -2  2  0 -3 -2 -1 -2 -1  1
-1  2  0 -1 -3  1  1 -2 -1 -3 -2  5 -1 -3 -1  0 -1 -3 -2 -2
-1 -1 -2 -3 -1  0 -2 -3 -2  1  2 -1  5  0 -2 -1 -1 -1 -1  1
-2 -3 -3 -3 -2 -3 -3 -3 -1  0  0 -3  0  6 -4 -2 -2  1  3 -1
-1 -2 -2 -1 -3 -1 -1 -2 -2 -3 -3 -1 -2 -4  7 -1 -1 -4 -3 -2
 1 -1  1  0 -1  0  0  0 -1 -2 -2  0 -1 -2 -1  4  1 -3 -2 -2
 0 -1  0 -1 -1 -1 -1 -2 -2 -1 -1 -1 -1 -2 -1  1  5 -2 -2  0
-3 -3 -4 -4 -2 -2 -3 -2 -2 -3 -2 -3 -1  1 -4 -3 -2 11  2 -3
-2 -2 -2 -3 -2 -1 -2 -3  2 -1 -1 -2 -1  3 -3 -2 -2  2  7 -1
 0 -3 -3 -3 -1 -2 -2 -3 -3  3  1 -2  1 -1 -2 -2  0 -3 -1  4
"""
"""Source: Henikoff and Henikoff, PNAS 89, 1992; rows and columns as ``LETTERS``."""
_END = -100
"""Lower than any alignment can fall and go on."""


def _scores() -> NDArray[np.int8]:
    scores = np.full((NUM_CODES, NUM_CODES), _END, dtype=np.int8)
    scores[: MASKED + 1, : MASKED + 1] = -1
    scores[:MASKED, :MASKED] = np.array(_BLOSUM62.split(), dtype=np.int8).reshape(MASKED, MASKED)
    return scores.ravel()


SCORES = _scores()
"""(1024,) score of the pair of codes a, b at ``32 a + b``."""

_WINDOW = 12
_LEAST_BITS = 2.2
_TERMS = np.array([0.0, *(n * np.log2(n) for n in range(1, _WINDOW + 1))])
_MOST = _WINDOW * (np.log2(_WINDOW) - _LEAST_BITS)


def mask(codes: NDArray[np.uint8]) -> None:
    """Mask residues of low complexity, in place: all windows of 12 whose letters carry less than 2.2 bits each.

    Source: the trigger of SEG (Wootton and Federhen, Computers Chem. 17, 1993). A window does not reach over a stop,
    so what is masked of a protein depends on that protein alone.
    """
    _mask(codes, len(codes), _TERMS, _MOST, np.zeros(20, np.int64), np.zeros(_WINDOW, np.uint8))


@kernel
def _mask(
    codes: NDArray[np.uint8],
    num_codes: int,
    terms: NDArray[np.float64],
    most: float,
    counts: NDArray[np.int64],
    window: NDArray[np.uint8],
) -> None:
    run, total, masked_to = 0, 0.0, 0
    for i in range(num_codes):
        code = codes[i]
        if code >= 20:
            for letter in range(20):
                counts[letter] = 0
            run, total = 0, 0.0
            continue
        if run >= 12:
            old = window[run % 12]
            total += terms[counts[old] - 1] - terms[counts[old]]
            counts[old] -= 1
        window[run % 12] = code
        total += terms[counts[code] + 1] - terms[counts[code]]
        counts[code] += 1
        run += 1
        if run >= 12 and total > most:
            for j in range(max(masked_to, i - 11), i + 1):
                codes[j] = 20
            masked_to = i + 1
