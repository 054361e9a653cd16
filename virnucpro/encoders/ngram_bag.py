"""Bags of n-grams: numbers of n-grams, and the mean of their vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import embedding_bag

from virnucpro.kernels import kernel

SMALLEST_PACKED = 2000
"""Matrices with more rows are tables of bags."""
SCALE = ".scale"


def ngram_index(symbols: torch.Tensor, length: int, num_symbols: int) -> torch.Tensor:
    """Number of the n-gram that starts at each position: 0 when it holds a symbol >= ``num_symbols``.

    Args:
        symbols: (..., N) int64.
        length: n.
        num_symbols: size of the alphabet.

    Returns:
        (..., N - length + 1) int64 in 0..num_symbols**length.
    """
    count = symbols.shape[-1] - length + 1
    index = symbols[..., :count]
    largest = index
    for k in range(1, length):
        following = symbols[..., k : k + count]
        index = index * num_symbols + following
        largest = torch.maximum(largest, following)
    return torch.where(largest < num_symbols, index + 1, 0)


_are_drawn = ContextVar("are_drawn", default=True)


@contextmanager
def left_empty() -> Iterator[None]:
    """Tables of bags that are made meanwhile hold nothing yet: drawing them takes longer than reading them."""
    token = _are_drawn.set(False)
    try:
        yield
    finally:
        _are_drawn.reset(token)


class NgramBag(nn.Module):
    """Mean vector of a bag of n-grams; number 0 is no n-gram and its vector stays zero."""

    def __init__(self, num_ngrams: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_ngrams, width))
        if _are_drawn.get():
            with torch.no_grad():
                self.weight.normal_(std=0.5)
                self.weight[0] = 0

    def forward(self, ngrams: torch.Tensor) -> torch.Tensor:
        """Average the vectors of each row of (B, N) numbers: (B, width), zero for an empty bag."""
        return mean_of_vectors(ngrams, self.weight)


def mean_of_vectors(ngrams: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Average the ``vectors`` of each row of (B, N) numbers: (B, width); number 0, whose vector is zero, is none."""
    total: torch.Tensor = _SumOfVectors.apply(ngrams, vectors)  # type: ignore[no-untyped-call]
    return total / (ngrams > 0).sum(dim=1, keepdim=True).clamp(min=1)


def pack_bags(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Store the tables of bags in 8 bits, each vector with a scale of its own; other tensors stay as they are."""
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and len(tensor) > SMALLEST_PACKED:
            scale = tensor.abs().amax(dim=1).clamp(min=1e-12) / 127
            packed[name + SCALE] = scale.half()
            packed[name] = (tensor / scale.half().float().clamp(min=1e-7)[:, None]).round().clamp(-127, 127).char()
        else:
            packed[name] = tensor
    return packed


def unpack_bags(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo ``pack_bags``: all tensors in float32, but for those of packed bits (uint8)."""
    unpacked: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name + SCALE in tensors:
            unpacked[name] = tensor * tensors[name + SCALE].float()[:, None]
        elif not name.endswith(SCALE):
            # A copy: libraries may sum in another order where numbers lie as they do in a file.
            unpacked[name] = tensor if tensor.dtype == torch.uint8 else tensor.to(torch.float32, copy=True)
    return unpacked


class _SumOfVectors(torch.autograd.Function):
    """``embedding_bag`` with ``padding_idx=0``; on a CPU its own forward is 10 x and its own backward 2 x slower."""

    @staticmethod
    def forward(ctx: Any, ngrams: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        ctx.save_for_backward(ngrams)
        ctx.num_ngrams = weight.shape[0]
        return embedding_bag(ngrams, weight, mode="sum")

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:  # noqa: ANN401
        (ngrams,) = ctx.saved_tensors
        total = torch.zeros(ctx.num_ngrams, gradient.shape[1])
        numbers = np.ascontiguousarray(ngrams.numpy(), dtype=np.int64)
        _scatter_rows(numbers, *numbers.shape, gradient.float().contiguous().numpy(), gradient.shape[1], total.numpy())
        return None, total


@kernel
def _scatter_rows(
    ngrams: NDArray[np.int64],
    num_bags: int,
    num_ngrams: int,
    gradient: NDArray[np.float32],
    num_columns: int,
    total: NDArray[np.float32],
) -> None:
    """Add row ``b`` of ``gradient`` to the vector of every n-gram of bag ``b``."""
    for bag in range(num_bags):
        for i in range(bag * num_ngrams, (bag + 1) * num_ngrams):
            if ngrams[i]:
                for column in range(num_columns):
                    total[ngrams[i] * num_columns + column] += gradient[bag * num_columns + column]
