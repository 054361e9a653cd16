"""Share of viral sequences in an input, estimated from their own scores.

Calibrated log-odds hold at equal prevalence. At another one, ``pi``, a sequence with the likelihood ratio ``r`` is
viral with probability ``pi r / (pi r + 1 - pi)``, and ``pi`` is the mean of that: expectation maximisation finds it
(Saerens, Latinne and Decaestecker, Neural Computation 14, 21-41, 2002). The likelihood is concave in ``pi``, so that
there is one maximum; the interval is where it falls by less than 1.92 below that (95 %, Wilks 1938).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FEWEST_SEQUENCES = 200
"""With fewer scored ones the share is not estimated."""
ASSUMED = 0.5
"""What is then assumed."""
LOWEST, HIGHEST = 1e-4, 1 - 1e-4
_LARGEST = 12.0
_NUM_BINS = 4800
_FALL = 1.92
_ROUNDS = 60

How = Literal["given", "estimated", "assumed"]


@dataclass(frozen=True)
class Prevalence:
    """Share of viral sequences."""

    value: float  # between 0 and 1
    how: How  # given by the user, estimated from the scores, or assumed since there are too few sequences
    low: float  # lower end of the 95 % interval; ``value`` where it is not estimated
    high: float  # upper end

    @property
    def shift(self) -> float:
        """What it adds to log-odds at equal prevalence (Bayes' rule)."""
        return float(np.log(self.value) - np.log1p(-self.value))

    def sentence(self) -> str:
        """In words."""
        if self.how == "estimated":
            return (
                f"{self.value:.1%} viral sequences, estimated from the scores (95 %: {self.low:.1%} to {self.high:.1%})"
            )
        if self.how == "given":
            return f"{self.value:.1%} viral sequences, as given"
        return f"{self.value:.0%} viral sequences, assumed: fewer than {FEWEST_SEQUENCES} are too few to estimate it"

    @classmethod
    def fixed(cls, value: float, how: How = "given") -> Prevalence:
        """A share that is not estimated."""
        return cls(value, how, value, value)


def estimate(log_odds: Iterable[NDArray[np.floating]]) -> Prevalence:
    """The share, from log-odds at equal prevalence, some at a time; NaN where a sequence has none.

    The log-odds are counted in bins of 0.005, so that their order and number do not matter.
    """
    counts = np.zeros(_NUM_BINS, dtype=np.int64)
    for part in log_odds:
        known = np.clip(part[~np.isnan(part)], -_LARGEST, _LARGEST)
        bins = ((known + _LARGEST) * (_NUM_BINS / (2 * _LARGEST))).astype(np.int64)
        counts += np.bincount(np.minimum(bins, _NUM_BINS - 1), minlength=_NUM_BINS)
    if counts.sum() < FEWEST_SEQUENCES:
        return Prevalence.fixed(ASSUMED, "assumed")
    filled = np.flatnonzero(counts)
    middles = (filled + 0.5) * (2 * _LARGEST / _NUM_BINS) - _LARGEST
    counted, excess = counts[filled].astype(np.float64), np.expm1(middles)  # likelihood ratios less one

    def slope(share: float) -> float:
        return float((counted * excess / (1 + share * excess)).sum())

    def likelihood(share: float) -> float:
        return float((counted * np.log1p(share * excess)).sum())

    value = _root(slope, LOWEST, HIGHEST)
    least = likelihood(value) - _FALL
    low = _root(lambda share: least - likelihood(share), LOWEST, value)
    high = _root(lambda share: likelihood(share) - least, value, HIGHEST)
    return Prevalence(value, "estimated", low, high)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that falls from left to right is zero; the end that is nearer to it if it is nowhere."""
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
