"""Six reading frames of a fragment, and which of them are kept.

A frame is kept when its protein has no stop codon and is not empty; no start codon is asked for.
A codon that holds a letter other than A C G T yields nothing, so the protein closes up over it. The
kept nucleotide string is ``strand[f : f + 3 * len(protein) + 1]``: one base more than the codons.

The codons at all places of a stretch are numbered once, on the forward strand: those of the reverse strand are the same
ones read backwards. Arithmetic on bytes takes a twentieth of the time of a look-up, so that only what is kept is
translated.

Source: Li et al., Briefings in Bioinformatics 26(3), bbaf224, 2025, and its reference scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro.sequence.ragged import Ragged, offsets_of

AMINO_ACIDS = b"KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
"""NCBI genetic code 1; the first base varies slowest, in the order A C G T."""
_FRAMES = np.array([1, 2, 3, -1, -2, -3, 0])
_WHOLE = 6  # place of frame 0

_BACKWARD, _NO_CODON = 64, 128  # bits of the number of a codon that is read backwards, or yields nothing
_REVERSED = [63 - (codon >> 4 | codon & 12 | (codon & 3) << 4) for codon in range(64)]
_RESIDUES = (AMINO_ACIDS + bytes(AMINO_ACIDS[codon] for codon in _REVERSED)).ljust(256, b"\0")
_STOPS = [codon for codon in range(64) if AMINO_ACIDS[codon] == ord("*")]
_BACKWARD_STOPS = [_REVERSED[codon] for codon in _STOPS]

COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")
OTHER_LETTER = 4


@dataclass(frozen=True)
class KeptFrames:
    """Kept frames of w fragments, n in all, in order of the fragments."""

    counts: NDArray[np.int64]  # (w,) how many each fragment has
    # (n,) +1 +2 +3 -1 -2 -3, or 0 for a whole fragment without an open frame
    frames: NDArray[np.int64]
    starts: NDArray[np.int64]  # (n,) where each begins, in the letters that were read
    stops: NDArray[np.int64]  # (n,) where each ends
    nucleotides: list[bytes]  # n kept strings
    proteins: Ragged  # of each; empty where the frame is 0


def normalise(bases: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Letters in upper case, with U read as T; ``bases`` holds letters only."""
    upper = bases & 0xDF
    return np.asarray(upper - (upper == ord("U")), dtype=np.uint8)


def codes_of(letters: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """0 to 3 for A C G T, ``OTHER_LETTER`` for any other; of normalised letters, in their shape."""
    codes = np.asarray((letters >> 1 ^ letters >> 2) & 3, dtype=np.uint8)
    np.copyto(codes, OTHER_LETTER, where=are_other(letters))
    return codes


def are_other(letters: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which normalised letters are not A, C, G or T."""
    return ~_are_any_of(letters, b"ACGT")


def find_frames(
    letters: NDArray[np.uint8],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    *,
    score_frameless: bool,
    is_masked: NDArray[np.bool_] | None = None,
) -> KeptFrames:
    """The frames of fragments that are kept; what lies between the fragments is looked at too.

    Args:
        letters: from :func:`normalise`.
        starts: (w,) where fragments start, rising.
        stops: (w,) where they end.
        score_frameless: a fragment without a kept frame gives one row of frame 0, the whole fragment.
        is_masked: (w,) fragments that have no rows at all.
    """
    is_judged = np.ones(len(starts), dtype=np.bool_) if is_masked is None else ~is_masked
    first, last = int(starts.min(initial=len(letters))), int(stops.max(initial=0))
    stretch = letters[first : max(first, last)]
    starts, stops = starts - first, stops - first
    is_other, codons, marks = _look(stretch)
    # Place and number of the codons of each frame: (w, strands, 3).
    phases = np.arange(3)
    num_codons = np.maximum((stops - starts)[:, None] - phases, 0) // 3
    places = np.stack([starts[:, None] + phases, stops[:, None] - phases - 3 * num_codons], axis=1)
    num_codons = np.stack([num_codons, num_codons], axis=1)
    is_kept = _are_open(marks, places, num_codons) & is_judged[:, None, None]
    is_frameless = ~is_kept.any(axis=(1, 2)) & is_judged & score_frameless
    fragments, numbers = np.nonzero(np.column_stack([is_kept.reshape(-1, 6), is_frameless]))
    places, num_codons = (
        np.column_stack([each.reshape(-1, 6), 0 * starts])[fragments, numbers] for each in (places, num_codons)
    )
    is_backward, phases = (numbers >= 3) & (numbers < _WHOLE), numbers % 3
    proteins = _translated(codons, places, num_codons, is_backward)
    starts, stops = starts[fragments], stops[fragments]
    lengths = np.where(numbers == _WHOLE, stops - starts, 3 * proteins.lengths + 1)
    starts, stops = (
        np.where(is_backward, np.maximum(starts, stops - phases - lengths), starts + phases),
        np.where(is_backward, stops - phases, np.minimum(stops, starts + phases + lengths)),
    )
    both = stretch.tobytes() + _complemented(stretch, is_other)[::-1].tobytes()
    begins, ends = (
        np.where(is_backward, len(both) - backward, forward).tolist()
        for forward, backward in ((starts, stops), (stops, starts))
    )
    return KeptFrames(
        counts=np.bincount(fragments, minlength=len(is_judged)),
        frames=_FRAMES[numbers],
        starts=first + starts,
        stops=first + stops,
        nucleotides=[both[begin:end] for begin, end in zip(begins, ends, strict=True)],
        proteins=proteins,
    )


_STOP, _BACKWARD_STOP, _RESIDUE = 1, 2, 4
_OPEN = np.array([[_STOP | _RESIDUE], [_BACKWARD_STOP | _RESIDUE]], dtype=np.uint8)
"""Marks that a frame of each strand is judged by: it is open when only the last is found."""


def _look(letters: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.uint8], NDArray[np.uint8]]:
    """Which letters are not A C G T; at each place the number of the codon that starts there, and its marks."""
    codes = codes_of(letters)
    is_other = codes == OTHER_LETTER
    codons = codes[:-2] * 16 | codes[1:-1] * 4 | codes[2:]
    marks = np.asarray(_RESIDUE | _are_any_of(codons, _STOPS).view(np.uint8) * _STOP, dtype=np.uint8)
    marks |= _are_any_of(codons, _BACKWARD_STOPS).view(np.uint8) * _BACKWARD_STOP
    if is_other.any():
        is_silent = is_other[:-2] | is_other[1:-1] | is_other[2:]
        codons[is_silent], marks[is_silent] = _NO_CODON, 0
    return is_other, codons, marks


def _are_open(marks: NDArray[np.uint8], places: NDArray[np.int64], num_codons: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(w, strands, 3) whether so many codons from a place on, a third of all, hold a residue and no stop.

    The marks of 1, 2, 4 ... codons from each place on are joined in turn; two of these spans cover any number.
    """
    found = np.zeros(places.size, dtype=np.uint8)
    firsts, counts = places.ravel(), num_codons.ravel()
    span = 1
    while span <= counts.max(initial=0):
        at = np.flatnonzero((counts >= span) & (counts < 2 * span))
        first = firsts[at]
        found[at] = marks[first] | marks[first + 3 * (counts[at] - span)]
        marks = marks[: -3 * span] | marks[3 * span :]
        span *= 2
    return np.asarray((found.reshape(places.shape) & _OPEN) == _RESIDUE)


def _translated(
    codons: NDArray[np.uint8],
    places: NDArray[np.int64],
    num_codons: NDArray[np.int64],
    is_backward: NDArray[np.bool_],
) -> Ragged:
    """Proteins of so many codons from a place on, a third of all, or back to it."""
    both = codons.tobytes() + (codons | _BACKWARD).tobytes()
    ends = places + 3 * num_codons
    firsts = np.where(is_backward, len(codons) + ends - 3, places).tolist()
    ends = np.where(is_backward, len(codons) + places - 1, ends).tolist()
    steps = np.where(is_backward, -3, 3).tolist()
    numbers = Ragged.from_bytes([both[first:end:step] for first, end, step in zip(firsts, ends, steps, strict=True)])
    residues = np.frombuffer(numbers.values.tobytes().translate(_RESIDUES), dtype=np.uint8)
    is_residue = residues != 0
    if is_residue.all():
        return Ragged(residues, numbers.offsets)
    return Ragged(residues[is_residue], offsets_of(is_residue.astype(np.int64))[numbers.offsets])


def _complemented(letters: NDArray[np.uint8], is_other: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Letters of the other strand, in the same order."""
    # The second bit is that of C and G, which differ in 4; A and T differ in 21.
    complement = np.asarray(letters ^ (21 - 17 * (letters >> 1 & 1)), dtype=np.uint8)
    np.copyto(complement, letters, where=is_other)
    return complement


def _are_any_of(values: NDArray[np.uint8], wanted: Sequence[int]) -> NDArray[np.bool_]:
    """Whether each value is among a few, one comparison for each of these."""
    found = values == wanted[0]
    for one in wanted[1:]:
        found |= values == one
    return np.asarray(found)
