"""Fit a head to the features of encoders that stay as they are."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from virnucpro.errors import InputError
from virnucpro.heads import MLPHead
from virnucpro.progress import Reporter
from virnucpro.training.checkpoints import Checkpoint
from virnucpro.training.genomes import Genomes

_LOG = logging.getLogger(__name__)


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

HELD_OUT_SHARE = 0.1


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
