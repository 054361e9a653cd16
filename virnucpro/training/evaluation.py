"""Figures of merit, numpy only, with weights so that classes of different sizes count as one wishes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
