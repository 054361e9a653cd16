"""Six reading frames of a fragment, and which of them are kept.

A frame is kept when its protein has no stop codon and is not empty; no start codon is asked for.
A codon that holds a letter other than A C G T yields nothing, so the protein closes up over it. The
kept nucleotide string is ``strand[f : f + 3 * len(protein) + 1]``: one base more than the codons.

Both strands of a stretch are translated once, in the three frames of its first base; a frame of a fragment is then a
piece of one of these six proteins, and what is open is told from the places of all stop codons.

Source: Li et al., Briefings in Bioinformatics 26(3), bbaf224, 2025, and its reference scripts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro.sequence.ragged import offsets_of

AMINO_ACIDS = b"KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
"""NCBI genetic code 1; the first base varies slowest, in the order A C G T."""
_FRAMES = np.array([1, 2, 3, -1, -2, -3, 0])

_STOP, _NOTHING = ord("*"), b"\0"
_NO_CODON = 64
_TRANSLATE = AMINO_ACIDS + _NOTHING + bytes(range(65, 256))
COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")
_OTHER_LETTER = 4


CODES = bytes(b"ACGT".index(letter) if letter in b"ACGT" else _OTHER_LETTER for letter in range(256))
"""0 to 3 for A C G T, 4 for any other letter."""
_LETTERS = bytes(range(256)).upper().translate(bytes.maketrans(b"U", b"T"))


@dataclass(frozen=True)
class KeptFrames:
    """Kept frames of w fragments, n in all, in order of the fragments."""

    counts: NDArray[np.int64]  # (w,) how many each fragment has
    # (n,) +1 +2 +3 -1 -2 -3, or 0 for a whole fragment without an open frame
    frames: NDArray[np.int64]
    starts: NDArray[np.int64]  # (n,) where each begins, in the letters that were read
    stops: NDArray[np.int64]  # (n,) where each ends
    nucleotides: list[bytes]  # n kept strings
    proteins: list[bytes]  # of each; empty where the frame is 0


def normalise(bases: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Letters in upper case, with U read as T; ``bases`` holds letters only."""
    return np.frombuffer(bases.tobytes().translate(_LETTERS), dtype=np.uint8)


def find_frames(
    letters: NDArray[np.uint8],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    *,
    score_frameless: bool,
    is_masked: NDArray[np.bool_] | None = None,
) -> KeptFrames:
    """The frames of fragments that are kept; what lies between the fragments is translated too.

    Args:
        letters: from :func:`normalise`.
        starts: (w,) where fragments start, rising.
        stops: (w,) where they end.
        score_frameless: a fragment without a kept frame gives one row of frame 0, the whole fragment.
        is_masked: (w,) fragments that have no rows at all.
    """
    masked = np.zeros(len(starts), dtype=np.bool_) if is_masked is None else is_masked
    # Both strands of the stretch are one string, forward first: places in it are those of the two, end to end.
    first, last = int(starts.min(initial=len(letters))), int(stops.max(initial=0))
    text = letters[first : max(first, last)].tobytes()
    both = text + text.translate(COMPLEMENT)[::-1]
    residues, phase_starts = _translated(both)
    phases = np.arange(3)
    lengths = (stops - starts)[:, None, None]
    begins = np.stack([starts - first, len(text) + last - stops], axis=1)[:, :, None] + phases  # (w, strands, 3)
    num_codons = np.broadcast_to(np.maximum((lengths - phases) // 3, 0), begins.shape)
    codons = phase_starts[begins % 3] + begins // 3  # the first of each, in ``residues``
    is_open, num_silent = _look(residues, codons, codons + num_codons)
    num_residues = num_codons - num_silent
    ends = np.minimum(begins - phases + lengths, begins + 3 * num_residues + 1)
    is_kept = is_open & (num_residues > 0) & ~masked[:, None, None]
    # Frame 0 is one more, the last: the whole fragment.
    is_frameless = ~is_kept.any(axis=(1, 2)) & ~masked & score_frameless
    fragments, numbers = np.nonzero(np.column_stack([is_kept.reshape(-1, 6), is_frameless]))
    whole = starts - first, stops - first, 0 * starts, 0 * starts
    begins, ends, codons, num_codons = (
        np.column_stack([each.reshape(-1, 6), of_whole])[fragments, numbers]
        for each, of_whole in zip((begins, ends, codons, num_codons), whole, strict=True)
    )
    nucleotides = [both[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    proteins = [residues[at:to] for at, to in zip(codons.tolist(), (codons + num_codons).tolist(), strict=True)]
    if num_silent.any():
        proteins = [protein.replace(_NOTHING, b"") for protein in proteins]
    is_reverse = (numbers >= 3) & (numbers < 6)
    starts = np.where(is_reverse, last + len(text) - ends, first + begins)
    counts = np.bincount(fragments, minlength=len(masked))
    return KeptFrames(counts, _FRAMES[numbers], starts, starts + ends - begins, nucleotides, proteins)


def _look(
    residues: bytes, starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether stretches of residues hold no stop, and how many of their codons yield nothing; both of their shape."""
    letters = np.frombuffer(residues, dtype=np.uint8)
    stop_places = np.append(np.flatnonzero(letters == _STOP), len(letters))
    silent = np.flatnonzero(letters == _NOTHING[0])
    num_silent = np.searchsorted(silent, stops) - np.searchsorted(silent, starts) if len(silent) else 0 * starts
    return stop_places[np.searchsorted(stop_places[:-1], starts)] >= stops, num_silent


def _translated(strand: bytes) -> tuple[bytes, NDArray[np.int64]]:
    """Residues of the codons of a strand, frame after frame, a zero for one that yields nothing; where frames begin."""
    codes = np.frombuffer(strand.translate(CODES), dtype=np.uint8)
    codons = (codes[:-2] << 4) | (codes[1:-1] << 2) | codes[2:]
    is_other = codes == _OTHER_LETTER
    if is_other.any():
        codons[is_other[:-2] | is_other[1:-1] | is_other[2:]] = _NO_CODON
    frames = [codons[frame::3] for frame in range(3)]
    return np.concatenate(frames).tobytes().translate(_TRANSLATE), offsets_of(np.array(list(map(len, frames))))[:3]
