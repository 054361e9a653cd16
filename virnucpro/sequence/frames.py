"""Six reading frames of a fragment, and which of them are kept.

A frame is kept when its protein has no stop codon and is not empty; no start codon is asked for.
A codon that holds a letter other than A C G T yields nothing, so the protein closes up over it. The
kept nucleotide string is ``strand[f : f + 3 * len(protein) + 1]``: one base more than the codons.

Both strands of a stretch are translated once, in the three frames of its first base; a frame of a fragment is then a
piece of one of these six proteins, and a stop codon in it a letter to look for.

Source: Li et al., Briefings in Bioinformatics 26(3), bbaf224, 2025, and its reference scripts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

AMINO_ACIDS = b"KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
"""NCBI genetic code 1; the first base varies slowest, in the order A C G T."""
MAX_FRAMES = 6

_STOP, _NOTHING = b"*", b"\0"
_NO_CODON = 64
_TRANSLATE = AMINO_ACIDS + _NOTHING + bytes(range(65, 256))
_COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")
_OTHER_LETTER = 4
_BATCH_WINDOWS = 1 << 11  # whose stretch is translated at once: about a million bases


def _code_table() -> bytes:
    codes = bytearray([_OTHER_LETTER] * 256)
    for code, letter in enumerate(b"ACGT"):
        codes[letter] = code
    return bytes(codes)


_CODES = _code_table()


def _letter_table() -> bytes:
    """Upper case, with U read as T."""
    return bytes(range(256)).upper().translate(bytes.maketrans(b"U", b"T"))


_LETTERS = _letter_table()


@dataclass(frozen=True)
class KeptFrames:
    """Kept frames of some fragments, in order of the fragments."""

    counts: list[int] = field(default_factory=list)  # how many each fragment has
    # +1 +2 +3 -1 -2 -3, or 0 for a whole fragment without an open frame
    frames: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # where each begins, in the letters that were read
    stops: list[int] = field(default_factory=list)  # where each ends
    nucleotides: list[bytes] = field(default_factory=list)  # kept strings
    proteins: list[bytes] = field(default_factory=list)  # of each; empty where the frame is 0


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
    """The frames of fragments that are kept.

    Args:
        letters: from :func:`normalise`.
        starts: (w,) where fragments start, rising.
        stops: (w,) where they end.
        score_frameless: a fragment without a kept frame gives one row of frame 0, the whole fragment.
        is_masked: (w,) fragments that have no rows at all.
    """
    kept = KeptFrames()
    masked = np.zeros(len(starts), dtype=np.bool_) if is_masked is None else is_masked
    for at in range(0, len(starts), _BATCH_WINDOWS):
        batch = slice(at, at + _BATCH_WINDOWS)
        first, last = int(starts[batch].min()), int(stops[batch].max())
        text = letters[first:last].tobytes()
        turned = text.translate(_COMPLEMENT)[::-1]
        strands = ((1, text, _translated(text)), (-1, turned, _translated(turned)))
        bounds = zip(starts[batch].tolist(), stops[batch].tolist(), masked[batch].tolist(), strict=True)
        for start, stop, is_silent in bounds:
            before = len(kept.frames)
            if not is_silent:
                for sign, strand, proteins in strands:
                    begin = start - first if sign > 0 else last - stop
                    _keep(kept, sign, strand, proteins, begin, begin + stop - start, first if sign > 0 else last)
                if score_frameless and len(kept.frames) == before:
                    _append(kept, 0, start, stop, text[start - first : stop - first], b"")
            kept.counts.append(len(kept.frames) - before)
    return kept


def _keep(
    kept: KeptFrames, sign: int, strand: bytes, proteins: tuple[bytes, ...], start: int, stop: int, origin: int
) -> None:
    """Append what is kept of a strand of a fragment.

    Args:
        kept: to be added to.
        sign: 1 or -1.
        strand: the stretch, reverse-complemented where ``sign`` is -1.
        proteins: it in its three frames.
        start: of the fragment in it.
        stop: of the fragment in it.
        origin: where the strand's first base lies in the letters; where it ends, for the reverse strand.
    """
    for begin in range(start, min(start + 3, stop)):
        codon, phase = begin // 3, begin % 3
        last = codon + (stop - begin) // 3
        if proteins[phase].find(_STOP, codon, last) >= 0:
            continue
        protein = proteins[phase][codon:last]
        if _NOTHING in protein:
            protein = protein.replace(_NOTHING, b"")
        if not protein:
            continue
        end = min(stop, begin + 3 * len(protein) + 1)
        bounds = (origin + begin, origin + end) if sign > 0 else (origin - end, origin - begin)
        _append(kept, sign * (begin - start + 1), *bounds, strand[begin:end], protein)


def _append(kept: KeptFrames, frame: int, start: int, stop: int, nucleotides: bytes, protein: bytes) -> None:
    kept.frames.append(frame)
    kept.starts.append(start)
    kept.stops.append(stop)
    kept.nucleotides.append(nucleotides)
    kept.proteins.append(protein)


def _translated(strand: bytes) -> tuple[bytes, ...]:
    """A strand's proteins in three frames; a zero where a codon has another letter than A C G T."""
    codes = np.frombuffer(strand.translate(_CODES), dtype=np.uint8)
    codons = (codes[:-2] << 4) | (codes[1:-1] << 2) | codes[2:]
    is_other = codes == _OTHER_LETTER
    if is_other.any():
        codons[is_other[:-2] | is_other[1:-1] | is_other[2:]] = _NO_CODON
    residues = codons.tobytes().translate(_TRANSLATE)
    return tuple(residues[frame::3] for frame in range(3))
