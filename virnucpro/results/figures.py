"""The figures of an input, for its page and as files for a publication, and what they show in words."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.atomic import atomic_write
from virnucpro.nearest.path import MOSTLY_CELL, UNMATCHED, VIRAL, classes_of
from virnucpro.results.called import InputResults
from virnucpro.results.calls import CALLS
from virnucpro.results.counts import LENGTH_EDGES, NUM_SCORE_BINS, Overview, Track
from virnucpro.results.drawing import Canvas, Label, Shape, Ticks, nice_step
from virnucpro.results.finished import FinishedRun

_log = logging.getLogger(__name__)

CALL_TITLES = {"virus": "Virus", "uncertain": "Uncertain", "not_virus": "Not virus", "no_call": "No call"}
_FIGURE_SIZE = (340, 236)
_TRACK_SIZE = (340, 150)
_EVEN = 0.5
"""Probability at which virus and not virus are equally likely: what a window is compared with."""
_MAX_POINTS = 300

FLANK_NT = 8_000
"""Of host that is shown on either side of a provirus."""
MOST_GENES = 400
"""Of a map; a longer virus is shown as far as they reach."""
_MAP_SIZE = (720, 74)
_MAP_MARGIN = 8.0
_LANES = {1: 12.0, -1: 34.0}
_THICK = 16.0
_AXIS = 58.0
_KIND_COLOURS = {"virus": "virus", "cell": "not_virus", "both": "uncertain", "neither": "no_call"}
_KIND_WORDS = {
    "virus": "nearer to viruses",
    "both": "near to both",
    "cell": "nearer to cells",
    "neither": "near to neither",
}


def write_plots(run: FinishedRun, file_format: str) -> Path:
    """Write the figures of one input to ``<stem>.plots/``, one file each; returns the folder."""
    shown, folder = run.overview, run.path("plots")
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


@dataclass(frozen=True)
class GeneMap:
    """What is drawn of a sequence."""

    name: bytes  # of the sequence
    start: int  # first base shown, 0-based
    stop: int  # one after the last
    region: tuple[int, int] | None  # of the provirus, 0-based half-open; None for a whole virus
    genes: NDArray[np.void]  # (g,) GENE_DTYPE
    organisms: Mapping[int, tuple[str, str]]  # number of an organism to its name and family; empty for none
    num_left_out: int = 0  # genes of the sequence that are not shown though they belong to the virus

    @property
    def kinds(self) -> list[str]:
        """What each gene is near to: virus, cell, both or neither."""
        classes = classes_of(self.genes["bits_virus"], self.genes["bits_cell"])
        names = np.array(["neither", "cell", "both", "virus"])
        places = (classes > UNMATCHED).astype(np.int64) + (classes > MOSTLY_CELL) + (classes >= VIRAL)
        return [str(name) for name in names[places]]


def gene_maps(results: InputResults, shown: Overview) -> list[GeneMap]:
    """Of the proviruses that are shown, then of the hits that have genes."""
    maps = [_map(results, found.position, (found.start - 1, found.stop)) for found in shown.proviruses]
    has_region = {found.position for found in shown.proviruses}
    whole = [_map(results, hit.position) for hit in shown.hits if hit.position not in has_region]
    return [*maps, *(found for found in whole if len(found.genes))]


def _map(results: InputResults, position: int, region: tuple[int, int] | None = None) -> GeneMap:
    table = results.table.slice(position, position + 1)
    start, stop = 0, int(table.sequences["length"][0])
    if region is not None:
        start, stop = max(start, region[0] - FLANK_NT), min(stop, region[1] + FLANK_NT)
    inside = np.array(table.genes[(table.genes["stop"] > start) & (table.genes["start"] < stop)])
    kept = inside[:MOST_GENES]
    if len(kept) < len(inside):
        stop = int(kept["stop"][-1])
    organisms = {number: table.organisms.get(number, ("", "")) for number in np.unique(kept["nearest"]).tolist()}
    return GeneMap(table.names[0].tobytes(), start, stop, region, kept, organisms, len(inside) - len(kept))


def map_figure(shown: GeneMap) -> Canvas:
    """The map: an arrow for each gene, those of the other strand below; the provirus is shaded."""
    canvas = Canvas(_MAP_SIZE)
    scale = (_MAP_SIZE[0] - 2 * _MAP_MARGIN) / max(1, shown.stop - shown.start)

    def x(place: float) -> float:
        return _MAP_MARGIN + (min(max(place, shown.start), shown.stop) - shown.start) * scale

    if shown.region is not None:
        left, right = x(shown.region[0]), x(shown.region[1])
        corners = [(left, 4.0), (left, _AXIS), (right, _AXIS), (right, 4.0)]
        canvas.shapes.append(Shape(corners, fill="virus", opacity=0.12))
    for gene, kind in zip(shown.genes, shown.kinds, strict=True):
        canvas.shapes.append(_arrow(gene, x(gene["start"]), x(gene["stop"]), kind, shown))
    canvas.shapes.append(Shape([(_MAP_MARGIN, _AXIS), (_MAP_SIZE[0] - _MAP_MARGIN, _AXIS)], stroke="faint"))
    step = int(max(1, nice_step(max(1, shown.stop - shown.start) / 6)))
    for place in range(-(-shown.start // step) * step, shown.stop + 1, step):
        canvas.shapes.append(Shape([(x(place), _AXIS), (x(place), _AXIS + 3)], stroke="faint"))
        canvas.shapes.append(Label((x(place), _AXIS + 14), f"{place / 1000:g}", size=10))
    return canvas


def _arrow(gene: np.void, left: float, right: float, kind: str, shown: GeneMap) -> Shape:
    strand = int(gene["strand"])
    top, tip = _LANES[strand], min(5.0, right - left)
    back, front, neck = (left, right, right - tip) if strand > 0 else (right, left, left + tip)
    bottom = top + _THICK
    points = [(back, top), (neck, top), (front, top + _THICK / 2), (neck, bottom), (back, bottom)]
    name, family = shown.organisms[int(gene["nearest"])]
    nearest = f", nearest virus {name}{f' ({family})' if family else ''}" if name and kind in ("virus", "both") else ""
    text = (
        f"{gene['start'] + 1:,} to {gene['stop']:,}: {gene['bits_virus']:.0f} bits to viruses, "
        f"{gene['bits_cell']:.0f} to cells{nearest}"
    )
    return Shape(points, fill=_KIND_COLOURS[kind], opacity=0.35 if kind == "neither" else 0.9, title=text)


def map_text(shown: GeneMap) -> str:
    """What a map shows, in words."""
    inside = shown.genes
    kinds = np.array(shown.kinds)
    if shown.region is not None:
        middle = (inside["start"] + inside["stop"]) / 2
        within = (middle >= shown.region[0]) & (middle < shown.region[1])
        inside, kinds = inside[within], kinds[within]
    parts = [f"{int((kinds == kind).sum())} {words}" for kind, words in _KIND_WORDS.items() if (kinds == kind).any()]
    families = [shown.organisms[int(number)][1] for number in inside["nearest"][kinds == "virus"]]
    known = [family for family in families if family]
    most = max(sorted(set(known)), key=known.count) if known else ""
    place = (
        f"Provirus {shown.region[0] + 1:,} to {shown.region[1]:,}"
        if shown.region is not None
        else f"Whole sequence, {shown.stop - shown.start:,} bases shown"
    )
    more = f"; {shown.num_left_out:,} further genes are not shown" if shown.num_left_out else ""
    return (
        f"{place}: {len(inside)} genes, {', '.join(parts) or 'none'}"
        f"{f'; most often nearest to {most}' if most else ''}{more}."
    )


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
