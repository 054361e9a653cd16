"""From log-odds to probabilities: a bent line a length, how evidence adds up over fragments, how far both are off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles.rules import Bend

_BEND_QUANTILES = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
_BEND_RIDGE = 1e-3  # on held-out halves of dev the error at 150 bases is 0.014; with less 0.012, and wild ends
_STEEPEST_FALL = 0.9


def fit_line(
    log_odds: NDArray[np.float64], is_virus: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[float, float]:
    """Slope and intercept of the logistic regression of the label on the log-odds (Platt 1999).

    Newton's method from a flat line on standardised log-odds, which may be of any size and place; a step that would
    make it worse is halved.
    """
    mean, deviation = float(log_odds.mean()), float(log_odds.std()) or 1.0
    design = np.stack([(log_odds - mean) / deviation, np.ones_like(log_odds)], axis=1)
    line = np.zeros(2)
    loss = log_loss(design @ line, is_virus, weights)
    for _ in range(50):
        probability = 1 / (1 + np.exp(-(design @ line)))
        gradient = design.T @ (weights * (is_virus - probability))
        curvature = (design * (weights * probability * (1 - probability))[:, None]).T @ design
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), gradient)
        while np.abs(step).max() > 1e-9 and log_loss(design @ (line + step), is_virus, weights) > loss:
            step = step / 2
        line = line + step
        loss = log_loss(design @ line, is_virus, weights)
        if np.abs(step).max() < 1e-8:
            break
    slope, height = line.tolist()
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
    spline = np.stack([np.interp(log_odds, points, hat) for hat in np.eye(len(points))], axis=1)
    added, ridge = np.zeros(len(points)), _BEND_RIDGE * np.eye(len(points))
    for _ in range(50):
        probability = 1 / (1 + np.exp(-(slope * log_odds + intercept + spline @ added)))
        gradient = spline.T @ (weights * (is_virus - probability)) - ridge @ added
        curvature = (spline * (weights * probability * (1 - probability))[:, None]).T @ spline + ridge
        step = np.linalg.solve(curvature, gradient)
        added = added + np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-8:
            break
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


def threshold_at_fpr(
    p_virus: NDArray[np.float64], is_virus: NDArray[np.bool_], weights: NDArray[np.float64], highest_fpr: float
) -> float:
    """Least probability of four decimals that at most ``highest_fpr`` of the others reach."""
    order = np.argsort(-p_virus[~is_virus], kind="stable")
    others, mass = p_virus[~is_virus][order], np.cumsum(weights[~is_virus][order])
    first_too_many = int(np.searchsorted(mass, highest_fpr * mass[-1] * (1 + 1e-12), side="right"))
    if first_too_many == len(others):
        return 0.0
    return min(float(np.floor(others[first_too_many] * 1e4) + 1) / 1e4, 1.0)
