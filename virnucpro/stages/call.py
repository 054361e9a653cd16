"""Re-call a finished run: results with other thresholds, in seconds and without a model."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from virnucpro import __version__
from virnucpro.atomic import check_json, write_json
from virnucpro.bundles.rules import Limits, Rules
from virnucpro.errors import UsageError
from virnucpro.logs import log_to
from virnucpro.progress import Reporter
from virnucpro.request import Options
from virnucpro.results import counts as counting
from virnucpro.results import formats
from virnucpro.results.calls import Calling
from virnucpro.results.counts import Counts
from virnucpro.results.finished import RunRecord
from virnucpro.results.fragments import Fragments
from virnucpro.results.pages import Pages, renew
from virnucpro.run_dir import RunDir
from virnucpro.settings import CALL_SETTINGS, Science
from virnucpro.stages import cascade, genes, tabulate, write
from virnucpro.stages.base import Index
from virnucpro.stages.tabulate import ScoredModels, StoredScores

_log = logging.getLogger(__name__)


def run(
    root: Path, science: Science, options: Options, directory: Path | None = None, *, show_bars: bool = False
) -> list[Counts]:
    """Write the results of a finished run again; as ``predict`` would with the same settings, byte for byte.

    The run record goes with them: its settings of calls, counts and digests are then those of the new results. Pages
    that are there are written again, and so is what hits are; the log says so.

    Args:
        root: of the run.
        science: its ``CALL_SETTINGS`` say how sequences are called.
        options: which files are written, and in which format.
        directory: where results go; None is the run's own.
        show_bars: draw progress bars on a terminal.

    Returns:
        What was counted, an entry for each input.

    Raises:
        UsageError: there is no finished run in ``root``, or the results' directory cannot be made.
        ResourceError: another process works in ``root``.
        StoreError: what the run stored is damaged.
    """
    formats.require(options.table_format)
    run_dir = RunDir(root)
    run_dir.check_is_run()
    if run_dir.is_cascade and options.legacy_output:
        raise UsageError(f"{root}: {cascade.NO_LEGACY}")
    results, calling = RunDir(directory or root), Calling.from_settings(science)
    proteins = genes.proteins_of(run_dir) if any(root.glob("*.taxonomy.tsv")) else None
    is_elsewhere = os.path.realpath(results.root) != os.path.realpath(root)
    if is_elsewhere and results.manifest.is_file():
        raise UsageError(f"{results.root} holds another run, whose results they would replace. Name another -o.")
    with run_dir.reading() if is_elsewhere else run_dir.locked():
        index = finished_index(run_dir)
        reporter = Reporter(show_bars)
        _make(results.root)
        with log_to(results.result(index.run_stem, "log")):
            _log.info("VirNucPro %s calls %s again: %s", __version__, root, shlex.join(sys.argv))
            with stored_results(run_dir, index, reporter) as (table, scores):
                facts = cascade.described(table.rules[1], _limits(run_dir)) if run_dir.is_cascade else None
                written, counts = write.run(
                    *(index, table, scores, calling, options, reporter),
                    folder=results.root,
                    proteins=proteins,
                    cascade=facts,
                )
                record = _record(run_dir, index, results, counts, calling.described(table.rules[0]))
                if "request" in record:
                    record["request"] = _request(record["request"], science, options)
                write_json(results.result(index.run_stem, "run.json"), record)
                for finished in written:
                    renew(replace(finished, record=record), Pages.there(results.root, finished.stem))
    return counts


@contextmanager
def stored_results(run_dir: RunDir, index: Index, reporter: Reporter) -> Iterator[tuple[Fragments, ScoredModels]]:
    """The table of a finished run, which is made again if it is not there, and the scores of its rows."""
    models = [(part, Rules.read(part.rules)) for part in reversed(run_dir.models)]
    with ExitStack() as stack:
        is_there = (run_dir.table / "table.json").is_file()
        table = Fragments.open(run_dir.table, [rules for _, rules in models]) if is_there else None
        first = decided = None
        if run_dir.is_cascade:
            first = stack.enter_context(StoredScores(*models[1], index))
            if table is not None:
                decided = table.sequences["model"] == 1
            else:
                decided, _ = cascade.look(first, index, _limits(run_dir), reporter)
        asked = stack.enter_context(StoredScores(*models[0], index, decided))
        scores = ScoredModels(asked, first, decided)
        yield table if table is not None else tabulate.run(index, scores, reporter), scores


def _limits(run_dir: RunDir) -> Limits:
    manifest = run_dir.read_manifest()
    return Limits(float(manifest["science.cascade_low"]), float(manifest["science.cascade_high"]))


def finished_index(run_dir: RunDir) -> Index:
    """The units of a run, all of which are scored.

    Raises:
        UsageError: they are not.
    """
    index = Index.read(run_dir)
    again = "Run its predict command again: finished work is kept."
    missing = sum(not part.scores(unit).is_file() for part in run_dir.models for unit in range(len(index.units)))
    if missing:
        num = len(index.units) * len(run_dir.models)
        raise UsageError(f"{run_dir.root}: the run is not complete, {missing} of {num} units have no scores. {again}")
    if not run_dir.rules.is_file():
        raise UsageError(f"{run_dir.root}: {run_dir.rules} is missing. {again}")
    return index


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{directory}: cannot be written to ({error.strerror}).") from error


def _record(
    run_dir: RunDir, index: Index, results: RunDir, counts: list[Counts], called_by: dict[str, Any]
) -> dict[str, Any]:
    """The record of the run with what these results changed in it."""
    then = run_dir.result(index.run_stem, "run.json")
    record: dict[str, Any] = check_json(then, RunRecord) if then.is_file() else {}
    whole = counting.total(counts)
    record["parameters"] = record.get("parameters", {}) | called_by
    record["counts"] = record.get("counts", {}) | {
        "calls": whole.calls,
        "statuses": whole.statuses,
        "bases": whole.bases,
    }
    record["outputs"] = write.output_digests(results, index.inputs)
    record["called"] = {"version": __version__, "command": sys.argv, "run": str(run_dir.root.absolute())}
    return record


def _request(then: dict[str, Any], science: Science, options: Options) -> dict[str, Any]:
    """What must be asked of ``predict`` for these results; see ``Request.as_record``."""
    settings = {f"science.{name}": getattr(science, name) for name in CALL_SETTINGS}
    files = {name: getattr(options, name) for name in ("keep_intermediate", "legacy_output", "table_format")}
    return then | {"settings": then["settings"] | settings, "options": then["options"] | files}
