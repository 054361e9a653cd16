"""A finished run, opened again: its records, its table of fragments and its calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypedDict

from virnucpro.atomic import check_json
from virnucpro.bundles.rules import Rules
from virnucpro.errors import StoreError, UsageError
from virnucpro.results.called import InputResults
from virnucpro.results.calls import Calling
from virnucpro.results.counts import Overview, overview
from virnucpro.results.fragments import Fragments
from virnucpro.run_dir import RunDir
from virnucpro.stored_json import Count

_RECORD_SUFFIX = "run.json"


Facts = dict[str, str | int | float | bool | list[str | int | float] | None]
"""What a page lists."""


class _Model(TypedDict, total=False):
    name: str
    fingerprint: str
    encoders: dict[str, str]
    files: dict[str, str]


class _Cascade(TypedDict, total=False):
    seconds: dict[str, float]


class _Called(TypedDict, total=False):
    run: str


class _Request(TypedDict):
    settings: dict[str, Any]
    options: dict[str, Any]


class RunRecord(TypedDict, total=False):
    """``STEM.run.json``."""

    version: str
    command: list[str]
    started: datetime
    warnings: list[str]
    request: _Request
    versions: dict[str, str]
    hardware: Facts
    parameters: Facts
    model: _Model
    cascade: _Cascade
    called: _Called
    inputs: list[Facts]
    counts: dict[str, Any]
    outputs: dict[str, str]
    seconds: dict[str, float]


class _CascadeSummary(TypedDict, total=False):
    sequences_by_model: dict[str, Count]
    bases_by_model: dict[str, Count]


class Summary(TypedDict, total=False):
    """``STEM.summary.json``."""

    input: str
    model: str
    model_fingerprint: str
    preset: str | None
    threshold_virus: float | None
    threshold_not_virus: float | None
    fdr: float | None
    prevalence: float | None
    prevalence_is: str
    num_sequences: Count
    num_rows_failed: Count
    cascade: _CascadeSummary
    calls_digest: str


class _Input(TypedDict):
    stem: str
    first_sequence: Count
    num_sequences: Count


class _Index(TypedDict):
    inputs: list[_Input]


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """One input of a finished run."""

    root: Path  # the directory with its results
    stem: str  # prefix of the input's result files
    record: dict[str, Any]  # the run record, ``.run.json``
    summary: dict[str, Any]  # the input's ``.summary.json``
    results: InputResults  # its table and calls

    def path(self, suffix: str) -> Path:
        """A result file of this input."""
        return RunDir(self.root).result(self.stem, suffix)

    @cached_property
    def overview(self) -> Overview:
        """What the page and all figures show: one look at the table serves them."""
        return overview(self.results)

    @property
    def input(self) -> dict[str, Any]:
        """What the run record says of this input; empty if it says nothing."""
        return next((item for item in self.record.get("inputs", ()) if item.get("stem") == self.stem), {})

    @property
    def calls_digest(self) -> str:
        """Of the calls, which pages are told apart by."""
        return str(self.summary.get("calls_digest", ""))

    @property
    def calls_mark(self) -> str:
        """What every page holds, to say which calls it shows."""
        return f"virnucpro-calls:{self.calls_digest}"

    @property
    def limits(self) -> tuple[float, ...]:
        """Probabilities at which a call changes, as set: two if calls may be uncertain, none with a highest FDR."""
        found = (self.summary.get(name) for name in ("threshold_not_virus", "threshold_virus"))
        return tuple(sorted({float(value) for value in found if value is not None}))

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The limits on the scale of the tables' p_virus, which a preset's are not: they hold at equal prevalence."""
        if not self.summary.get("preset"):
            return self.limits
        prevalence = self.results.prevalence.value
        odds = prevalence / (1 - prevalence)
        return tuple(limit * odds / (limit * odds + 1 - limit) for limit in self.limits)


def stems_of(root: Path) -> list[str]:
    """The inputs whose results are in ``root``, by the prefix of their files.

    Raises:
        UsageError: there are none.
    """
    suffix = ".summary.json"
    stems = sorted(path.name.removesuffix(suffix) for path in root.glob(f"*{suffix}"))
    if not stems:
        raise UsageError(f"{root} holds no finished run. Name the output directory of a virnucpro predict that ended.")
    return stems


def open_run(root: Path, stem: str) -> FinishedRun:
    """One input of a finished run; see ``open_runs``."""
    (run,) = open_runs(root, [stem])
    return run


def open_runs(root: Path, stems: Iterable[str]) -> Iterator[FinishedRun]:
    """Inputs of a finished run, each called as its summary says.

    Raises:
        UsageError: an input has no results in ``root``.
        StoreError: a record or the table is damaged.
    """
    folder = RunDir(root)
    read_record, open_table = cache(partial(check_json, kind=RunRecord)), cache(_open_table)
    for stem in stems:
        summary_path = folder.result(stem, "summary.json")
        if not summary_path.exists():
            raise UsageError(f"{root} holds no results of {stem}. It holds those of {', '.join(stems_of(root))}.")
        summary = check_json(summary_path, Summary)
        places = (folder.result(name, _RECORD_SUFFIX) for name in (stem, "all"))
        record = next((read_record(place) for place in places if place.exists()), {})
        run_dir = RunDir(Path(record.get("called", {}).get("run", root)))
        if not run_dir.table.exists():
            raise UsageError(f"{root}: {run_dir.table} is missing, and results are read from it. Run predict again.")
        table, items = open_table(run_dir)
        if stem not in items:
            raise StoreError(run_dir.index, f"is of another run (it names no input {stem})")
        first, num_sequences = items[stem]["first_sequence"], items[stem]["num_sequences"]
        mine = table.slice(first, first + num_sequences)
        if len(mine) != summary.get("num_sequences"):
            found = summary.get("num_sequences")
            raise StoreError(summary_path, f"counts {found} sequences where {len(mine)} were read")
        yield FinishedRun(root, stem, record, summary, InputResults.of(mine, _calling(summary, mine.rules[0])))


def _open_table(run_dir: RunDir) -> tuple[Fragments, dict[str, _Input]]:
    """The table of a run, and where in it each input lies."""
    table = Fragments.open(run_dir.table, [Rules.read(part.rules) for part in reversed(run_dir.models)])
    return table, {item["stem"]: item for item in check_json(run_dir.index, _Index)["inputs"]}


def _calling(summary: dict[str, Any], rules: Rules) -> Calling:
    """What the calls of a summary were made by."""
    prevalence = summary.get("prevalence") if summary.get("prevalence_is") == "given" else None
    preset = summary.get("preset")
    if summary.get("fdr") is not None:
        return Calling(fdr=summary["fdr"], prevalence=prevalence)
    if preset is not None or (not rules.presets and summary.get("threshold_virus") == rules.threshold):
        return Calling(preset or Calling.preset, prevalence=prevalence)
    return Calling(threshold=summary.get("threshold_virus"), prevalence=prevalence)
