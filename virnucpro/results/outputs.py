"""The result files of an input: one ``Output`` for each, in one list. A new file is one entry here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes

import numpy as np
from numpy.typing import NDArray

from virnucpro.nearest.repeats import topology
from virnucpro.request import Options
from virnucpro.results import schema, tables
from virnucpro.results.called import InputResults
from virnucpro.results.calls import CALLS, Call
from virnucpro.results.formats import NOTHING, Cells, decimals, lines, open_output, write_table
from virnucpro.results.schema import Table
from virnucpro.run_dir import RunDir
from virnucpro.sequence.gaps import without_gaps
from virnucpro.settings import TABLE_FORMATS, TableFormat

if TYPE_CHECKING:
    from virnucpro.results.lineages import Lineages

WHOLE, PROVIRUS = "whole", "provirus"

_KINDS = (WHOLE.encode(), PROVIRUS.encode())
_GFF3_TYPES = (b"viral_sequence", b"proviral_region")
"""Of either kind; terms of the Sequence Ontology: SO:0001041 and SO:0000751."""
_GFF3_LINE = b"%b\tvirnucpro\t%b\t%d\t%d\t%b\t.\t.\tID=region_%d;Name=%b;kind=%b;p_virus=%b;num_fragments=%d\n"
_GFF3_PLAIN = ".:^*$@!+_?-|"
"""Besides letters and digits, what the GFF3 specification lets a seqid hold unescaped."""
_GFF3_SAFE = re.compile(b"[A-Za-z0-9%b]*" % re.escape(_GFF3_PLAIN).encode())


@dataclass(frozen=True)
class Output:
    """A result file, or a table that comes in several formats."""

    what: Table | str  # its table, or its name, with ``<stem>`` for that of the input
    # what it holds, part by part: cells of its table, or text
    content: Callable[[InputResults], Iterator[Cells] | Iterator[bytes]]
    # whether it is written; by default always
    is_wanted: Callable[[InputResults, Options], bool] = lambda _results, _options: True
    drops_earlier: bool = False  # whether an earlier file goes if it is not wanted now

    @property
    def file(self) -> str:
        """Its name; of a table that of the TSV."""
        return self.what if isinstance(self.what, str) else self.what.files["tsv"]

    def path(self, folder: Path, stem: str, file_format: TableFormat = "tsv") -> Path:
        """Where it is."""
        files = {} if isinstance(self.what, str) else self.what.files
        return RunDir(folder).named(stem, files.get(file_format, self.file))

    def write(self, results: InputResults, folder: Path, stem: str, options: Options) -> None:
        """Write it if it is wanted, and drop what contradicts it: its other formats, or a file of an earlier call."""
        if not self.is_wanted(results, options):
            if self.drops_earlier:
                self.path(folder, stem).unlink(missing_ok=True)
            return
        path = self.path(folder, stem, options.table_format)
        if isinstance(self.what, str):
            with open_output(path) as stream:
                for text in self.content(results):
                    stream.write(text)  # type: ignore[arg-type]
        else:
            table = schema.CASCADE if self.what is schema.SEQUENCES and results.models else self.what
            file_format = options.table_format if options.table_format in table.files else "tsv"
            write_table(path, table, self.content(results), file_format)  # type: ignore[arg-type]
        for other in {self.path(folder, stem, each) for each in TABLE_FORMATS} - {path}:
            other.unlink(missing_ok=True)


def _by_part(cells: Callable[[InputResults], Cells], results: InputResults) -> Iterator[Cells]:
    return map(cells, results.parts())


def _rows(results: InputResults) -> Iterator[Cells]:
    for unit in results.source.units(("nucleotides", "proteins")):
        kept = np.flatnonzero(unit.table.rows["frame"] != 0)
        rows = unit.table.rows[kept]
        strings = (each.take(kept).to_bytes() for each in (unit.table.nucleotides, unit.table.proteins))
        names = tables.row_names(results.names_of(rows["sequence"]), rows)
        yield (names, *tables.place_cells(rows), *strings, *unit.scores[kept].T)


def _failed_rows(results: InputResults) -> Iterator[Cells]:
    for unit in results.source.units(()):
        rows = unit.table.rows[unit.failed]
        yield (results.names_of(rows["sequence"]), *tables.place_cells(rows))


def _legacy_rows(results: InputResults) -> Iterator[tuple[list[bytes], NDArray[np.float32]]]:
    """Names and scores of the frames that were computed."""
    for unit in results.source.units(()):
        kept = (unit.table.rows["frame"] != 0) & ~unit.failed
        rows = unit.table.rows[kept]
        yield tables.row_names(results.names_of(rows["sequence"]), rows), unit.scores[kept]


def _legacy_results(results: InputResults) -> Iterator[Cells]:
    for names, scores in _legacy_rows(results):
        yield tables.legacy_row_cells(names, scores)


def _legacy_highest(results: InputResults) -> Iterator[Cells]:
    yield tables.legacy_window_cells(_legacy_rows(results))


def _called(call: Call, results: InputResults) -> Iterator[bytes]:
    """The sequences of one call as FASTA, as they were read."""
    names, first = results.table.names, results.table.first
    for number, description, bases in results.records(results.are(call)):
        yield _fasta(names[number - first].tobytes(), description, bases)


def _provirus_bases(results: InputResults) -> Iterator[bytes]:
    """The bases of the proviruses as FASTA, as they were read."""
    names = _region_names(results, results.proviruses)
    for place, description, bases in results.bases_of(results.proviruses):
        yield _fasta(names[place], description, bases)


def _fasta(name: bytes, description: bytes, bases: bytes) -> bytes:
    return b">%b %b\n%b\n" % (name, description, bases) if description else b">%b\n%b\n" % (name, bases)


def _regions(results: InputResults) -> Iterator[Cells]:
    is_whole = results.are(Call.VIRUS)
    is_whole[results.proviruses["sequence"] - results.table.first] = False
    records = results.records(is_whole)  # in the order of the regions; none if there are no units
    ends = ((number, topology(without_gaps(bases), description) or NOTHING) for number, description, bases in records)
    for part in results.parts():
        found = part.regions
        known = dict(islice(ends, int((~found["is_provirus"]).sum())))
        kinds, numbers = found["is_provirus"].tolist(), found["sequence"].tolist()
        yield (
            _region_names(part, found),
            part.names_of(found["sequence"]),
            found["start"] + 1,
            found["stop"],
            found["stop"] - found["start"],
            [_KINDS[kind] for kind in kinds],
            found["p_virus"],
            found["score"],
            found["num_fragments"],
            found["num_genes"],
            # a sequence with proviruses is no region as a whole
            [known.get(number, NOTHING) for number in numbers],
        )


def _bed(results: InputResults) -> Iterator[bytes]:
    for part in results.parts():
        found = part.regions
        names = [_bed_name(name) for name in part.names_of(found["sequence"])]
        scores = np.rint(1000 * found["p_virus"]).astype(np.int64)
        yield lines((names, found["start"], found["stop"], _region_names(part, found), scores, [b"."] * len(found)))


def _gff3(results: InputResults) -> Iterator[bytes]:
    """A line for each region, after one for each sequence. Regions are counted for their ID: names may occur twice."""
    yield b"##gff-version 3\n"
    num, last = 0, -1
    for part in results.parts():
        found = part.regions
        items = zip(
            found[["sequence", "start", "stop", "is_provirus", "num_fragments"]].tolist(),
            part.table.sequences["length"][found["sequence"] - part.table.first].tolist(),
            map(_escape, part.names_of(found["sequence"])),
            map(_escape, _region_names(part, found)),
            decimals(found["score"], 2),
            decimals(found["p_virus"]),
            strict=True,
        )
        for (number, start, stop, kind, num_fragments), length, name, region, score, p_virus in items:
            if number != last:
                yield b"##sequence-region %b 1 %d\n" % (name, length)
            num, last = num + 1, number
            place = name, _GFF3_TYPES[kind], start + 1, stop, score
            yield _GFF3_LINE % (*place, num, region, _KINDS[kind], p_virus, num_fragments)


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


TAXONOMY_OUTPUTS = tuple(
    Output(what, partial(_lineages, content), lambda results, _: results.lineages is not None, drops_earlier=True)
    for what, content in (
        (schema.TAXONOMY, _taxonomy),
        (schema.TAXA, lambda _, found: found.count_cells()),
        ("<stem>.taxonomy.nwk", lambda _, found: found.newick()),
        ("<stem>.taxonomy.krona.txt", lambda _, found: found.krona()),
    )
)
"""Which viruses the hits are."""

OUTPUTS = (
    Output(
        schema.SEQUENCES,
        partial(_by_part, lambda part: tables.sequence_cells(part.table, part.calls, part.models)),
    ),
    Output(schema.FRAGMENTS, partial(_by_part, lambda part: tables.fragment_cells(part.table, part.prevalence))),
    Output(schema.REGIONS, _regions),
    Output(
        schema.GENES,
        partial(_by_part, lambda part: tables.gene_cells(part.table, part.proviruses)),
        is_wanted=lambda results, _: len(results.table.genes) > 0,
        drops_earlier=True,
    ),
    Output("<stem>.regions.gff3", _gff3),
    Output("<stem>.regions.bed", _bed),
    Output("<stem>.windows.bedgraph.gz", _windows),
    *(Output(f"<stem>.{CALLS[call]}.fna.gz", partial(_called, call)) for call in (Call.VIRUS, Call.UNCERTAIN)),
    Output("<stem>.proviruses.fna.gz", _provirus_bases),
    *TAXONOMY_OUTPUTS,
    Output(schema.ROWS, _rows, is_wanted=lambda _, options: options.keep_intermediate),
    Output(
        schema.FAILED_ROWS,
        _failed_rows,
        is_wanted=lambda results, _: results.table.total("num_failed") > 0,
        drops_earlier=True,
    ),
    Output(schema.LEGACY_RESULTS, _legacy_results, is_wanted=lambda _, options: options.legacy_output),
    Output(schema.LEGACY_HIGHEST, _legacy_highest, is_wanted=lambda _, options: options.legacy_output),
)
"""All files with results of an input."""
