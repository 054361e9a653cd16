"""Fragments to what the nearest proteins say of them, for models that ask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.bundles import Bundle
from virnucpro.nearest.evidence import Evidence, found_of, look_at, search_fragments
from virnucpro.nearest.fragments import BASES_AT_A_TIME
from virnucpro.nearest.search import Hits, search_codes
from virnucpro.nearest.table import Table, load_table
from virnucpro.sequence.ragged import Ragged
from virnucpro.stages.base import Index, Run, features_made_from


@dataclass(frozen=True)
class _Fragments:
    """The fragments of a unit that have rows, each as its first row tells it."""

    unit: int  # its number
    digest: str  # of the unit
    num_fragments: int  # of the unit
    places: NDArray[np.int64]  # (n,) which of them they are
    nucleotides: Ragged  # n strings, on either strand, but for two bases at either end


def run(run: Run, index: Index, units: Iterable[int], num_threads: int) -> None:
    """Search the fragments of those of the units that lack this evidence.

    Raises:
        ModelError: the table cannot be read.
    """
    todo = _lacking(run, units)
    if run.bundle.nearest is None or not todo:
        return
    table = load_table(run.bundle.nearest)
    with run.reporter.stage("nearest", sum(index.units[unit].num_rows for unit in todo), "rows") as advance:
        for together in _together(run, todo):
            _search(run, table, together, num_threads)
            advance(sum(index.units[unit.unit].num_rows for unit in together))


def search_with_fragments(run: Run, index: Index, table: Table, proteins: Ragged, num_threads: int) -> Hits:
    """What is nearest to proteins (residue codes).

    A small input, of one unit, has its fragments searched for in the same pass over the table.
    """
    todo = _lacking(run, range(len(index.units))) if len(index.units) == 1 else []
    for together in _together(run, todo):
        return _search(run, table, together, num_threads, proteins)
    return search_codes(table, proteins, num_threads=num_threads)


def _lacking(run: Run, units: Iterable[int]) -> list[int]:
    """Units that lack this evidence, for models that ask for it."""
    asks = run.bundle.nearest is not None and run.bundle.evidence is not None
    return [unit for unit in units if not run.dir.nearest(unit).exists()] if asks else []


def _search(
    run: Run, table: Table, together: list[_Fragments], num_threads: int, proteins: Ragged | None = None
) -> Hits:
    """Write the evidence of some units; returns what is nearest to the proteins."""
    fragments = Ragged.concatenate(unit.nucleotides for unit in together)
    frames, hits = search_fragments(table, fragments, num_threads, proteins)
    log_odds = _evidence(run.bundle).log_odds(found_of(fragments, frames, hits))
    ends = np.cumsum([len(unit.nucleotides) for unit in together])
    for unit, found in zip(together, np.split(log_odds, ends[:-1]), strict=True):
        evidence = np.zeros(unit.num_fragments, dtype=np.float32)
        evidence[unit.places] = found
        made_from = features_made_from(run.bundle, run.dtype, unit.digest)
        store.write_arrays(run.dir.nearest(unit.unit), "nearest", {"log_odds": evidence}, made_from)
    return hits.after(len(fragments))


def _evidence(bundle: Bundle) -> Evidence:
    if bundle.evidence is None:
        raise ValueError(f"model {bundle.name} has no table of proteins")
    return bundle.evidence


def evidence_of(bundle: Bundle, table: Table, fragments: Ragged, num_threads: int = 1) -> NDArray[np.float32]:
    """(n,) log-odds of fragments (ASCII bases)."""
    return _evidence(bundle).log_odds(look_at(table, fragments, num_threads))


def first_rows(num_rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fragments that have rows, and the first row of each; ``num_rows`` (f,) of all fragments."""
    places = np.flatnonzero(num_rows)
    return places, (np.cumsum(num_rows) - num_rows)[places]


def _together(run: Run, todo: Sequence[int]) -> Iterator[list[_Fragments]]:
    """Units, as many at a time as are searched for together."""
    units: list[_Fragments] = []
    for number in todo:
        path = run.dir.unit(number)
        table = store.read_unit(path, ("nucleotides",))
        places, rows = first_rows(table.fragments["num_rows"].astype(np.int64))
        digest = store.read_attributes(path, "unit")["digest"]
        units.append(_Fragments(number, digest, len(table.fragments), places, table.nucleotides.take(rows)))
        if sum(len(unit.nucleotides.values) for unit in units) >= BASES_AT_A_TIME:
            yield units
            units = []
    if units:
        yield units
