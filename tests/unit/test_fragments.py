"""Windows are the published ones, and cover the record."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_extraction import cut_windows

from virnucpro.sequence.fragments import windows

lengths = st.integers(1, 5000) | st.integers(1, 100_000_000)
fragment_lengths = st.integers(3, 5000)


def test_published_example():
    """301 bases at 300 are [0, 300) and [150, 301)."""
    assert windows(301, 300).tolist() == [[0, 300], [150, 301]]


@settings(deadline=None)  # the first call compiles
@given(st.integers(1, 5000), st.integers(3, 700))
def test_windows_agree_with_gap_list(length, fragment_length):
    """The closed form is the sum of the published gap list."""
    assert list(map(tuple, windows(length, fragment_length).tolist())) == cut_windows(length, fragment_length)


@settings(deadline=None)  # the first call compiles
@given(lengths, st.integers(300, 5000))
def test_windows_cover_record(length, fragment_length):
    """Windows start at 0, leave no gap, end at the record's end and are never longer than asked."""
    bounds = windows(length, fragment_length)
    starts, stops = bounds[:, 0], bounds[:, 1]
    assert len(bounds) == -(-length // fragment_length)
    assert starts[0] == 0
    assert stops[-1] == length
    assert np.all(starts[1:] <= stops[:-1])
    assert np.all(np.diff(starts) > 0)
    assert np.all((stops - starts > 0) & (stops - starts <= fragment_length))


def test_empty_record_has_no_window():
    """An empty record divides by zero in the reference; here it has no window."""
    assert windows(0, 300).shape == (0, 2)
