"""From token lists and groups to packed batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.engine.batch import PackedBatch
from virnucpro.sequence.ragged import Ragged, offsets_of


@dataclass(frozen=True)
class Packing:
    """All batches of a unit in one tensor each, so that they cross processes and are page-locked in one piece.

    Some hundred small tensors a unit would use up the file descriptors through which DataLoader shares memory.

    Attributes:
        rows: (S,) int64, which sequence, batch after batch.
        lengths: (S,) int64, in tokens.
        sizes: number of sequences in each batch.
        input_ids: (T,) int64.
        cu_seqlens: (S + number of batches,) int32, each batch's own, end to end.
    """

    rows: NDArray[np.int64]
    lengths: NDArray[np.int64]
    sizes: tuple[int, ...]
    input_ids: torch.Tensor
    cu_seqlens: torch.Tensor

    def __iter__(self) -> Iterator[PackedBatch]:
        sequence, token = 0, 0
        for number, size in enumerate(self.sizes):
            lengths = self.lengths[sequence : sequence + size]
            num_tokens = int(lengths.sum())
            first = sequence + number
            yield PackedBatch(
                rows=self.rows[sequence : sequence + size],
                input_ids=self.input_ids[token : token + num_tokens],
                cu_seqlens=self.cu_seqlens[first : first + size + 1],
                lengths=tuple(lengths.tolist()),
            )
            sequence, token = sequence + size, token + num_tokens

    def __len__(self) -> int:
        return len(self.sizes)

    def pin_memory(self) -> Packing:
        """The same batches in page-locked memory."""
        return Packing(self.rows, self.lengths, self.sizes, self.input_ids.pin_memory(), self.cu_seqlens.pin_memory())


class VarlenCollator:
    """Lays token lists end to end, without padding."""

    def __call__(self, tokens: Ragged, indices: NDArray[np.int64]) -> PackedBatch:
        """Collate one batch of the sequences at ``indices``, which are ordered by length."""
        return next(iter(self.collate(tokens, [indices])))

    def collate(self, tokens: Ragged, groups: list[NDArray[np.int64]]) -> Packing:
        """Collate all batches of a unit, one for each group of indices."""
        rows = np.concatenate(groups) if groups else np.empty(0, dtype=np.int64)
        taken = tokens.take(rows)
        sums = [offsets_of(tokens.lengths[group]) for group in groups]
        cu_seqlens = np.concatenate(sums) if sums else np.empty(0, dtype=np.int64)
        return Packing(
            rows=rows,
            lengths=taken.lengths,
            sizes=tuple(len(group) for group in groups),
            input_ids=torch.from_numpy(taken.values.astype(np.int64)),
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        )
