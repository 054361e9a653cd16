"""From token lists and groups to packed batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.engine.batch import PackedBatch
from virnucpro.sequence.ragged import Ragged, offsets_of

_UINT16 = 1 << 16


@dataclass(frozen=True)
class Packing:
    """All batches of a unit in a few small arrays.

    They cross processes by value: tensors would lie in shared memory, of which a container may have 64 MiB, and loaders
    wait for ever where it is full.
    """

    rows: NDArray[np.int64]  # (S,) int64, which sequence, batch after batch
    lengths: NDArray[np.int64]  # (S,) int64, in tokens
    sizes: tuple[int, ...]  # number of sequences in each batch
    input_ids: NDArray[np.uint16 | np.int32]  # (T,) uint16, or int32 for a larger vocabulary
    cu_seqlens: NDArray[np.int32]  # (S + number of batches,) int32, each batch's own, end to end
    pinned: tuple[torch.Tensor, torch.Tensor] | None = None  # int64 tokens and the running sums in page-locked memory

    def __iter__(self) -> Iterator[PackedBatch]:
        input_ids, cu_seqlens = self.pinned or self._tensors()
        sequence, token = 0, 0
        for number, size in enumerate(self.sizes):
            lengths = self.lengths[sequence : sequence + size]
            num_tokens = int(lengths.sum())
            first = sequence + number
            yield PackedBatch(
                rows=self.rows[sequence : sequence + size],
                input_ids=input_ids[token : token + num_tokens],
                cu_seqlens=cu_seqlens[first : first + size + 1],
                lengths=tuple(lengths.tolist()),
            )
            sequence, token = sequence + size, token + num_tokens

    def __len__(self) -> int:
        return len(self.sizes)

    def pin_memory(self) -> Packing:
        """The same batches in page-locked memory."""
        input_ids, cu_seqlens = self._tensors()
        return replace(self, pinned=(input_ids.pin_memory(), cu_seqlens.pin_memory()))

    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self.input_ids.astype(np.int64)), torch.from_numpy(self.cu_seqlens)


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
            input_ids=taken.values.astype(np.uint16 if taken.values.max(initial=0) < _UINT16 else np.int32),
            cu_seqlens=cu_seqlens.astype(np.int32),
        )
