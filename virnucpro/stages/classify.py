"""Features through the head: two scores a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from virnucpro import store
from virnucpro.bundles import Bundle
from virnucpro.executors.base import Executor, UnitDone, Worker
from virnucpro.heads import load_head
from virnucpro.run_dir import RunDir
from virnucpro.stages.base import ROLES, Index, Run, features_made_from


@dataclass(frozen=True)
class ClassifyWork:
    """Scores units; see ``executors.base.Work``. Drops what a scored unit no longer needs."""

    run_dir: RunDir
    bundle: Bundle
    dtype: str
    batch_size: int
    keep_embeddings: bool

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[UnitDone]:
        """Score each unit, ``batch_size`` rows at a time."""
        torch.set_num_threads(worker.num_threads)
        head = load_head(self.bundle.head)
        for unit in units:
            unit_digest = store.read_attributes(self.run_dir.unit(unit), "unit")["digest"]
            path = self.run_dir.merged(unit)
            store.is_made_from(path, "merged", features_made_from(self.bundle, self.dtype, unit_digest))
            feature = store.read_arrays(path, "merged", "feature")["feature"]
            scores = np.empty((len(feature), 2), dtype=np.float32)
            for start in range(0, len(feature), self.batch_size):
                batch = slice(start, start + self.batch_size)
                scores[batch] = head.scores(torch.from_numpy(feature[batch])).numpy()
            made_from = features_made_from(self.bundle, self.dtype, unit_digest)
            store.write_arrays(self.run_dir.scores(unit), "scores", {"scores": scores}, made_from)
            if not self.keep_embeddings:
                for done in (*(self.run_dir.embedding(role, unit) for role in ROLES), path):
                    done.unlink(missing_ok=True)
            yield UnitDone(unit, len(scores))


def pending(run: Run, units: Sequence[int]) -> list[int]:
    """Units of ``units`` without scores."""
    return [unit for unit in units if not run.dir.scores(unit).exists()]


def run(
    run: Run, index: Index, units: Sequence[int], executor: Executor, *, batch_size: int, keep_embeddings: bool
) -> None:
    """Score what is pending of ``units``."""
    todo = pending(run, units)
    if not todo:
        return
    work = ClassifyWork(run.dir, run.bundle, run.dtype, batch_size, keep_embeddings)
    with run.reporter.stage("classify", sum(index.units[unit].num_sources for unit in todo), "rows") as advance:
        for done in executor.run(work, todo):
            advance(done.num_rows)
