"""Resolvers read from files: NCBI's taxdump, ICTV's MSL and VMR tables, plain TSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.atomic import file_digest
from virnucpro.errors import InputError
from virnucpro.hierarchy.resolvers import Claim, Resolver, TableResolver, UnknownNameError, normalise_name

ICTV_RANKS = (
    *("realm", "subrealm", "kingdom", "subkingdom", "phylum", "subphylum", "class", "subclass"),
    *("order", "suborder", "family", "subfamily", "genus", "subgenus", "species"),
)
"""Ranks of the ICTV from the top down, as its tables name their columns."""

_NAMES_OF_VIRUSES = ("virus name(s)", "virus names", "virus name")
_ABBREVIATIONS = ("virus name abbreviation(s)", "virus name abbreviations", "virus name abbreviation")
_NAME_CLASSES = {
    *("scientific name", "synonym", "genbank synonym", "equivalent name"),
    *("acronym", "genbank acronym", "common name", "genbank common name"),
}
"""Classes of NCBI's names.dmp by which an entry may be asked for."""


def read_tsv(path: Path) -> TableResolver:
    """Read a table of names and parents.

    Args:
        path: tab-separated text with a header; columns ``name`` and ``parent`` (empty for a root), and where they are
            there ``rank``, ``evidence``, ``confidence`` and ``synonyms`` (separated by ``;``). A name on several lines
            has several parents.

    Raises:
        InputError: it cannot be read, a column is missing, or a line makes no sense.
    """
    table = TableResolver(_source("tsv", path))
    for line, row in _delimited(path, "\t"):
        name, parent = row.get("name", ""), row.get("parent")
        if parent is None or not name:
            raise InputError(str(path), "expected the columns name and parent, with a name on each line.", line)
        try:
            confidence = float(row.get("confidence") or 1.0)
        except ValueError:
            raise InputError(str(path), f"confidence {row['confidence']!r} is not a number.", line) from None
        evidence = row.get("evidence") or f"{path.name}, line {line}"
        table.add(name, Claim(parent, evidence, row.get("rank") or "", confidence) if parent else None)
        for other in (row.get("synonyms") or "").split(";"):
            if other.strip():
                table.add_synonym(other.strip(), name)
    return _with_parents(table, path)


def read_ictv(path: Path) -> TableResolver:
    """Read a Master Species List or a Virus Metadata Resource of the ICTV, as it is published or saved as text.

    In a VMR the names of viruses lie below their species, and their abbreviations are synonyms.

    Args:
        path: ``.xlsx`` (needs openpyxl), ``.csv``, or tab-separated text.

    Raises:
        InputError: it cannot be read, or no sheet has the columns Genus and Species.
    """
    table = TableResolver(_source("ictv", path))
    rows = _sheets(path) if path.suffix == ".xlsx" else _delimited(path, "," if path.suffix == ".csv" else "\t")
    for line, row in rows:
        if not {"genus", "species"} <= row.keys():
            raise InputError(str(path), "expected a table of the ICTV with the columns Genus and Species.")
        place = f"{path.name}, row {line}"
        ranked = [(rank, row[rank]) for rank in ICTV_RANKS if row.get(rank)]
        for position, (rank, name) in enumerate(ranked):
            table.add(name, Claim(ranked[position - 1][1], place, rank) if position else None)
        if not (ranked and ranked[-1][0] == "species"):
            continue
        species, names = ranked[-1][1], _listed(row, _NAMES_OF_VIRUSES)
        for name in names:
            if normalise_name(name) != normalise_name(species):
                table.add(name, Claim(species, place, "virus"))
        for other in _listed(row, _ABBREVIATIONS):
            table.add_synonym(other, names[0] if names else species)
    return _with_parents(table, path)


def _listed(row: Mapping[str, str], columns: Iterable[str]) -> list[str]:
    cell = next((row[column] for column in columns if row.get(column)), "")
    return [name.strip() for name in cell.split(";") if name.strip()]


def read_taxdump(directory: Path) -> Resolver:
    """Read NCBI's taxonomy from a folder with ``names.dmp`` and ``nodes.dmp``.

    All of it takes a minute and 2 GB of memory; names are scientific names, synonyms, acronyms and common names.

    Raises:
        InputError: a file is missing or is not in NCBI's format.
    """
    numbers, parents, ranks = [], [], []
    for line, cells in _dump(directory / "nodes.dmp", 3):
        try:
            numbers.append(int(cells[0]))
            parents.append(int(cells[1]))
        except ValueError:
            raise InputError(str(directory / "nodes.dmp"), "expected taxonomy numbers.", line) from None
        ranks.append(cells[2])
    rank_names, rank_of = np.unique(np.array(ranks or [""]), return_inverse=True)
    size = max(numbers, default=0) + 1
    parent_of, rank = np.zeros(size, np.int32), np.zeros(size, np.int16)
    parent_of[numbers], rank[numbers] = parents, rank_of[: len(numbers)]
    scientific: dict[int, str] = {}
    by_name: dict[str, list[int]] = {}
    for line, cells in _dump(directory / "names.dmp", 4):
        if cells[3] not in _NAME_CLASSES:
            continue
        if not cells[0].isdecimal() or int(cells[0]) >= size or not parent_of[int(cells[0])]:
            raise InputError(str(directory / "names.dmp"), f"{cells[0]!r} is not in nodes.dmp.", line)
        number = int(cells[0])
        if cells[3] == "scientific name":
            scientific[number] = cells[2] or cells[1]  # the unique name where several have the same
        for name in {cells[1], cells[2]} - {""}:
            found = by_name.setdefault(normalise_name(name), [])
            if number not in found:
                found.append(number)
    return _Taxdump(_source("taxdump", directory / "nodes.dmp"), parent_of, rank, rank_names, scientific, by_name)


@dataclass(frozen=True, eq=False)
class _Taxdump(Resolver):
    """NCBI's taxonomy; the parents of a name that several entries have are those of all of them."""

    source: str  # the file and its digest
    parent_of: NDArray[np.int32]  # number of an entry to that of its parent; 0 where there is no entry
    rank: NDArray[np.int16]  # number of an entry to that of its rank
    rank_names: NDArray[np.str_]
    scientific: dict[int, str]  # number of an entry to its name
    by_name: dict[str, list[int]]  # normalised name to the entries that have it

    @property
    def fingerprint(self) -> str:
        """See ``Resolver.fingerprint``."""
        return self.source

    def parents(self, name: str) -> list[Claim]:
        """See ``Resolver.parents``."""
        claims = []
        for number in self._numbers(name):
            parent = int(self.parent_of[number])
            if parent not in (0, number):
                above = self.scientific.get(parent, str(parent))
                claims.append(Claim(above, f"NCBI:txid{number}", str(self.rank_names[self.rank[number]])))
        return claims

    def siblings(self, parent: str) -> list[str]:
        """See ``Resolver.siblings``."""
        try:
            numbers = self._numbers(parent)
        except UnknownNameError:
            return []
        children = np.flatnonzero(np.isin(self.parent_of, numbers)).tolist()
        return [self.scientific[child] for child in children if child not in numbers and child in self.scientific]

    def accepted(self, names: Iterable[str]) -> list[str]:
        """See ``Resolver.accepted``; a name of several entries stays as it is."""
        return [self._accepted(name) for name in names]

    def _accepted(self, name: str) -> str:
        numbers = self.by_name.get(normalise_name(name), [])
        return self.scientific.get(numbers[0], name) if len(numbers) == 1 else name

    def _numbers(self, name: str) -> list[int]:
        numbers = self.by_name.get(normalise_name(name))
        if numbers is None:
            raise UnknownNameError(name)
        return numbers


def _with_parents(table: TableResolver, path: Path) -> TableResolver:
    """Parents without a line of their own are roots."""
    parents = {claim.parent for claims in table.claims.values() for claim in claims}
    for parent in sorted(parents):
        if normalise_name(parent) not in table.claims:
            table.add(parent, None)
    if not table.claims:
        raise InputError(str(path), "holds no names.")
    return table


def _source(kind: str, path: Path) -> str:
    with _readable(path):
        return f"{kind}:{path.name}:{file_digest(path)}"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(str(path), f"{error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(str(path), f"is not UTF-8 ({error.reason}).") from error


def _lines(path: Path) -> Iterator[str]:
    with _readable(path), path.open(encoding="utf-8-sig", newline="") as stream:
        yield from stream


def _dump(path: Path, num_cells: int) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(_lines(path), start=1):
        cells = line.rstrip("\r\n").removesuffix("\t|").split("\t|\t")
        if len(cells) < num_cells:
            raise InputError(str(path), r"is not in NCBI's format (cells separated by \t|\t).", number)
        yield number, cells


def _delimited(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    rows = csv.reader(_lines(path), delimiter=delimiter)
    return _with_header(iter(enumerate(rows, start=1)))


def _sheets(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of the first sheet with a column of species."""
    try:
        from openpyxl import load_workbook  # type: ignore[import-untyped]  # noqa: PLC0415 - of an extra
    except ModuleNotFoundError as error:
        raise InputError(str(path), "needs openpyxl ('pip install openpyxl'), or the table saved as text.") from error
    try:
        book = load_workbook(path, read_only=True, data_only=True)
    except Exception as error:
        raise InputError(str(path), f"is not an Excel workbook ({error}).") from error
    for sheet in book.worksheets:
        rows = list(_with_header(iter(enumerate(sheet.iter_rows(values_only=True), start=1))))
        if rows and "species" in rows[0][1]:
            yield from rows
            return
    raise InputError(str(path), "has no sheet with the columns Genus and Species.")


def _with_header(rows: Iterator[tuple[int, Iterable[Any]]]) -> Iterator[tuple[int, dict[str, str]]]:
    header: list[str] = []
    for number, cells in rows:
        texts = [re.sub(r"\s+", " ", "" if cell is None else str(cell)).strip() for cell in cells]
        if not any(texts):
            continue
        if header:
            yield number, dict(zip(header, texts, strict=False))
        else:
            header = [text.lower() for text in texts]
