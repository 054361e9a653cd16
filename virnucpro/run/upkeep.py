"""What can be done with the directory of a run in addition to predicting: merge, and mend what ``verify`` found."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path

from virnucpro.errors import UsageError
from virnucpro.executors.local import PoolExecutor
from virnucpro.progress import Reporter
from virnucpro.request import Request
from virnucpro.resources import available_cpus
from virnucpro.run import verify as verification
from virnucpro.run.verify import Findings
from virnucpro.run_dir import RunDir
from virnucpro.stages.base import ROLES, Index
from virnucpro.stages.merge import MergeWork, merge_all


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
    reporter, run_dir = Reporter(show_bars), RunDir(path)
    run_dir.check_is_run()
    with run_dir.locked():
        run_dir.sweep()
        index = Index.read(run_dir)
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


def repair(path: Path, findings: Findings, *, show_bars: bool = False) -> None:
    """Compute again what ``verify`` found damaged, missing or failed, with the inputs and settings of the run.

    Raises:
        UsageError: the run was made from stdin.
        VirNucProError: as of ``predict``.
    """
    from virnucpro.run import by_hand  # noqa: PLC0415 - brings torch, which looking does not need

    run_dir = RunDir(path)
    with run_dir.locked():
        request, _ = Request.read(run_dir.request)
        if "-" in request.sources:
            raise UsageError(f"{path} was made from stdin. Run the same predict command again, with the same input.")
        verification.drop(findings.problems)
    by_hand.again(run_dir, show_bars=show_bars)
