"""The two layers every transformer here is made of, and how token states become embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm, linear, pad

from virnucpro.engine.batch import PackedBatch

FEWEST_ROWS = 4
"""For fewer, CPU libraries take other kernels, whose last bits differ: a row would depend on its neighbours."""


class Linear:
    """``x @ weight.T + bias``, computed in the dtype of ``weight``, and what transformers make of it.

    On a CPU the bits of a row do not depend on how many rows there are.

    Args:
        weight: (out, in).
        bias: (out,) or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._bias = None if bias is None else bias.to(weight.dtype)
        # Float32 on a CPU: oneDNN with the weight laid out beforehand is 1.2 to 2.2 times as fast as the BLAS that
        # torch calls otherwise (measured on AMD), with the same result to 7e-6.
        self._is_prepacked = weight.device.type == "cpu" and weight.dtype == torch.float32 and _can_prepack()
        self._weight = _prepack(weight) if self._is_prepacked else weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to (T, in)."""
        return self._apply(x)

    def onto(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + self(x)``, added while the product is at hand."""
        if self._is_prepacked and len(x) >= FEWEST_ROWS:
            return _add_prepacked(residual, x, self._weight, self._bias)
        return residual + self._apply(x)

    def feed_forward(self, down: Linear, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + down(gelu(self(x)))``, GELU taken while the product is at hand."""
        return down.onto(residual, self._apply(x, "gelu") if self._is_prepacked else gelu(self._apply(x)))

    def gated_feed_forward(self, down: Linear, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + down(gelu(gate) * content)``, where ``self(x)`` is gate and content side by side."""
        gate, content = self._apply(x).chunk(2, dim=-1)
        return down.onto(residual, gelu(gate) * content)

    def _apply(self, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
        if x.device.type == "cpu" and not torch.compiler.is_compiling() and len(x) < FEWEST_ROWS:
            return self._apply(pad(x, (0, 0, 0, FEWEST_ROWS - len(x))), activation)[: len(x)]
        if self._is_prepacked:
            return _apply_prepacked(x, self._weight, self._bias, activation)
        return linear(x, self._weight, self._bias)


class LinearToOne(nn.Linear):
    """A linear layer with one output; the bits of a row do not depend on how many rows there are, as BLAS's do."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__(num_inputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to (..., in): (..., 1)."""
        return (x * self.weight[0]).sum(-1, keepdim=True) + self.bias


def linear_from(tensors: Mapping[str, torch.Tensor], name: str) -> Linear:
    """Make a layer of ``name.weight`` and, where there is one, ``name.bias``."""
    return Linear(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


class LayerNorm:
    """LayerNorm over the last dimension; the statistics are float32 inside the kernel, whatever comes in."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> None:
        self._weight, self._bias, self._eps = weight, bias, eps

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], name: str, eps: float) -> LayerNorm:
        """Take ``name.weight`` and ``name.bias``."""
        return cls(tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to (T, width)."""
        # The CPU kernel takes float32 parameters beside bfloat16, the others do not.
        if x.device.type != "cpu" and self._weight.dtype != x.dtype:
            self._weight, self._bias = self._weight.to(x.dtype), self._bias.to(x.dtype)
        return layer_norm(x, self._weight.shape, self._weight, self._bias, self._eps)


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


def _prepack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())  # noqa: SLF001
    return packed


def _apply_prepacked(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, activation: str = "none"
) -> torch.Tensor:
    """Apply, then ``activation``: none, or gelu (exact, with erf)."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none")  # noqa: SLF001
    return result


def _add_prepacked(
    residual: torch.Tensor, x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, packed, bias, "add")  # noqa: SLF001
    return result


@cache
def _can_prepack() -> bool:
    """Try it: these operators are torch's own, written for its compiler, and not promised to stay."""
    weight, x = torch.eye(16), torch.arange(32.0).view(2, 16)
    try:
        packed = _prepack(weight)
        plain, added = _apply_prepacked(x, packed, None), _add_prepacked(x, x, packed, None)
        activated = _apply_prepacked(x, packed, None, "gelu")
        return torch.equal(plain, x) and torch.equal(added, x + x) and torch.allclose(activated, gelu(x))
    except (AttributeError, RuntimeError, TypeError):
        return False
