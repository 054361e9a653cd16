"""What an encoder is given: token lists end to end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.sequence.ragged import Ragged, offsets_of

_UINT16 = 1 << 16


@dataclass(frozen=True)
class PackedBatch:
    """``S`` token sequences laid end to end, shortest first, without padding."""

    rows: NDArray[np.int64]  # (S,) int64 numpy, which of the unit's distinct sequences these are
    input_ids: torch.Tensor  # (T,) int64
    cu_seqlens: torch.Tensor  # (S + 1,) int32, running sum of the lengths, as in flash-attn
    lengths: tuple[int, ...]  # the S lengths as plain ints, ascending (known without asking the device)

    @property
    def max_seqlen(self) -> int:
        """Length of the longest sequence, in tokens."""
        return self.lengths[-1]

    def runs(self) -> list[tuple[int, int]]:
        """(length, how many) for each run of equal lengths, in order."""
        values, counts = np.unique(np.asarray(self.lengths), return_counts=True)
        return list(zip(values.tolist(), counts.tolist(), strict=True))

    @property
    def num_tokens(self) -> int:
        """Length of the whole batch, in tokens."""
        return len(self.input_ids)

    def part(self, start: int, stop: int) -> PackedBatch:
        """The batch of sequences ``start:stop`` alone, on the same device."""
        lengths = self.lengths[start:stop]
        first = sum(self.lengths[:start])
        return PackedBatch(
            self.rows[start:stop],
            self.input_ids[first : first + sum(lengths)],
            self.cu_seqlens[start : stop + 1] - first,
            lengths,
        )

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch with its tensors on ``device``; on CUDA asynchronous from page-locked memory."""
        # Elsewhere there is no event to wait for: the copy would be read before it is done.
        is_cuda = device.type == "cuda"
        input_ids, cu_seqlens = (x.to(device, non_blocking=is_cuda) for x in (self.input_ids, self.cu_seqlens))
        return PackedBatch(self.rows, input_ids, cu_seqlens, self.lengths)


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


def collate(tokens: Ragged, groups: list[NDArray[np.int64]]) -> Packing:
    """Lay token lists end to end, without padding: a batch for each group of indices, which are ordered by length."""
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
