"""The recipe of the bundled model: train, calibrate, evaluate, write the bundle folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from virnucpro.bundles import Bundle, load_bundle
from virnucpro.encoders import load_encoder, save_encoder
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.residue_conv import ResidueConvEncoder
from virnucpro.encoders.six_frame import SixFrameEncoder
from virnucpro.heads import MLPHead, load_head, save_head
from virnucpro.training.calibration import fit_exponent, fit_line
from virnucpro.training.dev import DevSequences, DevSize, Rows, cut_rows, draw_dev, join_rows, row_log_odds
from virnucpro.training.evaluation import auroc, average_precision, recall_at_fpr
from virnucpro.training.fit import Fit, LiteNetwork, Recipe
from virnucpro.training.genomes import Genomes, load_genomes

_LOG = logging.getLogger(__name__)

FRAGMENT_LENGTH = 500
CALIBRATED_LENGTHS = (150, 300, 500)
CONTIG_LENGTHS = (1000, 3000)
CONTIG_SHARE = 0.25
"""Contigs have several fragments each, so fewer of them are drawn."""

Figures = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """The three parts of a bundle, in memory."""

    nucleotide: Encoder
    protein: Encoder
    head: MLPHead

    def log_odds(self, rows: Rows) -> NDArray[np.float64]:
        """(n,) log-odds of rows."""
        return row_log_odds(rows, self.nucleotide, self.protein, self.head)


def load_model(bundle: Bundle) -> Model:
    """Read the parts of a bundle in float32 on the CPU."""
    device = torch.device("cpu")
    return Model(
        load_encoder(bundle.nucleotide, device, torch.float32),
        load_encoder(bundle.protein, device, torch.float32),
        load_head(bundle.head),
    )


def train_lite(data: Path, output: Path, recipe: Recipe, size: DevSize, minutes: float | None = None) -> Figures:
    """Train everything, write the bundle folder ``output`` and return its dev figures.

    Args:
        data: folder with ``train/``, ``dev/`` and ``manifest.tsv.gz``.
        output: the bundle folder; ``checkpoint.safetensors`` lies beside the bundle until it is written.
        recipe: what to train.
        size: of the dev set.
        minutes: train about so long instead of ``recipe.fragments`` fragments.
    """
    started = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = output / "checkpoint.safetensors"
    fit = Fit(recipe, load_genomes(data, "train"), checkpoint, minutes)
    network = fit.run()
    seconds = time.monotonic() - started
    _LOG.info("trained on %d fragments in %.0f s", fit.step * recipe.batch, seconds)
    provenance = {
        "fragments": fit.step * recipe.batch,
        "seed": recipe.seed,
        "threads": torch.get_num_threads(),
        "training_seconds": round(seconds),
    }
    figures = write_bundle(network, load_genomes(data, "dev"), output, size, provenance)
    checkpoint.unlink(missing_ok=True)
    return figures


def write_bundle(
    network: LiteNetwork, dev_genomes: Genomes, output: Path, size: DevSize, provenance: Mapping[str, object]
) -> Figures:
    """Store the encoders and the head, calibrate what was stored on dev, and write ``bundle.yaml``."""
    output.mkdir(parents=True, exist_ok=True)
    for name, encoder in (
        ("nucleotide", SixFrameEncoder(network.nucleotide)),
        ("protein", ResidueConvEncoder(network.protein)),
    ):
        save_encoder(output / f"{name}.safetensors", encoder.config(), encoder.stored_tensors())
    save_head(output / "head.safetensors", network.head, {"classes": ["not_virus", "virus"]})
    settings: dict[str, Any] = {
        "schema": 1,
        "name": "lite",
        "fragment_length": FRAGMENT_LENGTH,
        "min_length": 100,
        "frameless": "score",
        "rows": "mean",
        "nucleotide": "nucleotide.safetensors",
        "protein": "protein.safetensors",
        "head": "head.safetensors",
        "threshold": 0.5,
        "calibration": {"lengths": [500], "slope": [1.0], "intercept": [0.0], "exponent": 0.5},
    }
    _write_yaml(output / "bundle.yaml", settings)
    model = load_model(load_bundle(str(output)))
    dev = {
        length: draw_dev(dev_genomes, length, _size_at(length, size)) for length in CALIBRATED_LENGTHS + CONTIG_LENGTHS
    }
    rows = {length: cut_rows(sequences.letters, FRAGMENT_LENGTH) for length, sequences in dev.items()}
    odds = {length: model.log_odds(rows[length]) for length in dev}
    settings["rows"] = max(
        ("mean", "max"),
        key=lambda rule: auroc(join_rows(rows[500], odds[500], rule), dev[500].is_virus, dev[500].weights),
    )
    settings["calibration"] = _calibrate(dev, rows, odds, settings["rows"])
    _write_yaml(output / "bundle.yaml", settings)
    bundle = load_bundle(str(output))
    figures = {
        str(length): describe(dev[length], sequence_log_odds(bundle, rows[length], odds[length])) for length in dev
    }
    settings["provenance"] = {
        "trained_on": "train part of the project's data: viruses by family, nine classes of hosts",
        "date": datetime.now(tz=UTC).date().isoformat(),
        **provenance,
        "dev_auroc": {length: figures[length]["auroc"] for length in figures},
    }
    _write_yaml(output / "bundle.yaml", settings)
    for part in ("nucleotide", "protein", "head"):
        (output / settings[part]).chmod(0o644)  # safetensors writes files that only their owner may read
    return figures


def evaluate_bundle(data: Path, bundle_folder: Path, size: DevSize) -> Figures:
    """Dev figures of a bundle by length, and how many 500-base fragments it embeds and scores a second."""
    genomes = load_genomes(data, "dev")
    bundle = load_bundle(str(bundle_folder))
    model = load_model(bundle)
    figures: Figures = {}
    for length in CALIBRATED_LENGTHS + CONTIG_LENGTHS:
        sequences = draw_dev(genomes, length, _size_at(length, size))
        rows = cut_rows(sequences.letters, bundle.fragment_length)
        started = time.perf_counter()
        odds = model.log_odds(rows)
        seconds = time.perf_counter() - started
        figures[str(length)] = describe(sequences, sequence_log_odds(bundle, rows, odds))
        figures[str(length)]["fragments_per_second"] = round(len(rows.lengths) / seconds)
    return figures


def sequence_log_odds(bundle: Bundle, rows: Rows, odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Calibrated log-odds of sequences from those of rows."""
    fragments = bundle.calibration.fragment_log_odds(join_rows(rows, odds, bundle.row_rule), rows.lengths)
    counts = np.bincount(rows.sequences)
    return bundle.calibration.sequence_log_odds(np.bincount(rows.sequences, weights=fragments) / counts, counts)


def describe(dev: DevSequences, log_odds: NDArray[np.float64]) -> Figures:
    """Figures of merit of calibrated log-odds, at equal prevalence."""
    is_virus, weights = dev.is_virus, dev.weights

    def against_hosts(origin: str) -> float:
        some = ~is_virus | (dev.origins == origin)
        return round(auroc(log_odds[some], is_virus[some], weights[some]), 4)

    def by_class(name: str) -> float:
        some = is_virus | (dev.origins == name)
        return round(auroc(log_odds[some], is_virus[some], weights[some]), 4)

    return {
        "auroc": round(auroc(log_odds, is_virus, weights), 4),
        "auroc_novel": against_hosts("dev_novel"),
        "auroc_seen": against_hosts("dev_seen"),
        "auroc_by_class": {name: by_class(name) for name in dev.hosts},
        "average_precision": round(average_precision(log_odds, is_virus, weights), 4),
        "recall_at_1_percent_fpr": round(recall_at_fpr(log_odds, is_virus, 0.01, weights), 4),
        "recall_at_p_half": round(float((weights * (log_odds >= 0))[is_virus].sum() / weights[is_virus].sum()), 4),
        "fpr_at_p_half": round(float((weights * (log_odds >= 0))[~is_virus].sum() / weights[~is_virus].sum()), 4),
        "num_sequences": len(log_odds),
    }


def _calibrate(
    dev: dict[int, DevSequences], rows: dict[int, Rows], odds: dict[int, NDArray[np.float64]], rule: str
) -> dict[str, Any]:
    lines = [
        fit_line(join_rows(rows[length], odds[length], rule), dev[length].is_virus, dev[length].weights)
        for length in CALIBRATED_LENGTHS
    ]
    slopes, intercepts = zip(*lines, strict=True)
    means, counts = [], []
    for length in CONTIG_LENGTHS:
        lengths = rows[length].lengths
        fragments = np.interp(lengths, CALIBRATED_LENGTHS, slopes) * join_rows(rows[length], odds[length], rule)
        fragments = fragments + np.interp(lengths, CALIBRATED_LENGTHS, intercepts)
        sequences = rows[length].sequences
        means.append(np.bincount(sequences, weights=fragments) / np.bincount(sequences))
        counts.append(int(np.bincount(sequences)[0]))
    exponent = fit_exponent(
        means,
        counts,
        [dev[length].is_virus for length in CONTIG_LENGTHS],
        [dev[length].weights for length in CONTIG_LENGTHS],
    )
    return {
        "lengths": list(CALIBRATED_LENGTHS),
        "slope": [round(slope, 4) for slope in slopes],
        "intercept": [round(intercept, 4) for intercept in intercepts],
        "exponent": exponent,
    }


def _size_at(length: int, size: DevSize) -> DevSize:
    return size.scaled(CONTIG_SHARE) if length > FRAGMENT_LENGTH else size


def _write_yaml(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
