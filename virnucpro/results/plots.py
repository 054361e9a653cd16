"""Figures as files for a publication: scores, calls by length, and the window scores along a sequence.

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

from virnucpro.results.figures import (
    BOTTOM,
    CALL_COLOURS,
    CALL_TITLES,
    EVEN,
    FIGURE_SIZE,
    LEFT,
    RIGHT,
    TOP,
    TRACK_SIZE,
    averaged,
    length_limits,
    running_mean,
    short_length,
    short_number,
)
from virnucpro.results.finished import FinishedRun
from virnucpro.results.overview import CALLS, LENGTH_EDGES, NUM_SCORE_BINS, Overview, Track, overview
from virnucpro.run_dir import atomic_write

FORMATS = ("png", "svg", "pdf")
INK = "#1f2a37"
FAINT = "#cbd2dc"
PAPER = "#ffffff"

_POINTS_PER_INCH = 72  # in an SVG of Matplotlib a point is one unit of the view box
_FILE_SCALE = 1.4
_FILE_DPI = 300

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


def score_figure(shown: Overview, thresholds: Sequence[float]) -> Figure:
    """Sequences by probability, stacked by call, with the thresholds."""
    figure, axes = _canvas(FIGURE_SIZE, "p_virus", "sequences")
    edges = np.linspace(0, 1, NUM_SCORE_BINS + 1)
    _stack(axes, edges, shown.scores)
    axes.set_xlim(0, 1)
    for threshold in thresholds:
        axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    return figure


def length_figure(shown: Overview) -> Figure:
    """Sequences by length, stacked by call."""
    figure, axes = _canvas(FIGURE_SIZE, "length", "sequences")
    _stack(axes, LENGTH_EDGES, shown.lengths)
    _length_axis(axes, shown)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    return figure


def share_figure(shown: Overview) -> Figure:
    """Share of each call among the sequences of a length."""
    figure, axes = _canvas(FIGURE_SIZE, "length", "share")
    counts = shown.lengths[:, ::2] + shown.lengths[:, 1::2]  # wider bins: a share needs more sequences than a count
    _stack(axes, LENGTH_EDGES[::2], counts / np.maximum(counts.sum(axis=0), 1))
    _length_axis(axes, shown)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def track_figure(track: Track, title: str = "") -> Figure:
    """Score of each window by position, filled from even odds, with proviruses shaded.

    Where there are many windows the fill is their running mean, and those beyond some hundred are averaged in groups.
    """
    figure, axes = _canvas(TRACK_SIZE, "position (kb)", "p_virus")
    middles, p_virus = averaged((track.starts + track.stops) / 2000, track.p_virus.astype(np.float64))
    trend = running_mean(p_virus)
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


def write_plots(run: FinishedRun, file_format: str) -> Path:
    """Write the figures of one input to ``<stem>.plots/``, one file each, for a publication.

    Args:
        run: the input.
        file_format: one of ``FORMATS``.

    Returns:
        the folder.
    """
    shown = overview(run.results)
    folder = run.path("plots")
    num_files = 0
    with mpl.rc_context(_STYLE | {"svg.hashsalt": "virnucpro"}):
        for name, figure in _files(shown, run.thresholds):
            width, height = figure.get_size_inches()
            figure.set_size_inches(width * _FILE_SCALE, height * _FILE_SCALE)
            with atomic_write(folder / f"{name}.{file_format}") as temporary:
                _save(figure, temporary, file_format, run.calls_mark)
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


def _files(shown: Overview, thresholds: Sequence[float]) -> Iterator[tuple[str, Figure]]:
    """Name and figure of each file."""
    plain = (("scores", score_figure(shown, thresholds)), ("lengths", length_figure(shown)))
    for name, figure in (*plain, ("shares", share_figure(shown))):
        if shown.num_sequences:
            figure.axes[0].legend(handlelength=1, handleheight=1)
        yield name, figure
    for place, track in enumerate(shown.tracks, 1):
        name = printable(track.line.name)
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:60]
        title = name if len(name) <= 48 else f"{name[:45]}..."
        yield f"track_{place:02d}_{safe}", track_figure(track, title)


def _canvas(size: tuple[int, int], x_label: str, y_label: str) -> tuple[Figure, Axes]:
    width, height = size
    figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH))
    # Fixed margins: axes of figures side by side line up, and no text is measured, which takes most of the time.
    axes = figure.add_axes((LEFT / width, BOTTOM / height, 1 - (LEFT + RIGHT) / width, 1 - (TOP + BOTTOM) / height))
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


def _length_axis(axes: Axes, shown: Overview) -> None:
    """A logarithmic axis over the lengths there are."""
    axes.set_xscale("log")
    axes.set_xlim(*length_limits(shown))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_length(value)))
    axes.xaxis.set_minor_formatter("")


def _save(figure: Figure, path: Path, file_format: str, mark: str) -> None:
    figure.savefig(
        path,
        format=file_format,
        dpi=_FILE_DPI,
        facecolor=PAPER,
        bbox_inches="tight",
        metadata=file_metadata(file_format) | {"Subject" if file_format == "pdf" else "Description": mark},
    )


def file_metadata(file_format: str) -> dict[str, str | None]:
    """Nothing of when and with what a figure was made."""
    names = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate")}
    return dict.fromkeys(names.get(file_format, ("Date", "Creator", "Format", "Type")))
