"""Nucleotide shard and protein shard of a unit, side by side: its features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from virnucpro import store
from virnucpro.bundles import Bundle
from virnucpro.errors import CountError
from virnucpro.executors.base import Executor, UnitDone, Worker
from virnucpro.run_dir import RunDir
from virnucpro.stages.base import ROLES, Index, Run, features_made_from, shard_made_from


@dataclass(frozen=True)
class MergeWork:
    """Merges units; see ``executors.base.Work``."""

    run_dir: RunDir
    bundle: Bundle
    dtype: str

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[UnitDone]:
        """Merge each unit."""
        del worker  # the disk decides, not the device
        for unit in units:
            unit_digest = store.read_attributes(self.run_dir.unit(unit), "unit")["digest"]
            parts = []
            for role in ROLES:
                path = self.run_dir.embedding(role, unit)
                store.is_made_from(path, "embedding", shard_made_from(self.bundle, role, self.dtype, unit_digest))
                parts.append(store.read_arrays(path, "embedding", "embedding")["embedding"])
            nucleotide, protein = parts
            if len(nucleotide) != len(protein):
                raise CountError(f"unit {unit}: {len(nucleotide)} nucleotide and {len(protein)} protein embeddings")
            store.write_arrays(
                self.run_dir.merged(unit),
                "merged",
                {"feature": np.concatenate([nucleotide, protein], axis=1)},
                features_made_from(self.bundle, self.dtype, unit_digest),
            )
            yield UnitDone(unit, len(nucleotide))


def pending(run: Run, units: Sequence[int]) -> list[int]:
    """Units of ``units`` without a merged file or anything later."""
    return [unit for unit in units if not run.dir.merged(unit).exists() and not run.dir.scores(unit).exists()]


def run(run: Run, index: Index, units: Sequence[int], executor: Executor) -> None:
    """Merge what is pending of ``units``."""
    del index
    todo = pending(run, units)
    if not todo:
        return
    with run.reporter.stage("merge", len(todo), "units") as advance:
        for _ in executor.run(MergeWork(run.dir, run.bundle, run.dtype), todo):
            advance(1)
