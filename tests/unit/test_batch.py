"""Collation: what comes out of a batch is what went in."""

from itertools import chain

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.engine.batch import collate
from virnucpro.engine.packing import GreedyPacker
from virnucpro.sequence.ragged import Ragged, offsets_of

TOKENS = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=30), max_size=40)


def ragged(items):
    return Ragged(
        np.array(list(chain(*items)), dtype=np.int32), offsets_of(np.array([len(i) for i in items], dtype=int))
    )


@given(TOKENS, st.integers(1, 200))
def test_batches_give_every_sequence_back(items, budget):
    tokens = ragged(items)
    packing = collate(tokens, GreedyPacker(budget)(tokens.lengths))
    found = {}
    for batch in packing:
        assert batch.input_ids.dtype == torch.int64
        assert batch.cu_seqlens.dtype == torch.int32
        assert batch.cu_seqlens.tolist() == [0, *np.cumsum(batch.lengths)]
        assert batch.num_tokens == sum(batch.lengths)
        for row, start, stop in zip(batch.rows, batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
            found[int(row)] = batch.input_ids[start:stop].tolist()
    assert found == dict(enumerate(items))
    assert len(packing.input_ids) == sum(map(len, items))


def test_a_single_batch_keeps_the_order_it_is_given():
    batch = next(iter(collate(ragged([[1, 2, 3], [4], [5, 6]]), [np.array([1, 2])])))
    assert (batch.rows.tolist(), batch.input_ids.tolist(), batch.lengths) == ([1, 2], [4, 5, 6], (1, 2))
    assert batch.runs() == [(1, 1), (2, 1)]


@given(TOKENS.filter(lambda items: len(items) > 1), st.data())
def test_the_parts_of_a_batch_are_the_batch(items, data):
    tokens = ragged(sorted(items, key=len))
    whole = next(iter(collate(tokens, [np.arange(len(items))])))
    middle = data.draw(st.integers(1, len(items) - 1))
    parts = [whole.part(0, middle), whole.part(middle, len(items))]
    assert torch.equal(torch.cat([part.input_ids for part in parts]), whole.input_ids)
    assert np.array_equal(np.concatenate([part.rows for part in parts]), whole.rows)
    for part in parts:
        assert part.cu_seqlens.tolist() == [0, *np.cumsum(part.lengths)]
