"""A stack of one-dimensional convolutions over symbols, pooled to one vector a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import relu

from virnucpro.encoders.row_passes import over_rows
from virnucpro.kernels import kernel

_STRIDE = 2


class ConvTower(nn.Module):
    """Symbols to one vector a sequence: embedding, convolutions with ReLU, mean and maximum over positions.

    Args:
        symbols: size of the alphabet; symbol ``symbols`` itself means "nothing here" and embeds to zero.
        channels: of the symbol embedding, then of each convolution.
        kernels: length of each convolution in symbols (odd); each moves by two, so that the positions halve.
    """

    def __init__(self, symbols: int, channels: Sequence[int], kernels: Sequence[int]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols + 1, channels[0], padding_idx=symbols)
        convolutions = (
            nn.Conv2d(wide_in, wide_out, (1, kernel), stride=(1, _STRIDE), padding=(0, kernel // 2))
            for (wide_in, wide_out), kernel in zip(pairwise(channels), kernels, strict=True)
        )
        self.convolutions = nn.ModuleList(convolutions).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._pairs: torch.Tensor | None = None

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        """Turn (B, N) int64 symbols, N >= 1, into (B, 2 channels) float32."""
        # (B, N, C) seen as a channels-last image of height 1: 1.8 x the rate of conv1d on (B, C, N)
        if self._pairs is not None and not self.training and symbols.device.type == "cpu":
            states, others = self._look_up(symbols, self._pairs), self.convolutions[1:]
        else:
            states, others = self.embedding(symbols), self.convolutions
        states = states.transpose(1, 2).unsqueeze(2)
        for convolution in others:
            states = relu(convolution(states))
        states = states.squeeze(2)
        return torch.cat([states.mean(dim=2).float(), states.amax(dim=2).float()], dim=1)

    @torch.no_grad()
    def tabulate(self) -> None:
        """Work out what the first convolution makes of each pair of symbols: it is then a sum of look-ups on a CPU.

        Its weights must not change any more. There are 441 pairs of residues, so that its tables fit a core's cache.
        """
        weight, bias = map(self.convolutions[0].get_parameter, ("weight", "bias"))
        taps = torch.einsum("sc,ock->kso", self.embedding.weight, weight[:, :, 0])
        taps = torch.cat([taps, bias.expand_as(taps[:1])])  # the last tap has the bias beside it
        first, second = taps[::2], taps[1::2]
        self._pairs = (first[:, :, None] + second[:, None]).flatten(1, 2).contiguous()

    def _look_up(self, symbols: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """(B, ceil(N / 2), C) of the first convolution, ReLU taken."""
        count, length = symbols.shape
        num_pairs, _, num_channels = pairs.shape
        states = torch.zeros(count, -(-length // _STRIDE), num_channels)
        nothing = len(self.embedding.weight) - 1
        margin = num_pairs - 1  # half of 2 * num_pairs - 1 taps
        padded = np.full((count, length + 2 * num_pairs + 2), nothing, dtype=np.uint8)
        padded[:, margin : margin + length] = symbols.numpy()
        shape = (num_pairs, num_channels, padded.shape[1], nothing + 1, states.shape[1])
        over_rows(_add_pairs, count, padded, pairs.numpy(), *shape, states.numpy())
        return states


@kernel
def _add_pairs(
    first: int,
    stop: int,
    padded: NDArray[np.uint8],
    pairs: NDArray[np.float32],
    num_pairs: int,
    num_channels: int,
    length: int,
    num_symbols: int,
    num_places: int,
    states: NDArray[np.float32],
) -> None:
    """Sum the vectors of the pairs of symbols that a window of a convolution holds, and cut at 0.

    Args:
        first: row.
        stop: one after the last row.
        padded: (B, length) symbols, with what is beside the sequence.
        pairs: (P, S * S, C), what each two neighbouring taps make of each pair of symbols.
        num_pairs: P.
        num_channels: C.
        length: of the padded rows.
        num_symbols: S.
        num_places: M.
        states: (B, M, C) zeros, to be filled.
    """
    for row in range(first, stop):
        for place in range(num_places):
            at, to = row * length + place * _STRIDE, (row * num_places + place) * num_channels
            for pair in range(num_pairs):
                which = padded[at + 2 * pair] * num_symbols + padded[at + 2 * pair + 1]
                vector = (pair * num_symbols * num_symbols + which) * num_channels
                for channel in range(num_channels):
                    states[to + channel] += pairs[vector + channel]
            for channel in range(to, to + num_channels):
                states[channel] = max(states[channel], 0)
