"""A small protein encoder: a convolutional tower over residues and a bag of 3-grams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from virnucpro.batching.batch import PackedBatch
from virnucpro.encoders.base import Alphabet
from virnucpro.encoders.conv_tower import ConvTower, TowerShape
from virnucpro.encoders.ngram_bag import NgramBag, ngram_index, pack_bags, unpack_bags
from virnucpro.encoders.six_frame import RESIDUES, embed_runs
from virnucpro.encoders.weights import check_tensors, setting
from virnucpro.sequence.ragged import Ragged

NUM_RESIDUES = 20
OTHER_RESIDUE = 20
"""A letter that is none of the twenty; embeds to zero and breaks the 3-grams that hold it."""
MIN_LENGTH_AA = 10

RESIDUE_CODES = np.full(256, OTHER_RESIDUE, dtype=np.int32)
RESIDUE_CODES[np.frombuffer(RESIDUES[:NUM_RESIDUES].encode(), dtype=np.uint8)] = np.arange(NUM_RESIDUES)


@dataclass(frozen=True)
class ResidueConvShape:
    """Widths of the network: of the embedding, of the 3-gram vectors, and of the tower (``TowerShape``)."""

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
        self.tower = ConvTower(TowerShape(NUM_RESIDUES, shape.tower_channels, shape.tower_kernels))
        self.output = nn.Sequential(nn.Linear(shape.ngram_width + 2 * shape.tower_channels[-1], shape.width), nn.ReLU())

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Embed (B, N) int64 residue codes of one length, N >= ``MIN_LENGTH_AA``: (B, width) float32."""
        ngrams = self.ngrams(ngram_index(codes, 3, NUM_RESIDUES))
        output: torch.Tensor = self.output(torch.cat([ngrams, self.tower(codes)], dim=1))
        return output


class ResidueTokenizer:
    """One token a residue: 0..19 in alphabetical order of the letters, every other letter is 20."""

    def __call__(self, sequences: Ragged) -> Ragged:
        """Look each letter up."""
        return Ragged(RESIDUE_CODES[sequences.values], sequences.offsets)


class ResidueConvEncoder:
    """The network with its weights, as the runner calls it."""

    kind = "residue_conv"
    alphabet: Alphabet = "aa"
    cpu_token_budget = 32_768

    def __init__(self, network: ResidueConvNetwork) -> None:
        self.network = network.eval()
        self.width = network.shape.width
        self.tokenizer = ResidueTokenizer()

    @classmethod
    def from_tensors(
        cls, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], tokenizer_json: str | None = None
    ) -> ResidueConvEncoder:
        """Build the network from a file's ``config`` and tensors (stored as float16 or float32)."""
        del tokenizer_json
        shape = ResidueConvShape(
            width=setting(config, "width"),
            ngram_width=setting(config, "ngram_width"),
            tower_channels=tuple(setting(config, "tower_channels")),
            tower_kernels=tuple(setting(config, "tower_kernels")),
        )
        tensors = unpack_bags(tensors)
        network = ResidueConvNetwork(shape)
        check_tensors(tensors, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
        network.to(next(iter(tensors.values())).device)
        network.load_state_dict(tensors)
        return cls(network)

    @classmethod
    def tokenizer_from(cls, config: Mapping[str, Any], tokenizer_json: str | None = None) -> ResidueTokenizer:
        """The tokenizer; it has no settings."""
        del config, tokenizer_json
        return ResidueTokenizer()

    def config(self) -> dict[str, Any]:
        """What ``from_tensors`` needs beside the tensors."""
        return {"kind": self.kind, "alphabet": self.alphabet, **asdict(self.network.shape)}

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors as they are stored: the table of the bag in 8 bits."""
        return pack_bags(self.network.state_dict())

    @torch.inference_mode()
    def embed(self, batch: PackedBatch) -> torch.Tensor:
        """Embed each sequence: (S, width) float32."""
        return embed_runs(self.network, batch, MIN_LENGTH_AA, OTHER_RESIDUE)
