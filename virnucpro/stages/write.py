"""Results: from the table of fragments to the files of each input."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from virnucpro.atomic import file_digest, write_json
from virnucpro.errors import CountError
from virnucpro.nearest.table import load_table
from virnucpro.progress import Reporter
from virnucpro.request import Options
from virnucpro.results import counts as counting
from virnucpro.results.called import InputResults
from virnucpro.results.calls import Calling
from virnucpro.results.counts import Counts
from virnucpro.results.finished import FinishedRun
from virnucpro.results.formats import write_table
from virnucpro.results.fragments import Fragments
from virnucpro.results.outputs import OUTPUTS
from virnucpro.results.schema import SAMPLES
from virnucpro.results.stored_table import read_facts
from virnucpro.run_dir import RunDir
from virnucpro.samples import SUMMARY_NAME
from virnucpro.stages.base import Index, IndexedInput
from virnucpro.stages.tabulate import InputUnits, ScoredModels

_log = logging.getLogger(__name__)


def run(
    index: Index,
    table: Fragments,
    scores: ScoredModels,
    calling: Calling,
    options: Options,
    reporter: Reporter,
    *,
    folder: Path | None = None,
    proteins: Path | None = None,
    num_threads: int = 1,
    cascade: Mapping[str, Any] | None = None,
) -> tuple[list[FinishedRun], list[Counts]]:
    """Call the sequences of each input and write its files.

    Args:
        index: of the units.
        table: of the run.
        scores: of its rows.
        calling: what calls are made by.
        options: which files are written, and in which format.
        reporter: is told of progress.
        folder: where results go; None is the run's own.
        proteins: the table by which hits are named; None names none.
        num_threads: that share the search in it.
        cascade: what summaries say of the model that looked first.

    Returns:
        Each input, without the record of the run, and what its results add up to.

    Raises:
        CountError: the results do not hold every sequence once.
        UsageError: the library of the format is not installed.
    """
    rules, run_dir = table.rules[0], scores.asked.run_dir
    folder = folder or run_dir.root
    if not rules.presets and calling.preset != Calling.preset:
        _log.warning("model %s has no presets: its threshold is used, %g", rules.name, rules.threshold)
    frames = read_facts(run_dir.table)["frames"]
    known = None if proteins is None else load_table(proteins)
    written, counted = [], []
    with reporter.stage("write", index.num_sequences, "sequences") as advance:
        for item, frames_of_item in zip(index.inputs, frames, strict=True):
            stop = item.first_sequence + item.num_sequences
            units = InputUnits(scores, index, item)
            results = InputResults.of(table.slice(item.first_sequence, stop), calling, units)
            if known is not None:
                from virnucpro.results.lineages import find_lineages  # noqa: PLC0415 - other runs need no taxonomy

                results = replace(results, lineages=find_lineages(results, known, num_threads))
            counts = Counts.of(results, frames_of_item)
            _check(item, counts)
            for output in OUTPUTS:
                output.write(results, folder, item.stem, options)
            summary = counting.summary(results, counts, item.source, cascade)
            written.append(FinishedRun(folder, item.stem, {}, summary, results))
            write_json(written[-1].path("summary.json"), summary)
            calls = ", ".join(f"{number:,} {call}" for call, number in counts.calls.items())
            _log.info("%s: %s sequences: %s", item.source, f"{item.num_sequences:,}", calls)
            _log.info("%s: %s", item.source, results.prevalence.sentence())
            counted.append(counts)
            advance(item.num_sequences)
    if len(index.inputs) > 1:
        samples = {item.stem: counts for item, counts in zip(index.inputs, counted, strict=True)}
        write_table(folder / SUMMARY_NAME, SAMPLES, [counting.sample_cells(samples)])
    return written, counted


def _check(item: IndexedInput, counts: Counts) -> None:
    whats = {"calls": counts.calls, "statuses": counts.statuses}
    if counts.sequences_by_model:
        whats["models"] = counts.sequences_by_model
    for what, numbers in whats.items():
        if sum(numbers.values()) != item.num_sequences:
            raise CountError(f"{item.source}: {item.num_sequences} sequences in, {sum(numbers.values())} {what} out")
    if counts.num_bases != item.num_bases:
        raise CountError(f"{item.source}: {item.num_bases} bases in, {counts.num_bases} out")


def output_digests(folder: RunDir, inputs: Iterable[IndexedInput]) -> dict[str, str]:
    """Digest of each result file of some inputs that is there, and of the one of samples, by its path."""
    paths = [path for item in inputs for path in folder.results(item.stem)]
    return {
        str(path.relative_to(folder.root)): f"sha256:{file_digest(path)}"
        for path in (*paths, *folder.root.glob(SUMMARY_NAME))
    }
