"""From log-odds to probabilities: a bent line a length, how evidence adds up over fragments, how far both are off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from virnucpro.atomic import atomic_write
from virnucpro.bundles import Bundle, load_bundle
from virnucpro.bundles.rules import Bend, Calibration, RowRule, Thresholds
from virnucpro.results.calls import probability
from virnucpro.training.dev import (
    CALIBRATED_LENGTHS,
    CONTIG_LENGTHS,
    FRAGMENT_LENGTH,
    DevSize,
    ScoredDev,
    score_dev,
)
from virnucpro.training.evaluation import Figures, auroc, describe, last_where_unscored, score_at_fpr
from virnucpro.training.genomes import Genomes

_BEND_QUANTILES = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
_BEND_RIDGE = 1e-3  # on held-out halves of dev the error at 150 bases is 0.014; with less 0.012, and wild ends
_STEEPEST_FALL = 0.9
_MOST_STEPS = 50


def fit_logistic(
    design: NDArray[np.float64],
    is_virus: NDArray[np.bool_],
    weights: NDArray[np.float64],
    offset: NDArray[np.float64] | float = 0.0,
    ridge: NDArray[np.float64] | float = 0.0,
    prior: NDArray[np.float64] | float = 0.0,
) -> NDArray[np.float64]:
    """(columns,) logistic regression of the label on a design: Newton's method, a step that makes it worse is halved.

    Args:
        design: (n, columns).
        is_virus: (n,) labels.
        weights: (n,).
        offset: (n,) log-odds that are added as they are.
        ridge: (columns,) how much each column is drawn to
        prior: (columns,) its prior, where the method starts.
    """
    ridge, prior = (np.broadcast_to(value, design.shape[1]).astype(np.float64) for value in (ridge, prior))

    def loss(found: NDArray[np.float64]) -> float:
        fit = log_loss(offset + design @ found, is_virus, weights) * weights.sum()
        return float(fit + ridge @ (found - prior) ** 2 / 2)

    found = prior
    for _ in range(_MOST_STEPS):
        p_virus = probability(offset + design @ found)
        gradient = design.T @ (weights * (is_virus - p_virus)) - ridge * (found - prior)
        curvature = (design * (weights * p_virus * (1 - p_virus))[:, None]).T @ design + np.diag(ridge + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        while np.abs(step).max() > 1e-9 and loss(found + step) > loss(found):
            step = step / 2
        found = found + step
        if np.abs(step).max() < 1e-8:
            break
    return found


def hats(
    values: NDArray[np.floating | np.integer], knots: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n, knots) how near each value is to each knot: the design of what is linear between knots, constant beyond."""
    return np.stack([np.interp(values, knots, hat) for hat in np.eye(len(knots))], axis=1)


def fit_line(
    log_odds: NDArray[np.float64], is_virus: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[float, float]:
    """Slope and intercept of the logistic regression of the label on log-odds of any size and place (Platt 1999)."""
    mean, deviation = float(log_odds.mean()), float(log_odds.std()) or 1.0
    design = np.stack([(log_odds - mean) / deviation, np.ones_like(log_odds)], axis=1)
    slope, height = fit_logistic(design, is_virus, weights).tolist()
    return slope / deviation, height - slope * mean / deviation


def fit_bend(
    log_odds: NDArray[np.float64],
    line: tuple[float, float],
    is_virus: NDArray[np.bool_],
    weights: NDArray[np.float64],
) -> Bend:
    """What to add to a line so that probabilities hold everywhere: a head trained with smoothed labels is never sure.

    Logistic regression of the label on a linear spline over quantiles of the log-odds, with the line as offset; flatter
    where it would not ascend.

    Args:
        log_odds: (n,) of the head.
        line: slope and intercept, as ``fit_line`` has them.
        is_virus: (n,) labels.
        weights: (n,).
    """
    slope, intercept = line
    weights = weights / weights.sum()
    order = np.argsort(log_odds, kind="stable")
    places = np.searchsorted(np.cumsum(weights[order]), _BEND_QUANTILES)
    points = np.unique(np.round(log_odds[order][np.minimum(places, len(order) - 1)], 3))
    offset = slope * log_odds + intercept
    added = fit_logistic(hats(log_odds, points), is_virus, weights, offset, _BEND_RIDGE)
    falls = -np.diff(added) / (slope * np.diff(points))  # 1 and more: no longer ascending
    added = np.round(added / max(1.0, float(falls.max(initial=0.0)) / _STEEPEST_FALL), 4)
    return Bend(tuple(points.tolist()), tuple(added.tolist()))


def log_loss(log_odds: NDArray[np.float64], is_virus: NDArray[np.bool_], weights: NDArray[np.float64]) -> float:
    """Mean weighted cross-entropy in nats."""
    signed = np.where(is_virus, log_odds, -log_odds)
    return float((weights * np.logaddexp(0, -signed)).sum() / weights.sum())


def fit_exponent(
    means: list[NDArray[np.float64]],
    num_fragments: Sequence[int | NDArray[np.int64]],
    labels: list[NDArray[np.bool_]],
    weights: list[NDArray[np.float64]],
) -> float:
    """Exponent g, so that ``mean * n ** g`` has the least cross-entropy, summed over sets of sequences.

    Args:
        means: mean calibrated log-odds of the sequences of each set.
        num_fragments: how many fragments the sequences of each set have, one number for all or one each.
        labels: whether each is viral.
        weights: of each sequence.
    """
    candidates = np.round(np.arange(0.0, 1.5001, 0.01), 2)
    losses = [
        sum(
            log_loss(mean * np.power(np.float64(count), exponent), label, weight)
            for mean, count, label, weight in zip(means, num_fragments, labels, weights, strict=True)
        )
        for exponent in candidates.tolist()
    ]
    return float(candidates[int(np.argmin(losses))])


def threshold_at_fpr(
    p_virus: NDArray[np.float64], is_virus: NDArray[np.bool_], weights: NDArray[np.float64], highest_fpr: float
) -> float:
    """Least probability of four decimals that at most ``highest_fpr`` of the others reach."""
    too_low = score_at_fpr(p_virus, is_virus, weights, highest_fpr)
    return min(float(np.floor(too_low * 1e4) + 1) / 1e4, 1.0) if too_low > -np.inf else 0.0


def calibrate_bundle(dev_genomes: Genomes, folder: Path, size: DevSize) -> Figures:
    """Set row rule, calibration and presets of a stored bundle from its scores on dev, and return its dev figures."""
    folder = folder.absolute()  # "lite" alone would be the bundled model
    bundle, settings = load_bundle(str(folder)), read_settings(folder)
    scored = score_dev(dev_genomes, bundle, size)

    def auroc_by(rule: RowRule) -> float:
        dev = scored[FRAGMENT_LENGTH].sequences
        return auroc(last_where_unscored(scored[FRAGMENT_LENGTH].mean(rule)), dev.is_virus, dev.weights)

    # what is nearest is added to the mean of the rows
    rule: RowRule = "mean" if bundle.nearest is not None else max(("mean", "max"), key=auroc_by)
    bundle = replace(bundle, row_rule=rule, calibration=_fit_calibration(scored, bundle, rule))
    log_odds = {length: item.log_odds(bundle) for length, item in scored.items()}
    presets = choose_presets([(scored[length], log_odds[length]) for length in CALIBRATED_LENGTHS])
    figures = {str(length): describe(item, log_odds[length], presets) for length, item in scored.items()}
    bends = [[list(bend.log_odds), list(bend.added)] for bend in bundle.calibration.bends]
    settings["rows"] = rule
    settings["calibration"] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in vars(bundle.calibration).items()
    } | {"bends": bends}
    settings["presets"] = {name: list(limits) for name, limits in presets.items()}
    for name in ("auroc", "calibration_error"):
        settings["provenance"][f"dev_{name}"] = {length: of_length[name] for length, of_length in figures.items()}
    write_settings(folder, settings)
    return figures


def _fit_calibration(scored: Mapping[int, ScoredDev], bundle: Bundle, rule: RowRule) -> Calibration:
    """A line and a bend for each length of one fragment, and from contigs how evidence adds up."""
    lines, bends = [], []
    for length in CALIBRATED_LENGTHS:
        mean, dev = scored[length].mean(rule), scored[length].sequences
        known = ~np.isnan(mean)
        labelled = dev.is_virus[known], dev.weights[known]
        slope, intercept = (round(number, 4) for number in fit_line(mean[known], *labelled))
        lines.append((slope, intercept))
        bends.append(fit_bend(mean[known], (slope, intercept), *labelled))
    slopes, intercepts = zip(*lines, strict=True)
    calibration = Calibration(CALIBRATED_LENGTHS, slopes, intercepts, 0.0, tuple(bends))
    contigs = []
    for length in CONTIG_LENGTHS:
        mean, count = scored[length].mean_calibrated(replace(bundle, row_rule=rule, calibration=calibration))
        dev = scored[length].sequences
        contigs.append([column[count > 0] for column in (mean, count, dev.is_virus, dev.weights)])
    return replace(calibration, exponent=fit_exponent(*map(list, zip(*contigs, strict=True))))


def choose_presets(scored: Sequence[tuple[ScoredDev, NDArray[np.float64]]]) -> dict[str, Thresholds]:
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
        scored: dev sequences of each such length, and their (n,) calibrated log-odds.
    """

    def at(rate: float) -> float:
        return max(
            threshold_at_fpr(
                probability(np.where(item.is_doubted, -np.inf, log_odds)),
                item.sequences.is_virus,
                item.sequences.weights,
                rate,
            )
            for item, log_odds in scored
        )

    sensitive, doubtful = at(0.05), at(0.1)
    return {
        "sensitive": Thresholds(min(0.5, sensitive), sensitive),
        "balanced": Thresholds(doubtful, at(0.01)),
        "strict": Thresholds(doubtful, at(0.001)),
    }


def read_settings(folder: Path) -> dict[str, Any]:
    """What the ``bundle.yaml`` of a bundle says."""
    settings: dict[str, Any] = yaml.safe_load((folder / "bundle.yaml").read_text(encoding="utf-8"))
    return settings


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the ``bundle.yaml`` of a bundle, whole or not at all."""
    with atomic_write(folder / "bundle.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
