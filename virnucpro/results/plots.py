"""Figures, in the report and as files: scores, calls by length, and the window scores along a sequence.

Figures are drawn without pyplot, so nothing global is touched and no display is needed, and files hold no date,
so the same results give the same bytes.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from virnucpro.results.results import CALLS, LENGTH_EDGES, NUM_SCORE_BINS, Tally, open_run, tally_sequences
from virnucpro.results.tracks import Track, read_proviruses, read_tracks
from virnucpro.run_dir import atomic_write

FORMATS = ("png", "svg", "pdf")
CALL_TITLES = {"virus": "Virus", "uncertain": "Uncertain", "not_virus": "Not virus", "no_call": "No call"}
CALL_COLOURS = {"virus": "#c2410c", "uncertain": "#b87f00", "not_virus": "#2f6fb3", "no_call": "#7d8795"}
"""Told apart with every common kind of colour blindness: they differ in lightness or along blue to yellow."""
INK = "#1f2a37"
FAINT = "#cbd2dc"
PAPER = "#ffffff"

FIGURE_SIZE = (340, 236)
TRACK_SIZE = (340, 150)
_POINTS_PER_INCH = 72  # in an SVG of Matplotlib a point is one unit of the view box
_FILE_SCALE = 1.4
_FILE_DPI = 300
_MAX_POINTS = 300
_MANY_POINTS = 100
EVEN = 0.5
"""Probability at which virus and not virus are equally likely: what a window is held against."""

_STYLE: Any = {  # Matplotlib's stubs want literal keys, which a union of dictionaries loses
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 12,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text, which journals ask for
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a name may hold dollar signs
    "xtick.color": INK,
    "xtick.labelsize": 11.5,
    "ytick.color": INK,
    "ytick.labelsize": 11.5,
}
_PAGE_EDITS = (
    (r"<metadata>.*?</metadata>\s*", ""),
    (r"<style.*?</style>\s*", ""),  # within a page its rule would hold for the whole page
    (r'(<svg [^>]*?)\swidth="[^"]*"', r'\1 aria-hidden="true"'),  # the page says in words what it shows
    (r'(<svg [^>]*?)\sheight="[^"]*"', r"\1"),  # as wide as its column
    (r"font-family: [^;\"]*;? ?", ""),  # in the letters of the page
    (r"(\d\.\d\d)\d+", r"\1"),
    (r"\s*\n\s*", "\n"),
)
"""Pattern and replacement, in this order, for the SVG of Matplotlib to fit into a page."""
_log = logging.getLogger(__name__)


def score_figure(tally: Tally, thresholds: Sequence[float]) -> Figure:
    """Sequences by probability, stacked by call, with the thresholds."""
    figure, axes = _canvas(FIGURE_SIZE, "p_virus", "sequences")
    edges = np.linspace(0, 1, NUM_SCORE_BINS + 1)
    _stack(axes, edges, tally.scores)
    axes.set_xlim(0, 1)
    for threshold in thresholds:
        axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(_short_number))
    return figure


def length_figure(tally: Tally) -> Figure:
    """Sequences by length, stacked by call."""
    figure, axes = _canvas(FIGURE_SIZE, "length", "sequences")
    _stack(axes, LENGTH_EDGES, tally.lengths)
    _length_axis(axes, tally)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(_short_number))
    return figure


def share_figure(tally: Tally) -> Figure:
    """Share of each call among the sequences of a length."""
    figure, axes = _canvas(FIGURE_SIZE, "length", "share")
    counts = tally.lengths[:, ::2] + tally.lengths[:, 1::2]  # wider bins: a share needs more sequences than a count
    _stack(axes, LENGTH_EDGES[::2], counts / np.maximum(counts.sum(axis=0), 1))
    _length_axis(axes, tally)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def track_figure(track: Track, title: str = "") -> Figure:
    """Score of each window by position, filled from even odds, with proviruses shaded.

    Where there are many windows the fill is their running mean, and those beyond some hundred are averaged in groups.
    """
    figure, axes = _canvas(TRACK_SIZE, "position (kb)", "p_virus")
    middles, p_virus = _averaged((track.starts + track.stops) / 2000, track.p_virus)
    trend = _running_mean(p_virus)
    for found in track.proviruses:
        axes.axvspan(found.start / 1000, found.stop / 1000, color=CALL_COLOURS["virus"], alpha=0.15, linewidth=0)
    for call, where in (("virus", trend >= EVEN), ("not_virus", trend < EVEN)):
        colour = CALL_COLOURS[call]
        axes.fill_between(middles, trend, EVEN, where=where, interpolate=True, color=colour, alpha=0.45, linewidth=0)
    if trend is not p_virus:
        axes.plot(middles, p_virus, color=CALL_COLOURS["no_call"], linewidth=0.5, alpha=0.7)
    axes.plot(middles, trend, color=INK, linewidth=1)
    axes.axhline(EVEN, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlim(0, track.line.length / 1000)
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if title:
        figure.suptitle(title, fontsize=9, x=0.02, y=1.01, ha="left", va="bottom")
    return figure


def write_plots(root: Path, stem: str, file_format: str) -> Path:
    """Write the figures of one input to ``<stem>.plots/``, one file each, for a publication.

    Args:
        root: output directory of a finished run.
        stem: prefix of the input's files.
        file_format: one of ``FORMATS``.

    Returns:
        the folder.

    Raises:
        UsageError: there is no such run, or it wrote no table of sequences.
        StoreError: one of its files is damaged.
    """
    run = open_run(root, stem)
    proviruses = read_proviruses(run)
    names = {found.sequence for found in proviruses.best} if proviruses is not None else set()
    tally = tally_sequences(run, names)
    tracks = read_tracks(run, tally, proviruses)
    folder = run.path("plots")
    num_files = 0
    with mpl.rc_context(_STYLE | {"svg.hashsalt": "virnucpro"}):
        for name, figure in _files(tally, tracks, run.thresholds):
            width, height = figure.get_size_inches()
            figure.set_size_inches(width * _FILE_SCALE, height * _FILE_SCALE)
            with atomic_write(folder / f"{name}.{file_format}") as temporary:
                _save(figure, temporary, file_format)
            num_files += 1
    _log.info("%s: %d figures", folder, num_files)
    return folder


def svg_of(figure: Figure, name: str, colours: dict[str, str]) -> str:
    """A figure as an element to be put into a page.

    Args:
        figure: drawn within ``page_style``.
        name: of the figure; its ids begin with it, so that several figures fit on a page.
        colours: colour in the figure to what stands for it in the page's style sheet.
    """
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata=file_metadata("svg"))
    _, start, element = text.getvalue().partition("<svg ")
    element = start + element
    for pattern, replacement in _PAGE_EDITS:
        element = re.sub(pattern, replacement, element, flags=re.DOTALL)
    for colour, variable in colours.items():
        element = element.replace(colour, variable)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', element))
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", element)


def page_style() -> Any:  # noqa: ANN401 - Matplotlib does not name this type
    """A context in which figures are drawn for a page."""
    return mpl.rc_context(_STYLE)


def printable(name: bytes) -> str:
    """A name as text that any font and terminal can show; other bytes as escapes."""
    text = name.decode("ascii", "backslashreplace")
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def _files(tally: Tally, tracks: Sequence[Track], thresholds: Sequence[float]) -> Iterator[tuple[str, Figure]]:
    """Name and figure of each file."""
    plain = (("scores", score_figure(tally, thresholds)), ("lengths", length_figure(tally)))
    for name, figure in (*plain, ("shares", share_figure(tally))):
        if tally.num_sequences:
            figure.axes[0].legend(handlelength=1, handleheight=1)
        yield name, figure
    for place, track in enumerate(tracks, 1):
        name = printable(track.line.name)
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:60]
        title = name if len(name) <= 48 else f"{name[:45]}..."
        yield f"track_{place:02d}_{safe}", track_figure(track, title)


def _canvas(size: tuple[int, int], x_label: str, y_label: str) -> tuple[Figure, Axes]:
    width, height = size
    figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH))
    # Fixed margins: axes of figures side by side line up, and no text is measured, which takes most of the time.
    left, right, top, bottom = 60, 10, 10, 38
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.tick_params(length=3)
    return figure, axes


def _stack(axes: Axes, edges: NDArray[np.float64], heights: NDArray[Any]) -> None:
    """Bars of all calls on top of each other; ``edges`` (bins + 1,), ``heights`` (calls, bins)."""
    bottom = np.zeros(heights.shape[1])
    for call, height in zip(CALLS, heights, strict=True):
        shown = height > 0
        if not shown.any():
            continue
        axes.bar(
            edges[:-1][shown],
            height[shown],
            np.diff(edges)[shown],
            bottom[shown],
            align="edge",
            color=CALL_COLOURS[call],
            edgecolor=PAPER,
            linewidth=0.6,
            label=CALL_TITLES[call],
        )
        bottom += height


def shown_lengths(tally: Tally) -> slice:
    """The bins of length that the figures show: all that are used, but for the shortest one in a hundred sequences."""
    counts = tally.lengths.sum(axis=0)
    used = np.flatnonzero(counts)
    if not len(used):
        return slice(0, 0)
    return slice(int(np.searchsorted(np.cumsum(counts), counts.sum() / 100, side="right")), int(used[-1]) + 1)


def _length_axis(axes: Axes, tally: Tally) -> None:
    """A logarithmic axis over the lengths there are, at least a decade."""
    shown = shown_lengths(tally)
    low, high = LENGTH_EDGES[shown.start], LENGTH_EDGES[shown.stop]
    middle = np.sqrt(low * high)
    axes.set_xscale("log")
    axes.set_xlim(min(low, middle / 3.2), max(high, middle * 3.2))
    axes.xaxis.set_major_formatter(FuncFormatter(_short_length))
    axes.xaxis.set_minor_formatter("")


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over neighbours where there are many values, else the values; NaN stays NaN and counts for nothing."""
    if len(values) < _MANY_POINTS:
        return values
    kernel = np.ones(len(values) // 30 | 1)
    known = ~np.isnan(values)
    sums = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    num_known = np.convolve(known.astype(np.float64), kernel, mode="same")
    return np.where(known, sums / np.maximum(num_known, 1), np.nan)


def _averaged(middles: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """At most some hundred points: means over groups of neighbours; NaN where a group has no value."""
    size = -(-len(values) // _MAX_POINTS) or 1
    if size == 1:
        return middles, values
    starts = np.arange(0, len(values), size)
    known = ~np.isnan(values)
    num_known = np.add.reduceat(known.astype(np.float64), starts)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    means = np.divide(sums, num_known, out=np.full(len(starts), np.nan), where=num_known > 0)
    return np.add.reduceat(middles, starts) / np.diff(np.append(starts, len(values))), means


def _save(figure: Figure, path: Path, file_format: str) -> None:
    figure.savefig(
        path,
        format=file_format,
        dpi=_FILE_DPI,
        facecolor=PAPER,
        bbox_inches="tight",
        metadata=file_metadata(file_format),
    )


def file_metadata(file_format: str) -> dict[str, None]:
    """Nothing of when and with what a figure was made."""
    names = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate")}
    return dict.fromkeys(names.get(file_format, ("Date", "Creator", "Format", "Type")))


def _short_number(value: float, position: int | None = None) -> str:
    """12000 as 12k."""
    del position
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _short_length(value: float, position: int | None = None) -> str:
    """1000 as 1 kb."""
    del position
    for size, unit in ((1e9, "Gb"), (1e6, "Mb"), (1e3, "kb")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} b"
