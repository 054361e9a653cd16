"""A small protein encoder: a convolutional tower over residues and a bag of 3-grams."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from virnucpro.encoders.codons import RESIDUES
from virnucpro.encoders.conv_tower import ConvTower
from virnucpro.encoders.letters import LetterEncoder
from virnucpro.encoders.ngram_bag import NgramBag, ngram_index

NUM_RESIDUES = 20
OTHER_RESIDUE = 20
"""A letter that is none of the twenty; embeds to zero and breaks the 3-grams that hold it."""
MIN_LENGTH_AA = 10

RESIDUE_CODES = np.full(256, OTHER_RESIDUE, dtype=np.int32)
RESIDUE_CODES[np.frombuffer(RESIDUES[:NUM_RESIDUES].encode(), dtype=np.uint8)] = np.arange(NUM_RESIDUES)


@dataclass(frozen=True)
class ResidueConvShape:
    """Widths of the network: of the embedding, of the 3-gram vectors, and of the tower (``ConvTower``)."""

    width: int = 128
    ngram_width: int = 32
    tower_channels: tuple[int, ...] = (32, 96, 128, 128)
    tower_kernels: tuple[int, ...] = (9, 5, 5)


class ResidueConvNetwork(nn.Module):
    """Residue codes to an embedding."""

    def __init__(self, shape: ResidueConvShape) -> None:
        super().__init__()
        self.shape = shape
        self.ngrams = NgramBag(NUM_RESIDUES**3 + 1, shape.ngram_width)
        self.tower = ConvTower(NUM_RESIDUES, shape.tower_channels, shape.tower_kernels)
        self.output = nn.Sequential(nn.Linear(shape.ngram_width + 2 * shape.tower_channels[-1], shape.width), nn.ReLU())

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Embed (B, N) int64 residue codes of one length, N >= ``MIN_LENGTH_AA``: (B, width) float32."""
        ngrams = self.ngrams(ngram_index(codes, 3, NUM_RESIDUES))
        output: torch.Tensor = self.output(torch.cat([ngrams, self.tower(codes)], dim=1))
        return output


class ResidueConvEncoder(LetterEncoder):
    """The network with its weights: residues 0..19 in alphabetical order of their letters, any other letter 20."""

    kind = "residue_conv"
    alphabet = "aa"
    cpu_token_budget = 32_768
    network_class = ResidueConvNetwork
    shape_class = ResidueConvShape
    codes = RESIDUE_CODES
    min_length = MIN_LENGTH_AA
    filler = OTHER_RESIDUE

    def __init__(self, network: ResidueConvNetwork) -> None:
        super().__init__(network)
        network.tower.tabulate()
