"""Ray: actors that do parts of the units, on machines that share the run's directory or are sent what they need."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from virnucpro.atomic import read_json
from virnucpro.errors import StoreError, WorkerError
from virnucpro.executors.base import Outcome, UnitDone, UnitFailed, Worker
from virnucpro.executors.ray import Files, RayExecutor, write_files
from virnucpro.progress import Reporter
from virnucpro.run import by_hand, shards
from virnucpro.run_dir import RunDir
from virnucpro.stages.base import Index

if TYPE_CHECKING:
    from virnucpro.engines import Engine


@dataclass(frozen=True)
class WorkOnParts:
    """Does parts of a prepared run; see ``executors.base.Work`` and ``executors.ray.Portable``. Its units are parts."""

    output: Path  # directory of the run
    parts: tuple[tuple[int, ...], ...]  # units of each
    mark: Path  # a file that a machine sees if it shares the directory

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[Outcome]:
        """Do each part."""
        runtime = {"device": worker.device, "gpus": None, "threads": worker.num_threads}
        for part in units:
            chosen = self.parts[part]
            try:
                by_hand.work(self.output, lambda _, chosen=chosen: chosen, runtime)  # type: ignore[misc]
            except WorkerError as error:
                yield UnitFailed(part, str(error))
            else:
                yield UnitDone(part, len(chosen))

    def pack(self, unit: int) -> Files:
        """The settings, the index and the units of a part."""
        run_dir = RunDir(self.output)
        paths = [run_dir.manifest, run_dir.request, run_dir.rules, run_dir.index]
        for number in self.parts[unit]:
            whole = run_dir.unit(number)
            # Of a cascade, which rows are left to this model lies in a file of the same name.
            paths += [path for path in (whole, run_dir.work / "selected" / whole.name) if path.exists()]
        return self._read(paths)

    def at(self, folder: Path) -> WorkOnParts:
        """The same parts in another folder."""
        return replace(self, output=folder)

    def collect(self, unit: int) -> Files:
        """Receipts and what they name."""
        run_dir = RunDir(self.output)
        paths = []
        for number in self.parts[unit]:
            receipt = read_json(run_dir.receipt(number), shards.Receipt)
            files = shards.files_of(run_dir, number)
            paths += [run_dir.receipt(number), *(files[kind] for kind in receipt.files)]
        return self._read(paths)

    def install(self, unit: int, files: Files) -> None:
        """Check what came against its receipts, and put it into the run.

        Raises:
            StoreError: it is not what its receipts say.
        """
        run_dir = RunDir(self.output)
        with tempfile.TemporaryDirectory(dir=run_dir.work) as name:
            write_files(Path(name), files)
            _, problems = shards.adopt(run_dir, Index.read(run_dir), Path(name))
        if problems:
            raise StoreError(run_dir.work / f"part {unit}", f"came damaged ({problems[0]})")

    def _read(self, paths: Iterable[Path]) -> Files:
        return {str(path.relative_to(self.output)): path.read_bytes() for path in paths}


def compute(run_dir: RunDir, parts: Sequence[Sequence[int]], engine: Engine, reporter: Reporter) -> None:
    """Have each part done by an actor.

    Raises:
        UsageError: there is no such cluster.
        WorkerError: some parts cannot be computed; all others are.
    """
    failed = []
    with _marked(run_dir, shares_files=engine.shares_files) as mark:
        work = WorkOnParts(run_dir.root.absolute(), tuple(map(tuple, parts)), mark)
        num_units = sum(map(len, parts))
        with (
            reporter.stage("work", num_units, "units") as advance,
            RayExecutor(engine.address, engine.threads) as executor,
        ):
            for outcome in executor.run(work, range(len(parts))):
                if isinstance(outcome, UnitFailed):
                    failed.append(outcome)
                else:
                    advance(len(parts[outcome.unit]))
    if failed:
        lines = "\n".join(f"  units {shards.as_ranges(parts[item.unit])}: {item.reason}" for item in failed)
        raise WorkerError(f"{len(failed)} of {len(parts)} parts cannot be computed:\n{lines}")


@contextmanager
def _marked(run_dir: RunDir, *, shares_files: bool) -> Iterator[Path]:
    """A new file in the run's directory, or the name of none."""
    with tempfile.NamedTemporaryFile(prefix="ray-", dir=run_dir.work.absolute()) as file:
        yield Path(file.name) if shares_files else Path(f"{file.name}.none")
