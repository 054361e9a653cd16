"""Fit the two small encoders and the head together."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy

from virnucpro.bundles import Bundle
from virnucpro.encoders import load_encoder
from virnucpro.encoders.codons import STOP, Bags
from virnucpro.encoders.indices import index_bags
from virnucpro.encoders.ngram_bag import NgramBag
from virnucpro.encoders.profiles import TABLES, ProfiledNetwork, SixFrameNetwork, SixFrameShape
from virnucpro.encoders.residue_conv import ResidueConvNetwork, ResidueConvShape
from virnucpro.errors import ModelError
from virnucpro.heads import MLPHead, load_head
from virnucpro.progress import Advance, Reporter
from virnucpro.training.checkpoints import Checkpoint
from virnucpro.training.composition import first_vectors, record_groups
from virnucpro.training.genomes import VIRUS, Genomes
from virnucpro.training.profiles import ProfileRecipe, drop_evidence
from virnucpro.training.sampling import (
    Pool,
    genus_pool,
    merge_pools,
    mutate,
    prefetch,
    sample_fragments,
    synthesise,
    virus_pool,
)

_LOG = logging.getLogger(__name__)

FIRST_SCALE = 3.0
"""Root mean square of the first n-gram vectors: the mean of a bag is about a tenth of it."""

HOST_SHARES = {
    "bacteria": 0.14,
    "archaea": 0.12,
    "fungi": 0.13,
    "protozoa": 0.12,
    "plant": 0.10,
    "invertebrate": 0.13,
    "vertebrate": 0.10,
    "plasmid": 0.10,
    "organelle": 0.06,
    "te": 0.04,
    "mge": 0.04,
}
"""Share of each class among the host fragments of a batch: near equal, more of what dev shows to be hard."""
OTHER_SHARE = 0.11
"""Share of a class that is none of these: about the mean."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the data."""

    fragments: int = 14_000_000  # fragments seen in all
    batch: int = 512  # fragments a step
    lengths: tuple[int, ...] = (500, 300, 150)  # fragment lengths in bases
    # how often a batch has each length; what is left over draws 100..500 alike
    length_shares: tuple[float, ...] = (0.45, 0.25, 0.2)
    learning_rate: float = 2e-3  # highest rate of AdamW; it rises over ``warm_up`` of the steps, then falls as a cosine
    warm_up: float = 0.05
    weight_decay: float = 0.05  # of AdamW
    highest_mutation: float = 0.1  # each fragment is mutated at a rate between 0 and this
    keep_ngrams: float = 0.65  # share of n-grams kept in the bags
    # share of fragments whose 8-mers are kept at all; they know a genus by its composition, which does not help with
    # others
    keep_kmers: float = 0.8
    label_smoothing: float = 0.03  # of the cross-entropies
    auxiliary: float = 0.2  # weight of each encoder's own loss (which group?) beside the head's
    synthetic: float = 0.06  # share of the host half that is of no organism (``sampling.synthesise``)
    averaging: float = 0.999  # decay a step of the running mean of the weights that is kept
    # fingerprint of the bundle whose weights are the first ones; where empty, the n-gram vectors start from the
    # composition of the training genomes and all else is random
    start: str = ""
    seed: int = 1  # of everything random
    nucleotide: SixFrameShape = field(default_factory=SixFrameShape)  # shape of the nucleotide encoder
    protein: ResidueConvShape = field(default_factory=ResidueConvShape)  # shape of the protein encoder
    head_width: int = 128  # hidden width of the head
    profiles: ProfileRecipe = field(default_factory=ProfileRecipe)  # the evidence beside what is trained here


@dataclass(frozen=True)
class Batch:
    """Training fragments of one length."""

    bags: Bags  # their n-grams, some dropped
    residues: torch.Tensor  # (B, 6, N) uint8 residue codes of their frames, N such that every frame has as many
    labels: torch.Tensor  # (B,) int64, 1 is virus
    # (B,) int64, class of hosts or family of viruses, as numbered by ``record_groups``; one more is of no organism
    groups: torch.Tensor


class LiteNetwork(nn.Module):
    """Both encoders, the head, and an auxiliary output for each encoder alone, which names the group."""

    def __init__(self, recipe: Recipe, num_groups: int) -> None:
        super().__init__()
        self.nucleotide = SixFrameNetwork(recipe.nucleotide)
        self.protein = ResidueConvNetwork(recipe.protein)
        self.head = MLPHead(recipe.nucleotide.width + recipe.protein.width, recipe.head_width)
        self.nucleotide_output = nn.Linear(recipe.nucleotide.width, num_groups)
        self.protein_output = nn.Linear(recipe.protein.width, num_groups)

    def features(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Feature (B, width), nucleotide embeddings, protein embeddings of open frames, and whose those are."""
        fragments, frames = choose_open_frames(batch.residues)
        proteins = batch.residues[fragments, frames].clamp(max=STOP).long()
        nucleotide = self.nucleotide.embed_bags(batch.bags)
        with torch.autocast("cpu", torch.bfloat16):
            open_protein = self.protein(proteins).float()
        protein = torch.zeros(len(nucleotide), open_protein.shape[1]).index_copy(0, fragments, open_protein)
        return torch.cat([nucleotide, protein], dim=1), nucleotide, open_protein, fragments

    def loss(self, batch: Batch, recipe: Recipe) -> torch.Tensor:
        """Cross-entropy of the head plus the auxiliary ones."""
        feature, nucleotide, open_protein, fragments = self.features(batch)
        smoothing = recipe.label_smoothing
        total = cross_entropy(self.head(feature), batch.labels, label_smoothing=smoothing)
        total = total + recipe.auxiliary * cross_entropy(
            self.nucleotide_output(nucleotide), batch.groups, label_smoothing=smoothing
        )
        if len(fragments):
            own = cross_entropy(self.protein_output(open_protein), batch.groups[fragments], label_smoothing=smoothing)
            total = total + recipe.auxiliary * own * (len(fragments) / len(batch.labels))
        return total


def choose_open_frames(residues: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One stop-free frame, at random, of each fragment that has any.

    Args:
        residues: (B, 6, N) residue codes.

    Returns:
        Numbers of those fragments, and of the frame in each.
    """
    open_frames = (residues != STOP).all(dim=2)
    lots = torch.where(open_frames, torch.rand(open_frames.shape), -1.0)
    fragments = open_frames.any(dim=1).nonzero()[:, 0]
    return fragments, lots.argmax(dim=1)[fragments]


@dataclass(frozen=True)
class Batches:
    """Fresh training batches; batch ``i`` depends on the seed and on ``i`` only."""

    genomes: Genomes
    viruses: Pool
    hosts: Pool
    groups: NDArray[np.int64]
    recipe: Recipe

    def __getitem__(self, step: int) -> Batch:
        """Batch of a step; its first half is viral."""
        generator = np.random.default_rng([self.recipe.seed, step])
        which = int(np.searchsorted(np.cumsum(self.recipe.length_shares), generator.random(), side="right"))
        lengths = self.recipe.lengths
        length = lengths[which] if which < len(lengths) else int(generator.integers(100, 501))
        half = self.recipe.batch // 2
        viral, viral_records = sample_fragments(self.genomes, self.viruses, length, half, generator)
        host, host_records = sample_fragments(self.genomes, self.hosts, length, half, generator)
        groups = self.groups[np.concatenate([viral_records, host_records])]
        num_synthetic = round(half * self.recipe.synthetic)
        if num_synthetic:
            # Of viral and host composition alike, so that composition alone does not tell.
            models = np.concatenate([viral, host])[generator.integers(0, 2 * half, size=num_synthetic)]
            host[-num_synthetic:] = synthesise(models, generator)
            groups[-num_synthetic:] = self.groups.max() + 1
        codes = np.concatenate([viral, host])
        mutate(codes, generator, self.recipe.highest_mutation)
        labels = torch.repeat_interleave(torch.tensor([1, 0]), half)
        bags, residues = index_bags(codes, self.recipe.keep_ngrams, self.recipe.seed * 1_000_003 + step)
        bags.kmers[torch.from_numpy(generator.random(len(codes)) >= self.recipe.keep_kmers)] = 0
        return Batch(bags, residues[:, :, : (length - 2) // 3], labels, torch.from_numpy(groups))


def training_pools(genomes: Genomes) -> tuple[Pool, Pool]:
    """The virus pool and the host pool of the ``train`` part."""
    present = sorted(set(genomes.classes.tolist()) - {VIRUS}, key=_place)
    shares = [HOST_SHARES.get(name, OTHER_SHARE) for name in present]
    hosts = merge_pools([genus_pool(genomes, name) for name in present], shares)
    return virus_pool(genomes, "train"), hosts


def _place(name: str) -> tuple[int, str]:
    """Classes in the order of ``HOST_SHARES``, others after them: the order of pools decides what a seed draws."""
    known = list(HOST_SHARES)
    return (known.index(name) if name in known else len(known), name)


def learning_rate_at(progress: float, recipe: Recipe) -> float:
    """Learning rate at ``progress`` 0..1 of the training."""
    if progress < recipe.warm_up:
        return recipe.learning_rate * (progress + 1e-3) / (recipe.warm_up + 1e-3)
    rest = (progress - recipe.warm_up) / (1 - recipe.warm_up)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0))))


SECONDS_A_CHECKPOINT = 300.0
STEPS_AN_AVERAGE = 4
STEPS_A_LOG_LINE = 100


class Fit:
    """One training: the network, its running mean and the optimiser, resumable from one safetensors file.

    The same seed, data and thread count give the same weights, also over a resume: batch and dropout of a step
    depend on the seed and the step alone.

    Raises:
        ModelError: the checkpoint is of another recipe, or the bundle's parts are not those of this network.
    """

    def __init__(
        self,
        recipe: Recipe,
        genomes: Genomes,
        checkpoint: Path | None = None,
        minutes: float | None = None,
        start: Bundle | None = None,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        names, groups = record_groups(genomes)
        self.batches = Batches(genomes, *training_pools(genomes), groups, recipe)
        num_groups = len(names) + 1  # the last one is of no organism
        self.network = LiteNetwork(recipe, num_groups)
        self.average = LiteNetwork(recipe, num_groups).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
        )
        tables = {id(module.weight) for module in self.network.modules() if isinstance(module, NgramBag)}
        self._layers = [parameter for parameter in self.network.parameters() if id(parameter) not in tables]
        self._minutes = minutes
        networks = {"network": self.network, "average": self.average}
        identity = json.dumps(asdict(recipe), sort_keys=True)
        self._checkpoint = Checkpoint(checkpoint, identity, networks, "network", self.optimizer)
        state = self._checkpoint.load()
        self.step, self._seconds = int(state.get("step", 0)), state.get("seconds", 0.0)
        if state:
            _LOG.info("%s: resuming at step %d", checkpoint, self.step)
        else:
            if start is None:
                bags = [getattr(self.network.nucleotide, name) for name in TABLES]
                vectors = first_vectors(genomes, [bag.weight.shape[1] for bag in bags])
                with torch.no_grad():
                    for bag, first in zip(bags, vectors, strict=True):
                        bag.weight.copy_(torch.from_numpy(first) * FIRST_SCALE)
            else:
                take_weights(self.network, start)
            self.average.load_state_dict(self.network.state_dict())

    @property
    def progress(self) -> float:
        """Done share of the training."""
        if self._minutes is not None:
            return self._seconds / (60 * self._minutes)
        return self.step * self.recipe.batch / self.recipe.fragments

    def run(self, reporter: Reporter | None = None) -> LiteNetwork:
        """Train to the end; the running mean of the weights, its BatchNorm fitted to its own features."""
        torch.set_flush_denormal(True)  # moments of rare n-grams become denormal, which is many times slower
        total = self.recipe.fragments if self._minutes is None else None
        done = self.step * self.recipe.batch
        try:
            with (reporter or Reporter(bars=False)).stage("train", total, "fragments", done=done) as advance:
                self._train(advance)
        finally:
            torch.set_flush_denormal(False)
        self._settle_head()
        return self.average.eval()

    def _train(self, advance: Advance) -> None:
        saved, total_loss = time.monotonic(), 0.0
        upcoming = prefetch(self.batches.__getitem__, self.step)
        while self.progress < 1:
            begun = time.monotonic()
            total_loss += self.take_step(next(upcoming))
            self._seconds += time.monotonic() - begun
            advance(self.recipe.batch)
            if self.step % STEPS_A_LOG_LINE == 0:
                message = "step %d (%.0f %%), loss %.4f"
                _LOG.info(message, self.step, 100 * self.progress, total_loss / STEPS_A_LOG_LINE)
                total_loss = 0.0
            if time.monotonic() - saved > SECONDS_A_CHECKPOINT:
                self.save()
                saved = time.monotonic()
        self.save()

    def take_step(self, batch: Batch) -> float:
        """Train on the batch of this step; returns the loss."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.progress, self.recipe)
        self.network.train()
        loss = self.network.loss(batch, self.recipe)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._layers, 1.0)
        self.optimizer.step()
        self.step += 1
        if self.step % STEPS_AN_AVERAGE == 0:
            # early on the mean of all steps, so that the first weights are soon forgotten
            decay = min(self.recipe.averaging**STEPS_AN_AVERAGE, 1 - STEPS_AN_AVERAGE / (self.step + STEPS_AN_AVERAGE))
            with torch.no_grad():
                pairs = zip(self.average.parameters(), self.network.parameters(), strict=True)
                for mean, current in pairs:
                    mean.lerp_(current, 1 - decay)
        return float(loss.detach())

    def _settle_head(self, num_batches: int = 100) -> None:
        """Give the head's BatchNorm the statistics of the averaged encoders on fresh fragments."""
        norm = self.average.head.bn1
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        self.average.train()
        batches = replace(self.batches, recipe=replace(self.recipe, keep_ngrams=1.0, keep_kmers=1.0))
        with torch.no_grad():
            for step in range(self.step, self.step + min(num_batches, self.step)):
                torch.manual_seed(self.recipe.seed * 1_000_003 + step)
                self.average.head(self.average.features(batches[step])[0])
        self.average.eval()

    def save(self) -> None:
        """Write the checkpoint, where one is kept."""
        self._checkpoint.save(step=self.step, seconds=self._seconds)


def take_weights(network: LiteNetwork, start: Bundle) -> None:
    """Give the encoders and the head the weights of a bundle that was trained so; the auxiliary outputs stay random.

    Raises:
        ModelError: its parts are of other kinds or widths.
    """
    cpu = torch.device("cpu")
    nucleotide, protein = (
        getattr(load_encoder(path, cpu, torch.float32), "network", None) for path in (start.nucleotide, start.protein)
    )
    refusal = ModelError(f"model {start.name} is not made of the parts that are trained here. Start from another.")
    if not isinstance(nucleotide, ProfiledNetwork):
        raise refusal
    firsts = (nucleotide.six_frame, protein, drop_evidence(load_head(start.head), nucleotide.shape.width - 1))
    for part, first in zip((network.nucleotide, network.protein, network.head), firsts, strict=True):
        if not isinstance(first, type(part)) or _shapes(first) != _shapes(part):
            raise refusal
        part.load_state_dict(first.state_dict())


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
