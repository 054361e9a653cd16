"""Ragged arrays behave as lists of byte strings."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.sequence.ragged import Ragged, offsets_of

strings = st.lists(st.binary(max_size=6), max_size=12)


@settings(deadline=None)  # the first call compiles
@given(strings)
def test_bytes_come_back(items):
    """What is laid end to end comes back item by item."""
    ragged = Ragged.from_bytes(items)
    assert len(ragged) == len(items)
    assert ragged.to_bytes() == items
    assert [item.tobytes() for item in ragged] == items
    assert ragged.lengths.tolist() == [len(item) for item in items]
    assert offsets_of(ragged.lengths).tolist() == ragged.offsets.tolist()


@settings(deadline=None)  # the first call compiles
@given(strings, st.data())
def test_slice_and_take(items, data):
    """A slice is the items in between, a take the items asked for, in that order and repeated."""
    ragged = Ragged.from_bytes(items)
    start = data.draw(st.integers(0, len(items)))
    stop = data.draw(st.integers(start, len(items)))
    assert ragged.slice(start, stop).to_bytes() == items[start:stop]
    indices = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=9)) if items else []
    assert ragged.take(np.array(indices, dtype=np.int64)).to_bytes() == [items[i] for i in indices]


@settings(deadline=None)  # the first call compiles
@given(st.lists(strings, max_size=4))
def test_concatenate(parts):
    """Joining keeps the order; nothing joined is nothing."""
    whole = Ragged.concatenate(Ragged.from_bytes(part) for part in parts)
    assert whole.to_bytes() == [item for part in parts for item in part]
    assert whole.values.dtype == np.uint8


@settings(deadline=None)
@given(st.lists(st.binary(max_size=4), max_size=8), st.data())
def test_items_at_ascending_places_come_as_bytes(items, data):
    places = sorted(data.draw(st.sets(st.integers(0, len(items) - 1)) if items else st.just(set())))
    found = Ragged.from_bytes(items).bytes_at(np.array(places, dtype=np.int64))
    assert found == [items[place] for place in places]
