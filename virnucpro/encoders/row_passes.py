"""What lies between two matrix products on a CPU, each in one pass over the rows.

Written with torch's operators, each of these takes two to nine passes over arrays that the cache does not hold. A
bfloat16 is the upper half of a float32 here, 16 bits: numba knows no such type.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.kernels import kernel_with

_Halves = NDArray[np.uint16]
_Floats = NDArray[np.float32]
_Codes = NDArray[np.uint8]

ZERO_CODE = 128
"""The 8-bit number that means 0. CPUs multiply unsigned by signed 8-bit numbers."""
_LARGEST_CODE = np.float32(127)
_ROUNDING = np.float32(12_582_912 + ZERO_CODE)  # 1.5 * 2**23: the sum's lowest bits are the rounded other addend
_SIGN_OFF = np.uint32(0x7FFFFFFF)
_ROWS_A_THREAD = 64  # below, handing over takes longer than the work

_HALF, _ONE, _ERF_LIMIT = np.float32(0.5), np.float32(1), np.float32(4)
_SQRT_HALF = np.float32(0.5**0.5)
# erf(x) = x * P(x * x) / Q(x * x) on [-4, 4], highest power first, to 2e-7; source: Eigen's and XLA's float32 erf.
_P0, _P1, _P2 = np.float32(-2.72614225801306e-10), np.float32(2.77068142495902e-08), np.float32(-2.10102402082508e-06)
_P3, _P4 = np.float32(-5.69250639462346e-05), np.float32(-7.34990630326855e-04)
_P5, _P6 = np.float32(-2.95459980854025e-03), np.float32(-1.60960333262415e-02)
_Q0, _Q1 = np.float32(-1.45660718464996e-05), np.float32(-2.13374055278905e-04)
_Q2, _Q3, _Q4 = np.float32(-1.68282697438203e-03), np.float32(-7.37332916720468e-03), np.float32(-1.42647390514189e-02)


class QuantisedRows(NamedTuple):
    """Rows in 8 bits: ``(codes - 128) * scales[:, None]``.

    Attributes:
        codes: (T, width) uint8, 1 to 255.
        scales: (T,) float32; NaN or infinite where the row held such a value.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def empty(cls, num_rows: int, width: int) -> QuantisedRows:
        """Room for rows."""
        return cls(torch.empty(num_rows, width, dtype=torch.uint8), torch.empty(num_rows))


def quantise(x: torch.Tensor) -> QuantisedRows:
    """Quantise bfloat16 (T, width), each row by its largest absolute value."""
    x = x.contiguous()
    rows = QuantisedRows.empty(*x.shape)
    over_rows(_quantise, len(x), _halves(x), rows.codes.numpy(), rows.scales.numpy())
    return rows


def dequantise(products: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``products * scales[:, None] + bias``, in place.

    Args:
        products: bfloat16 (T, width).
        scales: (T,) float32.
        bias: (width,) float32.
    """
    over_rows(_dequantise, len(products), _halves(products), scales.numpy(), bias.numpy())
    return products


def dequantise_onto(
    residual: torch.Tensor, products: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """``residual + products * scales[:, None] + bias`` in the place of ``products``; see :func:`dequantise`."""
    residual = residual.contiguous()
    over_rows(_dequantise_onto, len(products), _halves(residual), _halves(products), scales.numpy(), bias.numpy())
    return products


def gelu_quantised(products: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor) -> QuantisedRows:
    """GELU of what :func:`dequantise` would give, quantised."""
    rows = QuantisedRows.empty(*products.shape)
    over_rows(_gelu, len(products), _halves(products), scales.numpy(), bias.numpy(), *_arrays(rows))
    return rows


def gated_gelu_quantised(products: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor) -> QuantisedRows:
    """GELU of the first half of the columns times the second half, quantised: (T, width / 2)."""
    rows = QuantisedRows.empty(len(products), products.shape[1] // 2)
    over_rows(_gated_gelu, len(products), _halves(products), scales.numpy(), bias.numpy(), *_arrays(rows))
    return rows


def rotate(qkv: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> None:
    """Rotate the halves of query and key against each other, in place.

    Args:
        qkv: contiguous (T, 3, H, D), float32 or bfloat16.
        cosine: float32 with T * D / 2 values.
        sine: the same.
    """
    num_tokens, _, _, depth = qkv.shape
    tables = [table.reshape(num_tokens, depth // 2).numpy() for table in (cosine, sine)]
    if qkv.dtype == torch.float32:
        over_rows(_rotate_floats, num_tokens, qkv.numpy(), *tables)
    else:
        over_rows(_rotate_halves, num_tokens, _halves(qkv), *tables)


def _halves(x: torch.Tensor) -> _Halves:
    array: _Halves = x.view(torch.uint16).numpy()
    return array


def _arrays(rows: QuantisedRows) -> tuple[_Codes, _Floats]:
    return rows.codes.numpy(), rows.scales.numpy()


def over_rows(kernel: Callable[..., None], num_rows: int, *arguments: object) -> None:
    """Call ``kernel(start, stop, *arguments)`` for all rows, on as many threads as torch uses."""
    num_threads = min(torch.get_num_threads(), max(1, num_rows // _ROWS_A_THREAD))
    if num_threads == 1:
        kernel(0, num_rows, *arguments)
        return
    bounds = np.linspace(0, num_rows, num_threads + 1).astype(np.int64)
    parts = [_threads(num_threads).submit(kernel, *bounds[i : i + 2], *arguments) for i in range(num_threads)]
    for part in parts:
        part.result()


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    # Not numba's own threads: their usual layer ends the process when two threads of it compute at the same time.
    return ThreadPoolExecutor(count, thread_name_prefix="row-passes")


_joined = kernel_with(error_model="numpy", fastmath={"contract", "nsz"})
"""Compiles with multiplications and additions joined."""


@_joined
def _wide(half: np.uint16) -> np.float32:
    return np.uint32(np.uint32(half) << np.uint32(16)).view(np.float32)


@_joined
def _narrow(value: np.float32) -> np.uint16:
    """Round to the nearest bfloat16, to the even one of two."""
    bits = np.float32(value).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@_joined
def _magnitude(value: np.float32) -> np.uint32:
    """Bits of the absolute value. As integers they are in the order of the values, and NaN is above infinity."""
    return np.float32(value).view(np.uint32) & _SIGN_OFF


@_joined
def _factor(largest: np.uint32) -> np.float32:
    """What a row is multiplied by to be coded, from its largest magnitude."""
    return _LARGEST_CODE / np.uint32(largest).view(np.float32) if largest > 0 else np.float32(0)


@_joined
def _code(value: np.float32, factor: np.float32) -> np.uint8:
    return np.uint8(np.float32(value * factor + _ROUNDING).view(np.uint32) & np.uint32(0xFF))


@_joined
def _gelu_of(x: np.float32) -> np.float32:
    z = min(max(x * _SQRT_HALF, -_ERF_LIMIT), _ERF_LIMIT)
    s = z * z
    p = (((((_P0 * s + _P1) * s + _P2) * s + _P3) * s + _P4) * s + _P5) * s + _P6
    q = (((_Q0 * s + _Q1) * s + _Q2) * s + _Q3) * s + _Q4
    return _HALF * x * (_ONE + z * p / q)


@_joined
def _quantise(start: int, stop: int, x: _Halves, codes: _Codes, scales: _Floats) -> None:
    for row in range(start, stop):
        largest = np.uint32(0)
        for column in range(x.shape[1]):
            largest = max(largest, _magnitude(_wide(x[row, column])))
        scales[row] = np.uint32(largest).view(np.float32) / _LARGEST_CODE
        factor = _factor(largest)
        for column in range(x.shape[1]):
            codes[row, column] = _code(_wide(x[row, column]), factor)


@_joined
def _dequantise(start: int, stop: int, products: _Halves, scales: _Floats, bias: _Floats) -> None:
    for row in range(start, stop):
        scale = scales[row]
        for column in range(products.shape[1]):
            products[row, column] = _narrow(_wide(products[row, column]) * scale + bias[column])


@_joined
def _dequantise_onto(
    start: int, stop: int, residual: _Halves, products: _Halves, scales: _Floats, bias: _Floats
) -> None:
    for row in range(start, stop):
        scale = scales[row]
        for column in range(products.shape[1]):
            added = _wide(products[row, column]) * scale + bias[column]
            products[row, column] = _narrow(_wide(residual[row, column]) + added)


@_joined
def _put_codes(values: _Floats, largest: np.uint32, codes: _Codes) -> np.float32:
    """Write a row's codes, its largest magnitude being known; returns its scale."""
    factor = _factor(largest)
    for column in range(len(values)):
        codes[column] = _code(values[column], factor)
    return np.uint32(largest).view(np.float32) / _LARGEST_CODE


@_joined
def _gelu(
    start: int, stop: int, products: _Halves, scales: _Floats, bias: _Floats, codes: _Codes, new_scales: _Floats
) -> None:
    width = products.shape[1]
    values = np.empty(width, dtype=np.float32)
    for row in range(start, stop):
        scale = scales[row]
        largest = np.uint32(0)
        for column in range(width):
            value = _gelu_of(_wide(products[row, column]) * scale + bias[column])
            values[column] = value
            largest = max(largest, _magnitude(value))
        new_scales[row] = _put_codes(values, largest, codes[row])


@_joined
def _gated_gelu(
    start: int, stop: int, products: _Halves, scales: _Floats, bias: _Floats, codes: _Codes, new_scales: _Floats
) -> None:
    width = codes.shape[1]
    values = np.empty(width, dtype=np.float32)
    for row in range(start, stop):
        scale = scales[row]
        largest = np.uint32(0)
        for column in range(width):
            gate = _gelu_of(_wide(products[row, column]) * scale + bias[column])
            value = gate * (_wide(products[row, width + column]) * scale + bias[width + column])
            values[column] = value
            largest = max(largest, _magnitude(value))
        new_scales[row] = _put_codes(values, largest, codes[row])


@_joined
def _rotate_floats(start: int, stop: int, qkv: _Floats, cosine: _Floats, sine: _Floats) -> None:
    half = cosine.shape[1]
    for token in range(start, stop):
        for part in range(2):
            for head in range(qkv.shape[2]):
                for i in range(half):
                    first, second = qkv[token, part, head, i], qkv[token, part, head, half + i]
                    qkv[token, part, head, i] = first * cosine[token, i] - second * sine[token, i]
                    qkv[token, part, head, half + i] = second * cosine[token, i] + first * sine[token, i]


@_joined
def _rotate_halves(start: int, stop: int, qkv: _Halves, cosine: _Floats, sine: _Floats) -> None:
    half = cosine.shape[1]
    for token in range(start, stop):
        for part in range(2):
            for head in range(qkv.shape[2]):
                for i in range(half):
                    first, second = _wide(qkv[token, part, head, i]), _wide(qkv[token, part, head, half + i])
                    qkv[token, part, head, i] = _narrow(first * cosine[token, i] - second * sine[token, i])
                    qkv[token, part, head, half + i] = _narrow(second * cosine[token, i] + first * sine[token, i])
