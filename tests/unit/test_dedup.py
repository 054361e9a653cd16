"""Identical strings are found, different ones are never mixed up."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.sequence.dedup import SequenceIndex, distinct, hash_strings
from virnucpro.sequence.ragged import Ragged

strings = st.lists(st.text("ACGT", max_size=3).map(str.encode) | st.binary(max_size=40), max_size=60)


@settings(deadline=None)
@given(strings)
def test_distinct_is_exact(items):
    """Each string has the group of its first occurrence, in order of first occurrence."""
    first, inverse = distinct(Ragged.from_bytes(items))
    order = list(dict.fromkeys(items))
    assert [items[i] for i in first] == order
    assert [order[group] for group in inverse] == items
    assert np.all(np.diff(first) > 0)


@settings(deadline=None)
@given(strings, st.integers(1, 7))
def test_index_finds_first_number(items, block):
    """Every item's source is the first item with its content, however the items arrive."""
    index = SequenceIndex(256)
    sources = []
    for start in range(0, len(items), block):
        part = items[start : start + block]
        sources += index.find_sources(hash_strings(part), start).tolist()
    assert sources == [items.index(item) for item in items]


def test_index_grows():
    """A growing table forgets nothing."""
    hashes = hash_strings(b"%d" % (i % 70_000) for i in range(100_000))
    index = SequenceIndex()
    sources = [index.find_sources(hashes[start : start + 9_999], start) for start in range(0, 100_000, 9_999)]
    assert np.array_equal(np.concatenate(sources), np.arange(100_000) % 70_000)


def test_full_index_only_forgets():
    """A full table adds nothing more: what it holds is still found, what it lacks is its own source."""
    items = [b"%d" % i for i in range(100)]
    sources = SequenceIndex(64).find_sources(hash_strings(items * 2), 0)
    assert sources.tolist() == [*range(100), *range(48), *range(148, 200)]
