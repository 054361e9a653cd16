"""What is measured with: generated reads, the same for the same seed, and units of them by the real extraction."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.bundles import Bundle
from virnucpro.run_dir import RunDir
from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import UnitTable
from virnucpro.stages.base import ROLES

_BLOCK_READS = 50_000
_UNITS_SEED = 1
_NAME_DIGITS = 9
_LETTERS = np.frombuffer(b"ACGT", dtype=np.uint8)
_STOPS = (b"TAA", b"TAG", b"TGA")
_SENSE = np.array(
    [[a, b, c] for a in b"ACGT" for b in b"ACGT" for c in b"ACGT" if bytes([a, b, c]) not in _STOPS], dtype=np.uint8
)


def random_bases(rng: np.random.Generator, num_reads: int, length_nt: int, coding_share: float) -> NDArray[np.uint8]:
    """Reads (num_reads, length_nt) of even composition; a share of them has no stop codon in frame +1."""
    reads = _LETTERS[rng.integers(0, 4, size=(num_reads, length_nt), dtype=np.uint8)]
    coding = np.flatnonzero(rng.random(num_reads) < coding_share)
    num_codons = length_nt // 3
    codons = _SENSE[rng.integers(0, len(_SENSE), size=(len(coding), num_codons), dtype=np.uint8)]
    reads[coding, : 3 * num_codons] = codons.reshape(len(coding), 3 * num_codons)
    return reads


def write_reads(
    path: Path, num_reads: int, length_nt: int, coding_share: float, seed: int, *, num_copies: int = 1
) -> Path:
    """Write a FASTA file with the names ``r000000000``, ``r000000001`` ..., one line a read.

    Args:
        path: of the file.
        num_reads: distinct reads.
        length_nt: of each.
        coding_share: share of them that has no stop codon in frame +1.
        seed: of the bases.
        num_copies: how often the whole set is written, each time under new names.
    """
    with path.open("wb") as stream:
        for copy in range(num_copies):
            rng = np.random.default_rng(seed)
            for first in range(0, num_reads, _BLOCK_READS):
                reads = random_bases(rng, min(_BLOCK_READS, num_reads - first), length_nt, coding_share)
                stream.write(_fasta_lines(reads, copy * num_reads + first))
    return path


def _fasta_lines(reads: NDArray[np.uint8], first: int) -> bytes:
    """Reads (num_reads, length_nt) as FASTA, numbered from ``first``."""
    num_reads, length_nt = reads.shape
    powers = 10 ** np.arange(_NAME_DIGITS - 1, -1, -1)
    lines = np.empty((num_reads, 2 + _NAME_DIGITS + 1 + length_nt + 1), dtype=np.uint8)
    lines[:, :2] = list(b">r")
    lines[:, 2 : 2 + _NAME_DIGITS] = np.arange(first, first + num_reads)[:, None] // powers % 10 + ord("0")
    lines[:, 2 + _NAME_DIGITS] = lines[:, -1] = ord("\n")
    lines[:, 3 + _NAME_DIGITS : -1] = reads
    return lines.tobytes()


def draw_strings(folder: Path, bundle: Bundle, num_rows: int) -> dict[str, Ragged]:
    """``num_rows`` rows in memory: the strings of each role."""
    (table,) = _draw_units(folder, bundle, num_rows, 1)
    strings = dict(zip(ROLES, (table.nucleotides, table.proteins), strict=True))
    return {role: of_role.slice(0, min(num_rows, len(table))) for role, of_role in strings.items()}


def store_units(folder: Path, bundle: Bundle, num_rows: int, num_units: int) -> RunDir:
    """A run directory with unit files of about ``num_rows`` rows each, as extraction writes them."""
    run_dir = RunDir(folder)
    for unit, table in enumerate(_draw_units(folder, bundle, num_rows, num_units)):
        store.write_unit(run_dir.unit(unit), table)
    return run_dir


def _draw_units(folder: Path, bundle: Bundle, num_rows: int, num_units: int) -> Iterator[UnitTable]:
    """The same units for the same bundle. Every read has at least one open frame, so there are enough of them."""
    folder.mkdir(parents=True, exist_ok=True)
    reads = write_reads(folder / "reads.fasta", num_rows * num_units, bundle.fragment_length, 1.0, _UNITS_SEED)
    extraction = Extraction(
        [str(reads)],
        fragment_length=bundle.fragment_length,
        min_length=bundle.min_length,
        unit_rows=num_rows,
        score_frameless=bundle.scores_frameless,
    )
    return islice(extraction.units(), num_units)
