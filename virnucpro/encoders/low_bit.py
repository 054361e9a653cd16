"""Linear layers whose products are computed in 8 bits: signed integers on a CPU, 8-bit floats on a GPU.

A weight is quantised once, each output channel by its own scale; what it is applied to at every call, each token by its
own. A token's numbers so never depend on which others are in its batch. All else stays in bfloat16.
"""

from __future__ import annotations

from functools import cache

import torch

from virnucpro.encoders import row_passes
from virnucpro.encoders.layers import Linear, LinearLayer, LinearMaker

INT8, FP8 = torch.int8, torch.float8_e4m3fn
_LARGEST_INT8 = 127.0
_LARGEST_FP8 = torch.finfo(FP8).max
_FP8_MULTIPLE = 16  # of both dimensions of a weight, for CUDA's scaled products


def linear_maker(dtype: torch.dtype) -> LinearMaker:
    """What makes the linear layers where ``dtype`` is asked for."""
    return {INT8: Int8Linear, FP8: fp8_linear}.get(dtype, Linear)


def quantise_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each row of a matrix symmetrically.

    Args:
        weight: (out, in).

    Returns:
        Integers from -127 to 127 (out, in), and the float32 scales (out,) that they are multiplied by.
    """
    weight = weight.float()
    scales = weight.abs().amax(dim=1) / _LARGEST_INT8
    return (weight / _nonzero(scales)[:, None]).round().to(INT8), scales


def quantise_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each row of a matrix so that its largest value is the largest of the type.

    Args:
        x: (rows, width).

    Returns:
        float8_e4m3fn (rows, width), and the float32 scales (rows, 1) that they are multiplied by.
    """
    scales = x.abs().amax(dim=1, keepdim=True).float() / _LARGEST_FP8
    return (x.float() / _nonzero(scales)).to(FP8), scales


class Int8Linear(LinearLayer):
    """Products of 8-bit integers on a CPU, summed in 32 bits; takes and gives bfloat16.

    Args:
        weight: (out, in) in a float type.
        bias: (out,) or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        integers, self._scales = quantise_int8(weight)
        self._packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._bias = torch.zeros(len(weight)) if bias is None else bias.float().contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to (T, in)."""
        rows = row_passes.quantise(x.bfloat16())
        return row_passes.dequantise(self._products(rows), rows.scales, self._bias)

    def onto(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + self(x)``."""
        return self.quantised_onto(residual, row_passes.quantise(x.bfloat16()))

    def feed_forward(self, down: LinearLayer, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + down(gelu(self(x)))``; between the two products nothing is kept in more than 8 bits."""
        if not isinstance(down, Int8Linear):
            return super().feed_forward(down, residual, x)
        rows = row_passes.quantise(x.bfloat16())
        inner = row_passes.gelu_quantised(self._products(rows), rows.scales, self._bias)
        return down.quantised_onto(residual, inner)

    def gated_feed_forward(self, down: LinearLayer, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + down(gelu(gate) * content)``; see :meth:`feed_forward`."""
        if not isinstance(down, Int8Linear):
            return super().gated_feed_forward(down, residual, x)
        rows = row_passes.quantise(x.bfloat16())
        inner = row_passes.gated_gelu_quantised(self._products(rows), rows.scales, self._bias)
        return down.quantised_onto(residual, inner)

    def quantised_onto(self, residual: torch.Tensor, rows: row_passes.QuantisedRows) -> torch.Tensor:
        """``residual + self(x)`` of an ``x`` that is quantised already."""
        return row_passes.dequantise_onto(residual.bfloat16(), self._products(rows), rows.scales, self._bias)

    def _products(self, rows: row_passes.QuantisedRows) -> torch.Tensor:
        """Codes times weight, scaled by the weight alone: bfloat16 (T, out)."""
        return _multiply(rows.codes, self._packed, self._scales, self._zeros)


class Fp8Linear(LinearLayer):
    """Products of 8-bit floats on a GPU (compute capability 8.9 on), summed in float32; takes and gives bfloat16.

    Args:
        weight: (out, in) in a float type, both multiples of 16.
        bias: (out,) or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, scales = quantise_fp8(weight)
        self._scales = scales.T.contiguous()
        self._bias = None if bias is None else bias.bfloat16()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to (T, in)."""
        rows, scales = quantise_fp8(x)
        return torch._scaled_mm(  # noqa: SLF001 - the only way to these products
            rows,
            self._weight.T,
            scale_a=scales,
            scale_b=self._scales,
            bias=self._bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )


def fp8_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> LinearLayer:
    """Make a layer in 8-bit floats; in bfloat16 where the shape is none that they can be multiplied in."""
    if any(size % _FP8_MULTIPLE for size in weight.shape):
        return Linear(weight.bfloat16(), bias)
    return Fp8Linear(weight, bias)


@cache
def can_multiply_int8() -> bool:
    """Whether this CPU has instructions for 8-bit integers that never overflow, and this torch the operators."""
    # Without VNNI two products are added in 16 bits, which 127 * 255 * 2 does not fit: the sums would be wrong.
    if not torch.cpu._is_vnni_supported():  # noqa: SLF001 - torch has no other way to ask
        return False
    codes = torch.full((2, 64), 255, dtype=torch.uint8)
    weight = torch.full((32, 64), 127, dtype=INT8)
    try:
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        products = _multiply(codes, packed, torch.ones(32), torch.zeros(32, dtype=torch.int64))
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return torch.equal(products, torch.full((2, 32), 127.0 * 127 * 64).bfloat16())


def _multiply(codes: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """``(codes - 128) @ weight.T * scales`` in bfloat16, by the operator that torch's compiler uses for such layers."""
    products: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, row_passes.ZERO_CODE, packed, scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], ""
    )
    return products


def _nonzero(scales: torch.Tensor) -> torch.Tensor:
    """The scales with 1 for 0: rows of zeros stay zeros."""
    return torch.where(scales == 0, torch.ones_like(scales), scales)
