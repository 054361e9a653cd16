"""How much arithmetic a token costs an encoder, and how much of it the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.encoders import EncoderConfig
from virnucpro.encoders.device import float_dtype
from virnucpro.encoders.layers import LinearLayer
from virnucpro.encoders.low_bit import linear_maker
from virnucpro.encoders.weights import setting
from virnucpro.machine.machine import synchronise

_RUNS = 3


@dataclass(frozen=True)
class TransformerShape:
    """What decides the arithmetic of a transformer.

    Attributes:
        width: of the token states.
        inner_width: of the wide side of its largest matrix.
        num_layers: how many of them are computed.
        layer_weights: weights in the matrices of one layer.
    """

    width: int
    inner_width: int
    num_layers: int
    layer_weights: int

    def flop_per_token(self, lengths_tokens: NDArray[np.int64]) -> float:
        """Floating-point operations a token of sequences of these lengths, on average.

        ``2 * weights + 4 * layers * length * width``: a multiplication and an addition for every weight of every
        matrix, and for every pair of tokens both for query times key and for attention times value. A third of what
        Chowdhery et al. 2022 (PaLM, arXiv:2204.02311, appendix B) count for a training step, forward and backward;
        embeddings, norms and activations are left out there too.

        Args:
            lengths_tokens: (n,) of the sequences.
        """
        mean_length = float((lengths_tokens.astype(np.float64) ** 2).sum() / max(1, lengths_tokens.sum()))
        return self.num_layers * (2.0 * self.layer_weights + 4.0 * mean_length * self.width)

    def batch_bytes(self, num_tokens: float, item_bytes: int) -> float:
        """Memory of the states of a batch in one layer, at most.

        Four wide ones (both halves of a gated layer, its activation, their product) and six narrow ones (the states
        with and without norm, query, key, value, and what was attended to).

        Args:
            num_tokens: of the batch.
            item_bytes: of a number in the compute dtype.
        """
        return num_tokens * item_bytes * (4.0 * self.inner_width + 6.0 * self.width)


def transformer_shape(config: EncoderConfig) -> TransformerShape | None:
    """The shape of an encoder; None for one that is made of look-ups, whose arithmetic says nothing of its speed.

    Raises:
        ModelError: the config lacks what its kind needs.
    """
    read = _SHAPES.get(config.kind)
    return None if read is None else read(config)


def measure_matmul(
    shape: TransformerShape, token_counts: Sequence[int], device: torch.device, dtype: torch.dtype, seconds: float
) -> float:
    """Operations a second of the encoder's widest layer, by the layer it runs: what the machine can reach.

    Args:
        shape: of the encoder.
        token_counts: tokens in a batch, ascending; each is tried, the best counts.
        device: where.
        dtype: of the matrices.
        seconds: budget; the first count is measured whatever it takes.
    """
    kept_as = float_dtype(dtype)
    layer = linear_maker(dtype)(torch.randn(shape.inner_width, shape.width, device=device).to(kept_as), None)
    start = time.perf_counter()
    best = 0.0
    for num_tokens in token_counts:
        flop = 2.0 * num_tokens * shape.width * shape.inner_width
        if best and time.perf_counter() - start + (_RUNS + 1) * flop / best > seconds:
            break
        try:
            states = torch.randn(num_tokens, shape.width, device=device).to(kept_as)
            best = max(best, flop / _median_seconds(layer, states, device))
        except torch.OutOfMemoryError:
            break
    return best


@torch.inference_mode()
def _median_seconds(layer: LinearLayer, states: torch.Tensor, device: torch.device) -> float:
    layer(states)
    seconds = []
    for _ in range(_RUNS):
        synchronise(device)
        start = time.perf_counter()
        layer(states)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def _esm2(config: EncoderConfig) -> TransformerShape:
    """Query, key, value and output of width x width; up and down of width x 4 width."""
    num_layers: int = setting(config.settings, "num_layers")
    width = config.width
    return TransformerShape(width, 4 * width, setting(config.settings, "repr_layer", num_layers), 12 * width**2)


def _dnabert_s(config: EncoderConfig) -> TransformerShape:
    """As BERT, but with a gated layer: two matrices up, one down."""
    width: int = setting(config.settings, "hidden_size")
    inner: int = setting(config.settings, "intermediate_size")
    weights = 4 * width**2 + 3 * width * inner
    return TransformerShape(width, inner, setting(config.settings, "num_hidden_layers"), weights)


_SHAPES: dict[str, Callable[[EncoderConfig], TransformerShape]] = {"esm2": _esm2, "dnabert_s": _dnabert_s}
