"""One picture of a benchmark: ratios to the peers with their goals, and a curve for whatever was measured at sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from virnucpro.benchmarks.measure import Figure, Goal
from virnucpro.benchmarks.tables import goal_text, number
from virnucpro.errors import UsageError
from virnucpro.results.plots import CALL_COLOURS, FAINT, FORMATS, INK, PAPER, file_metadata, page_style
from virnucpro.run_dir import atomic_write

_WIDTH = 8.0  # inches, as all that follow
_LINE = 0.34
_CURVE_HEIGHT = 2.4
_MARGIN = 0.55
_LABELS = 4.1
"""Room for the names of the figures, left of their bars."""
_DPI = 200
_MANY_TIMES = 30
"""Between the ends of an axis: from there on powers of ten are marks enough."""
_SMALL = 8
_PEER = 6.8
_REACHED, _MISSED, _PLAIN = CALL_COLOURS["not_virus"], CALL_COLOURS["virus"], CALL_COLOURS["no_call"]
_CURVES = (CALL_COLOURS["not_virus"], CALL_COLOURS["virus"], CALL_COLOURS["uncertain"], CALL_COLOURS["no_call"])
_Panel = tuple[str, str, str]


def file_format(path: Path) -> str:
    """The format that a file's name asks for.

    Raises:
        UsageError: it is none of those that are drawn.
    """
    found = path.suffix.removeprefix(".").lower()
    if found not in FORMATS:
        raise UsageError(f"{path}: a plot is a {', '.join(FORMATS)} file. Name it so.")
    return found


def write_plot(figures: Sequence[Figure], path: Path) -> None:
    """Draw figures into a file; the same figures give the same bytes.

    Raises:
        UsageError: there is nothing to draw, or the name of the file ends otherwise than in ``FORMATS``.
    """
    ending = file_format(path)
    ratios = [_with_ratio_goals(figure) for figure in figures if figure.ratio is not None]
    curves = _curves(figures)
    if not ratios and not curves:
        raise UsageError(f"{path}: none of these figures has a peer or several sizes, so there is nothing to draw.")
    with page_style(), mpl.rc_context({"svg.hashsalt": "virnucpro"}):
        picture = _picture(ratios, curves)
        with atomic_write(path) as temporary:
            metadata = file_metadata(ending)
            picture.savefig(temporary, format=ending, dpi=_DPI, facecolor=PAPER, metadata=metadata)


def _with_ratio_goals(figure: Figure) -> Figure:
    """The figure without goals that say nothing of its ratio, which alone is drawn."""
    return replace(figure, goal=Goal(least_ratio=figure.goal.least_ratio, most_ratio=figure.goal.most_ratio))


def _curves(figures: Sequence[Figure]) -> dict[_Panel, dict[str, list[Figure]]]:
    """Section, unit and what the sizes count, to the curves of such a panel: two points each at least."""
    panels: dict[_Panel, dict[str, list[Figure]]] = defaultdict(lambda: defaultdict(list))
    for figure in figures:
        if figure.point is not None and figure.values:
            panels[figure.section, figure.unit, figure.point.x_name][figure.point.series].append(figure)
    shown = {panel: {name: line for name, line in lines.items() if len(line) > 1} for panel, lines in panels.items()}
    return {panel: lines for panel, lines in shown.items() if lines}


def _picture(ratios: Sequence[Figure], curves: dict[_Panel, dict[str, list[Figure]]]) -> Picture:
    num_lines = len(ratios) + len({figure.section for figure in ratios})
    bars = num_lines * _LINE + 2 * _MARGIN if ratios else 0.0
    num_rows = -(-len(curves) // 2)
    height = bars + num_rows * (_CURVE_HEIGHT + 2 * _MARGIN)
    picture = Picture(figsize=(_WIDTH, height))
    if ratios:
        box = (_LABELS, height - bars + _MARGIN, _WIDTH - _LABELS - _MARGIN, bars - 1.4 * _MARGIN)
        _draw_ratios(_axes(picture, box), ratios)
    panel_width = _WIDTH / 2
    for place, (panel, lines) in enumerate(curves.items()):
        row, column = divmod(place, 2)
        bottom = height - bars - (row + 1) * (_CURVE_HEIGHT + 2 * _MARGIN) + 1.2 * _MARGIN
        box = (column * panel_width + 1.4 * _MARGIN, bottom, panel_width - 2.2 * _MARGIN, _CURVE_HEIGHT)
        _draw_curves(_axes(picture, box), panel, lines)
    return picture


def _axes(picture: Picture, box: tuple[float, float, float, float]) -> Axes:
    """Axes at a place in inches: left, bottom, width, height."""
    width, height = picture.get_size_inches()
    left, bottom, wide, high = box
    axes = picture.add_axes((left / width, bottom / height, wide / width, high / height))
    axes.tick_params(length=3, labelsize=_SMALL)
    return axes


def _draw_ratios(axes: Axes, figures: Sequence[Figure]) -> None:
    """A bar from 1 to the ratio of each, blue where its goal is reached, orange where not; goals as strokes."""
    line, section = 0, ""
    for figure in figures:
        if figure.section != section:
            section = figure.section
            _write_beside(axes, line, section, weight="bold")
            line += 1
        _draw_ratio(axes, line, figure)
        line += 1
    axes.set_ylim(line - 0.4, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    shown = [bound for figure in figures for bound in (figure.ratio, *_ratio_goals(figure), 1) if bound]
    axes.set_xlim(min(shown) / 1.15, max(shown) * (max(shown) / min(shown)) ** 0.4 * 1.5)  # room for the numbers
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    is_wide = max(shown) / min(shown) > _MANY_TIMES
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("ratio to the peer\nblue: goal reached, orange: not, grey: no goal", fontsize=_SMALL)


def _draw_ratio(axes: Axes, line: int, figure: Figure) -> None:
    ratio = figure.ratio or 1.0
    colour = {True: _REACHED, False: _MISSED, None: _PLAIN}[figure.is_reached]
    axes.barh(line, ratio - 1, left=1, height=0.55, color=colour)
    for goal in _ratio_goals(figure):
        axes.plot([goal, goal], [line - 0.42, line + 0.42], color=INK, linewidth=1.6)
    beyond = max(ratio, 1.0, *_ratio_goals(figure))
    aim = f"  (goal {goal_text(figure)})" if _ratio_goals(figure) else ""
    axes.text(beyond * 1.06, line, f"{number(ratio, '')}x{aim}", fontsize=_PEER, va="center")
    _write_beside(axes, line - 0.2, figure.what.strip())
    _write_beside(axes, line + 0.24, f"against {figure.peer}", fontsize=_PEER, color=_PLAIN)


def _ratio_goals(figure: Figure) -> list[float]:
    return [goal for goal in (figure.goal.least_ratio, figure.goal.most_ratio) if goal is not None]


def _write_beside(axes: Axes, line: float, text: str, **style: object) -> None:
    """Text that ends left of the bars, at the height of a line."""
    given = {"fontsize": _SMALL, "va": "center", "ha": "right"} | style
    axes.text(-0.02, line, text, transform=axes.get_yaxis_transform(), **given)  # type: ignore[arg-type]


def _draw_curves(axes: Axes, panel: _Panel, lines: dict[str, list[Figure]]) -> None:
    """Medians against sizes, both logarithmic; time with the straight line it would follow if it were linear."""
    section, unit, x_name = panel
    for (name, figures), colour in zip(lines.items(), _CURVES, strict=False):
        xs = [figure.point.x for figure in figures if figure.point is not None]
        ys = [figure.value or 0.0 for figure in figures]
        axes.plot(xs, ys, color=colour, linewidth=1.4, marker="o", markersize=4, label=name)
        if unit == "s":
            guide = ys[-1] * np.array(xs) / xs[-1]
            axes.plot(xs, guide, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="linear")
    for peer, value in dict.fromkeys((figure.peer, figure.peer_value) for line in lines.values() for figure in line):
        if value is not None:
            axes.axhline(value, color=_PLAIN, linewidth=1, linestyle=(0, (4, 3)), label=peer)
    for goal in sorted({figure.goal.most for line in lines.values() for figure in line if figure.goal.most}):
        axes.axhline(goal, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), label="goal")
    axes.set_xscale("log")
    heights = [figure.value or 0.0 for line in lines.values() for figure in line]
    _set_heights(axes, unit, max(heights), min(heights))
    sizes = sorted({figure.point.x for line in lines.values() for figure in line if figure.point is not None})
    axes.set_xticks(sizes, [_short(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=FAINT, linewidth=0.5)
    axes.set_xlabel(x_name, fontsize=_SMALL)
    axes.set_ylabel(unit, fontsize=_SMALL)
    axes.set_title(f"{section}: {', '.join(lines)}", fontsize=_SMALL, fontweight="bold", loc="left")
    axes.legend(fontsize=_PEER)


def _set_heights(axes: Axes, unit: str, highest: float, lowest: float) -> None:
    """From nothing up; what takes time spans too many sizes for that."""
    if unit == "s":
        axes.set_yscale("log")
        axes.set_ylim(lowest / 1.6, highest * 1.6)
        is_wide = highest / lowest > _MANY_TIMES
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    """12000 as 12k."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
