"""The recipe of the bundled model: train, calibrate, evaluate, write the bundle folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from virnucpro.bundles import Bundle
from virnucpro.encoders import save_encoder
from virnucpro.encoders.profiles import LARGEST_EVIDENCE, ProfiledEncoder, ProfiledNetwork
from virnucpro.encoders.residue_conv import ResidueConvEncoder
from virnucpro.heads import MLPHead, save_head
from virnucpro.progress import Reporter
from virnucpro.training.calibration import calibrate_bundle, read_settings, write_settings
from virnucpro.training.datasets import Dataset
from virnucpro.training.dev import FRAGMENT_LENGTH, DevSize
from virnucpro.training.evaluation import Figures
from virnucpro.training.fit import Fit, LiteNetwork, Recipe, take_weights, training_pools
from virnucpro.training.genomes import Genomes
from virnucpro.training.profiles import ProfileFit, add_evidence

_LOG = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
_PARTS = ("nucleotide", "protein", "head")


def train_lite(
    dataset: Dataset,
    output: Path,
    recipe: Recipe,
    size: DevSize,
    minutes: float | None = None,
    reporter: Reporter | None = None,
    start: Bundle | None = None,
) -> Figures:
    """Train everything, write the bundle folder ``output`` and return its dev figures; with ``minutes``, so long."""
    started = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = output / CHECKPOINT
    fit = Fit(recipe, dataset.train, checkpoint, minutes, start)
    network = fit.run(reporter)
    seconds = time.monotonic() - started
    _LOG.info("trained on %d fragments in %.0f s", fit.step * recipe.batch, seconds)
    provenance: dict[str, object] = {
        "fragments": fit.step * recipe.batch,
        "seed": recipe.seed,
        "threads": torch.get_num_threads(),
        "training_seconds": round(seconds),
    }
    if start is not None:
        provenance["started_from"] = {"fingerprint": start.fingerprint, **_history(start)}
    fitted = ProfileFit(
        recipe.profiles,
        dataset.train,
        (fit.batches.viruses, fit.batches.hosts),
        recipe.seed,
        min(recipe.profiles.fragments, max(fit.step, 1) * recipe.batch),
    )
    figures = write_lite(network, fitted, dataset.dev, output, size, provenance, reporter)
    checkpoint.unlink(missing_ok=True)
    return figures


def _history(start: Bundle) -> dict[str, object]:
    """How the bundle that a training starts from was trained itself."""
    told = read_settings(start.folder).get("provenance") or {}
    return {key: told[key] for key in ("fragments", "seed", "training_seconds", "started_from") if key in told}


def add_profiles(dataset: Dataset, start: Bundle, output: Path, recipe: Recipe, size: DevSize) -> Figures:
    """Make a bundle of the trained parts of ``start`` and new evidence beside them, calibrated on dev.

    Raises:
        ModelError: the parts of ``start`` are not those that ``train_lite`` trains.
    """
    output.mkdir(parents=True, exist_ok=True)
    network = LiteNetwork(recipe, 1)
    take_weights(network, start)
    fitted = ProfileFit(recipe.profiles, dataset.train, training_pools(dataset.train), recipe.seed)
    return write_lite(network, fitted, dataset.dev, output, size, _history(start))


def write_lite(
    network: LiteNetwork,
    evidence: ProfileFit,
    dev_genomes: Genomes,
    output: Path,
    size: DevSize,
    provenance: Mapping[str, object],
    reporter: Reporter | None = None,
) -> Figures:
    """Train the evidence, store the encoders and the head, and make a calibrated bundle of them."""
    profiles = evidence.run(reporter)
    shape = replace(evidence.shape, **{**asdict(network.nucleotide.shape), "width": network.nucleotide.shape.width + 1})
    profiled = ProfiledNetwork(shape)
    profiled.six_frame, profiled.profiles = network.nucleotide, profiles
    nucleotide, protein = ProfiledEncoder(profiled), ResidueConvEncoder(network.protein)
    save_encoder(output / "nucleotide.safetensors", nucleotide.config(), nucleotide.stored_tensors())
    save_encoder(output / "protein.safetensors", protein.config(), protein.stored_tensors())
    return write_bundle(
        output,
        "lite",
        add_evidence(network.head, shape.width - 1, LARGEST_EVIDENCE),
        dev_genomes,
        size,
        fragment_length=FRAGMENT_LENGTH,
        provenance={**provenance, "evidence_fragments": evidence.num_fragments},
    )


def write_bundle(
    output: Path,
    name: str,
    head: MLPHead,
    dev_genomes: Genomes,
    size: DevSize,
    *,
    fragment_length: int,
    scores_frameless: bool = True,
    doubts_repetitive: bool = True,
    provenance: Mapping[str, object],
) -> Figures:
    """Store the head and ``bundle.yaml`` beside the encoders, which are there, and calibrate what was stored on dev."""
    save_head(output / "head.safetensors", head, {"classes": ["not_virus", "virus"]})
    settings: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "fragment_length": fragment_length,
        "min_length": 100,
        "frameless": "score" if scores_frameless else "skip",
        **({"repetitive": "doubt"} if doubts_repetitive else {}),
        "rows": "mean",
        **{part: f"{part}.safetensors" for part in _PARTS},
        "threshold": 0.5,
        "calibration": {"lengths": [fragment_length], "slope": [1.0], "intercept": [0.0], "exponent": 0.5},
        "provenance": {**provenance, "date": datetime.now(tz=UTC).date().isoformat()},
    }
    write_settings(output, settings)
    for part in _PARTS:
        (output / settings[part]).chmod(0o644)  # safetensors writes files that only their owner may read
    return calibrate_bundle(dev_genomes, output, size)
