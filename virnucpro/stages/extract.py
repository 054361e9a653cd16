"""Inputs to units: records, fragments, frames, rows."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, replace

import numpy as np

from virnucpro import store
from virnucpro.atomic import machine_errors_at
from virnucpro.bundles import Bundle
from virnucpro.errors import CountError, RunMismatchError
from virnucpro.progress import Advance
from virnucpro.samples import Sample, samples_of
from virnucpro.sequence.dedup import SequenceIndex
from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.streams import digest_of, shown
from virnucpro.sequence.table import UnitTable, are_own_source
from virnucpro.stages.base import Index, IndexedInput, IndexedUnit, Run

_log = logging.getLogger(__name__)


def run(
    run: Run, samples: tuple[Sample, ...] = (), reference: str | None = None, screen: Bundle | None = None
) -> Index:
    """Cut the inputs into units, or check that they are the ones that were cut before.

    Args:
        run: the run.
        samples: what its inputs are; a sample for each input where none are given.
        reference: FASTA file that the reads of CRAM inputs were aligned to.
        screen: model that looks first in a cascade: what it needs in addition is cut too, what it masks is masked.

    Raises:
        InputError: an input cannot be read.
        RunMismatchError: the inputs are not those this run was made from.
        CountError: the units do not hold every sequence.
    """
    samples = samples or samples_of(run.inputs)
    if run.dir.index.exists():
        index = Index.read(run.dir)
        _check_inputs(run, samples, index)
        _log.info("extract: done before, %s rows in %d units", f"{index.num_rows:,}", len(index.units))
        return _renamed(index, samples)
    bundles = [bundle for bundle in (run.bundle, screen) if bundle is not None]
    contents = SequenceIndex(left_over=run.dir.left_over_rows)
    extraction = Extraction(
        [sample.paths[0] if len(sample.paths) == 1 else sample.paths for sample in samples],
        fragment_length=run.fragment_length,
        min_length=run.bundle.min_length,
        unit_rows=run.unit_rows,
        score_frameless=any(bundle.scores_frameless for bundle in bundles),
        find_repetitive=any(bundle.doubts_repetitive for bundle in bundles),
        close_gaps=run.bundle.closes_gaps,
        reference=reference,
        contents=contents,
    )
    with run.reporter.stage("extract", None, "sequences") as advance:
        units, num_fragments = write_units(run, extraction.units(), contents, advance)
    inputs = tuple(
        IndexedInput(stem=sample.name, **asdict(item)) for sample, item in zip(samples, extraction.inputs, strict=True)
    )
    _warn(extraction)
    index, num_begun = Index(inputs, units, num_fragments), units[-1].stop_sequence if units else 0
    if index.num_sequences != num_begun:
        raise CountError(f"{index.num_sequences} sequences were read, {num_begun} are in the units")
    index.write(run.dir)
    return index


def write_units(
    run: Run, tables: Iterable[UnitTable], contents: SequenceIndex, advance: Advance
) -> tuple[tuple[IndexedUnit, ...], int]:
    """Write each unit; returns what the index says of them, and how many fragments they hold.

    Args:
        run: whose units they are.
        tables: the units, in order.
        contents: what they find their sources by; it is used up.
        advance: told how many sequences are done.
    """
    units: list[IndexedUnit] = []
    num_fragments = num_begun = last_nt = 0
    with closing(contents), machine_errors_at(run.dir.work):
        for unit, table in enumerate(tables):
            store.write_unit(run.dir.unit(unit), table)
            units.append(_indexed(table, num_begun, last_nt))
            num_fragments += len(table.fragments)
            num_begun += len(table.sequences)
            if len(table.sequences):
                last_nt = int(table.sequences["length"][-1])
            advance(len(table.sequences))
        _write_late_sources(run, units, contents)
    return tuple(units), num_fragments


def _write_late_sources(run: Run, units: list[IndexedUnit], contents: SequenceIndex) -> None:
    """Let rows know their sources that were found only when all units were written."""
    first_rows = np.array([unit.first_row for unit in units], dtype=np.int64)
    for rows, sources in contents.late_sources():
        holders = np.searchsorted(first_rows, rows, side="right") - 1
        for unit in np.unique(holders).tolist():
            is_here = holders == unit
            table = store.read_unit(run.dir.unit(unit))
            table.rows["source"][rows[is_here] - table.first_row] = sources[is_here]
            store.write_unit(run.dir.unit(unit), table)
            units[unit] = replace(units[unit], num_sources=_num_sources(table))


def _warn(extraction: Extraction) -> None:
    """Say what is odd about the inputs."""
    for item in extraction.inputs:
        if item.num_sequences == 0:
            _log.warning("%s holds no sequences", item.source)
    if extraction.num_unnamed:
        _log.warning(
            "%d sequences have no name; they are called unnamed_N, N being their number", extraction.num_unnamed
        )
    if extraction.num_duplicate_names:
        names = ", ".join(name.decode(errors="backslashreplace") for name in extraction.duplicate_names)
        _log.warning(
            "%d sequences have an id that came before (%s ...); each keeps its own row, in input order",
            extraction.num_duplicate_names,
            names,
        )


def _indexed(table: UnitTable, num_begun: int, last_nt: int) -> IndexedUnit:
    """What the index says of a unit; ``num_begun`` sequences began before it, the last of which has ``last_nt``."""
    first = int(table.fragments["sequence"][0]) if len(table.fragments) else num_begun
    return IndexedUnit(
        first_row=table.first_row,
        num_rows=len(table.rows),
        num_sources=_num_sources(table),
        first_sequence=min(first, num_begun),
        stop_sequence=num_begun + len(table.sequences),
        longest_nt=int(table.sequences["length"].max(initial=last_nt if first < num_begun else 0)),
    )


def _num_sources(table: UnitTable) -> int:
    return int(are_own_source(table.rows, table.first_row).sum())


def _check_inputs(run: Run, samples: tuple[Sample, ...], index: Index) -> None:
    if len(samples) != len(index.inputs):
        raise RunMismatchError(run.dir.root, [("number of inputs", len(index.inputs), len(samples))])
    differences: list[tuple[str, object, object]] = []
    for sample, item in zip(samples, index.inputs, strict=True):
        now, then = [digest_of(path) for path in sample.paths], list(filter(None, (item.sha256, item.mate_sha256)))
        if len(now) != len(then):
            differences.append((f"number of files of {sample.name}", len(then), len(now)))
            continue
        differences += [
            (f"content of {path}", f"sha256 {old[:12]}", f"sha256 {new[:12]}")
            for path, old, new in zip(sample.paths, then, now, strict=True)
            if old != new
        ]
    if differences:
        raise RunMismatchError(run.dir.root, differences)


def _renamed(index: Index, samples: tuple[Sample, ...]) -> Index:
    """The index with the names of today: results carry those, whatever files and samples were called before."""
    inputs = []
    for sample, item in zip(samples, index.inputs, strict=True):
        source, *mates = map(shown, sample.paths)
        inputs.append(replace(item, stem=sample.name, source=source, mate_source="".join(mates)))
    return replace(index, inputs=tuple(inputs))
