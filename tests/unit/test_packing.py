"""Packing: each sequence once, never over the budget, the same every time."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.engine.packing import GreedyPacker

LENGTHS = st.lists(st.integers(0, 60) | st.sampled_from([101, 102, 168]), max_size=200).map(
    lambda lengths: np.array(lengths, dtype=np.int64)
)
BUDGETS = st.integers(1, 1000)


@given(LENGTHS, BUDGETS)
def test_each_sequence_is_in_exactly_one_batch(lengths, budget):
    batches = GreedyPacker(budget)(lengths)
    assert sorted(np.concatenate([[], *batches]).tolist()) == list(range(len(lengths)))
    assert all(len(batch) for batch in batches)


@given(LENGTHS, BUDGETS)
def test_no_batch_exceeds_the_budget_except_one_long_sequence_alone(lengths, budget):
    for batch in GreedyPacker(budget)(lengths):
        assert lengths[batch].sum() <= budget or len(batch) == 1


@given(LENGTHS, BUDGETS)
def test_a_batch_is_ordered_by_length_then_index(lengths, budget):
    for batch in GreedyPacker(budget)(lengths):
        keys = list(zip(lengths[batch].tolist(), batch.tolist(), strict=True))
        assert keys == sorted(keys)


@given(LENGTHS, BUDGETS)
def test_the_lengths_alone_decide(lengths, budget):
    packer = GreedyPacker(budget)
    first = packer(lengths)
    packer(lengths[::-1])
    for again in (packer(lengths), GreedyPacker(budget)(lengths.copy())):
        assert [batch.tolist() for batch in again] == [batch.tolist() for batch in first]


@given(LENGTHS.filter(len), BUDGETS)
def test_mixed_batches_waste_no_room_the_next_sequence_would_fill(lengths, budget):
    """Only batches of one length and the last of all may leave room for the sequence that follows."""
    batches = GreedyPacker(budget)(lengths)
    mixed = [batch for batch in batches if len(set(lengths[batch].tolist())) > 1]
    for batch, following in pairwise(batches):
        if any(batch is other for other in mixed):
            assert lengths[batch].sum() + lengths[following[0]] > budget


def test_sequences_of_one_length_fill_dense_batches_first():
    lengths = np.array([3] * 7 + [5] * 4)
    assert [lengths[batch].tolist() for batch in GreedyPacker(10)(lengths)] == [
        [3, 3, 3],
        [3, 3, 3],
        [5, 5],
        [5, 5],
        [3],
    ]


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_is_positive(budget):
    with pytest.raises(ValueError, match="positive"):
        GreedyPacker(budget)


def test_the_emergency_brake_makes_one_row_a_batch(monkeypatch):
    monkeypatch.setenv("VIRNUCPRO_DISABLE_PACKING", "true")
    assert [batch.tolist() for batch in GreedyPacker(1000)(np.array([4, 2, 3]))] == [[0], [1], [2]]
    monkeypatch.setenv("VIRNUCPRO_DISABLE_PACKING", "false")
    assert [batch.tolist() for batch in GreedyPacker(1000)(np.array([4, 2, 3]))] == [[1, 2, 0]]
