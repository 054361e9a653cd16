"""Figures of merit, with weights so that classes of different sizes count as one wishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles.rules import Thresholds
from virnucpro.results.calls import probability
from virnucpro.training.dev import NOVEL, SEEN, ScoredDev

Figures = dict[str, Any]


def _sorted_mass(
    scores: NDArray[np.floating], is_virus: NDArray[np.bool_], weights: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cumulative weight of viruses and of others from the highest score down, one entry a distinct score."""
    weights = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    true = np.cumsum(np.where(is_virus, weights, 0.0)[order])[ends]
    false = np.cumsum(np.where(is_virus, 0.0, weights)[order])[ends]
    return true, false


def auroc(
    scores: NDArray[np.floating], is_virus: NDArray[np.bool_], weights: NDArray[np.float64] | None = None
) -> float:
    """Area under the receiver operating characteristic; ties count half (trapezoids)."""
    true, false = _sorted_mass(scores, is_virus, weights)
    true, false = np.append(0.0, true), np.append(0.0, false)
    return float(np.trapezoid(true, false) / (true[-1] * false[-1]))


def average_precision(
    scores: NDArray[np.floating], is_virus: NDArray[np.bool_], weights: NDArray[np.float64] | None = None
) -> float:
    """Mean precision over the recalled viruses (the step-wise sum, as in scikit-learn)."""
    true, false = _sorted_mass(scores, is_virus, weights)
    recalled = np.diff(np.append(0.0, true)) / true[-1]
    return float((recalled * true / (true + false)).sum())


def recall_at_fpr(
    scores: NDArray[np.floating],
    is_virus: NDArray[np.bool_],
    highest_fpr: float = 0.01,
    weights: NDArray[np.float64] | None = None,
) -> float:
    """Largest share of viruses found while at most ``highest_fpr`` of the others are called."""
    true, false = _sorted_mass(scores, is_virus, weights)
    allowed = false <= highest_fpr * false[-1] * (1 + 1e-12)
    return float(true[allowed].max(initial=0.0) / true[-1])


def score_at_fpr(
    scores: NDArray[np.float64], is_virus: NDArray[np.bool_], weights: NDArray[np.float64], rate: float
) -> float:
    """Highest score that more than ``rate`` of the others reach; minus infinity if there is none."""
    order = np.argsort(-scores[~is_virus], kind="stable")
    others, mass = scores[~is_virus][order], np.cumsum(weights[~is_virus][order])
    first_too_many = int(np.searchsorted(mass, rate * mass[-1] * (1 + 1e-12), side="right"))
    return float(others[first_too_many]) if first_too_many < len(others) else -np.inf


def roc_curve(
    scores: NDArray[np.floating], is_virus: NDArray[np.bool_], weights: NDArray[np.float64], num_points: int = 101
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False positive rates, a fine grid near 0, and the share of viruses found at each."""
    true, false = _sorted_mass(scores, is_virus, weights)
    grid = np.linspace(0, 1, num_points) ** 2
    return grid, np.interp(grid, np.append(0.0, false / false[-1]), np.append(0.0, true / true[-1]))


def precision_recall_curve(
    scores: NDArray[np.floating], is_virus: NDArray[np.bool_], weights: NDArray[np.float64], num_points: int = 101
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of viruses found, and the precision with which that many are."""
    true, false = _sorted_mass(scores, is_virus, weights)
    grid = np.linspace(0, 1, num_points)
    reached = np.minimum(np.searchsorted(true / true[-1], grid - 1e-12), len(true) - 1)
    return grid, true[reached] / (true[reached] + false[reached])


def reliability(
    p_virus: NDArray[np.float64], is_virus: NDArray[np.bool_], weights: NDArray[np.float64], num_bins: int = 15
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Bins of equal weight by probability: mean probability, share of viruses and weight of each that is not empty."""
    order = np.argsort(p_virus, kind="stable")
    p_virus, is_virus, weights = p_virus[order], is_virus[order], weights[order] / weights.sum()
    bins = np.minimum((np.cumsum(weights) - weights / 2) * num_bins, num_bins - 1).astype(np.int64)
    mass: NDArray[np.float64] = np.bincount(bins, weights=weights).astype(np.float64)
    filled = mass > 0
    mean = np.bincount(bins, weights=weights * p_virus)[filled] / mass[filled]
    share = np.bincount(bins, weights=weights * is_virus)[filled] / mass[filled]
    return mean, share, mass[filled]


def calibration_error(
    p_virus: NDArray[np.float64], is_virus: NDArray[np.bool_], weights: NDArray[np.float64], num_bins: int = 15
) -> float:
    """Expected calibration error: how far the share of viruses is from the mean probability, over bins of equal weight.

    Source: Naeini, Cooper and Hauskrecht (2015), with bins of equal mass instead of equal width.
    """
    mean, share, mass = reliability(p_virus, is_virus, weights, num_bins)
    return float((mass * np.abs(mean - share)).sum())


def describe(scored: ScoredDev, log_odds: NDArray[np.float64], presets: Mapping[str, Thresholds]) -> Figures:
    """Figures of merit of calibrated log-odds, at equal prevalence.

    A sequence without a score (NaN) ranks last, is never called virus, and does not count for calibration.
    """
    dev, is_scored, p_virus = scored.sequences, ~np.isnan(log_odds), probability(log_odds)
    ranked, is_virus, weights = last_where_unscored(log_odds), dev.is_virus, dev.weights

    def share(chosen: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
        return round(float(weights[chosen & among].sum() / weights[among].sum()), 4)

    def auroc_of(some: NDArray[np.bool_]) -> float:
        return round(auroc(ranked[some], is_virus[some], weights[some]), 4)

    def by_preset(limits: Thresholds) -> dict[str, float]:
        is_called = (p_virus >= limits.virus) & ~scored.is_doubted
        is_uncertain = (p_virus >= limits.not_virus) & ~is_called
        return {
            "recall": share(is_called, is_virus),
            "fpr": share(is_called, ~is_virus),
            "uncertain_viruses": share(is_uncertain, is_virus),
            "uncertain_hosts": share(is_uncertain, ~is_virus),
        }

    return {
        "auroc": round(auroc(ranked, is_virus, weights), 4),
        "auroc_novel": auroc_of(~is_virus | (dev.origins == NOVEL)),
        "auroc_seen": auroc_of(~is_virus | (dev.origins == SEEN)),
        "auroc_by_class": {name: auroc_of(is_virus | (dev.origins == name)) for name in dev.hosts},
        "average_precision": round(average_precision(ranked, is_virus, weights), 4),
        "recall_at_1_percent_fpr": round(recall_at_fpr(ranked, is_virus, 0.01, weights), 4),
        "recall_at_p_half": share(ranked >= 0, is_virus),
        "fpr_at_p_half": share(ranked >= 0, ~is_virus),
        "calibration_error": round(calibration_error(p_virus[is_scored], is_virus[is_scored], weights[is_scored]), 4),
        "presets": {name: by_preset(limits) for name, limits in presets.items()},
        "num_sequences": len(ranked),
        "num_unscored": int((~is_scored).sum()),
    }


def last_where_unscored(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-odds in which NaN became a value below all others, for what ranks sequences."""
    return np.where(np.isnan(log_odds), np.nanmin(log_odds, initial=0.0) - 1.0, log_odds)
