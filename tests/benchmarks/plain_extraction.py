"""Peers of extraction: the published rule (Li et al. 2025, bbaf224) written plainly, and the same with Biopython."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

Row = tuple[str, str, str]
"""Published row name, nucleotides, protein."""

_BASES = "TCAG"
_AMINO_ACIDS = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
_CODONS = dict(zip((a + b + c for a in _BASES for b in _BASES for c in _BASES), _AMINO_ACIDS, strict=True))
_COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}


def has_biopython() -> bool:
    """Whether it is installed."""
    return find_spec("Bio") is not None


def plain_rows(path: Path, fragment_length: int) -> list[Row]:
    """Kept frames of a FASTA file, in plain Python."""
    return _rows(_records(path), fragment_length, _translate)


def biopython_rows(path: Path, fragment_length: int) -> list[Row]:
    """Kept frames of a FASTA file; Biopython reads and translates. Without ambiguity codes it is the same rule."""
    records = ((record.id, str(record.seq)) for record in import_module("Bio.SeqIO").parse(path, "fasta"))
    translate = import_module("Bio.Seq").translate
    return _rows(records, fragment_length, lambda strand: str(translate(strand[: len(strand) // 3 * 3])))


def cut_windows(length: int, fragment_length: int) -> list[tuple[int, int]]:
    """Start and stop of each window; the surplus is spread by the published gap list."""
    k = -(-length // fragment_length)
    surplus = k * fragment_length - length
    lower = surplus // k
    num_upper = surplus - lower * (k - 1)
    gaps = [lower + 1] * num_upper + [lower] * max(0, k - 1 - num_upper) + [0]
    bounds = []
    taken = 0
    for i in range(k):
        start = i * fragment_length - taken
        bounds.append((start, min(start + fragment_length, length)))
        taken += gaps[i]
    return bounds


def _rows(records: Iterator[tuple[str, str]], fragment_length: int, translate: Callable[[str], str]) -> list[Row]:
    rows = []
    for name, bases in records:
        for number, (start, stop) in enumerate(cut_windows(len(bases), fragment_length), start=1):
            forward = bases[start:stop].upper().replace("U", "T")
            reverse = "".join(_COMPLEMENT.get(letter, letter) for letter in reversed(forward))
            for letter, strand in (("F", forward), ("R", reverse)):
                for f in range(3):
                    protein = translate(strand[f:])
                    if protein and "*" not in protein:
                        nucleotides = strand[f : f + 3 * len(protein) + 1]
                        rows.append((f"{name}_chunk_{number}{letter}{f + 1}", nucleotides, protein))
    return rows


def _records(path: Path) -> Iterator[tuple[str, str]]:
    name, lines = "", list[str]()
    with path.open() as stream:
        for line in stream:
            if line.startswith(">"):
                if name:
                    yield name, "".join(lines)
                name, lines = line[1:].split()[0], []
            else:
                lines.append(line.strip())
    if name:
        yield name, "".join(lines)


def _translate(strand: str) -> str:
    return "".join(_CODONS.get(strand[i : i + 3], "") for i in range(0, len(strand) - 2, 3))
