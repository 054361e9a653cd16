"""The published architectures with random weights, made on the device they run on and never written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import inputs
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.dnabert_s import DnabertS
from virnucpro.encoders.esm2 import Esm2
from virnucpro.engine.batch import PackedBatch

_WORDS = (5, 25)  # tokens that mean a residue, or a word, in both vocabularies


@dataclass(frozen=True)
class Shape:
    """What the arithmetic of a model follows from.

    Attributes:
        name: ``ESM-2 3B`` or ``DNABERT-S``.
        make: makes its config and tensors of a seed.
        num_layers: of the network.
        width: of the token states.
        matrices: (out, in) of each matrix of a layer.
        tokens_300: of a frame of 300 bases; with byte pairs, most often.
        tokens_150: likewise of 150 bases.
    """

    name: str
    make: Callable[[int], tuple[dict[str, Any], dict[str, torch.Tensor]]]
    num_layers: int
    width: int
    matrices: tuple[tuple[int, int], ...]
    tokens_300: int
    tokens_150: int

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of one layer."""
        return sum(rows * columns for rows, columns in self.matrices)

    def flop_per_token(self, length_tokens: int) -> float:
        """Operations a token of sequences of one length: matrices and attention; source in ``tuning.arithmetic``."""
        return self.num_layers * (2.0 * self.layer_weights + 4.0 * length_tokens * self.width)


def esm2_shape(size: str) -> Shape:
    """Shape of a published ESM-2."""
    num_layers, width, _ = inputs.ESM2_SIZES[size]
    matrices = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
    make = partial(inputs.esm2_weights, size)
    return Shape(f"ESM-2 {size}", make, num_layers, width, matrices, tokens_300=101, tokens_150=51)


def dnabert_s_shape(num_layers: int) -> Shape:
    """Shape of DNABERT-S, of another depth if so wanted."""
    width, inner = 768, 3072
    matrices = ((3 * width, width), (width, width), (2 * inner, width), (width, inner))
    make = partial(inputs.dnabert_s_weights, num_layers)
    return Shape("DNABERT-S", make, num_layers, width, matrices, tokens_300=67, tokens_150=35)


def random_encoder(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> Encoder:
    """The model of that shape, its matrices in ``dtype`` on ``device``; the same weights for the same seed."""
    with torch.device("meta"):
        config, shapes = shape.make(seed)
    tensors = random_tensors(shapes, device, dtype, seed)
    if config["kind"] == DnabertS.kind:
        return DnabertS.from_tensors(config, tensors, inputs.byte_pairs(seed))
    return Esm2.from_tensors(config, tensors)


def random_tensors(
    shapes: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype, seed: int
) -> dict[str, torch.Tensor]:
    """Tensors as an encoder is loaded with: matrices in ``dtype``, vectors in float32.

    Args:
        shapes: tensors without values, by name.
        device: where they are made.
        dtype: of matrices; they keep the size of what they are applied to.
        seed: of the numbers.
    """
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for name, like in shapes.items():
        if like.ndim == 1:
            around = 1.0 if name.endswith(".weight") else 0.0  # a norm's, or a bias
            tensors[name] = around + 0.02 * torch.randn(like.shape, generator=generator, device=device)
        else:
            values = torch.randn(like.shape, generator=generator, device=device, dtype=dtype)
            tensors[name] = values.mul_(like.shape[-1] ** -0.5)
    return tensors


def dense_batch(length_tokens: int, num_tokens: int, device: torch.device, seed: int) -> PackedBatch:
    """Random tokens in sequences of one length, as many as ``num_tokens`` hold."""
    return packed_batch(np.full(max(1, num_tokens // length_tokens), length_tokens), device, seed)


def packed_batch(lengths: NDArray[np.int64], device: torch.device, seed: int) -> PackedBatch:
    """Random tokens in sequences of these lengths, which ascend."""
    ids = np.random.default_rng(seed).integers(*_WORDS, size=int(lengths.sum()), dtype=np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lengths_tokens = tuple(lengths.tolist())
    return PackedBatch(np.arange(len(lengths)), torch.from_numpy(ids), torch.from_numpy(ends), lengths_tokens).to(
        device
    )
