"""The result files of an input: one ``Output`` for each, in one list. A new file is one entry here."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote_from_bytes

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from virnucpro.nearest.repeats import topology
from virnucpro.results import legacy, schema, tables
from virnucpro.results.calls import CALL_NAMES, Call, Calling, call_sequences, evidence_of
from virnucpro.results.formats import (
    NOTHING,
    Cells,
    arrow_schema,
    arrow_table,
    decimals,
    lines,
    open_output,
    open_table,
)
from virnucpro.results.fragments import Fragments
from virnucpro.results.lineages import Lineages
from virnucpro.results.prevalence import Prevalence
from virnucpro.results.regions import proviruses, regions
from virnucpro.results.schema import Table
from virnucpro.run_dir import RunDir
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import UnitTable
from virnucpro.settings import TABLE_FORMATS, TableFormat

WHOLE, PROVIRUS = "whole", "provirus"

_KINDS = (WHOLE.encode(), PROVIRUS.encode())
_GFF3_TYPES = (b"viral_sequence", b"proviral_region")
"""Of either kind; terms of the Sequence Ontology: SO:0001041 and SO:0000751."""
_GFF3_LINE = b"%b%b\tvirnucpro\t%b\t%d\t%d\t%b\t.\t.\tID=region_%d;Name=%b;kind=%b;p_virus=%b;num_fragments=%d\n"
_LEGACY = "<stem>_merged/"
_GFF3_PLAIN = ".:^*$@!+_?-|"
"""Besides letters and digits, what the GFF3 specification lets a seqid hold unescaped."""
_GFF3_SAFE = re.compile(b"[A-Za-z0-9%b]*" % re.escape(_GFF3_PLAIN).encode())


@dataclass(frozen=True)
class ScoredUnit:
    """A unit with the scores of all its rows."""

    table: UnitTable  # the unit; only the strings that were asked for are in it
    scores: NDArray[np.float32]  # (n, 2) float32, not virus and virus; NaN if a row has none
    failed: NDArray[np.bool_]  # (n,) whether a row could not be computed
    # for each model (f,) what the nearest proteins say of the fragments; None if it does not ask
    nearest: tuple[NDArray[np.float32] | None, ...] = (None,)


class Source(Protocol):
    """The units of an input, for what is not in the table of fragments."""

    def units(self, strings: Collection[str]) -> Iterator[ScoredUnit]:
        """Each with its scores; ``strings`` are the lists that are read."""

    def bases(self) -> Iterator[tuple[Ragged, NDArray[np.int64], Ragged]]:
        """The bases as read, in pieces, with the number of the sequence of each, and its description at its first."""


class NoUnits:
    """A ``Source`` of nothing, for a table without its run."""

    def units(self, strings: Collection[str]) -> Iterator[ScoredUnit]:
        """None."""
        del strings
        return iter(())

    def bases(self) -> Iterator[tuple[Ragged, NDArray[np.int64], Ragged]]:
        """None."""
        return iter(())


@dataclass(frozen=True)
class Wanted:
    """Which results are asked for."""

    rows: bool = False  # ``.rows.tsv.gz`` too (``--keep-intermediate``)
    legacy: bool = False  # the published program's two files too
    calling: Calling = field(default_factory=Calling)  # what the user decided about calls
    format: TableFormat = "tsv"  # of the tables of sequences, fragments and rows
    directory: Path | None = None  # where results go; None is the run's own
    proteins: Path | None = None  # the table of proteins by which hits are named; None names none
    num_threads: int = 1  # that share the search in it


@dataclass(frozen=True, eq=False)
class InputResults:
    """What is known of an input, or of some of its sequences, once they are called."""

    table: Fragments  # fragments and sequences
    calls: NDArray[np.void]  # (m,) CALL_DTYPE
    proviruses: NDArray[np.void]  # REGION_DTYPE, the viral parts of longer sequences
    calling: Calling  # what calls were made by
    prevalence: Prevalence  # at which they were made
    source: Source = field(default_factory=NoUnits)  # the units, for what only they hold
    lineages: Lineages | None = None  # of the hits; None if they were not asked for

    @classmethod
    def of(cls, table: Fragments, calling: Calling, source: Source | None = None) -> InputResults:
        """Call the sequences of a table and look for regions."""
        parts = proviruses(table)
        evidence = evidence_of(table, parts)
        prevalence = calling.prevalence_of(evidence)
        calls = call_sequences(table, calling, evidence, prevalence)
        return cls(table, calls, parts, calling, prevalence, source or NoUnits())

    @property
    def models(self) -> list[bytes]:
        """What each model of a cascade is called: its name, with its fingerprint if both have the same; else empty."""
        rules = self.table.rules
        is_same = len({each.name for each in rules}) < len(rules)
        titles = [f"{each.name}@{each.fingerprint[:8]}" if is_same else each.name for each in rules]
        return [title.encode() for title in titles] if len(rules) > 1 else []

    @property
    def regions(self) -> NDArray[np.void]:
        """(r,) REGION_DTYPE in the order of the sequences."""
        return regions(self.table, self.calls["call"] == Call.VIRUS, self.calls["p_virus"], self.proviruses)

    @property
    def digest(self) -> str:
        """Of the calls as they are shown: what each sequence is called, its four decimals, and the proviruses."""
        calls, parts = self.calls, self.proviruses
        added = xxh3_128(np.ascontiguousarray(calls["call"]).tobytes())
        for name in ("p_virus", "fdr"):
            shown = np.nan_to_num(calls[name].astype(np.float64), nan=-1)
            added.update(np.rint(10_000 * shown).astype("<i4").tobytes())
        for name in ("sequence", "start", "stop"):
            added.update((parts[name] - (self.table.first if name == "sequence" else 0)).astype("<i8").tobytes())
        return added.hexdigest()

    def parts(self) -> Iterator[InputResults]:
        """Some thousand sequences at a time."""
        done = 0
        for table in self.table.parts():
            calls = self.calls[done : done + len(table)]
            low, high = np.searchsorted(self.proviruses["sequence"], (table.first, table.first + len(table)))
            done += len(table)
            yield replace(self, table=table, calls=calls, proviruses=self.proviruses[low:high])

    def to_arrow(self) -> Any:  # noqa: ANN401 - pyarrow has no types of its own
        """The table of sequences as a ``pyarrow.Table``, with the columns of ``.sequences.parquet``."""
        table = schema.CASCADE if self.models else schema.SEQUENCES
        cells = tables.sequence_cells(self.table, self.calls, self.models)
        return arrow_table(arrow_schema(table), table.columns, cells)

    def to_pandas(self) -> Any:  # noqa: ANN401 - pandas is not needed to run
        """The table of sequences as a ``pandas.DataFrame``."""
        return self.to_arrow().to_pandas()

    def names_of(self, numbers: NDArray[np.int64]) -> list[bytes]:
        """Ids of sequences by their numbers in the run."""
        positions = numbers - self.table.first
        if (np.diff(positions) > 0).all():
            return self.table.names.bytes_at(positions)
        unique, places = np.unique(positions, return_inverse=True)
        names = self.table.names.bytes_at(unique)
        return [names[place] for place in places.tolist()]


@dataclass(frozen=True)
class Output:
    """A result file."""

    file: str  # its name, ``<stem>`` for that of the input; of a table that comes in several formats, the one of TSV
    # what it holds, part by part: cells of its table, or text
    content: Callable[[InputResults], Iterator[Cells] | Iterator[bytes]]
    table: Table | None = None  # its columns; None if it is not a table of ours
    # whether it is written; by default always
    is_wanted: Callable[[InputResults, Wanted], bool] = lambda _results, _wanted: True

    def path(self, folder: Path, stem: str, file_format: TableFormat = "tsv") -> Path:
        """Where it is."""
        files = self.table.files if self.table is not None else {}
        name = files.get(file_format, self.file)
        if name.startswith(_LEGACY):
            return RunDir(folder).legacy_result(stem, name.removeprefix(_LEGACY))
        return RunDir(folder).result(stem, name.removeprefix("<stem>."))

    def write(self, results: InputResults, folder: Path, stem: str, wanted: Wanted) -> None:
        """Write it if it is wanted, and drop what contradicts it: its other formats, or a file of an earlier call."""
        if not self.is_wanted(results, wanted):
            if self.table in (schema.FAILED_ROWS, schema.GENES) or self in TAXONOMY_OUTPUTS:
                self.path(folder, stem).unlink(missing_ok=True)
            return
        path = self.path(folder, stem, wanted.format)
        table = self.table if self.table is not schema.SEQUENCES or not results.models else schema.CASCADE
        if table is None:
            with open_output(path) as stream:
                for text in self.content(results):
                    stream.write(text)  # type: ignore[arg-type]
        else:
            with open_table(path, table, wanted.format if wanted.format in table.files else "tsv") as writer:
                for cells in self.content(results):
                    writer.write(cells)  # type: ignore[arg-type]
        for other in {self.path(folder, stem, each) for each in TABLE_FORMATS} - {path}:
            other.unlink(missing_ok=True)


def _sequences(results: InputResults) -> Iterator[Cells]:
    for part in results.parts():
        yield tables.sequence_cells(part.table, part.calls, results.models)


def _fragments(results: InputResults) -> Iterator[Cells]:
    for part in results.parts():
        yield tables.fragment_cells(part.table, results.prevalence)


def _rows(results: InputResults) -> Iterator[Cells]:
    for unit in results.source.units(("nucleotides", "proteins")):
        kept = np.flatnonzero(unit.table.rows["frame"] != 0)
        rows = unit.table.rows[kept]
        names = tables.row_names(results.names_of(rows["sequence"]), rows)
        strings = unit.table.nucleotides.take(kept), unit.table.proteins.take(kept)
        yield tables.row_cells(names, rows, *strings, unit.scores[kept])


def _failed_rows(results: InputResults) -> Iterator[Cells]:
    for unit in results.source.units(()):
        rows = unit.table.rows[unit.failed]
        yield tables.failed_cells(results.names_of(rows["sequence"]), rows)


def _legacy_rows(results: InputResults) -> Iterator[tuple[list[bytes], NDArray[np.float32]]]:
    """Names and scores of the frames that were computed."""
    for unit in results.source.units(()):
        kept = (unit.table.rows["frame"] != 0) & ~unit.failed
        rows = unit.table.rows[kept]
        yield tables.row_names(results.names_of(rows["sequence"]), rows), unit.scores[kept]


def _legacy_results(results: InputResults) -> Iterator[Cells]:
    for names, scores in _legacy_rows(results):
        yield legacy.result_cells(names, scores)


def _legacy_highest(results: InputResults) -> Iterator[Cells]:
    yield legacy.highest_cells(_legacy_rows(results))


def _called(call: Call, results: InputResults) -> Iterator[bytes]:
    """The sequences of one call as FASTA, as they were read."""
    is_asked = results.calls["call"] == call
    last = -1
    for pieces, numbers, descriptions in results.source.bases() if is_asked.any() else ():
        places = np.flatnonzero(is_asked[numbers - results.table.first])
        if not len(places):
            continue
        begins = np.diff(numbers[places], prepend=last) != 0
        titles = map(_title, results.names_of(numbers[places][begins]), descriptions.bytes_at(places[begins]))
        first = b"\n>%b\n" if last >= 0 else b">%b\n"
        text = []
        for is_first, piece in zip(begins.tolist(), pieces.bytes_at(places), strict=True):
            if is_first:
                text.append(first % next(titles))
                first = b"\n>%b\n"
            text.append(piece)
        yield b"".join(text)
        last = int(numbers[places[-1]])
    if last >= 0:
        yield b"\n"


def _title(name: bytes, description: bytes) -> bytes:
    return b"%b %b" % (name, description) if description else name


def _provirus_bases(results: InputResults) -> Iterator[bytes]:
    """The bases of the proviruses as FASTA, as they were read."""
    wanted: dict[int, list[tuple[int, int, bytes]]] = {}
    for region, name in zip(results.proviruses, _region_names(results, results.proviruses), strict=True):
        wanted.setdefault(int(region["sequence"]), []).append((int(region["start"]), int(region["stop"]), name))
    last, begin, description = -1, 0, b""
    for pieces, numbers, descriptions in results.source.bases() if wanted else ():
        for place in np.flatnonzero(np.isin(numbers, list(wanted))).tolist():
            number, piece = int(numbers[place]), pieces[place]
            if number != last:
                begin, description = 0, descriptions[place].tobytes()
            for start, stop, name in wanted[number]:
                low, high = max(start, begin), min(stop, begin + len(piece))
                if low < high:
                    title = b">%b\n" % _title(name, description) if low == start else b""
                    yield title + piece[low - begin : high - begin].tobytes() + (b"\n" if high == stop else b"")
            last, begin = number, begin + len(piece)


def _topologies(results: InputResults) -> dict[int, bytes]:
    """What the ends of each whole sequence that is called virus say, by its number."""
    is_asked = results.calls["call"] == Call.VIRUS
    is_asked[results.proviruses["sequence"] - results.table.first] = False
    found: dict[int, bytes] = {}
    last, parts, description = -1, list[bytes](), b""
    for pieces, numbers, descriptions in results.source.bases() if is_asked.any() else ():
        places = np.flatnonzero(is_asked[numbers - results.table.first])
        items = zip(numbers[places].tolist(), pieces.bytes_at(places), descriptions.bytes_at(places), strict=True)
        for number, piece, said in items:
            if number != last:
                found[last] = topology(b"".join(parts), description)
                last, parts, description = number, [], said
            parts.append(piece)
    found[last] = topology(b"".join(parts), description)
    return {number: seen for number, seen in found.items() if seen}


def _regions(results: InputResults) -> Iterator[Cells]:
    topologies = _topologies(results)
    for part in results.parts():
        found = part.regions
        yield (
            _region_names(part, found),
            part.names_of(found["sequence"]),
            found["start"] + 1,
            found["stop"],
            found["stop"] - found["start"],
            [_KINDS[kind] for kind in found["is_provirus"].tolist()],
            found["p_virus"],
            found["score"],
            found["num_fragments"],
            found["num_genes"],
            [
                NOTHING if is_provirus else topologies.get(number, NOTHING)
                for number, is_provirus in zip(found["sequence"].tolist(), found["is_provirus"].tolist(), strict=True)
            ],
        )


def _genes(results: InputResults) -> Iterator[Cells]:
    for part in results.parts():
        yield tables.gene_cells(part.table, part.proviruses)


def _bed(results: InputResults) -> Iterator[bytes]:
    for part in results.parts():
        found = part.regions
        names, scores = (
            list(map(_bed_name, part.names_of(found["sequence"]))),
            np.rint(1000 * found["p_virus"]).astype(np.int64),
        )
        yield lines((names, found["start"], found["stop"], _region_names(part, found), scores, [b"."] * len(found)))


def _gff3(results: InputResults) -> Iterator[bytes]:
    """A line for each region, after one for each sequence. Regions are counted for their ID: names may occur twice."""
    yield b"##gff-version 3\n"
    num, last = 0, -1
    for part in results.parts():
        found = part.regions
        numbers, kinds = found["sequence"], found["is_provirus"].tolist()
        escaped = [_escape(name) for name in part.names_of(numbers)]
        lengths = part.table.sequences["length"][numbers - part.table.first].tolist()
        begins = (np.diff(numbers, prepend=last) != 0).tolist()
        heads = [
            b"##sequence-region %b 1 %d\n" % (name, length) if is_first else b""
            for is_first, name, length in zip(begins, escaped, lengths, strict=True)
        ]
        rows = zip(
            heads,
            escaped,
            [_GFF3_TYPES[kind] for kind in kinds],
            (found["start"] + 1).tolist(),
            found["stop"].tolist(),
            decimals(found["score"], 2),
            range(num + 1, num + 1 + len(found)),
            [_escape(name) for name in _region_names(part, found)],
            [_KINDS[kind] for kind in kinds],
            decimals(found["p_virus"]),
            found["num_fragments"].tolist(),
            strict=True,
        )
        yield b"".join([_GFF3_LINE % row for row in rows])
        num += len(found)
        last = int(numbers[-1]) if len(numbers) else last


def _windows(results: InputResults) -> Iterator[bytes]:
    """A bedGraph line for each scored fragment; if two overlap, the first ends where the second begins."""
    for part in results.parts():
        fragments, positions = part.table.fragments, part.table.positions
        stops = fragments["stop"].copy()
        has_next = np.flatnonzero(positions[1:] == positions[:-1])
        stops[has_next] = fragments["start"][has_next + 1]
        p_virus = tables.fragment_probabilities(part.table, results.prevalence)
        scored = ~np.isnan(p_virus)
        names = list(map(_bed_name, part.table.names.to_bytes()))
        scored_names = [names[position] for position in positions[scored].tolist()]
        yield lines((scored_names, fragments["start"][scored], stops[scored], p_virus[scored]))


def _bed_name(name: bytes) -> bytes:
    """A line that begins with ``#`` would be a comment, and the sequence gone for whoever reads it."""
    return name.replace(b"#", b"%23", 1) if name.startswith(b"#") else name


def _region_names(results: InputResults, found: NDArray[np.void]) -> list[bytes]:
    """The sequence's own for a whole one, ``<id>|provirus_<start>_<stop>`` (1-based closed) for a part."""
    names = results.names_of(found["sequence"])
    for place in np.flatnonzero(found["is_provirus"]).tolist():
        names[place] = b"%b|provirus_%d_%d" % (names[place], found["start"][place] + 1, found["stop"][place])
    return names


def _escape(name: bytes) -> bytes:
    if _GFF3_SAFE.fullmatch(name):
        return name
    # urllib never escapes the tilde, which the specification does not list.
    return quote_from_bytes(name, safe=_GFF3_PLAIN).replace("~", "%7E").encode()


def _lineages(content: Callable[[InputResults, Lineages], Any], results: InputResults) -> Iterator[Any]:
    if results.lineages is not None and len(results.lineages.hits):
        yield content(results, results.lineages)


def _taxonomy(results: InputResults, found: Lineages) -> Cells:
    return found.cells(_region_names(results, found.regions), results.names_of(found.regions["sequence"]))


def _of(table: Table, content: Callable[[InputResults], Iterator[Cells]], **more: Callable[..., bool]) -> Output:
    return Output(table.files["tsv"], content, table, **more)


TAXONOMY_OUTPUTS = tuple(
    Output(file, partial(_lineages, content), table, lambda results, _wanted: results.lineages is not None)
    for file, content, table in (
        ("<stem>.taxonomy.tsv", _taxonomy, schema.TAXONOMY),
        ("<stem>.taxonomy.counts.tsv", lambda _, found: found.count_cells(), schema.TAXA),
        ("<stem>.taxonomy.nwk", lambda _, found: found.newick(), None),
        ("<stem>.taxonomy.krona.txt", lambda _, found: found.krona(), None),
    )
)
"""Which viruses the hits are."""

OUTPUTS = (
    _of(schema.SEQUENCES, _sequences),
    _of(schema.FRAGMENTS, _fragments),
    _of(schema.REGIONS, _regions),
    _of(schema.GENES, _genes, is_wanted=lambda results, _: len(results.table.genes) > 0),
    Output("<stem>.regions.gff3", _gff3),
    Output("<stem>.regions.bed", _bed),
    Output("<stem>.windows.bedgraph.gz", _windows),
    *(Output(f"<stem>.{CALL_NAMES[call]}.fna.gz", partial(_called, call)) for call in (Call.VIRUS, Call.UNCERTAIN)),
    Output("<stem>.proviruses.fna.gz", _provirus_bases),
    *TAXONOMY_OUTPUTS,
    _of(schema.ROWS, _rows, is_wanted=lambda _, wanted: wanted.rows),
    _of(schema.FAILED_ROWS, _failed_rows, is_wanted=lambda results, _: results.table.sequences["num_failed"].any()),
    _of(schema.LEGACY_RESULTS, _legacy_results, is_wanted=lambda _, wanted: wanted.legacy),
    _of(schema.LEGACY_HIGHEST, _legacy_highest, is_wanted=lambda _, wanted: wanted.legacy),
)
"""All files with results of an input."""
