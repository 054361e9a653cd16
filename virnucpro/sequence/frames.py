"""Six reading frames of a fragment, and which of them are kept.

A frame is kept when its protein has no stop codon and is not empty; no start codon is asked for.
A codon that holds a letter other than A C G T yields nothing, so the protein closes up over it. The
kept nucleotide string is ``strand[f : f + 3 * len(protein) + 1]``: one base more than the codons.

Source: Li et al., Briefings in Bioinformatics 26(3), bbaf224, 2025, and its reference scripts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel
from virnucpro.sequence.table import FRAGMENT_DTYPE, ROW_DTYPE

_CODE_ORDER = "TCAG"
_AMINO_ACIDS = b"FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
"""NCBI genetic code 1; the first base varies slowest, in the order T C A G."""

_STOP = ord("*")

# A codon is a byte: six bits for its letters, and whether a stop codon is read there, on either strand.
_FORWARD_STOP, _REVERSE_STOP = 0x80, 0x40
_OTHER_LETTER = 0x40
"""The code of any letter but A C G T (0 to 3, two bits of their ASCII)."""


def _number(codon: str) -> int:
    a, b, c = ((ord(letter) >> 1) & 3 for letter in codon)
    return a << 4 | b << 2 | c


_TAA, _TAG, _TGA = (_number(codon) for codon in ("TAA", "TAG", "TGA"))
_TTA, _CTA, _TCA = (_number(codon) for codon in ("TTA", "CTA", "TCA"))
"""Stop codons on the other strand."""
_NO_CODON = _TAA
"""The byte where a letter is not A C G T; TAA itself never stands without its stop bit."""


def _codon_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Amino acid of a codon byte read forward, and of its reverse complement; 0 where there is none."""
    complement = str.maketrans("ACGT", "TGCA")
    codons = [a + b + c for a in _CODE_ORDER for b in _CODE_ORDER for c in _CODE_ORDER]
    amino_acids = dict(zip(codons, _AMINO_ACIDS, strict=True))
    forward, reverse = np.zeros((2, 256), dtype=np.uint8)
    for codon, amino_acid in amino_acids.items():
        opposite = amino_acids[codon[::-1].translate(complement)]
        byte = _number(codon) | _FORWARD_STOP * (amino_acid == _STOP) | _REVERSE_STOP * (opposite == _STOP)
        forward[byte] = amino_acid
        reverse[byte] = opposite
    return forward, reverse


_FORWARD, _REVERSE = _codon_tables()

_FRAMES = np.array([1, 2, 3, -1, -2, -3, 0], dtype=np.int8)
"""The frame of each bit of a set of frames."""
MAX_FRAMES = 6
_WHOLE = MAX_FRAMES
"""The bit of frame 0, a whole fragment."""


class RowBuffers(NamedTuple):
    """Room for the rows of a unit.

    ``nucleotide_offsets[i + 1]`` and ``protein_offsets[i + 1]`` say where the strings of row ``i`` end.

    Attributes:
        rows: (n,) ROW_DTYPE, without their sources.
        nucleotide_offsets: (n + 1,) int64.
        protein_offsets: (n + 1,) int64.
        nucleotides: uint8.
        proteins: uint8.
    """

    rows: NDArray[np.void]
    nucleotide_offsets: NDArray[np.int64]
    protein_offsets: NDArray[np.int64]
    nucleotides: NDArray[np.uint8]
    proteins: NDArray[np.uint8]


def row_buffers(num_rows: int, fragment_length: int) -> RowBuffers:
    """Room for ``num_rows`` rows of fragments of at most ``fragment_length`` bases."""
    return RowBuffers(
        rows=np.empty(num_rows, dtype=ROW_DTYPE),
        nucleotide_offsets=np.zeros(num_rows + 1, dtype=np.int64),
        protein_offsets=np.zeros(num_rows + 1, dtype=np.int64),
        nucleotides=np.empty(num_rows * fragment_length, dtype=np.uint8),
        proteins=np.empty(num_rows * (fragment_length // 3), dtype=np.uint8),
    )


@kernel
def normalise(bases: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Letters in upper case, with U read as T; ``bases`` holds letters only."""
    letters = np.empty(len(bases), dtype=np.uint8)
    for i in range(len(bases)):
        letter = bases[i] & np.uint8(0xDF)
        letters[i] = letter - np.uint8(letter == np.uint8(85))  # U, the letter after T
    return letters


@kernel
def read_codons(letters: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n,) the codon that begins at each letter, as a byte; the last two have none and are not to be used.

    Args:
        letters: (n,) from :func:`normalise`.
    """
    codons = np.empty(len(letters), dtype=np.uint8)
    for i in range(len(letters)):
        letter = letters[i]
        is_base = (letter == 65) | (letter == 67) | (letter == 71) | (letter == 84)
        codons[i] = (letter >> np.uint8(1)) & np.uint8(3) if is_base else np.uint8(_OTHER_LETTER)
    # By comparisons where a table would do: so the compiler reads many codons at a time.
    for i in range(len(letters) - 2):
        a, b, c = codons[i], codons[i + 1], codons[i + 2]
        codon = np.uint8(a << np.uint8(4) | b << np.uint8(2) | c)
        is_stop = (codon == _TAA) | (codon == _TAG) | (codon == _TGA)
        is_reverse_stop = (codon == _TTA) | (codon == _CTA) | (codon == _TCA)
        codon |= np.uint8(_FORWARD_STOP) if is_stop else np.uint8(0)
        codon |= np.uint8(_REVERSE_STOP) if is_reverse_stop else np.uint8(0)
        codons[i] = codon if (a | b | c) < _OTHER_LETTER else np.uint8(_NO_CODON)
    return codons


@kernel
def find_frames(codons: NDArray[np.uint8], start: int, stop: int, score_frameless: bool) -> int:
    """The frames of a fragment that are kept: bits 0 to 6 for F1 F2 F3 R1 R2 R3 and N0.

    All codons are read: without an early end the compiler takes many at a time.

    Args:
        codons: from :func:`read_codons`.
        start: where the fragment starts in ``codons``.
        stop: where it ends.
        score_frameless: a fragment without a kept frame is kept as a whole (N0).
    """
    stops_0, stops_1, stops_2 = np.uint8(0), np.uint8(0), np.uint8(0)
    num_codons = max(0, stop - start - 2)
    at = np.uint64(start)  # unsigned indices spare numba the test for negative ones
    for _ in range(num_codons // 3):
        stops_0 |= codons[at]
        stops_1 |= codons[at + np.uint64(1)]
        stops_2 |= codons[at + np.uint64(2)]
        at += np.uint64(3)
    if num_codons % 3 > 0:
        stops_0 |= codons[at]
    if num_codons % 3 > 1:
        stops_1 |= codons[at + np.uint64(1)]
    found = 0
    for offset, stops in enumerate((stops_0, stops_1, stops_2)):
        is_forward, is_reverse = not stops & _FORWARD_STOP, not stops & _REVERSE_STOP
        if (is_forward or is_reverse) and _has_codon(codons, start + offset, stop - 2):
            found |= is_forward << offset
            # R1 reads the last codon first: the forward codons that start at the same remainder modulo 3
            found |= is_reverse << (3 + (stop - start - offset) % 3)
    return 1 << _WHOLE if score_frameless and not found else found


@kernel
def _has_codon(codons: NDArray[np.uint8], start: int, stop: int) -> bool:
    while start < stop and codons[start] == _NO_CODON:
        start += 3
    return start < stop


@kernel
def count_frames(found: int) -> int:
    """How many bits are set."""
    count = 0
    while found:
        found &= found - 1
        count += 1
    return count


@kernel
def _translate(
    codons: NDArray[np.uint8],
    at: int,
    step: int,
    num_codons: int,
    table: NDArray[np.uint8],
    proteins: NDArray[np.uint8],
    end: int,
) -> int:
    """Write a protein behind ``end``; returns where it ends."""
    for _ in range(num_codons):
        amino_acid = table[codons[np.uint64(at)]]
        proteins[np.uint64(end)] = amino_acid
        end += amino_acid != 0
        at += step
    return end


@kernel
def _copy(letters: NDArray[np.uint8], start: int, stop: int, nucleotides: NDArray[np.uint8], end: int) -> None:
    for i in range(stop - start):
        nucleotides[np.uint64(end + i)] = letters[np.uint64(start + i)]


@kernel
def _copy_reverse(letters: NDArray[np.uint8], start: int, stop: int, nucleotides: NDArray[np.uint8], end: int) -> None:
    """Write the reverse complement; letters other than A C G T stay as they are."""
    for i in range(stop - start):
        letter = letters[np.uint64(stop - 1 - i)]
        if (letter == 65) | (letter == 84):
            letter ^= np.uint8(65 ^ 84)
        elif (letter == 67) | (letter == 71):
            letter ^= np.uint8(67 ^ 71)
        nucleotides[np.uint64(end + i)] = letter


@kernel
def write_rows(
    letters: NDArray[np.uint8],
    codons: NDArray[np.uint8],
    fragments: NDArray[np.void],
    first_bases: NDArray[np.int64],
    found: NDArray[np.uint8],
    buffers: RowBuffers,
    num_rows: int,
) -> None:
    """Write the rows of some fragments behind those that are already there.

    Args:
        letters: from :func:`normalise`.
        codons: from :func:`read_codons`.
        fragments: (f,) FRAGMENT_DTYPE.
        first_bases: (f,) where in ``letters`` the record of each fragment begins.
        found: (f,) from :func:`find_frames`.
        buffers: where the rows go; there must be room for them.
        num_rows: rows that are already there.
    """
    # unpacked once: numba counts references at each attribute, which is slow
    rows, nucleotide_offsets, protein_offsets, nucleotides, proteins = buffers
    row = num_rows
    for i in range(len(fragments)):
        first_base = first_bases[i]
        for bit in range(_WHOLE + 1):
            if not (found[i] >> bit) & 1:
                continue
            start, stop = first_base + fragments[i]["start"], first_base + fragments[i]["stop"]
            end, first_residue = nucleotide_offsets[row], protein_offsets[row]
            last_residue = first_residue
            if bit == _WHOLE:
                _copy(letters, start, stop, nucleotides, end)
            elif bit < 3:
                start += bit
                last_residue = _translate(codons, start, 3, (stop - start) // 3, _FORWARD, proteins, first_residue)
                stop = min(stop, start + 3 * (last_residue - first_residue) + 1)
                _copy(letters, start, stop, nucleotides, end)
            else:
                stop -= bit - 3
                last_residue = _translate(codons, stop - 3, -3, (stop - start) // 3, _REVERSE, proteins, first_residue)
                start = max(start, stop - 3 * (last_residue - first_residue) - 1)
                _copy_reverse(letters, start, stop, nucleotides, end)
            rows[row]["sequence"] = fragments[i]["sequence"]
            rows[row]["fragment"] = fragments[i]["index"]
            rows[row]["frame"] = _FRAMES[bit]
            rows[row]["start"] = start - first_base
            rows[row]["stop"] = stop - first_base
            row += 1
            nucleotide_offsets[row] = end + stop - start
            protein_offsets[row] = last_residue


def keep_frames(
    letters: NDArray[np.uint8], start: int, stop: int, buffers: RowBuffers, num_rows: int, score_frameless: bool
) -> int:
    """Write the rows of one fragment by itself behind those that are already there; returns how many.

    Args:
        letters: the record's bases, from :func:`normalise`.
        start: where the fragment starts on its record.
        stop: where it ends.
        buffers: where the rows go; room for six more is needed.
        num_rows: rows that are already there.
        score_frameless: a fragment without a kept frame gives one row of frame 0, the whole fragment.
    """
    codons = read_codons(letters)
    found = np.array([find_frames(codons, start, stop, score_frameless)], dtype=np.uint8)
    num_found = count_frames(int(found[0]))
    fragments = np.array([(0, 0, start, stop, num_found, 0)], dtype=FRAGMENT_DTYPE)
    write_rows(letters, codons, fragments, np.zeros(1, dtype=np.int64), found, buffers, num_rows)
    return num_found
