"""Embeddings through the head: two scores a row.

The head takes the two embeddings of a row as they lie in the two shards, so no merged file is needed. If there is one,
it is read instead and split again: the head then does the same arithmetic, and the bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.bundles import Bundle
from virnucpro.encoders.weights import read_config
from virnucpro.engine.threads import READ_AHEAD, ComputeThreads
from virnucpro.errors import CountError, ModelError, StoreError, WorkerError
from virnucpro.executors.base import Executor, Outcome, UnitDone, UnitFailed, Worker
from virnucpro.heads import PackedHead, load_head
from virnucpro.progress import Advance
from virnucpro.run_dir import RunDir
from virnucpro.stages.base import ROLES, Index, Run, features_made_from, shard_made_from

_Pair = tuple[NDArray[np.floating], NDArray[np.floating]]
"""Nucleotide and protein embeddings of some rows."""
_Scores = NDArray[np.float32]

_MAX_THREADS = 8
"""No more are fed by one that reads: on a core the head takes ten times as long as reading."""


@dataclass(frozen=True)
class ClassifyWork:
    """Scores units; see ``executors.base.Work``. Drops what a scored unit no longer needs."""

    run_dir: RunDir  # where embeddings are and scores go
    bundle: Bundle
    dtype: str  # float type the encoders computed in
    batch_size: int  # rows the head scores at a time
    keep_embeddings: bool  # leave shards and merged files where they are

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[Outcome]:
        """Score each unit; one whose embeddings are damaged does not keep the others from it."""
        head = PackedHead(load_head(self.bundle.head), [read_config(self.bundle.encoder(role)).width for role in ROLES])
        for unit in units:
            try:
                yield self._classify(head, unit, min(worker.num_threads, _MAX_THREADS))
            except (StoreError, CountError) as error:
                yield UnitFailed(unit, str(error))

    def _classify(self, head: PackedHead, unit: int, num_threads: int) -> UnitDone:
        unit_digest = store.read_attributes(self.run_dir.unit(unit), "unit")["digest"]
        shards = [self.run_dir.embedding(role, unit) for role in ROLES]
        merged = self.run_dir.merged(unit)
        opened = self._of_merged if merged.exists() else self._of_shards
        with opened(unit, unit_digest, num_threads + READ_AHEAD) as pairs, ComputeThreads(num_threads) as threads:
            batches = threads.map(partial(self._scores, head), pairs)
            scores = np.concatenate([np.empty((0, 2), dtype=np.float32), *batches])
        made_from = features_made_from(self.bundle, self.dtype, unit_digest)
        store.write_arrays(self.run_dir.scores(unit), "scores", {"scores": scores}, made_from)
        if not self.keep_embeddings:
            for path in (*shards, merged):
                path.unlink(missing_ok=True)
        return UnitDone(unit, len(scores))

    @contextmanager
    def _of_shards(self, unit: int, unit_digest: str, num_alive: int) -> Iterator[Iterator[_Pair]]:
        """The embeddings of a unit, some rows at a time; each pair is gone when ``num_alive`` more are asked for.

        Raises:
            StoreError: a file is missing, or damaged, which may show after the last pair.
            CountError: there are more embeddings of one kind than of the other.
        """
        with ExitStack() as files:
            parts = []
            for role in ROLES:
                made_from = shard_made_from(self.bundle, role, self.dtype, unit_digest)
                path = self.run_dir.embedding(role, unit)
                parts.append(files.enter_context(store.open_array(path, "embedding", made_from, "embedding")))
            num_nucleotide, num_protein = (part.shape[0] for part in parts)
            if num_nucleotide != num_protein:
                raise CountError(f"unit {unit}: {num_nucleotide} nucleotide and {num_protein} protein embeddings")
            yield zip(*(part.blocks(self.batch_size, num_alive) for part in parts), strict=True)

    @contextmanager
    def _of_merged(self, unit: int, unit_digest: str, num_alive: int) -> Iterator[Iterator[_Pair]]:
        """The same from the merged file."""
        width = read_config(self.bundle.nucleotide).width
        made_from = features_made_from(self.bundle, self.dtype, unit_digest)
        with store.open_array(self.run_dir.merged(unit), "merged", made_from, "feature") as feature:
            yield (
                (np.ascontiguousarray(block[:, :width]), np.ascontiguousarray(block[:, width:]))
                for block in feature.blocks(self.batch_size, num_alive)
            )

    def _scores(self, head: PackedHead, pair: _Pair) -> NDArray[np.float32]:
        """(n, 2) scores; NaN for the rows that were left out, whose embeddings are NaN, and for no other."""
        scores: NDArray[np.float32] = head.scores(*map(torch.from_numpy, pair)).numpy()
        unscored = np.isnan(scores).any(axis=1)
        if unscored.any() and not np.any([np.isnan(part[unscored]).any(axis=1) for part in pair], axis=0).all():
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
        reasons = "\n".join(f"  unit {failure.unit}: {failure.reason.strip()}" for failure in failed)
        raise WorkerError(f"{len(failed)} units cannot be scored, all others are:\n{reasons}")


def pending(run: Run, index: Index) -> list[int]:
    """Units without scores."""
    return [unit for unit in range(len(index.units)) if not run.dir.scores(unit).exists()]
