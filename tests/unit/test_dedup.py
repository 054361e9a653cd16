"""Identical strings are found, different ones are never mixed up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.sequence.dedup import SequenceIndex, distinct, hash_strings
from virnucpro.sequence.ragged import Ragged

strings = st.lists(st.text("ACGT", max_size=3).map(str.encode) | st.binary(max_size=40), max_size=60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", (0, 0)),
        (b"hello", (0xCBD8A7B341BD9B02, 0x5B1E906A48AE1D19)),
        (b"The quick brown fox jumps over the lazy dog", (0xE34BBC7BBC071B6C, 0x7A433CA9C49A9347)),
    ],
)
def test_hash_is_murmur3(text, expected):
    """The hash is MurmurHash3 x64 128 with seed 0, as published."""
    item = Ragged.from_bytes([text])
    assert tuple(hash_strings(item.values, item.offsets)[0].tolist()) == expected


@settings(deadline=None)  # the first call compiles
@given(strings)
def test_distinct_is_exact(items):
    """Each string has the group of its first occurrence, in order of first occurrence."""
    first, inverse = distinct(Ragged.from_bytes(items))
    order = list(dict.fromkeys(items))
    assert [items[i] for i in first] == order
    assert [order[group] for group in inverse] == items
    assert np.all(np.diff(first) > 0)


@settings(deadline=None)  # the first call compiles
@given(strings, st.integers(1, 7))
def test_index_finds_first_number(items, block):
    """Every item's source is the first item with its content, however the items arrive."""
    index = SequenceIndex(256)
    sources = []
    for start in range(0, len(items), block):
        part = Ragged.from_bytes(items[start : start + block])
        sources += index.find_sources(hash_strings(part.values, part.offsets), start).tolist()
    assert sources == [items.index(item) for item in items]


def test_index_ignores_what_is_not_wanted():
    """Items that are not wanted are neither looked up nor remembered."""
    part = Ragged.from_bytes([b"A", b"A", b"A"])
    hashes = hash_strings(part.values, part.offsets)
    assert SequenceIndex(4).find_sources(hashes, 10, np.array([False, True, True])).tolist() == [10, 11, 11]


def test_index_grows():
    """A growing table forgets nothing."""
    items = Ragged.from_bytes(b"%d" % (i % 70_000) for i in range(100_000))
    hashes = hash_strings(items.values, items.offsets)
    index = SequenceIndex()
    sources = [index.find_sources(hashes[start : start + 9_999], start) for start in range(0, 100_000, 9_999)]
    assert np.array_equal(np.concatenate(sources), np.arange(100_000) % 70_000)


def test_full_index_only_forgets():
    """A full table adds nothing more: what it holds is still found, what it lacks is its own source."""
    items = [b"%d" % i for i in range(100)]
    part = Ragged.from_bytes(items * 2)
    sources = SequenceIndex(64).find_sources(hash_strings(part.values, part.offsets), 0)
    assert sources.tolist() == [*range(100), *range(48), *range(148, 200)]
