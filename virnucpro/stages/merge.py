"""Nucleotide shard and protein shard of a unit, side by side: its features.

A unit is a task of its own: it needs two files and makes one, so any number of them can be merged at the
same time, a killed process costs no more than the units it held, and a merged file that is there and valid
is not made again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.errors import CountError, StoreError, WorkerError
from virnucpro.executors.base import Executor, Outcome, UnitDone, UnitFailed, Worker
from virnucpro.progress import Advance
from virnucpro.run_dir import RunDir
from virnucpro.stages.base import ROLES, Run, fingerprint_of, open_shards, unit_digest
from virnucpro.store import StoredArray

_log = logging.getLogger(__name__)

_BLOCK_ROWS = 256
"""Rows that are copied at a time: few enough to be still in the CPU's cache when they are."""


@dataclass(frozen=True)
class MergeWork:
    """Merges units; see ``executors.base.Work``. Knows fingerprints, not the model: its processes need no torch."""

    run_dir: RunDir  # where shards are and features go
    shard_fingerprints: dict[str, str]  # role to what its shards must carry
    fingerprint: str  # what merged files carry

    @classmethod
    def of_model(cls, run_dir: RunDir, encoder_digests: Mapping[str, str], fingerprint: str, dtype: str) -> Self:
        """For the shards of a model."""
        shards = {role: fingerprint_of(encoder_digests[role], dtype) for role in ROLES}
        return cls(run_dir, shards, fingerprint_of(fingerprint, dtype))

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[Outcome]:
        """Merge each unit; a pair that cannot be merged does not keep the others from it."""
        del worker  # the disk decides, not the device
        for unit in units:
            try:
                yield self._merge(unit)
            except (StoreError, CountError) as error:
                yield UnitFailed(unit, str(error))

    def is_done(self, unit: int) -> bool:
        """Whether the merged file is there and was made from this unit; one that was not is made again."""
        path = self.run_dir.merged(unit)
        try:
            return path.exists() and store.is_made_from(path, "merged", self._made_from(unit))
        except StoreError as error:
            _log.warning("%s; it is merged again", error)
            return False

    def _merge(self, unit: int) -> UnitDone:
        with open_shards(self.run_dir, unit, self.shard_fingerprints) as (nucleotide, protein):
            (num_rows, width), (_, other_width) = nucleotide.shape, protein.shape
            dtype = np.result_type(nucleotide.dtype, protein.dtype)
            like = np.broadcast_to(np.zeros((), dtype), (num_rows, width + other_width))
            blocks = _side_by_side(nucleotide, protein, dtype)
            store.write_blocks(self.run_dir.merged(unit), "merged", "feature", like, blocks, self._made_from(unit))
        return UnitDone(unit, num_rows)

    def _made_from(self, unit: int) -> dict[str, str]:
        return {"unit_digest": unit_digest(self.run_dir, unit), "fingerprint": self.fingerprint}


def _side_by_side(
    nucleotide: StoredArray, protein: StoredArray, dtype: np.dtype[Any]
) -> Iterator[NDArray[np.floating]]:
    """Features (n, D_nucleotide + D_protein), some rows at a time; they are gone when the next are asked for."""
    width = nucleotide.shape[1]
    buffer = np.empty((_BLOCK_ROWS, width + protein.shape[1]), dtype)
    for first, second in zip(nucleotide.blocks(_BLOCK_ROWS), protein.blocks(_BLOCK_ROWS), strict=True):
        feature = buffer[: len(first)]
        feature[:, :width], feature[:, width:] = first, second
        yield feature


def run(run: Run, units: Iterable[int], num_units: int, executor: Executor) -> Iterator[int]:
    """Yield each of ``units`` when its merged file is there; those already merged at once.

    Raises:
        WorkerError: some pairs cannot be merged; raised when all others are. It lists them with the reasons.
    """
    work = MergeWork.of_model(run.dir, run.bundle.digests, run.bundle.fingerprint, run.dtype)
    yield from run.reporter.stream(
        "merge", num_units, "units", lambda advance: merge_all(work, units, executor, advance)
    )


def merge_all(work: MergeWork, units: Iterable[int], executor: Executor, advance: Advance) -> Iterator[int]:
    """See ``run``; ``advance`` is told of every unit that is finished."""
    done_before: list[int] = []

    def to_merge() -> Iterator[int]:
        for unit in units:
            if work.is_done(unit):
                done_before.append(unit)
            else:
                yield unit

    failed: list[UnitFailed] = []
    for outcome in executor.run(work, to_merge()):
        if isinstance(outcome, UnitFailed):
            failed.append(outcome)
            continue
        advance(1)
        yield outcome.unit
        while done_before:
            yield done_before.pop()
    yield from done_before
    if failed:
        reasons = "\n".join(f"  unit {failure.unit}: {failure.reason.strip()}" for failure in failed)
        raise WorkerError(f"{len(failed)} pairs of shards cannot be merged, all others are:\n{reasons}")
