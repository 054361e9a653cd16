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

from virnucpro.sequence.compiled import compiled

_CODE_ORDER = "TCAG"
_AMINO_ACIDS = b"FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
"""NCBI genetic code 1; the first base varies slowest, in the order T C A G."""

_STOP = ord("*")
_ALL_CLOSED = 0b111111
_CODE_BITS = 3
_OTHER_LETTER = 4
"""The code of any letter but A C G T (0 to 3, two bits of their ASCII)."""


def _code(letter: str) -> int:
    return (ord(letter) >> 1) & 3


def _codon_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Amino acid of a codon read forward, and of its reverse complement; 0 where there is none."""
    forward = np.zeros(1 << (3 * _CODE_BITS), dtype=np.uint8)
    reverse = np.zeros_like(forward)
    complement = dict(zip(_CODE_ORDER, "AGTC", strict=True))
    codons = (a + b + c for a in _CODE_ORDER for b in _CODE_ORDER for c in _CODE_ORDER)
    for codon, amino_acid in zip(codons, _AMINO_ACIDS, strict=True):
        a, b, c = (_code(letter) for letter in codon)
        forward[(a << 2 * _CODE_BITS) | (b << _CODE_BITS) | c] = amino_acid
        c, b, a = (_code(complement[letter]) for letter in codon)
        reverse[(a << 2 * _CODE_BITS) | (b << _CODE_BITS) | c] = amino_acid
    return forward, reverse


def _complements() -> NDArray[np.uint8]:
    """The complement of A C G T; every other letter stays as it is."""
    table = np.arange(256, dtype=np.uint8)
    table[list(b"ACGT")] = list(b"TGCA")
    return table


_FORWARD, _REVERSE = _codon_tables()
_STOPS = (_FORWARD == _STOP).astype(np.uint8) | (_REVERSE == _STOP).astype(np.uint8) << np.uint8(1)
"""Bit 0: a stop codon read forward; bit 1: its reverse complement is one."""
_COMPLEMENT = _complements()


class RowBuffers(NamedTuple):
    """Room for the rows of a unit.

    ``nucleotide_offsets[i + 1]`` and ``protein_offsets[i + 1]`` say where the strings of row ``i`` end.

    Attributes:
        frames: (n,) int8, +1 +2 +3 -1 -2 -3 or 0.
        starts: (n,) int64 on the forward strand of the record.
        stops: (n,) int64.
        nucleotide_offsets: (n + 1,) int64.
        protein_offsets: (n + 1,) int64.
        nucleotides: uint8.
        proteins: uint8.
        codes: (fragment_length,) uint8, working space.
        codons: (fragment_length,) uint16, working space.
    """

    frames: NDArray[np.int8]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    nucleotide_offsets: NDArray[np.int64]
    protein_offsets: NDArray[np.int64]
    nucleotides: NDArray[np.uint8]
    proteins: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    codons: NDArray[np.uint16]


def row_buffers(num_rows: int, fragment_length: int) -> RowBuffers:
    """Room for ``num_rows`` rows of fragments of at most ``fragment_length`` bases."""
    return RowBuffers(
        frames=np.empty(num_rows, dtype=np.int8),
        starts=np.empty(num_rows, dtype=np.int64),
        stops=np.empty(num_rows, dtype=np.int64),
        nucleotide_offsets=np.zeros(num_rows + 1, dtype=np.int64),
        protein_offsets=np.zeros(num_rows + 1, dtype=np.int64),
        nucleotides=np.empty(num_rows * fragment_length, dtype=np.uint8),
        proteins=np.empty(num_rows * (fragment_length // 3), dtype=np.uint8),
        codes=np.empty(fragment_length, dtype=np.uint8),
        codons=np.empty(fragment_length, dtype=np.uint16),
    )


@compiled
def _has_ambiguous(letters: NDArray[np.uint8]) -> bool:
    # No early end: without one the compiler takes 32 letters at a time.
    found = False
    for i in range(len(letters)):
        letter = letters[i]
        found |= (letter != 65) & (letter != 67) & (letter != 71) & (letter != 84)
    return found


@compiled
def are_clear(letters: NDArray[np.uint8], offsets: NDArray[np.int64], least: int) -> NDArray[np.bool_]:
    """Whether at least ``least`` of each item's normalised letters are A, C, G or T."""
    clear = np.empty(len(offsets) - 1, dtype=np.bool_)
    for item in range(len(clear)):
        item_letters = letters[offsets[item] : offsets[item + 1]]
        missing = least - len(item_letters)
        if missing <= 0 and _has_ambiguous(item_letters):
            for letter in item_letters:
                missing += (letter != 65) & (letter != 67) & (letter != 71) & (letter != 84)
        clear[item] = missing <= 0
    return clear


@compiled
def normalise(bases: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Letters in upper case, with U read as T; ``bases`` holds letters only."""
    letters = np.empty(len(bases), dtype=np.uint8)
    for i in range(len(bases)):
        letter = bases[i] & np.uint8(0xDF)
        letters[i] = letter - np.uint8(letter == np.uint8(85))  # U, the letter after T
    return letters


@compiled
def _read_codons(letters: NDArray[np.uint8], codes: NDArray[np.uint8], codons: NDArray[np.uint16]) -> None:
    for i in range(len(letters)):
        letter = letters[i]
        is_base = (letter == 65) | (letter == 67) | (letter == 71) | (letter == 84)
        codes[i] = (letter >> np.uint8(1)) & np.uint8(3) if is_base else np.uint8(_OTHER_LETTER)
    for i in range(len(letters) - 2):
        codons[i] = (
            (np.uint16(codes[i]) << np.uint16(2 * _CODE_BITS))
            | (np.uint16(codes[i + 1]) << np.uint16(_CODE_BITS))
            | np.uint16(codes[i + 2])
        )


@compiled
def _find_stops(codons: NDArray[np.uint16]) -> int:
    """The reading frames that a stop codon closes: bits 0 1 2 for F1 F2 F3, bits 3 4 5 for R1 R2 R3.

    All codons are read: leaving a frame at its first stop codon costs more in mispredicted branches
    than it saves (measured on random and on coding DNA).
    """
    phase_0, phase_1, phase_2 = 0, 0, 0
    num_codons = len(codons)
    whole = num_codons // 3
    for i in range(whole):
        phase_0 |= _STOPS[codons[3 * i]]
        phase_1 |= _STOPS[codons[3 * i + 1]]
        phase_2 |= _STOPS[codons[3 * i + 2]]
    rest = num_codons - 3 * whole
    if rest > 0:
        phase_0 |= _STOPS[codons[3 * whole]]
    if rest > 1:
        phase_1 |= _STOPS[codons[3 * whole + 1]]
    closed = (phase_0 & 1) | (phase_1 & 1) << 1 | (phase_2 & 1) << 2
    # R1 reads the last codon first: the forward codons that start at the same remainder modulo 3
    reverse = (phase_0 >> 1) | (phase_1 >> 1) << 1 | (phase_2 >> 1) << 2
    for offset in range(3):
        phase = (num_codons + 2 - offset) % 3
        closed |= ((reverse >> phase) & 1) << (3 + offset)
    return closed


@compiled
def _translate(
    codons: NDArray[np.uint16],
    at: int,
    step: int,
    num_codons: int,
    table: NDArray[np.uint8],
    protein: NDArray[np.uint8],
) -> int:
    """Write the protein of one frame; returns its length.

    Unsigned indices spare numba the test for negative ones.
    """
    num_residues = 0
    for _ in range(num_codons):
        amino_acid = table[codons[np.uint64(at)]]
        protein[np.uint64(num_residues)] = amino_acid
        num_residues += amino_acid != 0
        at += step
    return num_residues


@compiled
def keep_frames(
    letters: NDArray[np.uint8], start: int, stop: int, buffers: RowBuffers, num_rows: int, score_frameless: bool
) -> int:
    """Write the kept frames of one fragment as rows ``num_rows`` and on; returns how many.

    Args:
        letters: the record's bases, from :func:`normalise`.
        start: where the fragment starts on its record.
        stop: where it ends.
        buffers: where the rows go; room for six more is needed.
        num_rows: rows that are already there.
        score_frameless: a fragment without a kept frame gives one row of frame 0, the whole fragment.
    """
    length = stop - start
    _read_codons(letters[start:stop], buffers.codes, buffers.codons)
    closed = _find_stops(buffers.codons[: max(0, length - 2)])
    if closed == _ALL_CLOSED and not score_frameless:
        return 0
    # unpacked once: numba counts references at each attribute, which is slow
    frames, starts, stops, nucleotide_offsets, protein_offsets, nucleotides, proteins, _, codons = buffers
    row = num_rows
    for bit in range(6):
        if (closed >> bit) & 1:
            continue
        offset = bit % 3
        is_forward = bit < 3
        at = offset if is_forward else length - 3 - offset
        first_residue = protein_offsets[row]
        num_residues = _translate(
            codons,
            at,
            3 if is_forward else -3,
            (length - offset) // 3,
            _FORWARD if is_forward else _REVERSE,
            proteins[first_residue:],
        )
        if num_residues == 0:
            continue
        span = min(length - offset, 3 * num_residues + 1)
        first_base = nucleotide_offsets[row]
        nucleotide = nucleotides[first_base : first_base + span]
        row_start = start + offset if is_forward else stop - offset - span
        kept = letters[row_start : row_start + span]
        if is_forward:
            nucleotide[:] = kept
        else:
            for i in range(span):
                nucleotide[i] = _COMPLEMENT[kept[span - 1 - i]]
        frames[row] = offset + 1 if is_forward else -offset - 1
        starts[row] = row_start
        stops[row] = row_start + span
        row += 1
        nucleotide_offsets[row] = first_base + span
        protein_offsets[row] = first_residue + num_residues
    if row == num_rows and score_frameless:
        first_base = nucleotide_offsets[row]
        nucleotides[first_base : first_base + length] = letters[start:stop]
        frames[row] = 0
        starts[row] = start
        stops[row] = stop
        row += 1
        nucleotide_offsets[row] = first_base + length
        protein_offsets[row] = protein_offsets[row - 1]
    return row - num_rows
