"""From log-odds to probabilities: Platt's line a length, and how evidence adds up over fragments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fit_line(
    log_odds: NDArray[np.float64], is_virus: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[float, float]:
    """Slope and intercept of the logistic regression of the label on the log-odds (Newton; Platt 1999)."""
    design = np.stack([log_odds, np.ones_like(log_odds)], axis=1)
    line = np.array([1.0, 0.0])
    for _ in range(50):
        probability = 1 / (1 + np.exp(-(design @ line)))
        gradient = design.T @ (weights * (is_virus - probability))
        curvature = (design * (weights * probability * (1 - probability))[:, None]).T @ design
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), gradient)
        line = line + np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-8:
            break
    return float(line[0]), float(line[1])


def log_loss(log_odds: NDArray[np.float64], is_virus: NDArray[np.bool_], weights: NDArray[np.float64]) -> float:
    """Mean weighted cross-entropy in nats."""
    signed = np.where(is_virus, log_odds, -log_odds)
    return float((weights * np.logaddexp(0, -signed)).sum() / weights.sum())


def fit_exponent(
    means: list[NDArray[np.float64]],
    num_fragments: list[int],
    labels: list[NDArray[np.bool_]],
    weights: list[NDArray[np.float64]],
) -> float:
    """Exponent g, so that ``mean * n ** g`` has the least cross-entropy, summed over sets of sequences.

    Args:
        means: mean calibrated log-odds of the sequences of each set.
        num_fragments: how many fragments a sequence of each set has.
        labels: whether each is viral.
        weights: of each sequence.
    """
    candidates = np.round(np.arange(0.0, 1.5001, 0.01), 2)
    losses = [
        sum(
            log_loss(mean * float(count) ** exponent, label, weight)
            for mean, count, label, weight in zip(means, num_fragments, labels, weights, strict=True)
        )
        for exponent in candidates.tolist()
    ]
    return float(candidates[int(np.argmin(losses))])
