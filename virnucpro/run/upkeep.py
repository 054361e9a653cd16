"""What can be done with the directory of a run beside predicting: look, mend, merge."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from virnucpro.errors import UsageError
from virnucpro.executors.pool import PoolExecutor
from virnucpro.progress import Reporter
from virnucpro.request import Request
from virnucpro.resources import available_cpus
from virnucpro.run import verify as verification
from virnucpro.run.verify import Findings
from virnucpro.run_dir import RunDir
from virnucpro.stages.base import ROLES, Index
from virnucpro.stages.merge import MergeWork, merge_all


@contextmanager
def _opened(path: Path, *, only_reading: bool = False) -> Iterator[RunDir]:
    """The directory of a run that was extracted, locked for this process, or against others while it is read.

    Raises:
        UsageError: there is no run in it, or not one that got that far.
    """
    run_dir = RunDir(path)
    if not run_dir.manifest.is_file():
        raise UsageError(f"{path} holds no run. Name the output directory of a virnucpro predict.")
    run_dir.check_version()
    with run_dir.reading() if only_reading else run_dir.locked():
        yield run_dir


def _index(run_dir: RunDir) -> Index:
    if not run_dir.index.exists():
        raise UsageError(f"{run_dir.root}: its inputs were not cut to the end. Run the same predict command again.")
    return Index.read(run_dir)


@dataclass(frozen=True)
class Merged:
    """What became of the units of a run."""

    num_merged: int  # merged now
    num_here: int  # merged before
    num_scored: int  # scored, and their embeddings dropped: there is nothing to merge
    num_waiting: int  # lack a shard


def merge(path: Path, *, num_processes: int | None = None, show_bars: bool = False) -> Merged:
    """Merge every unit of a run whose two shards are there.

    Raises:
        UsageError: there is no such run.
        WorkerError: some pairs cannot be merged; all others are.
    """
    reporter = Reporter(show_bars)
    with _opened(path) as run_dir:
        run_dir.sweep()
        index = _index(run_dir)
        parts = [_merge(part, index, num_processes or available_cpus(), reporter) for part in run_dir.models]
    return Merged(*(sum(numbers) for numbers in zip(*map(astuple, parts), strict=True)))


def _merge(run_dir: RunDir, index: Index, num_processes: int, reporter: Reporter) -> Merged:
    """Merge the units of one model."""
    model = verification.StoredModel.of(run_dir.read_manifest(), run_dir)
    work = MergeWork.of_model(run_dir, model.digests, model.fingerprint, model.dtype)
    units = range(len(index.units))
    paired = [unit for unit in units if all(run_dir.embedding(role, unit).exists() for role in ROLES)]
    here = [unit for unit in units if run_dir.merged(unit).exists() and work.is_done(unit)]
    todo = sorted(set(paired) - set(here))
    scored = sum(run_dir.scores(unit).exists() for unit in set(units) - set(paired) - set(here))
    with PoolExecutor(num_processes) as executor:
        merged = reporter.stream("merge", len(todo), "units", lambda advance: merge_all(work, todo, executor, advance))
        num_merged = sum(1 for _ in merged)
    return Merged(num_merged, len(here), scored, len(units) - len(todo) - len(here) - scored)


def verify(path: Path, *, show_bars: bool = False) -> Findings:
    """Look at every file of a run.

    Raises:
        UsageError: there is no such run.
        StoreError: its index or manifest is damaged.
    """
    with _opened(path, only_reading=True) as run_dir:
        num_units = len(_index(run_dir).units) * len(run_dir.models)
        with Reporter(show_bars).stage("verify", num_units, "units") as advance:
            return verification.verify(run_dir, advance)


def repair(path: Path, findings: Findings, *, show_bars: bool = False) -> None:
    """Compute again what ``verify`` found damaged, missing or failed, with the inputs and settings of the run.

    Raises:
        UsageError: the run was made from stdin.
        VirNucProError: as of ``predict``.
    """
    from virnucpro.run import predict as pipeline  # noqa: PLC0415 - brings torch, which looking does not need

    with _opened(path) as run_dir:
        request, folder = Request.read(run_dir.request, as_named=True)
        if "-" in request.sources:
            raise UsageError(f"{path} was made from stdin. Run the same predict command again, with the same input.")
        verification.drop(findings.problems)
    path = path.absolute()
    with contextlib.chdir(folder):  # results hold the names of the inputs as they were given there
        pipeline.execute(request, path, show_bars=show_bars)
