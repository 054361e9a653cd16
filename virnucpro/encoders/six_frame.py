"""A small network that reads all six frames of nucleotides, open or not; the encoder is in ``profiles.py``.

Every position of both strands is a codon; the codons of one strand and one phase are a reading frame.
A frame gives bags of amino-acid 4-grams, of 6-grams of amino-acid classes, and of codon pairs; a small layer makes one
vector of a frame and attention weighs the six. They are joined with a strand-blind bag of 8-mers. All of it
is table look-ups and short matrix products, made for CPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import relu

from virnucpro.encoders.codons import Bags, table_sizes
from virnucpro.encoders.layers import LinearToOne
from virnucpro.encoders.ngram_bag import NgramBag

TABLES = ("ngrams", "classes", "pairs", "kmers")
"""Fields of ``Bags`` that hold numbers of n-grams, and the tables of their vectors."""


@dataclass(frozen=True)
class SixFrameShape:
    """Widths of the network."""

    width: int = 128  # of the embedding
    kmer_width: int = 48  # of the 8-mer vectors
    ngram_width: int = 28  # of the amino-acid 4-gram vectors
    class_width: int = 16  # of the vectors of 6-grams of amino-acid classes
    pair_width: int = 32  # of the codon-pair vectors
    frame_width: int = 128  # of a frame after its own layer
    hidden_width: int = 320  # of the layer before the embedding


class SixFrameNetwork(nn.Module):
    """N-grams of base codes to an embedding; see the module's text."""

    def __init__(self, shape: SixFrameShape) -> None:
        super().__init__()
        self.shape = shape
        sizes = table_sizes()
        self.kmers = NgramBag(sizes["kmers"], shape.kmer_width)
        self.ngrams = NgramBag(sizes["ngrams"], shape.ngram_width)
        self.classes = NgramBag(sizes["classes"], shape.class_width)
        self.pairs = NgramBag(sizes["pairs"], shape.pair_width)
        self.frame = nn.Linear(shape.ngram_width + shape.class_width + shape.pair_width + 2, shape.frame_width)
        self.attention = LinearToOne(shape.frame_width)
        self.output = nn.Sequential(
            nn.Linear(shape.kmer_width + 2 * shape.frame_width, shape.hidden_width),
            nn.ReLU(),
            nn.Linear(shape.hidden_width, shape.width),
            nn.ReLU(),
        )

    def embed_bags(self, bags: Bags) -> torch.Tensor:
        """Embed the n-grams of B fragments: (B, width) float32."""
        means = (getattr(self, name)(getattr(bags, name)) for name in TABLES)
        return self.embed_means(*means, openness=bags.openness)

    def embed_means(
        self,
        ngrams: torch.Tensor,
        classes: torch.Tensor,
        pairs: torch.Tensor,
        kmers: torch.Tensor,
        *,
        openness: torch.Tensor,
    ) -> torch.Tensor:
        """The same from the mean vectors of the bags."""
        frames = relu(self.frame(torch.cat([ngrams, classes, pairs, openness], dim=1)))
        frames = frames.view(-1, 6, self.shape.frame_width)
        attention = self.attention(frames).softmax(dim=1)
        output: torch.Tensor = self.output(
            torch.cat([kmers, (attention * frames).sum(dim=1), frames.amax(dim=1)], dim=1)
        )
        return output
