"""From token states to one embedding a sequence."""

from __future__ import annotations

import torch

from virnucpro.engine.batch import PackedBatch


def mean_over_tokens(states: torch.Tensor, batch: PackedBatch, *, special_tokens: bool) -> torch.Tensor:
    """Average the token states of each sequence in float32.

    Args:
        states: (T, D) in any float type.
        batch: says which token belongs to which sequence.
        special_tokens: whether the first and the last token of a sequence count.

    Returns:
        (S, D) float32.
    """
    ends = slice(None) if special_tokens else slice(1, -1)
    means = []
    start = 0
    for length, count in batch.runs():
        stop = start + length * count
        run = states[start:stop].view(count, length, -1)
        means.append(run[:, ends].mean(dim=1, dtype=torch.float32))
        start = stop
    return torch.cat(means)
