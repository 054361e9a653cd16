"""The figures of the page as SVG, with the colours of its style sheet. No plotting library: they are a few shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from virnucpro.results.overview import CALLS, LENGTH_EDGES, NUM_SCORE_BINS, Overview, Track

CALL_TITLES = {"virus": "Virus", "uncertain": "Uncertain", "not_virus": "Not virus", "no_call": "No call"}
CALL_COLOURS = {"virus": "#c2410c", "uncertain": "#b87f00", "not_virus": "#2f6fb3", "no_call": "#7d8795"}
"""Told apart with every common kind of colour blindness: they differ in lightness or along blue to yellow."""
VARIABLES = {call: f"var(--{call.replace('_', '-')})" for call in CALLS}
"""The same in the style sheet of the page."""

FIGURE_SIZE = (340, 236)
TRACK_SIZE = (340, 150)
LEFT, RIGHT, TOP, BOTTOM = 60, 10, 10, 38
"""Margins; fixed, so that the axes of figures side by side line up."""
EVEN = 0.5
"""Probability at which virus and not virus are equally likely: what a window is compared with."""
_MAX_POINTS = 300
_MANY_POINTS = 100
_DASHED = 'stroke-dasharray="4 3"'
_LABEL = 'text-anchor="middle" font-size="12"'

Ticks = Sequence[tuple[float, str]]
"""Where ticks are, from 0 to 1 along the axis, and what they say."""


class _Canvas:
    """Axes and what is drawn within them, in coordinates from 0 to 1."""

    def __init__(self, size: tuple[int, int], labels: tuple[str, str], ticks: tuple[Ticks, Ticks]) -> None:
        self._size = size
        self._shapes: list[str] = []
        width, height = size
        self._wide, self._high = width - LEFT - RIGHT, height - TOP - BOTTOM
        bottom = height - BOTTOM
        self._axes = [
            f'<path d="M{LEFT} {TOP}V{bottom}H{width - RIGHT}" style="fill:none;stroke:var(--faint)"/>',
            f'<text x="{LEFT + self._wide / 2:.1f}" y="{height - 5}" {_LABEL}>{labels[0]}</text>',
            f'<text transform="translate(13 {TOP + self._high / 2:.1f}) rotate(-90)" {_LABEL}>{labels[1]}</text>',
        ]
        for place, text in ticks[0]:
            x = self.x(place)
            self._axes.append(f'<path d="M{x} {bottom}v3" style="stroke:var(--faint)"/>')
            self._axes.append(f'<text x="{x}" y="{bottom + 15}" text-anchor="middle" font-size="11">{text}</text>')
        for place, text in ticks[1]:
            y = self.y(place)
            self._axes.append(f'<path d="M{LEFT} {y}h-3" style="stroke:var(--faint)"/>')
            self._axes.append(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end" font-size="11">{text}</text>')

    def x(self, place: float) -> str:
        """Across the canvas."""
        return f"{LEFT + min(max(place, -0.1), 1.1) * self._wide:.2f}"

    def y(self, place: float) -> str:
        """Up the canvas."""
        return f"{TOP + (1 - place) * self._high:.2f}"

    def box(self, x: tuple[float, float], y: tuple[float, float], style: str) -> None:
        """A rectangle."""
        left, right = (min(max(place, 0.0), 1.0) for place in x)
        if right > left:
            size = f'width="{(right - left) * self._wide:.2f}" height="{(y[1] - y[0]) * self._high:.2f}"'
            self._shapes.append(f'<rect x="{self.x(left)}" y="{self.y(y[1])}" {size} style="{style}"/>')

    def line(self, points: Sequence[tuple[float, float]], style: str, more: str = "") -> None:
        """Straight lines from point to point."""
        path = "L".join(f"{self.x(x)} {self.y(y)}" for x, y in points)
        self._shapes.append(f'<path d="M{path}" style="{style}" {more}/>')

    def svg(self) -> str:
        """The figure; the page says in words what it shows."""
        width, height = self._size
        inner = "\n".join([*self._shapes, *self._axes])
        return f'<svg viewBox="0 0 {width} {height}" aria-hidden="true" style="fill:var(--ink)">\n{inner}\n</svg>'


def score_figure(shown: Overview, thresholds: Sequence[float]) -> str:
    """Sequences by probability, stacked by call, with the thresholds."""
    highest, ticks = _count_axis(int(shown.scores.sum(axis=0).max()))
    x_ticks = [(place / 5, f"{place / 5:g}") for place in range(6)]
    canvas = _Canvas(FIGURE_SIZE, ("p_virus", "sequences"), (x_ticks, ticks))
    _stack(canvas, np.linspace(0, 1, NUM_SCORE_BINS + 1), shown.scores / highest)
    for threshold in thresholds:
        canvas.line([(threshold, 0), (threshold, 1)], "stroke:var(--ink)", _DASHED)
    return canvas.svg()


def length_figure(shown: Overview) -> str:
    """Sequences by length, stacked by call."""
    highest, ticks = _count_axis(int(shown.lengths.sum(axis=0).max()))
    place, x_ticks = _length_axis(shown)
    canvas = _Canvas(FIGURE_SIZE, ("length", "sequences"), (x_ticks, ticks))
    _stack(canvas, place(LENGTH_EDGES), shown.lengths / highest)
    return canvas.svg()


def share_figure(shown: Overview) -> str:
    """Share of each call among the sequences of a length."""
    place, x_ticks = _length_axis(shown)
    ticks = [(percent / 100, f"{percent}%") for percent in range(0, 101, 25)]
    canvas = _Canvas(FIGURE_SIZE, ("length", "share"), (x_ticks, ticks))
    counts = shown.lengths[:, ::2] + shown.lengths[:, 1::2]  # wider bins: a share needs more sequences than a count
    _stack(canvas, place(LENGTH_EDGES[::2]), counts / np.maximum(counts.sum(axis=0), 1))
    return canvas.svg()


def track_figure(track: Track) -> str:
    """Score of each window by position, filled from even odds, with proviruses shaded.

    With many windows the fill is their running mean, and those beyond some hundred are averaged in groups.
    """
    length = track.line.length
    step = _nice_step(length / 1000 / 5)
    x_ticks = [(number * step * 1000 / length, f"{number * step:g}") for number in range(int(length / 1000 / step) + 1)]
    ticks = [(_up(value), f"{value:g}") for value in (0, EVEN, 1)]
    canvas = _Canvas(TRACK_SIZE, ("position (kb)", "p_virus"), (x_ticks, ticks))
    middles, p_virus = averaged((track.starts + track.stops) / 2 / length, track.p_virus.astype(np.float64))
    trend = running_mean(p_virus)
    for found in track.proviruses:
        canvas.box((found.start / length, found.stop / length), (0, 1), f"fill:{VARIABLES['virus']};opacity:0.15")
    for xs, ys in _known_runs(middles, trend):
        for call, bound in (("virus", np.maximum), ("not_virus", np.minimum)):
            crossed_xs, crossed_ys = _with_crossings(xs, ys)
            ends = [(float(x), _up(EVEN)) for x in (xs[0], xs[-1])]
            area = [ends[0], *_points(crossed_xs, bound(crossed_ys, EVEN)), ends[1]]
            canvas.line(area, f"fill:{VARIABLES[call]};opacity:0.45")
    if trend is not p_virus:
        for xs, ys in _known_runs(middles, p_virus):
            canvas.line(_points(xs, ys), "fill:none;stroke:var(--no-call);stroke-width:0.5")
    for xs, ys in _known_runs(middles, trend):
        canvas.line(_points(xs, ys), "fill:none;stroke:var(--ink)")
    canvas.line([(0, _up(EVEN)), (1, _up(EVEN))], "stroke:var(--ink);stroke-width:0.8", _DASHED)
    return canvas.svg()


def _up(p_virus: float) -> float:
    """A probability on an axis with a little room at its ends."""
    return (p_virus + 0.02) / 1.04


def _points(xs: NDArray[np.float64], p_virus: NDArray[np.float64]) -> list[tuple[float, float]]:
    return [(x, _up(value)) for x, value in zip(xs.tolist(), p_virus.tolist(), strict=True)]


def _stack(canvas: _Canvas, edges: NDArray[np.float64], heights: NDArray[np.float64]) -> None:
    """Bars of all calls on top of each other; ``edges`` (bins + 1,), ``heights`` (calls, bins)."""
    bottoms = np.cumsum(heights, axis=0) - heights
    for call, height, bottom in zip(CALLS, heights, bottoms, strict=True):
        style = f"fill:{VARIABLES[call]};stroke:var(--card);stroke-width:0.6"
        for place in np.flatnonzero(height).tolist():
            canvas.box(
                (edges[place], edges[place + 1]), (float(bottom[place]), float(bottom[place] + height[place])), style
            )


def _count_axis(highest: int) -> tuple[float, Ticks]:
    """What the axis goes up to, and its ticks."""
    highest = max(highest, 1)
    step = max(1, _nice_step(highest / 4))
    top = highest * 1.05
    return top, [(number * step / top, short_number(number * step)) for number in range(int(highest / step) + 1)]


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


def length_limits(shown: Overview) -> tuple[float, float]:
    """Ends of the axis of length, at least a decade apart."""
    bins = shown_lengths(shown)
    low, high = LENGTH_EDGES[bins.start], LENGTH_EDGES[bins.stop]
    middle = math.sqrt(low * high)
    return min(low, middle / 3.2), max(high, middle * 3.2)


def _length_axis(shown: Overview) -> tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], Ticks]:
    """From lengths to places on a logarithmic axis, and its ticks."""
    low, high = np.log10(length_limits(shown))

    def place(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((np.log10(lengths) - low) / (high - low))

    decades = range(math.ceil(low), math.floor(high) + 1)
    return place, [((decade - low) / (high - low), short_length(10.0**decade)) for decade in decades]


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
    before = np.flatnonzero((ys[:-1] - EVEN) * (ys[1:] - EVEN) < 0)
    share = (EVEN - ys[before]) / (ys[before + 1] - ys[before])
    crossings = xs[before] + share * (xs[before + 1] - xs[before])
    return np.insert(xs, before + 1, crossings), np.insert(ys, before + 1, EVEN)


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over neighbours of many values, else the values; NaN stays NaN and counts for nothing."""
    if len(values) < _MANY_POINTS:
        return values
    kernel = np.ones(len(values) // 30 | 1)
    known = ~np.isnan(values)
    sums = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    num_known = np.convolve(known.astype(np.float64), kernel, mode="same")
    return np.where(known, sums / np.maximum(num_known, 1), np.nan)


def averaged(middles: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
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


def short_number(value: float) -> str:
    """12000 as 12k."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def short_length(value: float) -> str:
    """1000 as 1 kb."""
    for size, unit in ((1e9, "Gb"), (1e6, "Mb"), (1e3, "kb")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} b"
