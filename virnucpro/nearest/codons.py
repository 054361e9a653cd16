"""Codons of both strands as numbers, and proteins of them: what genes and the frames of fragments are read from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel
from virnucpro.nearest.residues import BREAK, CODES, MASKED

NO_CODON = 64
"""Where a letter other than A C G T (U) is, or no codon begins any more."""

CODE = b"KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
"""Residues of AAA, AAC .. TTT in the order A C G T (NCBI translation table 1)."""
_RESIDUES = CODES[np.frombuffer(CODE, dtype=np.uint8)]
STOPPED = np.append(_RESIDUES, np.uint8(BREAK))
"""(65,) residue code of each codon; none is like a stop."""
RECODED = tuple(STOPPED.copy() for _ in range(2))
"""STOPPED where one stop codon is none: TGA is tryptophan (NCBI 4; mycoplasmas, many mitochondria, some phages), TAG is
glutamine (NCBI 15; phages of the gut)."""
RECODED[0][0b111000] = CODES[ord("W")]
RECODED[1][0b110010] = CODES[ord("Q")]
OPEN = np.append(_RESIDUES, np.uint8(MASKED))
"""(65,) likewise; none is an unknown residue."""


def _places() -> tuple[bytes, ...]:
    """What each letter adds to a codon as its first, second and third base."""
    places = np.full((3, 256), NO_CODON, dtype=np.uint8)
    for base, letters in enumerate((b"Aa", b"Cc", b"Gg", b"TtUu")):
        places[:, list(letters)] = np.array([[16], [4], [1]]) * base
    return tuple(place.tobytes() for place in places)


_FIRST, _SECOND, _THIRD = _places()
_OPPOSITE = bytes((3 - c % 4) * 16 + (3 - c // 4 % 4) * 4 + 3 - c // 16 for c in range(64)) + bytes([64] * 192)


def read_codons(letters: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Codon that begins at each of (n,) bases and goes right, and the one on the other strand that ends there."""
    text = letters.tobytes()
    codons = np.full(len(text), NO_CODON, dtype=np.uint8)
    if len(text) >= 3:
        first, second, third = (
            np.frombuffer(text.translate(table), dtype=np.uint8) for table in (_FIRST, _SECOND, _THIRD)
        )
        np.bitwise_or(first[:-2], second[1:-1], out=codons[:-2])
        codons[:-2] |= third[2:]
        np.minimum(codons, NO_CODON, out=codons)
    return codons, np.frombuffer(bytearray(codons).translate(_OPPOSITE), dtype=np.uint8)


@kernel
def translate(
    count: int,
    codons: NDArray[np.uint8],
    opposite: NDArray[np.uint8],
    firsts: NDArray[np.int64],
    strands: NDArray[np.int8],
    lengths: NDArray[np.int64],
    residues: NDArray[np.uint8],
    places: NDArray[np.int64],
    proteins: NDArray[np.uint8],
) -> None:
    """Write proteins.

    Args:
        count: p, how many.
        codons: as of ``read_codons``.
        opposite: likewise.
        firsts: (p,) where the first codon of each lies in the array of its strand.
        strands: (p,) 1 or -1, whither the others lie, three bases each.
        lengths: (p,) codons of each.
        residues: (65,) of codons.
        places: (p,) where each begins in ``proteins``.
        proteins: to be filled.
    """
    for number in range(count):
        row = codons if strands[number] == 1 else opposite
        step, at, to = 3 * strands[number], firsts[number], places[number]
        for k in range(lengths[number]):
            proteins[to + k] = residues[row[at + k * step]]
