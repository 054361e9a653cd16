"""Units to measure with: open coding DNA of the model's fragment length, through the real extraction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from virnucpro import store
from virnucpro.bundles import Bundle
from virnucpro.machine.reads import write_reads
from virnucpro.run_dir import RunDir
from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import UnitTable
from virnucpro.stages.base import ROLES

_SEED = 1


@dataclass(frozen=True)
class StoredUnits:
    """Unit files ``0 .. num_units - 1`` in a run directory of their own."""

    run_dir: RunDir  # where
    num_units: int  # how many


def draw_strings(folder: Path, bundle: Bundle, num_rows: int) -> dict[str, Ragged]:
    """``num_rows`` rows in memory: the strings of each role."""
    (table,) = _draw_units(folder, bundle, num_rows, 1)
    strings = dict(zip(ROLES, (table.nucleotides, table.proteins), strict=True))
    return {role: of_role.slice(0, min(num_rows, len(table))) for role, of_role in strings.items()}


def store_units(folder: Path, bundle: Bundle, num_rows: int, num_units: int) -> StoredUnits:
    """``num_units`` files of about ``num_rows`` rows each, as extraction writes them."""
    run_dir = RunDir(folder)
    for unit, table in enumerate(_draw_units(folder, bundle, num_rows, num_units)):
        store.write_unit(run_dir.unit(unit), table)
    return StoredUnits(run_dir, num_units)


def _draw_units(folder: Path, bundle: Bundle, num_rows: int, num_units: int) -> Iterator[UnitTable]:
    """The same units for the same bundle. Every read has at least one open frame, so there are enough of them."""
    folder.mkdir(parents=True, exist_ok=True)
    reads = write_reads(folder / "reads.fasta", num_rows * num_units, bundle.fragment_length, 1.0, _SEED)
    extraction = Extraction(
        [str(reads)],
        fragment_length=bundle.fragment_length,
        min_length=bundle.min_length,
        unit_rows=num_rows,
        score_frameless=bundle.scores_frameless,
    )
    return islice(extraction.units(), num_units)
