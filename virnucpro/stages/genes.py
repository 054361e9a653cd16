"""Genes of the longer records, and the viral and the cellular protein that are nearest to each.

A unit's file holds the genes of the records that end in it, found on the whole record, whatever units its bases lie in,
and the repeats around what may be proviruses; a unit of nothing but short records has no file. Units are read in order
and searched some at a time, since a search takes one pass over the table of proteins; what a gene gets does not depend
on that. One more file says what the organisms of the nearest viral proteins are called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.atomic import read_json, write_json
from virnucpro.bundles import Bundle, load_bundle
from virnucpro.errors import ModelError
from virnucpro.nearest.genes import SHORTEST_RECORD_NT, find_genes
from virnucpro.nearest.path import find_candidates
from virnucpro.nearest.repeats import SITE_DTYPE, find_sites
from virnucpro.nearest.search import VIRUS, Hits
from virnucpro.nearest.table import Table, load_table
from virnucpro.results.stored_table import GENE_DTYPE
from virnucpro.run_dir import RunDir
from virnucpro.sequence.frames import normalise
from virnucpro.sequence.gaps import Gaps, others_of
from virnucpro.sequence.ragged import Ragged
from virnucpro.stages.base import Index, Run
from virnucpro.stages.nearest import search_with_fragments

KIND = "genes"
_RESIDUES_A_PASS = 1 << 24
"""Units are searched together until their genes have so many residues, some 60 Mb of bacteria."""


@dataclass(frozen=True)
class _Record:
    """A record with its genes."""

    unit: int  # in which it ends
    gaps: Gaps  # its gaps
    letters: NDArray[np.uint8]  # its bases without them
    genes: NDArray[np.void]  # (g,) GENE_DTYPE, on these bases, without bits
    proteins: Ragged  # g items of residue codes


@dataclass
class _Batch:
    """Units that are searched together."""

    units: list[int] = field(default_factory=list)
    records: list[_Record] = field(default_factory=list)
    num_residues: int = 0

    def add(self, record: _Record) -> None:
        self.records.append(record)
        self.num_residues += len(record.proteins.values)


def run(run: Run, index: Index, num_threads: int) -> None:
    """Find the genes of long records in the units that lack them; nothing where there is no table of proteins."""
    path = protein_table(run.bundle)
    long = [unit for unit, indexed in enumerate(index.units) if indexed.longest_nt >= SHORTEST_RECORD_NT]
    todo = [unit for unit in long if not run.dir.genes(unit).exists()]
    if path is None or not long or (not todo and run.dir.organisms.exists()):
        return
    table = load_table(path)
    with ThreadPoolExecutor(num_threads) as pool, run.reporter.stage("genes", len(todo), "units") as advance:
        for batch in _batches(run, index, todo, pool, num_threads):
            proteins = Ragged.concatenate([record.proteins for record in batch.records])
            hits = search_with_fragments(run, index, table, proteins, num_threads)
            _write(run, table, batch, hits, pool)
            advance(len(batch.units))
    _write_organisms(run, index, table)


def protein_table(bundle: Bundle) -> Path | None:
    """The table that genes are searched in: the model's own, or that of ``lite``, which is evidence of any model."""
    return bundle.nearest or load_bundle("lite").nearest


def proteins_of(run_dir: RunDir) -> Path:
    """The table of the model that a run was asked for, where that is a folder that is still there; else of ``lite``.

    Raises:
        ModelError: neither has one.
    """
    model = str(read_json(run_dir.request)["settings"]["science.model"]) if run_dir.request.is_file() else "lite"
    path = protein_table(load_bundle(model if Path(model).is_dir() else "lite"))
    if path is None:
        raise ModelError("lite has no table of proteins here, by which hits are named. Bring the whole bundle folder.")
    return path


def read(run_dir: RunDir, unit: int) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """Genes and sites of the records that end in a unit; none where they were not looked for."""
    path = run_dir.genes(unit)
    if not path.exists():
        return np.zeros(0, dtype=GENE_DTYPE), np.zeros(0, dtype=SITE_DTYPE)
    arrays = store.read_arrays(path, KIND, "genes", "sites")
    return arrays["genes"], arrays["sites"]


def read_organisms(run_dir: RunDir) -> dict[str, tuple[str, str]]:
    """Number of an organism to its name and family; empty where no genes were looked for."""
    return read_json(run_dir.organisms, dict[str, tuple[str, str]]) if run_dir.organisms.exists() else {}


def _batches(run: Run, index: Index, todo: list[int], pool: ThreadPoolExecutor, num_threads: int) -> Iterator[_Batch]:
    """Units with the genes of their records; a thread looks for those of a record while others are read."""
    batch = _Batch()
    finding: deque[Future[_Record]] = deque()
    for unit in todo:
        for number, letters in _records(run, index, unit):
            finding.append(pool.submit(_find, unit, number, letters))
            _collect(finding, batch, num_threads)
        batch.units.append(unit)
        if batch.num_residues >= _RESIDUES_A_PASS:
            _collect(finding, batch, 0)
            yield batch
            batch = _Batch()
    _collect(finding, batch, 0)
    if batch.units:
        yield batch


def _collect(finding: deque[Future[_Record]], batch: _Batch, num_left: int) -> None:
    """Wait for the first records that are looked at, all but some."""
    while len(finding) > num_left:
        batch.add(finding.popleft().result())


def _find(unit: int, number: int, letters: NDArray[np.uint8]) -> _Record:
    """A record with its genes."""
    letters = normalise(letters)
    gaps = Gaps.among(others_of(letters), np.array([0, len(letters)]))
    letters = gaps.close(letters)
    found = find_genes(letters)
    genes = np.zeros(len(found.starts), dtype=GENE_DTYPE)
    genes["sequence"], genes["nearest"] = number, -1
    genes["start"], genes["stop"], genes["strand"] = found.starts, found.stops, found.strands
    return _Record(unit, gaps, letters, genes, found.proteins)


def _records(run: Run, index: Index, unit: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Number and bases of the records that end in a unit and are long enough to have genes."""
    indexed = index.units[unit]
    goes_on = unit + 1 < len(index.units) and index.units[unit + 1].first_sequence < indexed.stop_sequence
    stop = indexed.stop_sequence - goes_on
    if indexed.first_sequence >= stop:
        return
    first = unit
    while first > 0 and index.units[first - 1].stop_sequence > indexed.first_sequence:
        first -= 1
    pieces: list[NDArray[np.uint8]] = []  # of the record that is being put together
    current = indexed.first_sequence
    for part in range(first, unit + 1):
        table = store.read_unit(run.dir.unit(part), ("pieces",))
        for place, number in enumerate(table.piece_sequences.tolist()):
            if number < current or number >= stop:
                continue
            if number != current:
                yield from _whole(current, pieces)
                current, pieces = number, []
            pieces.append(table.pieces[place])
    yield from _whole(current, pieces)


def _whole(number: int, pieces: list[NDArray[np.uint8]]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    if sum(map(len, pieces)) >= SHORTEST_RECORD_NT:
        yield number, np.concatenate(pieces)


def _write(run: Run, table: Table, batch: _Batch, hits: Hits, pool: ThreadPoolExecutor) -> None:
    """Write the files of some units, with what is nearest to their genes."""
    bits, done = hits.bits, 0
    of_unit: dict[int, list[int]] = {unit: [] for unit in batch.units}
    for place, record in enumerate(batch.records):
        mine = slice(done, done + len(record.genes))
        done = mine.stop
        record.genes["bits_virus"], record.genes["bits_cell"] = bits[mine].T
        nearest = hits.proteins[mine, VIRUS]
        record.genes["nearest"] = np.where(nearest >= 0, table.organisms[nearest], -1)
        of_unit[record.unit].append(place)
    sites_of = list(pool.map(_sites, batch.records))
    made_from = {"fingerprint": run.bundle.fingerprint}
    for unit, places in of_unit.items():
        unit_digest = store.read_attributes(run.dir.unit(unit), "unit")["digest"]
        arrays = {"genes": [np.zeros(0, dtype=GENE_DTYPE)], "sites": [np.zeros(0, dtype=SITE_DTYPE)]}
        for place in places:
            record = batch.records[place]
            arrays["genes"].append(_as_given(record, record.genes))
            arrays["sites"].append(_as_given(record, sites_of[place]))
        whole = {name: np.concatenate(parts) for name, parts in arrays.items()}
        store.write_arrays(run.dir.genes(unit), KIND, whole, made_from | {"unit_digest": unit_digest})


def _as_given(record: _Record, items: NDArray[np.void]) -> NDArray[np.void]:
    """Genes or sites, changed in place: where they lie on the record as it was given; a gene may span a gap."""
    items["start"], items["stop"] = record.gaps.opened(items["start"], items["stop"])
    return items


def _sites(record: _Record) -> NDArray[np.void]:
    """Repeats around what may be proviruses by the genes alone."""
    found = [np.zeros(0, dtype=SITE_DTYPE)]
    found += [
        find_sites(record.letters, start, stop) for start, stop in find_candidates(record.genes, len(record.letters))
    ]
    sites = np.unique(np.concatenate(found))
    if len(sites):
        sites["sequence"] = record.genes["sequence"][0]
    return sites


def _write_organisms(run: Run, index: Index, table: Table) -> None:
    """Name and family of the organisms of all nearest viral proteins."""
    seen: set[int] = set()
    for unit in range(len(index.units)):
        seen.update(np.unique(read(run.dir, unit)[0]["nearest"]).tolist())
    seen.discard(-1)
    names = {
        str(organism): [table.organism_names[organism], table.group_names[table.groups[organism]]]
        for organism in sorted(seen)
    }
    write_json(run.dir.organisms, names)
