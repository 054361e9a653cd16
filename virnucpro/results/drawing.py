"""Figures as a few shapes: drawn once, written as SVG for a page or, by Matplotlib, as a file for a publication."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

COLOURS = {
    "virus": "#c2410c",
    "uncertain": "#b87f00",
    "not_virus": "#2f6fb3",
    "no_call": "#7d8795",
    "ink": "#1f2a37",
    "faint": "#cbd2dc",
    "card": "#ffffff",
}
"""As in the light scheme of the page. Those of calls can be told apart with every common kind of colour blindness: they
differ in lightness or along blue to yellow."""
FORMATS = ("png", "svg", "pdf")
LEFT, RIGHT, TOP, BOTTOM = 60, 10, 10, 38
"""Margins of axes; fixed, so that the axes of figures side by side line up."""

_HEAD = 20
_STRIPE = 0.022  # of the height of axes: some points from stripe to stripe
_FILE_SCALE = 1.4
_FILE_DPI = 300
_POINTS_PER_INCH = 72
_STYLE: Any = {  # Matplotlib's stubs want literal keys
    "font.family": "sans-serif",
    "pdf.fonttype": 42,  # text stays text, which journals ask for
    "svg.fonttype": "none",
    "svg.hashsalt": "virnucpro",  # the same figure is the same file
    "text.parse_math": False,  # a name may hold dollar signs
}
_ANCHORS: dict[str, Literal["left", "center", "right"]] = {"start": "left", "middle": "center", "end": "right"}

Point = tuple[float, float]
Ticks = Sequence[tuple[float, str]]
"""Where ticks are, from 0 to 1 along the axis, and what they say."""


@dataclass(frozen=True)
class Shape:
    """Straight lines from point to point, closed if they are filled."""

    points: Sequence[Point]  # in points (1/72 inch) from the upper left corner
    fill: str = ""  # one of COLOURS, or a colour such as #1f2a37
    stroke: str = ""  # likewise
    width: float = 1.0
    opacity: float = 1.0
    is_dashed: bool = False
    title: str = ""  # what a page shows when the pointer is over it


@dataclass(frozen=True)
class Label:
    """A line of text."""

    place: Point  # of its anchor, on the base line
    text: str
    anchor: str = "middle"
    size: float = 11.0
    is_upright: bool = False  # reads from below


class Canvas:
    """What is drawn: shapes in points, or within axes in coordinates from 0 to 1."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.shapes: list[Shape | Label] = []
        self._head = 0  # room above for a legend or a title
        self._wide, self._high = size[0] - LEFT - RIGHT, size[1] - TOP - BOTTOM

    def axes(self, labels: tuple[str, str], ticks: tuple[Ticks, Ticks]) -> None:
        """Axes from left and below; drawn last, they lie over the rest."""
        width, height = self.size
        bottom = height - BOTTOM
        self.shapes += [
            Shape([(LEFT, TOP), (LEFT, bottom), (width - RIGHT, bottom)], stroke="faint"),
            Label((LEFT + self._wide / 2, height - 5), labels[0], size=12),
            Label((13, TOP + self._high / 2), labels[1], size=12, is_upright=True),
        ]
        for place, text in ticks[0]:
            x, _ = self.at((place, 0))
            self.shapes += [Shape([(x, bottom), (x, bottom + 3)], stroke="faint"), Label((x, bottom + 15), text)]
        for place, text in ticks[1]:
            _, y = self.at((0, place))
            self.shapes += [Shape([(LEFT - 3, y), (LEFT, y)], stroke="faint"), Label((LEFT - 6, y + 4), text, "end")]

    def at(self, place: Point) -> Point:
        """The place in points of one within the axes."""
        return LEFT + min(max(place[0], -0.1), 1.1) * self._wide, TOP + (1 - place[1]) * self._high

    def box(self, x: Point, y: Point, **style: Any) -> None:  # noqa: ANN401 - as of Shape
        """A rectangle within the axes, from ``x[0]`` to ``x[1]``."""
        left, right = (min(max(place, 0.0), 1.0) for place in x)
        if right > left:
            self.line([(left, y[0]), (left, y[1]), (right, y[1]), (right, y[0])], **style)

    def stripes(self, x: Point, y: Point) -> None:
        """Stripes over such a rectangle, by which it is told from others without its colour."""
        left, right = (min(max(place, 0.0), 1.0) for place in x)
        first, last = (math.ceil(place / _STRIPE) for place in y)
        ends = [(left, right) if number % 2 else (right, left) for number in range(first, last)]
        places = [(place, _STRIPE * number) for number, pair in enumerate(ends, first) for place in pair]
        if right > left and places:
            self.line(places, stroke="card", width=0.8)

    def line(self, places: Iterable[Point], **style: Any) -> None:  # noqa: ANN401 - as of Shape
        """Straight lines from place to place within the axes."""
        self.shapes.append(Shape([self.at(place) for place in places], **style))

    def title(self, text: str) -> None:
        """A line above the figure."""
        self._head = _HEAD
        self.shapes.append(Label((LEFT, -6), text, "start", 9))

    def legend(self, colours: Mapping[str, str]) -> None:
        """What colours stand for, in a line above the figure."""
        self._head, x = _HEAD, float(LEFT)
        for text, colour in colours.items():
            self.shapes.append(Shape([(x, -5), (x, -13), (x + 10, -13), (x + 10, -5)], fill=colour))
            if colour == "uncertain":
                self.shapes.append(Shape([(x, -10.5), (x + 10, -10.5), (x + 10, -7.5), (x, -7.5)], stroke="card"))
            self.shapes.append(Label((x + 14, -5), text, "start", 10))
            x += 26 + 5.5 * len(text)

    def svg(self) -> str:
        """An element for a page, which says in words what it shows."""
        width, height = self.size
        box = f"0 {-self._head} {width} {height + self._head}"
        inner = "\n".join(_svg_text(item) if isinstance(item, Label) else _svg_path(item) for item in self.shapes)
        return f'<svg viewBox="{box}" aria-hidden="true" style="fill:var(--ink)">\n{inner}\n</svg>'

    def save(self, path: Path, file_format: str, description: str) -> None:
        """Write a file of one of ``FORMATS``; it holds no date, so that the same figure gives the same bytes."""
        import matplotlib as mpl  # noqa: PLC0415 - takes a second, and a page does without
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.patches import Polygon  # noqa: PLC0415

        width, height = self.size[0], self.size[1] + self._head
        scale = _FILE_SCALE
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=(scale * width / _POINTS_PER_INCH, scale * height / _POINTS_PER_INCH))
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set(xlim=(0, width), ylim=(height - self._head, -self._head))
            axes.axis("off")
            for item in self.shapes:
                if isinstance(item, Label):
                    axes.text(
                        *item.place,
                        item.text,
                        fontsize=item.size * scale,
                        color=COLOURS["ink"],
                        ha=_ANCHORS[item.anchor],
                        rotation=90 if item.is_upright else 0,
                        rotation_mode="anchor",
                    )
                else:
                    shape = Polygon(
                        item.points,
                        closed=bool(item.fill),
                        facecolor=COLOURS.get(item.fill, item.fill or "none"),
                        edgecolor=COLOURS.get(item.stroke, item.stroke or "none"),
                        linewidth=item.width * scale,
                        linestyle=(0, (4, 3)) if item.is_dashed else "-",
                        alpha=item.opacity,
                    )
                    axes.add_patch(shape)
            figure.savefig(
                path,
                format=file_format,
                dpi=_FILE_DPI,
                facecolor=COLOURS["card"],
                metadata=_metadata(file_format, description),
            )


def nice_step(least: float) -> float:
    """Between ticks: the smallest of 1, 2, 5, 10 ... times a power of ten that is not less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _metadata(file_format: str, description: str) -> dict[str, str | None]:
    """What is said of a figure, and nothing of when and with what it was made."""
    unsaid = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate")}
    named = dict.fromkeys(unsaid.get(file_format, ("Date", "Creator", "Format", "Type")))
    return named | {"Subject" if file_format == "pdf" else "Description": description}


def _svg_path(shape: Shape) -> str:
    path = "L".join(f"{x:.6g} {y:.6g}" for x, y in shape.points) + ("Z" if shape.fill else "")
    style = f"fill:{variable(shape.fill)}"
    if shape.stroke:
        style += f";stroke:{variable(shape.stroke)};stroke-width:{shape.width:g}"
    if shape.is_dashed:
        style += ";stroke-dasharray:4 3"
    if shape.opacity < 1:
        style += f";opacity:{shape.opacity:g}"
    inner = f"><title>{escape(shape.title)}</title></path>" if shape.title else "/>"
    return f'<path d="M{path}" style="{style}"{inner}'


def _svg_text(label: Label) -> str:
    x, y = label.place
    place = f'x="{x:.6g}" y="{y:.6g}"'
    if label.is_upright:
        place = f'transform="translate({x:.6g} {y:.6g}) rotate(-90)"'
    return f'<text {place} text-anchor="{label.anchor}" font-size="{label.size:g}">{escape(label.text)}</text>'


def variable(colour: str) -> str:
    """A colour as the style sheet of the page names it, which has one for light and one for dark schemes."""
    return f"var(--{colour.replace('_', '-')})" if colour in COLOURS else colour or "none"
