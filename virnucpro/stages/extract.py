"""Inputs to units: records, fragments, frames, rows."""

from __future__ import annotations

import logging

from virnucpro import store
from virnucpro.errors import CountError, RunMismatchError, UsageError
from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.streams import digest_of
from virnucpro.sequence.table import UnitTable, are_own_source
from virnucpro.stages.base import Index, IndexedInput, IndexedUnit, Run

_log = logging.getLogger(__name__)
_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".fasta", ".fastq", ".fna", ".ffn", ".fas", ".fa", ".fq")


def stems_of(inputs: tuple[str, ...]) -> list[str]:
    """Prefix of each input's results: its file name without the usual endings.

    Raises:
        UsageError: two inputs would write the same files.
    """
    stems: dict[str, str] = {}
    for source in inputs:
        stem = "stdin" if source == "-" else source.rstrip("/").rsplit("/", maxsplit=1)[-1]
        while True:
            ending = next((end for end in _SUFFIXES if stem.lower().endswith(end) and len(stem) > len(end)), None)
            if ending is None:
                break
            stem = stem[: -len(ending)]
        if stem in stems:
            raise UsageError(
                f"{stems[stem]} and {source} would both write {stem}.sequences.tsv. Rename one, or run them apart."
            )
        stems[stem] = source
    return list(stems)


def run(run: Run) -> Index:
    """Cut the inputs into units, or check that they are the ones that were cut before.

    Raises:
        InputError: an input cannot be read.
        RunMismatchError: the inputs are not those this run was made from.
    """
    if run.dir.index.exists():
        index = Index.read(run.dir)
        _check_inputs(run, index)
        _log.info("extract: done before, %s rows in %d units", f"{index.num_rows:,}", len(index.units))
        return index
    extraction = Extraction(
        run.inputs,
        fragment_length=run.fragment_length,
        min_length=run.bundle.min_length,
        unit_rows=run.unit_rows,
        score_frameless=run.bundle.scores_frameless,
    )
    units: list[IndexedUnit] = []
    num_fragments = num_begun = 0
    with run.reporter.stage("extract", None, "sequences") as advance:
        for unit, table in enumerate(extraction.units()):
            store.write_unit(run.dir.unit(unit), table)
            units.append(_indexed(table, num_begun))
            num_fragments += len(table.fragments)
            num_begun += len(table.sequences)
            advance(len(table.sequences))
    stems = stems_of(run.inputs)
    inputs = tuple(
        IndexedInput(
            source=item.source,
            stem=stem,
            format=item.format,
            compression=item.compression,
            sha256=item.sha256,
            first_sequence=item.first_sequence,
            num_sequences=item.num_sequences,
            num_bases=item.num_bases,
        )
        for stem, item in zip(stems, extraction.inputs, strict=True)
    )
    index = Index(inputs, tuple(units), num_fragments)
    if index.num_sequences != num_begun:
        raise CountError(f"{index.num_sequences} sequences were read, {num_begun} are in the units")
    for item in inputs:
        if item.num_sequences == 0:
            _log.warning("%s holds no sequences", item.source)
    if extraction.num_duplicate_names:
        names = ", ".join(name.decode(errors="backslashreplace") for name in extraction.duplicate_names)
        _log.warning(
            "%d sequences have an id that came before (%s ...); each keeps its own row, in input order",
            extraction.num_duplicate_names,
            names,
        )
    index.write(run.dir)
    return index


def _indexed(table: UnitTable, num_begun: int) -> IndexedUnit:
    first = int(table.fragments["sequence"][0]) if len(table.fragments) else num_begun
    own = are_own_source(table.rows, table.first_row)
    return IndexedUnit(
        first_row=table.first_row,
        num_rows=len(table.rows),
        num_sources=int(own.sum()),
        first_sequence=min(first, num_begun),
        stop_sequence=num_begun + len(table.sequences),
    )


def _check_inputs(run: Run, index: Index) -> None:
    now = [digest_of(source) for source in run.inputs]
    then = [item.sha256 for item in index.inputs]
    if len(now) != len(then):
        raise RunMismatchError(run.dir.root, [("number of inputs", len(then), len(now))])
    differences = [
        (f"content of {source}", f"sha256 {old[:12]}", f"sha256 {new[:12]}")
        for source, old, new in zip(run.inputs, then, now, strict=True)
        if old != new
    ]
    if differences:
        raise RunMismatchError(run.dir.root, [(name, old, new) for name, old, new in differences])
