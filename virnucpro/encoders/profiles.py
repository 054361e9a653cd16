"""The nucleotide encoder of ``lite``: a network over six frames, and evidence that no gradient has fitted to genomes.

The network reads all six frames, open or not. Every position of both strands is a codon; the codons of one strand and
one phase are a reading frame. A frame gives bags of amino-acid 4-grams, of 6-grams of amino-acid classes, and of codon
pairs; a small layer makes one vector of a frame and attention weighs the six. They are joined with a strand-blind bag
of 8-mers. All of it is table look-ups and short matrix products, made for CPUs.

Trained n-gram vectors know the viruses of their training by heart, and say little of a family they never saw. What is
counted over whole groups of genomes does not: how a class of organisms uses n-grams (its *profile*), and in how many
families of viruses and genera of hosts a stretch of protein occurs at all (how *conserved* it is). A small network
weighs these; it is trained on fragments of groups that were left out of the counts (``training/profiles.py``). The
embedding is that of ``SixFrameNetwork`` and one number more: log-odds of this evidence, which the head adds to its own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import nn
from torch.nn.functional import relu

from virnucpro.encoders.codons import AMBIGUOUS_BASE, BASE_CODES, MIN_LENGTH_NT, RESIDUES, Bags, table_sizes
from virnucpro.encoders.indices import read_fragments, sum_stretches
from virnucpro.encoders.layers import LinearToOne
from virnucpro.encoders.letters import LetterEncoder
from virnucpro.encoders.ngram_bag import NgramBag, mean_of_vectors

TABLES = ("ngrams", "classes", "pairs", "kmers")
"""Fields of ``Bags`` that hold numbers of n-grams, and the tables of their vectors."""
STRETCH = 8
"""Residues of a stretch whose conservation is known."""
STRETCH_GROUPS = ("ILMV", "C", "AG", "ST", "P", "FWY", "DENQ", "HKR")
"""Letters of a stretch: amino acids that replace one another most easily count as one."""
NUM_STRETCH_GROUPS = len(STRETCH_GROUPS)
NUM_STRETCHES = NUM_STRETCH_GROUPS**STRETCH
NO_STRETCH_GROUP = NUM_STRETCH_GROUPS
STRETCH_RESIDUES = np.array(
    [next((i for i, group in enumerate(STRETCH_GROUPS) if letter in group), NO_STRETCH_GROUP) for letter in RESIDUES]
    + [NO_STRETCH_GROUP],
    dtype=np.int64,
)
"""(22,) residue code to letter of a stretch; 8 is none (a stop, or no residue)."""
LEVELS = np.array([-1.8, -0.7, 0.0, 0.9], dtype=np.float32)
"""What the two bits of a stretch stand for: the mean log-ratio of families of viruses to genera of hosts there."""
_HOST_LIKE = -1.0
"""Below it a stretch is that of hosts, clearly."""
STRETCHES_A_BYTE = 4
LARGEST_EVIDENCE = 12.0
"""Evidence is cut here, so that a head can carry it through its ReLU."""
_NUM_OPENNESS = 2
_NUM_CONSERVED = 3
_TYPICAL_NT = 350.0
_LONG_NT = 500.0


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


@dataclass(frozen=True)
class ProfiledShape(SixFrameShape):
    """Widths of both networks; ``width`` is that of the whole embedding, evidence included."""

    width: int = 129
    num_profiles: int = 9  # classes of organisms with a profile
    profile_frame_width: int = 96  # of a frame in the network that weighs profiles
    profile_hidden_width: int = 96  # of its last hidden layer


class ProfileNetwork(nn.Module):
    """N-grams and residues of fragments to log-odds of virus against host."""

    stretches: torch.Tensor
    frame_mean: torch.Tensor
    frame_scale: torch.Tensor
    kmer_mean: torch.Tensor
    kmer_scale: torch.Tensor
    weights: torch.Tensor

    def __init__(self, shape: ProfiledShape) -> None:
        super().__init__()
        num, width = shape.num_profiles, shape.profile_frame_width
        frame_inputs = 3 * num + _NUM_CONSERVED + _NUM_OPENNESS
        for name, size in table_sizes().items():
            setattr(self, name, NgramBag(size, num).requires_grad_(requires_grad=False))
        self.register_buffer("stretches", torch.zeros(NUM_STRETCHES // STRETCHES_A_BYTE, dtype=torch.uint8))
        self.register_buffer("frame_mean", torch.zeros(frame_inputs))
        self.register_buffer("frame_scale", torch.ones(frame_inputs))
        self.register_buffer("kmer_mean", torch.zeros(num))
        self.register_buffer("kmer_scale", torch.ones(num))
        self.register_buffer("weights", torch.zeros(2))
        self.frame = nn.Sequential(
            nn.Linear(frame_inputs, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, width), nn.ReLU()
        )
        self.attention = LinearToOne(width)
        self.output = nn.Sequential(
            nn.Linear(2 * width + num + 1, shape.profile_hidden_width),
            nn.ReLU(),
            nn.Dropout(0.2),
            LinearToOne(shape.profile_hidden_width),
        )

    def evidence(
        self, frames: torch.Tensor, kmers: torch.Tensor, conserved: torch.Tensor, length_nt: int
    ) -> torch.Tensor:
        """(B, 1) log-odds of what ``measure`` found: network and conservation, weighted, cut at the largest."""
        network, conservation = self.weights.unbind()
        evidence = network * self.weigh(frames, kmers, length_nt) + conservation * conserved
        return evidence.clamp(-LARGEST_EVIDENCE, LARGEST_EVIDENCE)[:, None]

    def measure(self, bags: Bags, residues: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is known of B fragments.

        Args:
            bags: n-grams of B fragments.
            residues: (6 B, N) residue codes of their frames.

        Returns:
            (B, 6, inputs) of frames, (B, profiles) of 8-mers, and (B,) mean conservation of all stretches.
        """
        means = (getattr(self, name)(getattr(bags, name)) for name in TABLES)
        return self.measure_means(*means, openness=bags.openness, residues=residues)

    def measure_means(
        self,
        ngrams: torch.Tensor,
        classes: torch.Tensor,
        pairs: torch.Tensor,
        kmers: torch.Tensor,
        *,
        openness: torch.Tensor,
        residues: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same from the mean profiles of the bags."""
        codes, stretches = residues.to("cpu", torch.uint8).numpy(), self.stretches.cpu().numpy()
        sums = torch.from_numpy(sum_stretches(codes, STRETCH_RESIDUES, STRETCH, stretches, LEVELS, _HOST_LIKE))
        sums = sums.to(kmers.device)
        conserved = sums[:, :_NUM_CONSERVED] / sums[:, _NUM_CONSERVED:].clamp(min=1)
        frames = torch.cat([ngrams, classes, pairs, conserved, openness], dim=1)
        of_fragment = sums.view(-1, 6, _NUM_CONSERVED + 1).sum(dim=1)
        mean = of_fragment[:, 0] / of_fragment[:, _NUM_CONSERVED].clamp(min=1)
        return frames.view(len(kmers), 6, -1), kmers, mean

    def weigh(self, frames: torch.Tensor, kmers: torch.Tensor, length_nt: int) -> torch.Tensor:
        """(B,) log-odds of what ``measure`` found."""
        states = self.frame((frames - self.frame_mean) / self.frame_scale)
        attention = self.attention(states).softmax(dim=1)
        length = kmers.new_full((len(kmers), 1), (length_nt - _TYPICAL_NT) / _LONG_NT)
        kmers = (kmers - self.kmer_mean) / self.kmer_scale
        log_odds: torch.Tensor = self.output(
            torch.cat([(attention * states).sum(dim=1), states.amax(dim=1), kmers, length], dim=1)
        )
        return log_odds[:, 0]


class ProfiledNetwork(nn.Module):
    """Base codes to the embedding of ``SixFrameNetwork`` and the evidence of ``ProfileNetwork``."""

    def __init__(self, shape: ProfiledShape) -> None:
        super().__init__()
        self.shape = shape
        own = {field.name: getattr(shape, field.name) for field in fields(SixFrameShape)}
        self.six_frame = SixFrameNetwork(SixFrameShape(**{**own, "width": shape.width - 1}))
        self.profiles = ProfileNetwork(shape)
        self._joined: dict[str, torch.Tensor] = {}

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Embed (B, L) int64 base codes, L >= ``MIN_LENGTH_NT``: (B, width) float32."""
        bags, residues = read_fragments(codes)
        own, profiles = zip(*(self._means(name, getattr(bags, name)) for name in TABLES), strict=True)
        found = self.profiles.measure_means(*profiles, openness=bags.openness, residues=residues)
        return torch.cat(
            [
                self.six_frame.embed_means(*own, openness=bags.openness),
                self.profiles.evidence(*found, codes.shape[1]),
            ],
            dim=1,
        )

    @torch.no_grad()
    def join_tables(self) -> None:
        """Lay a vector and the profile of an n-gram side by side in memory: one look-up then finds both."""
        for name in TABLES:
            own, profiles = getattr(self.six_frame, name), getattr(self.profiles, name)
            width = own.weight.shape[1]
            joined = torch.cat([own.weight, profiles.weight], dim=1)
            own.weight.data, profiles.weight.data = joined[:, :width], joined[:, width:]
            self._joined[name] = joined

    def _means(self, name: str, ngrams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean vectors and mean profiles of bags."""
        own, profiles = getattr(self.six_frame, name), getattr(self.profiles, name)
        if name not in self._joined:
            return own(ngrams), profiles(ngrams)
        width = own.weight.shape[1]
        means = mean_of_vectors(ngrams, self._joined[name])
        return means[:, :width], means[:, width:]


class ProfiledEncoder(LetterEncoder):
    """Both networks with their weights: A C G T (U) are 0..3, any other letter 4."""

    kind = "six_frame_profiles"
    alphabet = "nt"
    cpu_token_budget = 65_536
    network_class = ProfiledNetwork
    shape_class = ProfiledShape
    codes = BASE_CODES
    min_length = MIN_LENGTH_NT
    filler = AMBIGUOUS_BASE

    def __init__(self, network: ProfiledNetwork) -> None:
        super().__init__(network)
        network.join_tables()
