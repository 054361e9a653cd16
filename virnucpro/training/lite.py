"""The recipe of the bundled model: train, calibrate, evaluate, write the bundle folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from virnucpro.bundles import Bundle, load_bundle
from virnucpro.bundles.rules import Thresholds, read_calibration, read_presets
from virnucpro.encoders import load_encoder, save_encoder
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.residue_conv import ResidueConvEncoder
from virnucpro.encoders.six_frame import SixFrameEncoder
from virnucpro.heads import MLPHead, load_head, save_head
from virnucpro.report.calls import probability
from virnucpro.training.calibration import calibration_error, fit_exponent, fit_line, threshold_at_fpr
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

_PARTS = ("nucleotide", "protein", "head")

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


@dataclass(frozen=True)
class ScoredDev:
    """Dev sequences of one length.

    Attributes:
        sequences: what they are.
        rows: of their fragments.
        odds: (n,) log-odds of the rows.
        seconds: that scoring took.
    """

    sequences: DevSequences
    rows: Rows
    odds: NDArray[np.float64]
    seconds: float


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
    """Store the encoders, the head and ``bundle.yaml``, and calibrate what was stored on dev."""
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
        **{part: f"{part}.safetensors" for part in _PARTS},
        "threshold": 0.5,
        "calibration": {"lengths": [500], "slope": [1.0], "intercept": [0.0], "exponent": 0.5},
        "provenance": {
            "trained_on": "train part of the project's data: viruses by family, nine classes of hosts",
            "date": datetime.now(tz=UTC).date().isoformat(),
            **provenance,
        },
    }
    _write_yaml(output / "bundle.yaml", settings)
    for part in _PARTS:
        (output / settings[part]).chmod(0o644)  # safetensors writes files that only their owner may read
    return calibrate_bundle(dev_genomes, output, size)


def calibrate_bundle(dev_genomes: Genomes, folder: Path, size: DevSize) -> Figures:
    """Set row rule, calibration and presets of a stored bundle from its scores on dev, and return its dev figures."""
    path = folder / "bundle.yaml"
    bundle = load_bundle(str(folder))
    settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    scored = score_dev(dev_genomes, bundle, size)
    dev = {length: item.sequences for length, item in scored.items()}
    rows = {length: item.rows for length, item in scored.items()}
    odds = {length: item.odds for length, item in scored.items()}
    settings["rows"] = max(
        ("mean", "max"),
        key=lambda rule: auroc(join_rows(rows[500], odds[500], rule), dev[500].is_virus, dev[500].weights),
    )
    settings["calibration"] = _calibrate(dev, rows, odds, settings["rows"])
    calibrated = replace(
        bundle, row_rule=settings["rows"], calibration=read_calibration(settings["calibration"]), presets={}
    )
    log_odds = {length: sequence_log_odds(calibrated, rows[length], odds[length]) for length in dev}
    settings["presets"] = choose_presets({length: (dev[length], log_odds[length]) for length in CALIBRATED_LENGTHS})
    presets = read_presets(settings["presets"])
    figures = {str(length): describe(dev[length], log_odds[length], presets) for length in dev}
    for name in ("auroc", "calibration_error"):
        settings["provenance"][f"dev_{name}"] = {length: figures[length][name] for length in figures}
    _write_yaml(path, settings)
    return figures


def choose_presets(scored: Mapping[int, tuple[DevSequences, NDArray[np.float64]]]) -> dict[str, list[float]]:
    """Thresholds by the share of host sequences that reach them, host classes alike: the false positive rate.

    ========= ======================= ====================================
    preset    virus from a rate of    not virus below
    ========= ======================= ====================================
    sensitive 5 %                     probability 0.5
    balanced  1 %                     a rate of 10 %
    strict    0.1 %                   a rate of 10 %
    ========= ======================= ====================================

    A rate is held at every length of one fragment (the highest of their thresholds is taken): one at 500 bases alone
    would let more 150-base reads through. Contigs do not count, since host contigs hold proviruses: those are right
    when they are called, and hide a rate of 0.1 %. That ``strict`` keeps the lower limit of ``balanced`` makes it
    stricter in what it calls virus, and not looser in what it calls not virus.

    Args:
        scored: length (nt) to dev sequences and their (n,) calibrated log-odds.
    """

    def at(rate: float) -> float:
        return max(
            threshold_at_fpr(probability(log_odds), dev.is_virus, dev.weights, rate)
            for dev, log_odds in scored.values()
        )

    sensitive, balanced, strict, doubtful = at(0.05), at(0.01), at(0.001), at(0.1)
    return {
        "sensitive": [min(0.5, sensitive), sensitive],
        "balanced": [doubtful, balanced],
        "strict": [doubtful, strict],
    }


def evaluate_bundle(data: Path, bundle_folder: Path, size: DevSize) -> Figures:
    """Dev figures of a bundle by length, and how many 500-base fragments it embeds and scores a second."""
    bundle = load_bundle(str(bundle_folder))
    figures: Figures = {}
    for length, scored in score_dev(load_genomes(data, "dev"), bundle, size).items():
        log_odds = sequence_log_odds(bundle, scored.rows, scored.odds)
        figures[str(length)] = describe(scored.sequences, log_odds, bundle.presets)
        figures[str(length)]["fragments_per_second"] = round(len(scored.rows.lengths) / scored.seconds)
    return figures


def score_dev(genomes: Genomes, bundle: Bundle, size: DevSize) -> dict[int, ScoredDev]:
    """Draw the dev sequences of each length and score their rows."""
    model = load_model(bundle)
    scored = {}
    for length in CALIBRATED_LENGTHS + CONTIG_LENGTHS:
        sequences = draw_dev(genomes, length, _size_at(length, size))
        rows = cut_rows(sequences.letters, bundle.fragment_length)
        started = time.perf_counter()
        odds = model.log_odds(rows)
        scored[length] = ScoredDev(sequences, rows, odds, time.perf_counter() - started)
    return scored


def sequence_log_odds(bundle: Bundle, rows: Rows, odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Calibrated log-odds of sequences from those of rows."""
    fragments = bundle.calibration.fragment_log_odds(join_rows(rows, odds, bundle.row_rule), rows.lengths)
    counts = np.bincount(rows.sequences)
    return bundle.calibration.sequence_log_odds(np.bincount(rows.sequences, weights=fragments) / counts, counts)


def describe(dev: DevSequences, log_odds: NDArray[np.float64], presets: Mapping[str, Thresholds]) -> Figures:
    """Figures of merit of calibrated log-odds, at equal prevalence."""
    is_virus, weights, p_virus = dev.is_virus, dev.weights, probability(log_odds)

    def share(chosen: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
        return round(float(weights[chosen & among].sum() / weights[among].sum()), 4)

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
        "recall_at_p_half": share(log_odds >= 0, is_virus),
        "fpr_at_p_half": share(log_odds >= 0, ~is_virus),
        "calibration_error": round(calibration_error(p_virus, is_virus, weights), 4),
        "presets": {
            name: {
                "recall": share(p_virus >= limits.virus, is_virus),
                "fpr": share(p_virus >= limits.virus, ~is_virus),
                "uncertain_viruses": share((p_virus >= limits.not_virus) & (p_virus < limits.virus), is_virus),
                "uncertain_hosts": share((p_virus >= limits.not_virus) & (p_virus < limits.virus), ~is_virus),
            }
            for name, limits in presets.items()
        },
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
