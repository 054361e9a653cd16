"""Calls from stored scores: results anew with other thresholds, in seconds and without a model."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from virnucpro import __version__
from virnucpro.bundles.rules import Rules
from virnucpro.errors import UsageError
from virnucpro.progress import Reporter
from virnucpro.results import formats
from virnucpro.run_dir import RunDir, read_json, write_json
from virnucpro.stages import cascade, write
from virnucpro.stages.base import Index, StoredRun

_log = logging.getLogger(__name__)


def run(root: Path, wanted: write.Wanted, *, show_bars: bool = False) -> list[write.Counts]:
    """Write the results of a finished run anew; as ``predict`` would with the same settings, byte for byte.

    The run record goes with them: its settings of calls, counts and digests are then those of the new results.

    Args:
        root: output directory of the run.
        wanted: which results, by which rules, and where to.
        show_bars: draw progress bars on a terminal.

    Returns:
        What was counted, an entry for each input.

    Raises:
        UsageError: there is no finished run in ``root``, or the results' directory cannot be made.
        ResourceError: another process works in ``root``.
        StoreError: what the run stored is damaged.
    """
    formats.require(wanted.format)
    run_dir = RunDir(root)
    if not run_dir.manifest.is_file():
        raise UsageError(f"{root} holds no run of this program. Name the directory that predict wrote to with -o.")
    if run_dir.is_cascade and wanted.legacy:
        raise UsageError(f"{root}: {cascade.NO_LEGACY}")
    with run_dir.locked():
        index = _finished(run_dir)
        stored = StoredRun(run_dir, Rules.read(run_dir.rules), Reporter(show_bars))
        results = RunDir(wanted.directory or root)
        _make(results.root)
        with cascade.stored_look(stored) as look:
            counts = write.from_scores(stored, index, wanted, look)
        _write_record(stored, index, results, counts, wanted)
    return counts


def _finished(run_dir: RunDir) -> Index:
    again = "Run its predict command again: finished work is kept."
    if not run_dir.index.is_file():
        what = "not all has been looked at first" if run_dir.is_cascade else "its input has not been read to the end"
        raise UsageError(f"{run_dir.root}: the run is not complete, {what}. {again}")
    index = Index.read(run_dir)
    missing = sum(not run_dir.scores(unit).is_file() for unit in range(len(index.units)))
    if missing:
        raise UsageError(
            f"{run_dir.root}: the run is not complete, {missing} of {len(index.units)} units have no scores. {again}"
        )
    if not run_dir.rules.is_file():
        raise UsageError(f"{run_dir.root}: {run_dir.rules} is missing. {again}")
    return index


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{directory}: cannot be written to ({error.strerror}).") from error


def _write_record(
    run: StoredRun, index: Index, results: RunDir, counts: list[write.Counts], wanted: write.Wanted
) -> None:
    """The record of the run with what these results changed in it."""
    name = f"{index.run_stem}.run.json"
    then = run.dir.root / name
    record: dict[str, Any] = read_json(then) if then.is_file() else {}
    whole = write.total(counts)
    record["parameters"] = record.get("parameters", {}) | wanted.calling.described(run.rules)
    record["counts"] = record.get("counts", {}) | {
        "calls": whole.calls,
        "statuses": whole.statuses,
        "bases": whole.bases,
    }
    if "request" in record:
        record["request"] = _request(record["request"], wanted)
    record["outputs"] = write.output_digests(results, index)
    record["called"] = {"version": __version__, "command": sys.argv}
    write_json(results.root / name, record)


def _request(then: dict[str, Any], wanted: write.Wanted) -> dict[str, Any]:
    """What must be asked of ``predict`` for these results; see ``Request.as_record``."""
    calling = wanted.calling
    settings = {
        "science.preset": calling.preset if calling.threshold is None and calling.fdr is None else None,
        "science.threshold": calling.threshold,
        "science.fdr": calling.fdr,
        "science.prevalence": calling.prevalence,
    }
    options = {"keep_intermediate": wanted.rows, "legacy_output": wanted.legacy, "table_format": wanted.format}
    return then | {"settings": then["settings"] | settings, "options": then["options"] | options}
