"""The figures of an input, for its page and as files for a publication, and what they show in words."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.atomic import atomic_write
from virnucpro.results.drawing import Canvas, Ticks
from virnucpro.results.finished import FinishedRun
from virnucpro.results.overview import CALLS, LENGTH_EDGES, NUM_SCORE_BINS, Overview, Track, overview

_log = logging.getLogger(__name__)

CALL_TITLES = {"virus": "Virus", "uncertain": "Uncertain", "not_virus": "Not virus", "no_call": "No call"}
_FIGURE_SIZE = (340, 236)
_TRACK_SIZE = (340, 150)
_EVEN = 0.5
"""Probability at which virus and not virus are equally likely: what a window is compared with."""
_MAX_POINTS = 300
_MANY_POINTS = 100


def write_plots(run: FinishedRun, file_format: str) -> Path:
    """Write the figures of one input to ``<stem>.plots/``, one file each; returns the folder."""
    shown, folder = overview(run.results), run.path("plots")
    figures = {
        "scores": score_figure(shown, run.thresholds),
        "lengths": length_figure(shown),
        "shares": share_figure(shown),
    }
    for figure in figures.values():
        figure.legend({CALL_TITLES[call]: call for call in CALLS if shown.calls[call]})
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

    With many windows the fill is their running mean, and those beyond some hundred are averaged in groups.
    """
    length = track.line.length
    step = _nice_step(length / 1000 / 5)
    x_ticks = [(number * step * 1000 / length, f"{number * step:g}") for number in range(int(length / 1000 / step) + 1)]
    ticks = [(_up(value), f"{value:g}") for value in (0, _EVEN, 1)]
    canvas = Canvas(_TRACK_SIZE)
    middles, p_virus = _averaged((track.starts + track.stops) / 2 / length, track.p_virus.astype(np.float64))
    trend = _running_mean(p_virus)
    for found in track.proviruses:
        canvas.box((found.start / length, found.stop / length), (0, 1), fill="virus", opacity=0.15)
    for xs, ys in _known_runs(middles, trend):
        for call, bound in (("virus", np.maximum), ("not_virus", np.minimum)):
            crossed_xs, crossed_ys = _with_crossings(xs, ys)
            ends = [(float(x), _up(_EVEN)) for x in (xs[0], xs[-1])]
            area = [ends[0], *_points(crossed_xs, bound(crossed_ys, _EVEN)), ends[1]]
            canvas.line(area, fill=call, opacity=0.45)
    if trend is not p_virus:
        for xs, ys in _known_runs(middles, p_virus):
            canvas.line(_points(xs, ys), stroke="no_call", width=0.5)
    for xs, ys in _known_runs(middles, trend):
        canvas.line(_points(xs, ys), stroke="ink")
    canvas.line([(0, _up(_EVEN)), (1, _up(_EVEN))], stroke="ink", width=0.8, is_dashed=True)
    canvas.axes(("position (kb)", "p_virus"), (x_ticks, ticks))
    return canvas


def _up(p_virus: float) -> float:
    """A probability on an axis with a little room at its ends."""
    return (p_virus + 0.02) / 1.04


def _points(xs: NDArray[np.float64], p_virus: NDArray[np.float64]) -> list[tuple[float, float]]:
    return [(x, _up(value)) for x, value in zip(xs.tolist(), p_virus.tolist(), strict=True)]


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
    step = max(1, _nice_step(highest / 4))
    top = highest * 1.05
    return top, [(number * step / top, _short_number(number * step)) for number in range(int(highest / step) + 1)]


def _nice_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10 ... times a power of ten that is not less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


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


def _known_runs(
    xs: NDArray[np.float64], ys: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Stretches without NaN."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], ~np.isnan(ys), [False]])))
    for start, stop in edges.reshape(-1, 2).tolist():
        yield xs[start:stop], ys[start:stop]


def _with_crossings(
    xs: NDArray[np.float64], ys: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The points, and between two on either side of even odds the one on it."""
    before = np.flatnonzero((ys[:-1] - _EVEN) * (ys[1:] - _EVEN) < 0)
    share = (_EVEN - ys[before]) / (ys[before + 1] - ys[before])
    crossings = xs[before] + share * (xs[before + 1] - xs[before])
    return np.insert(xs, before + 1, crossings), np.insert(ys, before + 1, _EVEN)


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over neighbours of many values, else the values; NaN stays NaN and counts for nothing."""
    if len(values) < _MANY_POINTS:
        return values
    kernel = np.ones(len(values) // 30 | 1)
    known = ~np.isnan(values)
    sums = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    num_known = np.convolve(known.astype(np.float64), kernel, mode="same")
    return np.where(known, sums / np.maximum(num_known, 1), np.nan)


def _averaged(middles: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """At most some hundred points: means over groups of neighbours; NaN if a group has no value."""
    size = -(-len(values) // _MAX_POINTS) or 1
    if size == 1:
        return middles, values
    starts = np.arange(0, len(values), size)
    known = ~np.isnan(values)
    num_known = np.add.reduceat(known.astype(np.float64), starts)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    means = np.divide(sums, num_known, out=np.full(len(starts), np.nan), where=num_known > 0)
    return np.add.reduceat(middles, starts) / np.diff(np.append(starts, len(values))), means


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
