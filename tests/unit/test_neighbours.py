"""Nearest neighbours by cosine: exact, in order, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.embeddings import neighbours
from virnucpro.embeddings.neighbours import nearest
from virnucpro.errors import UsageError


def by_hand(queries, rows, k):
    """All similarities in float64, sorted; of equal ones the first."""
    with np.errstate(invalid="ignore", divide="ignore"):
        units = [each / np.linalg.norm(each.astype(np.float64), axis=1, keepdims=True) for each in (queries, rows)]
    products = units[0] @ units[1].T
    order = np.argsort(-np.where(np.isnan(products), -np.inf, products), axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(products, order, axis=1)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 8), st.integers(0, 99), st.integers(1, 9))
@settings(max_examples=50)
def test_it_is_the_sorted_list_of_all_similarities(num_queries, num_rows, k, seed, block):
    rng = np.random.default_rng(seed)
    queries, rows = (rng.standard_normal((number, 6)).astype(np.float32) for number in (num_queries, num_rows))
    expected, similarities = by_hand(queries, rows, k)
    before = neighbours._ROWS_A_BLOCK, neighbours._QUERIES_A_BLOCK  # noqa: SLF001
    neighbours._ROWS_A_BLOCK, neighbours._QUERIES_A_BLOCK = block, block  # noqa: SLF001
    try:
        found, values = nearest(queries, rows, k)
    finally:
        neighbours._ROWS_A_BLOCK, neighbours._QUERIES_A_BLOCK = before  # noqa: SLF001
    width = min(k, num_rows)
    np.testing.assert_array_equal(found[:, :width], expected)
    np.testing.assert_allclose(values[:, :width], similarities, atol=1e-5)
    assert (found[:, width:] == -1).all()
    assert np.isnan(values[:, width:]).all()


@pytest.mark.parametrize("block", [2, 3, 100])
def test_of_equal_rows_the_first_come_first(block, monkeypatch):
    monkeypatch.setattr(neighbours, "_ROWS_A_BLOCK", block)
    rows = np.tile(np.float32([[3, 0], [0, 1]]), (10, 1))
    found, values = nearest(np.float32([[1, 0]]), rows, 4)
    assert found.tolist() == [[0, 2, 4, 6]]
    assert values.tolist() == [[1, 1, 1, 1]]


def test_what_has_no_direction_is_near_nothing():
    rows = np.float32([[np.nan, 1], [0, 0], [np.inf, 0], [1, 1], [-1, -1]])
    found, values = nearest(rows, rows, 3)
    assert found.tolist() == [[-1] * 3, [-1] * 3, [-1] * 3, [3, 4, -1], [4, 3, -1]]
    np.testing.assert_allclose(values[3], [1, -1, np.nan], atol=1e-6)


def test_half_precision_and_nothing_to_look_in():
    rows = np.float16([[1, 0], [0.5, 0.5]])
    assert nearest(rows, rows, 1)[0].tolist() == [[0], [1]]
    assert nearest(rows, rows[:0], 2)[0].tolist() == [[-1, -1], [-1, -1]]
    assert nearest(rows[:0], rows, 2)[0].shape == (0, 2)
    with pytest.raises(UsageError, match="at least 1"):
        nearest(rows, rows, 0)
    with pytest.raises(UsageError, match="2 wide"):
        nearest(rows, np.zeros((1, 3)), 1)
