"""Features through the head: two scores a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.bundles import Bundle
from virnucpro.errors import ModelError, WorkerError
from virnucpro.executors.base import Executor, UnitDone, UnitFailed, Worker
from virnucpro.heads import MLPHead, load_head
from virnucpro.progress import Advance
from virnucpro.run_dir import RunDir
from virnucpro.stages.base import ROLES, Index, Run, features_made_from


@dataclass(frozen=True)
class ClassifyWork:
    """Scores units; see ``executors.base.Work``. Drops what a scored unit no longer needs.

    Attributes:
        run_dir: where features are and scores go.
        bundle: the model.
        dtype: float type the encoders computed in.
        batch_size: rows the head scores at a time.
        keep_embeddings: leave shards and features where they are.
    """

    run_dir: RunDir
    bundle: Bundle
    dtype: str
    batch_size: int
    keep_embeddings: bool

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[UnitDone]:
        """Score each unit."""
        head = load_head(self.bundle.head)
        for unit in units:
            torch.set_num_threads(worker.num_threads)
            unit_digest = store.read_attributes(self.run_dir.unit(unit), "unit")["digest"]
            made_from = features_made_from(self.bundle, self.dtype, unit_digest)
            feature = store.read_checked(self.run_dir.merged(unit), "merged", made_from, "feature")
            scores = self._scores(head, feature)
            store.write_arrays(self.run_dir.scores(unit), "scores", {"scores": scores}, made_from)
            if not self.keep_embeddings:
                for path in (*(self.run_dir.embedding(role, unit) for role in ROLES), self.run_dir.merged(unit)):
                    path.unlink(missing_ok=True)
            yield UnitDone(unit, len(scores))

    def _scores(self, head: MLPHead, feature: NDArray[np.floating]) -> NDArray[np.float32]:
        """(n, 2) scores; NaN for the rows that were left out, whose features are NaN, and for no other."""
        scores = np.empty((len(feature), 2), dtype=np.float32)
        for start in range(0, len(feature), self.batch_size):
            batch = slice(start, start + self.batch_size)
            scores[batch] = head.scores(torch.from_numpy(feature[batch])).numpy()
        unscored = np.isnan(scores).any(axis=1)
        if unscored.any() and not np.isnan(feature[unscored]).any(axis=1).all():
            raise ModelError(f"{self.bundle.head}: gives NaN for features that are finite. Its weights are damaged.")
        return scores


def run(
    run: Run, index: Index, units: Iterable[int], executor: Executor, *, batch_size: int, keep_embeddings: bool
) -> None:
    """Score every unit that lacks scores, as ``units`` hands them on.

    Raises:
        WorkerError: some units cannot be scored; raised when all others are.
    """
    todo = pending(run, index)
    if not todo:
        return
    work = ClassifyWork(run.dir, run.bundle, run.dtype, batch_size, keep_embeddings)
    num_rows = sum(index.units[unit].num_sources for unit in todo)

    def score(advance: Advance) -> Iterator[UnitFailed]:
        for outcome in executor.run(work, units):
            if isinstance(outcome, UnitFailed):
                yield outcome
            else:
                advance(outcome.num_rows)

    failed = list(run.reporter.stream("classify", num_rows, "rows", score))
    if failed:
        raise WorkerError(f"{len(failed)} units cannot be scored, all others are:\n{failed[0].reason}")


def pending(run: Run, index: Index) -> list[int]:
    """Units without scores."""
    return [unit for unit in range(len(index.units)) if not run.dir.scores(unit).exists()]
