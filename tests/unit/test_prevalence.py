"""The share of viral sequences is estimated from their own scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.results.prevalence import ASSUMED, FEWEST_SEQUENCES, Prevalence, estimate


def calibrated(num: int, share: float, seed: int = 1, apart: float = 2.0) -> np.ndarray:
    """Log-odds of normal scores, exactly calibrated at equal prevalence."""
    gen = np.random.default_rng(seed)
    is_virus = gen.random(num) < share
    # Two normal densities of variance v around +v/2 and -v/2 have the log ratio x itself.
    return gen.normal(np.where(is_virus, apart, -apart), np.sqrt(2 * apart))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_of_calibrated_scores_lies_in_the_interval(share: float) -> None:
    found = estimate([calibrated(20_000, share)])
    assert found.how == "estimated"
    assert found.low <= share <= found.high
    assert found.low < found.value < found.high < found.low + 0.1


@pytest.mark.parametrize("apart", [-8.0, 8.0])
def test_a_sample_of_one_kind_has_a_share_near_its_end(apart: float) -> None:
    found = estimate([np.full(1000, apart)])
    assert abs(found.value - (apart > 0)) < 0.003


def test_with_few_sequences_nothing_is_estimated() -> None:
    scores = np.append(calibrated(FEWEST_SEQUENCES - 1, 0.1), [np.nan] * 500)
    assert estimate([scores]) == Prevalence.fixed(ASSUMED, "assumed")


@given(st.permutations(range(6)), st.integers(1, 400))
def test_neither_order_nor_parts_matter(order: list[int], cut: int) -> None:
    scores = calibrated(600, 0.2)
    shuffled = np.concatenate([scores.reshape(6, 100)[i] for i in order])
    assert estimate([shuffled[:cut], shuffled[cut:]]) == estimate([scores])


def test_it_is_what_expectation_maximisation_finds() -> None:
    scores = np.round(calibrated(5000, 0.15), 2) + 0.0025
    ratio, share = np.exp(scores), 0.5
    for _ in range(2000):
        share = float((share * ratio / (share * ratio + 1 - share)).mean())
    assert estimate([scores]).value == pytest.approx(share, rel=1e-3)
