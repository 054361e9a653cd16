"""The figures of an input, for its page and as files for a publication, and what they show in words."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.atomic import atomic_write
from virnucpro.results.calls import CALLS
from virnucpro.results.drawing import Canvas, Ticks, nice_step
from virnucpro.results.finished import FinishedRun
from virnucpro.results.overview import LENGTH_EDGES, NUM_SCORE_BINS, Overview, Track, overview

_log = logging.getLogger(__name__)

CALL_TITLES = {"virus": "Virus", "uncertain": "Uncertain", "not_virus": "Not virus", "no_call": "No call"}
_FIGURE_SIZE = (340, 236)
_TRACK_SIZE = (340, 150)
_EVEN = 0.5
"""Probability at which virus and not virus are equally likely: what a window is compared with."""
_MAX_POINTS = 300


def write_plots(run: FinishedRun, file_format: str) -> Path:
    """Write the figures of one input to ``<stem>.plots/``, one file each; returns the folder."""
    shown, folder = overview(run.results), run.path("plots")
    figures = {
        "scores": score_figure(shown, run.thresholds),
        "lengths": length_figure(shown),
        "shares": share_figure(shown),
    }
    for figure in figures.values():
        figure.legend({CALL_TITLES[call]: call for call in CALLS if shown.counts.calls[call]})
    for place, track in enumerate(shown.tracks, 1):
        name = printable(track.line.name)
        figure = figures[f"track_{place:02d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:60]}"] = track_figure(track)
        figure.title(name if len(name) <= 48 else f"{name[:45]}...")
    for name, figure in figures.items():
        with atomic_write(folder / f"{name}.{file_format}") as temporary:
            figure.save(temporary, file_format, run.calls_mark)
    _log.info("%s: %d figures", folder, len(figures))
    return folder


def printable(name: bytes) -> str:
    """A name as text that any font and terminal can show; other bytes as escapes."""
    text = name.decode("ascii", "backslashreplace")
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def score_figure(shown: Overview, thresholds: Sequence[float]) -> Canvas:
    """Sequences by probability, stacked by call, with the thresholds."""
    highest, ticks = _count_axis(int(shown.scores.sum(axis=0).max()))
    x_ticks = [(place / 5, f"{place / 5:g}") for place in range(6)]
    canvas = Canvas(_FIGURE_SIZE)
    _stack(canvas, np.linspace(0, 1, NUM_SCORE_BINS + 1), shown.scores / highest)
    for threshold in thresholds:
        canvas.line([(threshold, 0), (threshold, 1)], stroke="ink", is_dashed=True)
    canvas.axes(("p_virus", "sequences"), (x_ticks, ticks))
    return canvas


def length_figure(shown: Overview) -> Canvas:
    """Sequences by length, stacked by call."""
    highest, ticks = _count_axis(int(shown.lengths.sum(axis=0).max()))
    place, x_ticks = _length_axis(shown)
    canvas = Canvas(_FIGURE_SIZE)
    _stack(canvas, place(LENGTH_EDGES), shown.lengths / highest)
    canvas.axes(("length", "sequences"), (x_ticks, ticks))
    return canvas


def share_figure(shown: Overview) -> Canvas:
    """Share of each call among the sequences of a length."""
    place, x_ticks = _length_axis(shown)
    ticks = [(percent / 100, f"{percent}%") for percent in range(0, 101, 25)]
    canvas = Canvas(_FIGURE_SIZE)
    counts = shown.lengths[:, ::2] + shown.lengths[:, 1::2]  # wider bins: a share needs more sequences than a count
    _stack(canvas, place(LENGTH_EDGES[::2]), counts / np.maximum(counts.sum(axis=0), 1))
    canvas.axes(("length", "share"), (x_ticks, ticks))
    return canvas


def track_figure(track: Track) -> Canvas:
    """Score of each window by position, filled from even odds, with proviruses shaded.

    Many windows are averaged in some hundred groups of neighbours.
    """
    length = track.line.length
    step = nice_step(length / 1000 / 5)
    x_ticks = [(number * step * 1000 / length, f"{number * step:g}") for number in range(int(length / 1000 / step) + 1)]
    ticks = [(_up(value), f"{value:g}") for value in (0, _EVEN, 1)]
    canvas = Canvas(_TRACK_SIZE)
    for found in track.proviruses:
        canvas.box((found.start / length, found.stop / length), (0, 1), fill="virus", opacity=0.15)
    starts, p_virus = _averaged((track.starts - 1) / length, track.p_virus.astype(np.float64))
    edges = np.append(starts, 1.0)  # of two windows that overlap the first ends where the second begins
    for call, bound in (("virus", np.maximum), ("not_virus", np.minimum)):
        heights = _up(bound(np.nan_to_num(p_virus, nan=_EVEN), _EVEN))
        stairs = np.column_stack([edges[:-1], heights, edges[1:], heights]).reshape(-1, 2)
        ends = [(float(place), _up(_EVEN)) for place in (edges[0], edges[-1])]
        canvas.line([ends[0], *map(tuple, stairs.tolist()), ends[1]], fill=call, opacity=0.85)
    canvas.line([(0, _up(_EVEN)), (1, _up(_EVEN))], stroke="ink", width=0.8, is_dashed=True)
    canvas.axes(("position (kb)", "p_virus"), (x_ticks, ticks))
    return canvas


def _up(p_virus: Any) -> Any:  # noqa: ANN401 - a number or an array of them
    """Probabilities on an axis with a little room at its ends."""
    return (p_virus + 0.02) / 1.04


def _stack(canvas: Canvas, edges: NDArray[np.float64], heights: NDArray[np.float64]) -> None:
    """Bars of all calls on top of each other; ``edges`` (bins + 1,), ``heights`` (calls, bins)."""
    bottoms = np.cumsum(heights, axis=0) - heights
    for call, height, bottom in zip(CALLS, heights, bottoms, strict=True):
        for place in np.flatnonzero(height).tolist():
            y = float(bottom[place]), float(bottom[place] + height[place])
            canvas.box((edges[place], edges[place + 1]), y, fill=call, stroke="card", width=0.6)
            if call == "uncertain":
                canvas.stripes((edges[place], edges[place + 1]), y)


def _count_axis(highest: int) -> tuple[float, Ticks]:
    """What the axis goes up to, and its ticks."""
    highest = max(highest, 1)
    step = max(1, nice_step(highest / 4))
    top = highest * 1.05
    return top, [(number * step / top, _short_number(number * step)) for number in range(int(highest / step) + 1)]


def shown_lengths(shown: Overview) -> slice:
    """The bins of length that the figures show: all that are used, but for the shortest one in a hundred sequences."""
    counts = shown.lengths.sum(axis=0)
    used = np.flatnonzero(counts)
    if not len(used):
        return slice(0, 0)
    return slice(int(np.searchsorted(np.cumsum(counts), counts.sum() / 100, side="right")), int(used[-1]) + 1)


def _length_limits(shown: Overview) -> tuple[float, float]:
    """Ends of the axis of length, at least a decade apart."""
    bins = shown_lengths(shown)
    low, high = LENGTH_EDGES[bins.start], LENGTH_EDGES[bins.stop]
    middle = math.sqrt(low * high)
    return min(low, middle / 3.2), max(high, middle * 3.2)


def _length_axis(shown: Overview) -> tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], Ticks]:
    """From lengths to places on a logarithmic axis, and its ticks."""
    low, high = np.log10(_length_limits(shown))

    def place(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((np.log10(lengths) - low) / (high - low))

    decades = range(math.ceil(low), math.floor(high) + 1)
    return place, [((decade - low) / (high - low), bases(10.0**decade, "b")) for decade in decades]


def _averaged(
    starts: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Starts and means of at most some hundred groups of neighbours; NaN if a group has no value."""
    first = np.arange(0, len(values), -(-len(values) // _MAX_POINTS) or 1)
    known = ~np.isnan(values)
    num_known = np.add.reduceat(known.astype(np.float64), first)
    sums = np.add.reduceat(np.where(known, values, 0.0), first)
    return starts[first], np.divide(sums, num_known, out=np.full(len(first), np.nan), where=num_known > 0)


def _short_number(value: float) -> str:
    """12000 as 12k."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


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
    num_shorter = int(counts[: shown_lengths(tally).start].sum())
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


def bases(number: float, unit_of_few: str = "bases") -> str:
    """A number of bases in the unit that suits it."""
    for size, unit in ((1e9, "Gb"), (1e6, "Mb"), (1e3, "kb")):
        if number >= size:
            return f"{number / size:,.3g} {unit}"
    return f"{number:,.0f} {unit_of_few}"
