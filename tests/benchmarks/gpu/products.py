"""Matrix products of the shapes of a layer: the ceiling that the encoders are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import torch

from benchmarks.gpu.bench import DTYPE, SECTION, Bench
from benchmarks.gpu.models import Shape
from benchmarks.measure import Figure
from virnucpro.encoders.layers import Linear

_TERA = 1e12

Product = Callable[[], object]


def measure(bench: Bench, shape: Shape) -> Iterator[Figure]:
    """Operations a second over all matrices of a layer in 16 bit."""
    figure = _figure(bench, shape, "bfloat16", _make_16_bit)
    bench.ceilings[shape.name] = median(figure.values) * _TERA
    yield figure


def _figure(bench: Bench, shape: Shape, name: str, make: Callable[[torch.Tensor, torch.Tensor], Product]) -> Figure:
    """One figure for all matrices: each as often as the others, as in a layer."""
    num_tokens = bench.sizes.usual_tokens
    flop, seconds, parts = 0.0, 0.0, []
    for rows, columns in shape.matrices:
        states = torch.randn(num_tokens, columns, device=bench.device, dtype=DTYPE)
        weight = torch.randn(rows, columns, device=bench.device, dtype=DTYPE).mul_(columns**-0.5)
        amount = 2.0 * num_tokens * rows * columns
        rate = median(bench.rates({"": make(states, weight)}, amount)[""])
        flop, seconds = flop + amount, seconds + amount / rate
        parts.append(f"{columns} to {rows}: {rate / _TERA:.4g}")
    return Figure(SECTION, _what(shape, name, num_tokens), "TFLOP/s", (flop / seconds / _TERA,), note=", ".join(parts))


def _what(shape: Shape, name: str, num_tokens: int) -> str:
    return f"matrix products of {shape.name}, {name}, {num_tokens:,} tokens"


def _make_16_bit(states: torch.Tensor, weight: torch.Tensor) -> Product:
    layer = Linear(weight, None)
    return lambda: layer(states)
