"""The recipe of the bundled model: train, calibrate, evaluate, write the bundle folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from virnucpro.bundles import Bundle, load_bundle
from virnucpro.bundles.rules import Calibration, RowRule, Thresholds, read_calibration, read_presets
from virnucpro.encoders import save_encoder
from virnucpro.encoders.profiles import (
    LARGEST_EVIDENCE,
    ProfiledEncoder,
    ProfiledNetwork,
)
from virnucpro.encoders.residue_conv import ResidueConvEncoder
from virnucpro.heads import MLPHead, save_head
from virnucpro.progress import Reporter
from virnucpro.results.calls import probability
from virnucpro.training.calibration import calibration_error, fit_bend, fit_exponent, fit_line, threshold_at_fpr
from virnucpro.training.datasets import Dataset
from virnucpro.training.dev import (
    DevSequences,
    DevSize,
    Model,
    Rows,
    cut_rows,
    draw_dev,
    join_rows,
    load_model,
    mean_of_fragments,
    sequence_log_odds,
)
from virnucpro.training.evaluation import auroc, average_precision, recall_at_fpr
from virnucpro.training.fit import Fit, LiteNetwork, Recipe, take_weights, training_pools
from virnucpro.training.genomes import Genomes
from virnucpro.training.profiles import ProfileFit, add_evidence

_LOG = logging.getLogger(__name__)

FRAGMENT_LENGTH = 500
CALIBRATED_LENGTHS = (150, 300, 500)
CONTIG_LENGTHS = (1000, 3000)
CONTIG_SHARE = 0.25
"""Contigs have several fragments each, so fewer of them are drawn."""

CHECKPOINT = "checkpoint.safetensors"
_PARTS = ("nucleotide", "protein", "head")

Figures = dict[str, Any]


@dataclass(frozen=True)
class ScoredDev:
    """Dev sequences of one length."""

    sequences: DevSequences  # what they are
    rows: Rows  # of their fragments
    odds: NDArray[np.float64]  # (n,) log-odds of the rows


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
    told = yaml.safe_load((start.folder / "bundle.yaml").read_text(encoding="utf-8")).get("provenance") or {}
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
    for name, encoder in (
        ("nucleotide", ProfiledEncoder(profiled)),
        ("protein", ResidueConvEncoder(network.protein)),
    ):
        save_encoder(output / f"{name}.safetensors", encoder.config(), encoder.stored_tensors())
    told = {"trained_on": "train part of the project's data: viruses by family, nine classes of hosts"}
    return write_bundle(
        output,
        "lite",
        add_evidence(network.head, shape.width - 1, LARGEST_EVIDENCE),
        dev_genomes,
        size,
        fragment_length=FRAGMENT_LENGTH,
        provenance={**told, **provenance, "evidence_fragments": evidence.num_fragments},
    )


def write_bundle(
    output: Path,
    name: str,
    head: MLPHead,
    dev_genomes: Genomes,
    size: DevSize,
    *,
    fragment_length: int,
    min_length: int = 100,
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
        "min_length": min_length,
        "frameless": "score" if scores_frameless else "skip",
        **({"repetitive": "doubt"} if doubts_repetitive else {}),
        "rows": "mean",
        **{part: f"{part}.safetensors" for part in _PARTS},
        "threshold": 0.5,
        "calibration": {"lengths": [fragment_length], "slope": [1.0], "intercept": [0.0], "exponent": 0.5},
        "provenance": {**provenance, "date": datetime.now(tz=UTC).date().isoformat()},
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
        ("mean",) if bundle.nearest is not None else ("mean", "max"),  # what is nearest is added to their mean
        key=lambda rule: auroc(
            last_where_unscored(mean_of_fragments(rows[500], join_rows(rows[500], odds[500], rule))[0]),
            dev[500].is_virus,
            dev[500].weights,
        ),
    )
    settings["calibration"] = _calibrate(dev, rows, odds, settings["rows"])
    calibrated = replace(
        bundle, row_rule=settings["rows"], calibration=read_calibration(settings["calibration"]), presets={}
    )
    log_odds = {length: sequence_log_odds(calibrated, rows[length], odds[length]) for length in dev}
    settings["presets"] = choose_presets(
        {length: (dev[length], log_odds[length], doubted(bundle, dev[length])) for length in CALIBRATED_LENGTHS}
    )
    presets = read_presets(settings["presets"])
    figures = {
        str(length): describe(dev[length], log_odds[length], presets, doubted(bundle, dev[length])) for length in dev
    }
    for name in ("auroc", "calibration_error"):
        settings["provenance"][f"dev_{name}"] = {length: figures[length][name] for length in figures}
    _write_yaml(path, settings)
    return figures


def choose_presets(
    scored: Mapping[int, tuple[DevSequences, NDArray[np.float64], NDArray[np.bool_]]],
) -> dict[str, list[float]]:
    """Thresholds by the share of host sequences that are called, host classes alike: the false positive rate.

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
        scored: length (nt) to dev sequences, their (n,) calibrated log-odds, and whether each is doubted and so not
            called virus whatever its log-odds are.
    """

    def at(rate: float) -> float:
        return max(
            threshold_at_fpr(probability(np.where(is_doubted, -np.inf, log_odds)), dev.is_virus, dev.weights, rate)
            for dev, log_odds, is_doubted in scored.values()
        )

    sensitive, balanced, strict, doubtful = at(0.05), at(0.01), at(0.001), at(0.1)
    return {
        "sensitive": [min(0.5, sensitive), sensitive],
        "balanced": [doubtful, balanced],
        "strict": [doubtful, strict],
    }


def score_dev(genomes: Genomes, bundle: Bundle, size: DevSize, model: Model | None = None) -> dict[int, ScoredDev]:
    """Draw the dev sequences of each length and score their rows; ``model`` is the bundle's, where it is loaded."""
    model = model or load_model(bundle)
    scored = {}
    for length in CALIBRATED_LENGTHS + CONTIG_LENGTHS:
        sequences = draw_dev(genomes, length, _size_at(length, size))
        rows = cut_rows(sequences.letters, bundle.fragment_length, scores_frameless=bundle.scores_frameless)
        scored[length] = ScoredDev(sequences, rows, model.log_odds(rows))
    return scored


def doubted(bundle: Bundle, dev: DevSequences) -> NDArray[np.bool_]:
    """(n,) sequences that the bundle does not call virus, whatever their log-odds are."""
    return dev.are_repetitive if bundle.doubts_repetitive else np.zeros(len(dev.origins), dtype=np.bool_)


def describe(
    dev: DevSequences,
    log_odds: NDArray[np.float64],
    presets: Mapping[str, Thresholds],
    is_doubted: NDArray[np.bool_],
) -> Figures:
    """Figures of merit of calibrated log-odds, at equal prevalence.

    A sequence without a score (NaN) ranks last, is never called virus, and does not count for calibration.
    """
    is_scored = ~np.isnan(log_odds)
    is_virus, weights, p_virus = dev.is_virus, dev.weights, probability(log_odds)
    log_odds = last_where_unscored(log_odds)

    def share(chosen: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
        return round(float(weights[chosen & among].sum() / weights[among].sum()), 4)

    def against_hosts(origin: str) -> float:
        some = ~is_virus | (dev.origins == origin)
        return round(auroc(log_odds[some], is_virus[some], weights[some]), 4)

    def by_class(name: str) -> float:
        some = is_virus | (dev.origins == name)
        return round(auroc(log_odds[some], is_virus[some], weights[some]), 4)

    def by_preset(limits: Thresholds) -> dict[str, float]:
        is_called = (p_virus >= limits.virus) & ~is_doubted
        is_uncertain = (p_virus >= limits.not_virus) & ~is_called
        return {
            "recall": share(is_called, is_virus),
            "fpr": share(is_called, ~is_virus),
            "uncertain_viruses": share(is_uncertain, is_virus),
            "uncertain_hosts": share(is_uncertain, ~is_virus),
        }

    return {
        "auroc": round(auroc(log_odds, is_virus, weights), 4),
        "auroc_novel": against_hosts("dev_novel"),
        "auroc_seen": against_hosts("dev_seen"),
        "auroc_by_class": {name: by_class(name) for name in dev.hosts},
        "average_precision": round(average_precision(log_odds, is_virus, weights), 4),
        "recall_at_1_percent_fpr": round(recall_at_fpr(log_odds, is_virus, 0.01, weights), 4),
        "recall_at_p_half": share(log_odds >= 0, is_virus),
        "fpr_at_p_half": share(log_odds >= 0, ~is_virus),
        "calibration_error": round(calibration_error(p_virus[is_scored], is_virus[is_scored], weights[is_scored]), 4),
        "presets": {name: by_preset(limits) for name, limits in presets.items()},
        "num_sequences": len(log_odds),
        "num_unscored": int((~is_scored).sum()),
    }


def last_where_unscored(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-odds in which NaN became a value below all others, for what ranks sequences."""
    return np.where(np.isnan(log_odds), np.nanmin(log_odds, initial=0.0) - 1.0, log_odds)


def _calibrate(
    dev: dict[int, DevSequences], rows: dict[int, Rows], odds: dict[int, NDArray[np.float64]], rule: RowRule
) -> dict[str, Any]:
    lines, bends = [], []
    for length in CALIBRATED_LENGTHS:
        of_sequences = mean_of_fragments(rows[length], join_rows(rows[length], odds[length], rule))[0]
        known = ~np.isnan(of_sequences)
        labels, weights = dev[length].is_virus[known], dev[length].weights[known]
        slope, intercept = (round(number, 4) for number in fit_line(of_sequences[known], labels, weights))
        lines.append((slope, intercept))
        bends.append(fit_bend(of_sequences[known], (slope, intercept), labels, weights))
    slopes, intercepts = zip(*lines, strict=True)
    line = Calibration(CALIBRATED_LENGTHS, slopes, intercepts, 0.0, tuple(bends))
    means, counts, scored = [], [], {}
    for length in CONTIG_LENGTHS:
        fragments = line.fragment_log_odds(join_rows(rows[length], odds[length], rule), rows[length].lengths)
        mean, num_scored = mean_of_fragments(rows[length], fragments)
        scored[length] = num_scored > 0
        means.append(mean[scored[length]])
        counts.append(num_scored[scored[length]])
    exponent = fit_exponent(
        means,
        counts,
        [dev[length].is_virus[scored[length]] for length in CONTIG_LENGTHS],
        [dev[length].weights[scored[length]] for length in CONTIG_LENGTHS],
    )
    return {
        "lengths": list(CALIBRATED_LENGTHS),
        "slope": list(slopes),
        "intercept": list(intercepts),
        "exponent": exponent,
        "bends": [[list(bend.log_odds), list(bend.added)] for bend in bends],
    }


def _size_at(length: int, size: DevSize) -> DevSize:
    return size.scaled(CONTIG_SHARE) if length > FRAGMENT_LENGTH else size


def _write_yaml(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
