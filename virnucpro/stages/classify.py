"""Embeddings through the head: two scores a row.

The head takes the two embeddings of a row as they lie in the two shards, so no merged file is needed. If there is one,
it is read instead and split again: the head then does the same arithmetic, and the bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.encoders.weights import read_config
from virnucpro.engine.threads import READ_AHEAD, ComputeThreads
from virnucpro.errors import ModelError
from virnucpro.heads import PackedHead, load_head
from virnucpro.stages.base import ROLES, Index, Run, features_made_from, fingerprint_of, open_shards, unit_digest

_Pair = tuple[NDArray[np.floating], NDArray[np.floating]]
"""Nucleotide and protein embeddings of some rows."""
_Scores = NDArray[np.float32]

_MAX_THREADS = 8
"""No more are fed by one that reads: on a core the head takes ten times as long as reading."""


class Scorer:
    """Scores units, and drops what a scored unit no longer needs.

    Args:
        run: of the units.
        num_threads: CPU threads.
        batch_size: rows the head scores at a time.
        keep_embeddings: leave shards and merged files where they are.
    """

    def __init__(self, run: Run, num_threads: int, batch_size: int, *, keep_embeddings: bool) -> None:
        self._run_dir, self._bundle, self._dtype = run.dir, run.bundle, run.dtype
        self._num_threads, self._batch_size = min(num_threads, _MAX_THREADS), batch_size
        self._num_alive, self._keep_embeddings = self._num_threads + READ_AHEAD, keep_embeddings
        widths = [read_config(run.bundle.encoder(role)).width for role in ROLES]
        self._head = PackedHead(load_head(run.bundle.head), widths)

    def score(self, unit: int) -> int:
        """Write the scores of a unit whose embeddings are there; returns the number of its rows.

        Raises:
            StoreError: they are damaged.
            CountError: there are more embeddings of one kind than of the other.
        """
        merged = self._run_dir.merged(unit)
        made_from = features_made_from(self._bundle, self._dtype, unit_digest(self._run_dir, unit))
        opened = self._of_merged(unit, made_from) if merged.exists() else self._of_shards(unit)
        with opened as pairs, ComputeThreads(self._num_threads) as threads:
            scores = np.concatenate([np.empty((0, 2), dtype=np.float32), *threads.map(self._scores, pairs)])
        store.write_arrays(self._run_dir.scores(unit), "scores", {"scores": scores}, made_from)
        if not self._keep_embeddings:
            for path in (*(self._run_dir.embedding(role, unit) for role in ROLES), merged):
                path.unlink(missing_ok=True)
        return len(scores)

    @contextmanager
    def _of_shards(self, unit: int) -> Iterator[Iterator[_Pair]]:
        """The embeddings of a unit, some rows at a time; each pair is gone when all threads have later ones."""
        fingerprints = {role: fingerprint_of(self._bundle.digests[role], self._dtype) for role in ROLES}
        with open_shards(self._run_dir, unit, fingerprints) as shards:
            yield zip(*(shard.blocks(self._batch_size, self._num_alive) for shard in shards), strict=True)

    @contextmanager
    def _of_merged(self, unit: int, made_from: dict[str, str]) -> Iterator[Iterator[_Pair]]:
        """The same from the merged file."""
        width = read_config(self._bundle.nucleotide).width
        with store.open_array(self._run_dir.merged(unit), "merged", made_from, "feature") as feature:
            yield (
                (np.ascontiguousarray(block[:, :width]), np.ascontiguousarray(block[:, width:]))
                for block in feature.blocks(self._batch_size, self._num_alive)
            )

    def _scores(self, pair: _Pair) -> NDArray[np.float32]:
        """(n, 2) scores; NaN for the rows that were left out, whose embeddings are NaN, and for no other."""
        scores: NDArray[np.float32] = self._head.scores(*map(torch.from_numpy, pair)).numpy()
        unscored = np.isnan(scores).any(axis=1)
        if unscored.any() and not np.any([np.isnan(part[unscored]).any(axis=1) for part in pair], axis=0).all():
            raise ModelError(f"{self._bundle.head}: gives NaN for features that are finite. Its weights are damaged.")
        return scores


def pending(run: Run, index: Index) -> list[int]:
    """Units without scores."""
    return [unit for unit in range(len(index.units)) if not run.dir.scores(unit).exists()]
