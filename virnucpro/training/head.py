"""Fit a head to the features of encoders that stay as they are; features are computed once and kept by content.

A chunk of fragments is drawn by its number and the seed alone. The embeddings of its rows by one encoder lie in a file
whose name is the digest of encoder and strings: a training that was stopped, or one that asks the same, finds them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from virnucpro.atomic import atomic_write
from virnucpro.encoders import load_encoder
from virnucpro.encoders.codons import AMBIGUOUS_BASE
from virnucpro.encoders.device import default_dtype
from virnucpro.errors import InputError
from virnucpro.heads import MLPHead
from virnucpro.progress import Reporter
from virnucpro.sequence.ragged import Ragged
from virnucpro.training.checkpoints import Checkpoint
from virnucpro.training.dev import cut_rows, embed_all
from virnucpro.training.genomes import LETTERS, Genomes
from virnucpro.training.sampling import Pool, mutate, sample_fragments

_LOG = logging.getLogger(__name__)
HELD_OUT_SHARE = 0.1
FRAGMENTS_A_CHUNK = 1024
_LENGTHS_A_CHUNK = 4


@dataclass(frozen=True)
class HeadRecipe:
    """Everything that decides a head, beside data and encoders."""

    hidden_width: int = 256  # of the head
    batch: int = 256  # rows a step
    optimizer: Literal["adamw", "sgd"] = "adamw"  # ``adamw`` or ``sgd`` (momentum 0.9)
    learning_rate: float = 1e-3  # at the start
    weight_decay: float = 0.01  # of the optimiser
    step_epochs: int = 5  # epochs after which the learning rate is multiplied by ``step_factor``
    step_factor: float = 0.5  # see there
    epochs: int = 40  # at most
    patience: int = 6  # epochs without a lower loss on held-out rows after which it stops
    # which rows stop it: those of whole families and genera, or a tenth of all rows, overlapping frames on both sides,
    # as published
    held_out: Literal["groups", "rows"] = "groups"
    weighted: bool = True  # the rows of a window count as one
    seed: int = 1  # of everything random


PUBLISHED = HeadRecipe(
    hidden_width=512,
    batch=32,
    optimizer="sgd",
    learning_rate=2e-4,
    weight_decay=0.0,
    step_epochs=10,
    step_factor=0.85,
    epochs=200,
    patience=5,
    held_out="rows",
    weighted=False,
)
"""Li et al. 2025, bbaf224. Their scripts stop early; ``epochs`` is a limit of ours."""


@dataclass(frozen=True)
class Examples:
    """Rows with their features."""

    features: torch.Tensor  # (n, width) float32
    labels: torch.Tensor  # (n,) int64, 1 is virus
    weights: torch.Tensor  # (n,) float32

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """Some of them."""
        chosen = torch.from_numpy(rows)
        return Examples(self.features[chosen], self.labels[chosen], self.weights[chosen])

    def __len__(self) -> int:
        return len(self.labels)


def hold_out(records: NDArray[np.int64], genomes: Genomes, recipe: HeadRecipe) -> NDArray[np.bool_]:
    """(n,) which rows do not train but tell when to stop; ``records`` (n,) are theirs."""
    generator = np.random.default_rng([recipe.seed, 0x0DD])
    if recipe.held_out == "rows":
        return np.asarray(generator.random(len(records)) < HELD_OUT_SHARE)
    is_held_out = np.zeros(len(genomes), dtype=bool)
    for kind in sorted(set(genomes.classes.tolist())):
        names = np.unique(genomes.groups[genomes.classes == kind])
        if len(names) > 1:
            chosen = generator.permutation(names)[: max(1, round(HELD_OUT_SHARE * len(names)))]
            is_held_out |= (genomes.classes == kind) & np.isin(genomes.groups, chosen)
    return np.asarray(is_held_out[records])


class HeadFit:
    """One training of a head, resumable after each epoch.

    The same seed and features give the same weights, also over a resume.
    """

    def __init__(
        self, recipe: HeadRecipe, train: Examples, held_out: Examples, checkpoint: Path, identity: str
    ) -> None:
        for name, examples in (("train", train), ("stop", held_out)):
            if len(set(examples.labels.tolist())) < 2:
                raise InputError("train part", f"gives no rows of both labels to {name} on; more records are needed.")
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self._train_rows, self._held_out = train, held_out
        width = train.features.shape[1]
        self.head, self.best = MLPHead(width, recipe.hidden_width), MLPHead(width, recipe.hidden_width)
        parameters, rate, decay = self.head.parameters(), recipe.learning_rate, recipe.weight_decay
        self._optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)
            if recipe.optimizer == "sgd"
            else torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        )
        identity = json.dumps({"recipe": asdict(recipe), "features": identity}, sort_keys=True)
        networks = {"head": self.head, "best": self.best}
        self._checkpoint = Checkpoint(checkpoint, identity, networks, "head", self._optimizer)
        state = self._checkpoint.load()
        self.epoch, self.best_epoch = int(state.get("epoch", 0)), int(state.get("best_epoch", 0))
        self.best_loss = state.get("best_loss", float("inf"))
        if self.epoch:
            _LOG.info("%s: resuming after epoch %d", checkpoint, self.epoch)

    @property
    def is_done(self) -> bool:
        """Whether the last epoch is reached, or nothing was gained for long."""
        return self.epoch >= self.recipe.epochs or self.epoch - self.best_epoch >= self.recipe.patience

    def run(self, reporter: Reporter) -> MLPHead:
        """Train to the end; the head of the epoch with the lowest loss on the held-out rows."""
        with reporter.stage("train", self.recipe.epochs, "epochs", done=self.epoch) as advance:
            while not self.is_done:
                self.take_epoch()
                self.save()
                advance(1)
        return self.best.eval()

    def take_epoch(self) -> None:
        """Train on every row once, and keep the head if it is the best so far."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.epoch)
        rate = self.recipe.learning_rate * self.recipe.step_factor ** (self.epoch // self.recipe.step_epochs)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        generator = np.random.default_rng([self.recipe.seed, self.epoch])
        order = generator.permutation(len(self._train_rows))
        self.head.train()
        for first in range(0, len(order), self.recipe.batch):
            rows = order[first : first + self.recipe.batch]
            if len(rows) > 1:  # batch normalisation needs two
                self._optimizer.zero_grad(set_to_none=True)
                _loss(self.head, self._train_rows.take(rows), self.recipe).backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
        self.head.eval()
        with torch.no_grad():
            loss = float(_loss(self.head, self._held_out, self.recipe))
        self.epoch += 1
        _LOG.info("epoch %d: loss on held-out rows %.4f", self.epoch, loss)
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.epoch
            self.best.load_state_dict(self.head.state_dict())

    def save(self) -> None:
        """Write the checkpoint."""
        self._checkpoint.save(epoch=self.epoch, best_epoch=self.best_epoch, best_loss=self.best_loss)


def _loss(head: MLPHead, examples: Examples, recipe: HeadRecipe) -> torch.Tensor:
    losses = cross_entropy(head(examples.features), examples.labels, reduction="none")
    if not recipe.weighted:
        return losses.mean()
    return (losses * examples.weights).sum() / examples.weights.sum()


@dataclass(frozen=True)
class Drawing:
    """How rows are drawn."""

    fragment_length: int  # longer sequences are cut into windows of at most so many bases
    shortest_nt: int = 150  # of a drawn sequence
    longest_nt: int = 1000  # of a drawn sequence; lengths in between are alike on a logarithmic scale
    # each sequence is mutated at a rate between 0 and this; one in 50 is an ambiguous base
    highest_mutation: float = 0.05
    scores_frameless: bool = True  # windows without an open frame give a row
    only_clear: bool = False  # leave out sequences with an ambiguous base
    # leave out viral and host frames that are no part of an annotated protein, where a record has annotations
    only_annotated: bool = False
    equal_rows: bool = False  # as many rows of hosts as of viruses: of the more frequent label some are left out
    seed: int = 1  # of everything random

    def as_published(self) -> Drawing:
        """The drawing of Li et al. 2025, of windows of the same length."""
        return replace(
            self,
            shortest_nt=self.fragment_length,
            longest_nt=self.fragment_length,
            highest_mutation=0.0,
            scores_frameless=False,
            only_clear=True,
            only_annotated=True,
            equal_rows=True,
        )


@dataclass(frozen=True)
class Rows:
    """Rows to train on."""

    nucleotides: Ragged  # n strings
    proteins: Ragged  # n proteins, empty where there is no open frame
    labels: NDArray[np.int64]  # (n,) int64, 1 is virus
    records: NDArray[np.int64]  # (n,) number of the record of each
    weights: NDArray[np.float32]  # (n,) float32; those of the rows of a window sum to 1

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """Join several, in order."""
        return cls(
            Ragged.concatenate([part.nucleotides for part in parts]),
            Ragged.concatenate([part.proteins for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.records for part in parts]),
            np.concatenate([part.weights for part in parts]),
        )

    def take(self, indices: NDArray[np.int64]) -> Rows:
        """The rows at ``indices``, in that order."""
        return Rows(
            self.nucleotides.take(indices),
            self.proteins.take(indices),
            self.labels[indices],
            self.records[indices],
            self.weights[indices],
        )


def draw_rows(
    genomes: Genomes,
    pools: tuple[Pool, Pool],
    drawing: Drawing,
    chunk: int,
    proteins: Mapping[str, tuple[bytes, ...]],
) -> Rows:
    """Draw a chunk: half of its sequences are viral, families and classes weighted as for the bundled model."""
    generator = np.random.default_rng([drawing.seed, chunk, 0xFEA])
    parts = []
    half = FRAGMENTS_A_CHUNK // _LENGTHS_A_CHUNK // 2
    longest = min(drawing.longest_nt, *(int(genomes.lengths[pool.records].max()) for pool in pools))
    low, high = np.log([min(drawing.shortest_nt, longest), longest + 1])
    for _ in range(_LENGTHS_A_CHUNK):
        length = int(np.exp(generator.uniform(low, high)))
        for label, pool in zip((1, 0), pools, strict=True):
            codes, records = sample_fragments(genomes, pool, length, half, generator)
            mutate(codes, generator, drawing.highest_mutation)
            parts.append(_rows_of(codes, records, label, drawing))
    rows = Rows.concatenate(parts)
    if drawing.only_annotated and proteins:
        rows = _only_annotated(rows, genomes, proteins)
    return _equal_rows(rows, generator) if drawing.equal_rows else rows


def embed_rows(
    chunks: Sequence[Rows],
    encoders: Mapping[str, Path],
    digests: Mapping[str, str],
    device: torch.device,
    folder: Path,
    reporter: Reporter,
) -> NDArray[np.float32]:
    """(n, width) features of the rows of all chunks, encoder by encoder; what lies in ``folder`` is not computed.

    Args:
        chunks: of rows, each kept in a file for each encoder.
        encoders: role (nucleotide, protein) to its file, which is read when it is needed.
        digests: role to what identifies the encoder.
        device: to compute on.
        folder: where embeddings are kept.
        reporter: progress.
    """
    columns, dtype = [], default_dtype(device)
    for role, path in encoders.items():
        load, parts = cache(partial(load_encoder, path, device, dtype)), []
        with reporter.stage(f"embed {role}", sum(len(chunk.labels) for chunk in chunks), "rows") as advance:
            for chunk in chunks:
                strings = chunk.nucleotides if role == "nucleotide" else chunk.proteins
                digest = hashlib.sha256(f"{digests[role]} {dtype}\n".encode())
                digest.update(strings.offsets.tobytes() + strings.values.tobytes())
                kept = folder / f"{digest.hexdigest()}.safetensors"
                if not kept.exists():
                    with atomic_write(kept) as part:
                        save_file({"embeddings": torch.from_numpy(embed_all(load(), strings, device))}, part)
                parts.append(load_file(kept)["embeddings"].numpy())
                advance(len(strings))
        columns.append(np.concatenate(parts))
    return np.concatenate(columns, axis=1)


def _rows_of(codes: NDArray[np.uint8], records: NDArray[np.int64], label: int, drawing: Drawing) -> Rows:
    if drawing.only_clear:
        is_clear = (codes != AMBIGUOUS_BASE).all(axis=1)
        codes, records = codes[is_clear], records[is_clear]
    rows = cut_rows(LETTERS[codes], drawing.fragment_length, scores_frameless=drawing.scores_frameless)
    return Rows(
        rows.nucleotides,
        rows.proteins,
        np.full(len(rows.fragments), label, dtype=np.int64),
        records[rows.sequences[rows.fragments]],
        (1.0 / np.bincount(rows.fragments, minlength=1)[rows.fragments]).astype(np.float32),
    )


def _only_annotated(rows: Rows, genomes: Genomes, proteins: Mapping[str, tuple[bytes, ...]]) -> Rows:
    """Rows whose protein is a part of an annotated one; rows of records without annotations stay."""
    kept = []
    for number, (protein, record) in enumerate(zip(rows.proteins.to_bytes(), rows.records.tolist(), strict=True)):
        annotated = proteins.get(str(genomes.ids[record]))
        if annotated is None or any(protein in whole for whole in annotated):
            kept.append(number)
    return rows.take(np.array(kept, dtype=np.int64))


def _equal_rows(rows: Rows, generator: np.random.Generator) -> Rows:
    shuffled = generator.permutation(len(rows.labels))
    of_label = [shuffled[rows.labels[shuffled] == label] for label in (0, 1)]
    least = min(map(len, of_label))
    return rows.take(np.sort(np.concatenate([some[:least] for some in of_label])))
