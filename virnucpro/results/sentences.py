"""Sentences of a page: what its figures show, for who does not see them, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from virnucpro.results import figures
from virnucpro.results.figures import CALL_TITLES
from virnucpro.results.overview import CALLS, LENGTH_EDGES, NUM_SCORE_BINS, Overview, Track


def scores_text(tally: Overview, thresholds: Sequence[float]) -> str:
    """How many sequences are surely one or the other."""
    scored = int(tally.scores.sum())
    tenth = NUM_SCORE_BINS // 10
    low, high = int(tally.scores[:, :tenth].sum()), int(tally.scores[:, -tenth:].sum())
    lines = " and ".join(f"{threshold:.4g}" for threshold in thresholds)
    return (
        f"Of {scored:,} sequences with a probability, {percent(low, scored)} are below 0.1 and "
        f"{percent(high, scored)} at 0.9 or above." + (f" Dashed: threshold {lines}." if lines else "")
    )


def lengths_text(tally: Overview) -> str:
    """Where the middle of all sequences and that of the virus calls lies, to the width of a bin."""

    def middle(counts: NDArray[np.int64]) -> str:
        place = int(np.searchsorted(np.cumsum(counts), (counts.sum() + 1) // 2))
        return f"{bases(LENGTH_EDGES[place])} and {bases(LENGTH_EDGES[place + 1])}"

    virus = tally.lengths[CALLS.index("virus")]
    counts = tally.lengths.sum(axis=0)
    num_shorter = int(counts[: figures.shown_lengths(tally).start].sum())
    return (
        f"The median length lies between {middle(counts)}"
        + (f", that of virus calls between {middle(virus)}." if virus.any() else ".")
        + (f" {num_shorter:,} shorter sequences are left of the axis." if num_shorter else "")
    )


def shares_text(tally: Overview) -> str:
    """Share of virus calls in three ranges of length."""
    edges = np.searchsorted(LENGTH_EDGES, (1_000, 10_000))
    parts = []
    for title, counts in zip(
        ("below 1 kb", "from 1 to 10 kb", "from 10 kb up"), np.split(tally.lengths, edges, axis=1), strict=True
    ):
        if counts.any():
            share = percent(int(counts[CALLS.index("virus")].sum()), int(counts.sum()))
            parts.append(f"{share} of sequences {title}")
    return f"Called virus: {', '.join(parts)}."


def track_text(track: Track) -> str:
    """What a sequence is, and what was found in it."""
    scored = track.p_virus[~np.isnan(track.p_virus)]
    mean = f", mean probability {scored.mean():.2f}" if len(scored) else ""
    regions = "; ".join(f"provirus {found.start:,} to {found.stop:,}" for found in track.proviruses)
    title = CALL_TITLES[track.line.call].lower()
    windows = f"{bases(track.line.length)}, {title}; {len(track.p_virus):,} windows{mean}"
    return f"{windows}; {regions}." if regions else f"{windows}."


def share_text(counts: Mapping[str, int], total: int, what: str) -> str:
    """What a bar of shares shows."""
    shares = (f"{CALL_TITLES[call]} {percent(count, total)}" for call, count in counts.items() if count)
    return f"Share of {what}: {', '.join(shares)}"


def percent(part: int, whole: int) -> str:
    """A share as people read it."""
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def probability(value: float) -> str:
    """Four decimals, as in the tables."""
    return "NA" if math.isnan(value) else f"{value:.4f}"


def bases(number: float) -> str:
    """A number of bases in the unit that suits it."""
    for size, unit in ((1e9, "Gb"), (1e6, "Mb"), (1e3, "kb")):
        if number >= size:
            return f"{number / size:,.3g} {unit}"
    return f"{number:,.0f} bases"
