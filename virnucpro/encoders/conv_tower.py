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
        states = torch.empty(count, -(-length // _STRIDE), pairs.shape[2])
        codes = symbols.to(torch.uint8).numpy()
        nothing = len(self.embedding.weight) - 1
        over_rows(_add_pairs, count, codes, pairs.numpy(), nothing, states.numpy())
        return states


@kernel
def _add_pairs(
    first: int,
    stop: int,
    symbols: NDArray[np.uint8],
    pairs: NDArray[np.float32],
    nothing: int,
    states: NDArray[np.float32],
) -> None:
    """Sum the vectors of the pairs of symbols that a window of a convolution holds, and cut at 0.

    Args:
        first: row.
        stop: one after the last row.
        symbols: (B, N).
        pairs: (P, S * S, C), what each two neighbouring taps make of each pair of symbols.
        nothing: symbol beside the sequence.
        states: (B, ceil(N / 2), C), to be filled.
    """
    num_pairs, _, num_channels = pairs.shape
    margin = num_pairs - 1  # half of 2 * num_pairs - 1 taps
    length = symbols.shape[1]
    num_symbols = nothing + 1
    padded = np.empty(length + 2 * num_pairs + 2, dtype=np.int64)
    total = np.empty(num_channels, dtype=np.float32)
    for row in range(first, stop):
        for i in range(len(padded)):
            padded[i] = symbols[row, i - margin] if margin <= i < margin + length else nothing
        for place in range(states.shape[1]):
            at = place * _STRIDE
            for channel in range(num_channels):
                total[channel] = 0
            for pair in range(num_pairs):
                which = padded[at + 2 * pair] * num_symbols + padded[at + 2 * pair + 1]
                for channel in range(num_channels):
                    total[channel] += pairs[pair, which, channel]
            for channel in range(num_channels):
                states[row, place, channel] = max(total[channel], np.float32(0))
