"""A small nucleotide encoder that reads all six frames, open or not.

Every position of both strands is a codon; the codons of one strand and one phase are a reading frame.
A frame gives bags of amino-acid 4-grams, of 6-grams of amino-acid classes, and of codon pairs; a small layer makes one
vector of a frame and attention weighs the six. They are joined with a strand-blind bag of 8-mers. All of it
is table look-ups and short matrix products, made for CPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad, relu

from virnucpro.encoders.letters import LetterEncoder
from virnucpro.encoders.ngram_bag import NgramBag, ngram_index

AMBIGUOUS_BASE = 4
NUM_CODONS = 64
NO_CODON = 64
"""A codon that holds a letter other than A C G T, or a place beyond the end of a frame."""

RESIDUES = "ACDEFGHIKLMNPQRSTVWY*"
"""Residue codes 0..20; 20 is a stop codon."""
NO_RESIDUE = 21
STOP = 20

KMER = 8
MIN_LENGTH_NT = 30
"""Shorter strings are filled with ambiguous bases, so that every bag and frame exists."""

CLASS_GROUPS = ("AGPST", "C", "DENQ", "FWY", "HKR", "ILMV", "*")
"""Classes of amino acids that replace one another most easily (six, and stop), after Murphy et al. 2000."""
NUM_CLASSES = len(CLASS_GROUPS)

_STANDARD_CODE = "KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
"""Residues of AAA, AAC .. TTT in the order A C G T (NCBI translation table 1)."""

BASE_CODES = np.full(256, AMBIGUOUS_BASE, dtype=np.int32)
BASE_CODES[np.frombuffer(b"ACGTUacgtu", dtype=np.uint8)] = [0, 1, 2, 3, 3, 0, 1, 2, 3, 3]

CODON_RESIDUES = np.array([RESIDUES.index(letter) for letter in _STANDARD_CODE] + [NO_RESIDUE], dtype=np.int64)
"""(65,) codon code to residue code."""

RESIDUE_CLASSES = np.array(
    [next(i for i, group in enumerate(CLASS_GROUPS) if letter in group) for letter in RESIDUES] + [NUM_CLASSES],
    dtype=np.int64,
)
"""(22,) residue code to class; 7 is no class."""


def frame_codons(codes: torch.Tensor) -> torch.Tensor:
    """Codon codes of the six frames.

    Args:
        codes: (B, L) int64 base codes 0..4, L >= 3.

    Returns:
        (B, 6, L // 3) int64: three frames of the strand, three of its reverse complement; 64 where a codon
        is ambiguous or the frame has ended.
    """
    reverse = torch.where(codes == AMBIGUOUS_BASE, codes, 3 - codes).flip(1)
    strands = torch.stack([codes, reverse], dim=1)
    num_codons = codes.shape[1] // 3
    strands = pad(strands, (0, 3 * num_codons + 2 - codes.shape[1]), value=AMBIGUOUS_BASE)
    first, second, third = (strands[:, :, k : k + 3 * num_codons] for k in range(3))
    codons = 16 * first + 4 * second + third
    ambiguous = torch.maximum(torch.maximum(first, second), third) == AMBIGUOUS_BASE
    codons = torch.where(ambiguous, NO_CODON, codons)
    return codons.reshape(-1, 2, num_codons, 3).transpose(2, 3).reshape(-1, 6, num_codons)


def longest_open_runs(residues: torch.Tensor) -> torch.Tensor:
    """(B,) int64: codons in the longest stop-free stretch of each row of (B, N) residue codes."""
    positions = torch.arange(1, residues.shape[1] + 1, device=residues.device)
    last_closed = torch.where(residues >= STOP, positions, 0).cummax(dim=1).values
    return (positions - last_closed).amax(dim=1)


class Bags(NamedTuple):
    """N-grams of B fragments as numbers; 0 is none. The rows of frames are fragment by fragment, six each.

    Attributes:
        ngrams: (6 B, N - 3) amino-acid 4-grams, for N codons a frame.
        classes: (6 B, N - 5) 6-grams of amino-acid classes.
        pairs: (6 B, N - 1) codon pairs.
        kmers: (B, L - 7) canonical 8-mers.
        openness: (6 B, 2) float32, codons in the longest stop-free stretch and stop codons, both over N.
    """

    ngrams: torch.Tensor
    classes: torch.Tensor
    pairs: torch.Tensor
    kmers: torch.Tensor
    openness: torch.Tensor


@dataclass(frozen=True)
class SixFrameShape:
    """Widths of the network.

    Attributes:
        width: of the embedding.
        kmer_width: of the 8-mer vectors.
        ngram_width: of the amino-acid 4-gram vectors.
        class_width: of the vectors of 6-grams of amino-acid classes.
        pair_width: of the codon-pair vectors.
        frame_width: of a frame after its own layer.
        hidden_width: of the layer before the embedding.
    """

    width: int = 128
    kmer_width: int = 48
    ngram_width: int = 28
    class_width: int = 16
    pair_width: int = 32
    frame_width: int = 128
    hidden_width: int = 320


class SixFrameNetwork(nn.Module):
    """Base codes to an embedding; see the module's text."""

    codon_residues: torch.Tensor
    residue_classes: torch.Tensor
    canonical_kmers: torch.Tensor

    def __init__(self, shape: SixFrameShape) -> None:
        super().__init__()
        self.shape = shape
        kmers, num_kmers = canonical_kmers(KMER)
        self.register_buffer("codon_residues", torch.from_numpy(CODON_RESIDUES), persistent=False)
        self.register_buffer("residue_classes", torch.from_numpy(RESIDUE_CLASSES), persistent=False)
        self.register_buffer("canonical_kmers", kmers, persistent=False)
        self.kmers = NgramBag(num_kmers, shape.kmer_width)
        self.ngrams = NgramBag(21**4 + 1, shape.ngram_width)
        self.classes = NgramBag(NUM_CLASSES**6 + 1, shape.class_width)
        self.pairs = NgramBag(NUM_CODONS**2 + 1, shape.pair_width)
        self.frame = nn.Linear(shape.ngram_width + shape.class_width + shape.pair_width + 2, shape.frame_width)
        self.attention = nn.Linear(shape.frame_width, 1)
        self.output = nn.Sequential(
            nn.Linear(shape.kmer_width + 2 * shape.frame_width, shape.hidden_width),
            nn.ReLU(),
            nn.Linear(shape.hidden_width, shape.width),
            nn.ReLU(),
        )

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Embed (B, L) int64 base codes, L >= ``MIN_LENGTH_NT``: (B, width) float32."""
        return self.embed_bags(self.read(codes)[0])

    def read(self, codes: torch.Tensor) -> tuple[Bags, torch.Tensor]:
        """The n-grams of (B, L) int64 base codes, and (6 B, N) residue codes of their frames."""
        codons = frame_codons(codes).flatten(0, 1)
        residues = self.codon_residues[codons]
        stops = (residues == STOP).sum(dim=1)
        bags = Bags(
            ngrams=ngram_index(residues, 4, 21),
            classes=ngram_index(self.residue_classes[residues], 6, NUM_CLASSES),
            pairs=ngram_index(codons, 2, NUM_CODONS),
            kmers=self.canonical_kmers[ngram_index(codes, KMER, 4)],
            openness=torch.stack([longest_open_runs(residues), stops], dim=1) / codons.shape[1],
        )
        return bags, residues

    def embed_bags(self, bags: Bags) -> torch.Tensor:
        """Embed the n-grams of B fragments: (B, width) float32."""
        parts = [self.ngrams(bags.ngrams), self.classes(bags.classes), self.pairs(bags.pairs), bags.openness]
        frames = relu(self.frame(torch.cat(parts, dim=1))).view(-1, 6, self.shape.frame_width)
        attention = self.attention(frames).softmax(dim=1)
        output: torch.Tensor = self.output(
            torch.cat([self.kmers(bags.kmers), (attention * frames).sum(dim=1), frames.amax(dim=1)], dim=1)
        )
        return output


def canonical_kmers(length: int) -> tuple[torch.Tensor, int]:
    """Number k-mers so that a k-mer and its reverse complement are one.

    Returns:
        (4**length + 1,) int64, from ``ngram_index`` to a number (0 stays 0), and how many numbers there are.
    """
    kmers = np.arange(4**length)
    digits = (kmers[:, None] // 4 ** np.arange(length)) % 4
    reverse = ((3 - digits) * 4 ** np.arange(length - 1, -1, -1)).sum(axis=1)
    names, numbers = np.unique(np.minimum(kmers, reverse), return_inverse=True)
    return torch.from_numpy(np.concatenate([[0], numbers + 1])), len(names) + 1


class SixFrameEncoder(LetterEncoder[SixFrameNetwork]):
    """The network with its weights: A C G T (U) are 0..3, any other letter 4."""

    kind = "six_frame"
    alphabet = "nt"
    cpu_token_budget = 131_072
    network_class = SixFrameNetwork
    shape_class = SixFrameShape
    codes = BASE_CODES
    min_length = MIN_LENGTH_NT
    filler = AMBIGUOUS_BASE
