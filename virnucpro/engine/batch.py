"""What an encoder is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


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

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory (DataLoader calls this)."""
        return PackedBatch(self.rows, self.input_ids.pin_memory(), self.cu_seqlens.pin_memory(), self.lengths)
