"""The page of ``virnucpro evaluate``: one HTML file that loads nothing and runs nothing, in the style of the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from virnucpro import __version__
from virnucpro.atomic import atomic_write
from virnucpro.results.drawing import Canvas
from virnucpro.results.page import PageFigure, Templates
from virnucpro.training.summary import Table, columns_of, length_table, panel_table, percent

_SHADES = ("#9fb8d6", "#7b9cc6", "#5a80b4", "#3a659f", "#1f4a86")
"""From short to long sequences, darker with length."""
_SIZE = (340, 260)


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    text: str
    tables: Sequence[Table]


def write_page(assessment: Mapping[str, Any], path: Path) -> None:
    """Write what ``assess`` returned as a page."""
    templates = Templates("virnucpro.training", "virnucpro.results")
    page = templates.get_template("evaluation.html.j2").render(
        assessment=assessment,
        css=templates.text("report.css"),
        figures=_figures(assessment["lengths"]),
        sections=list(_sections(assessment)),
        version=__version__,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _sections(assessment: Mapping[str, Any]) -> Iterator[Section]:
    lengths, panel = assessment["lengths"], assessment["panel"]
    rates = "A preset's recall is the share of viruses it calls virus, its false positive rate that of hosts."
    yield Section("By length", rates, [length_table(lengths)])
    presets = next(iter(next(iter(lengths.values()))["by_host"].values()))
    hosts = sorted({host for found in lengths.values() for host in found["by_host"]})
    tables = [
        Table(
            f"Preset {preset}",
            columns_of(lengths),
            [
                [host, *(percent(found["by_host"].get(host, {}).get(preset)) for found in lengths.values())]
                for host in hosts
            ],
        )
        for preset in presets
    ]
    yield Section("Host classes", "Share of each class that is called virus.", tables)
    told = "Recall of families at the threshold that 1 % of the hosts reach; those with ten sequences or more."
    rows = [
        [name, "no" if found["is_novel"] else "yes", f"{found['num']:,}", percent(found["recall"])]
        for name, found in lengths["500"]["by_family"].items()
    ]
    table = Table("At 500 bases", ["family", "in training", "sequences", "recall"], rows)
    yield Section("Virus families", told, [table])
    if panel:
        goal = panel["goal"]
        told = (
            f"{panel['num_sequences']:,} sequences that no organism has. Goal: preset {goal['preset']} calls at most "
            f"{percent(goal['highest_share'])} of them virus."
        )
        yield Section("Sequences of no organism", told, [panel_table(panel)])


def _figures(lengths: Mapping[str, Any]) -> list[PageFigure]:
    tenths = [(number / 5, f"{number / 5:g}") for number in range(6)]
    decades = [(number / 3, f"{10.0 ** (number - 3):g}") for number in range(4)]
    upper = [(number / 3, f"{0.4 + number / 5:.1f}") for number in range(4)]
    roc, precision, reliability = (Canvas(_SIZE) for _ in range(3))
    for canvas in (roc, precision, reliability):
        canvas.legend({f"{int(length):,} b": shade for length, shade in zip(lengths, _SHADES, strict=True)})
    for found, shade in zip(lengths.values(), _SHADES, strict=True):
        points = {name: zip(*list(curve.values())[:2], strict=True) for name, curve in found["curves"].items()}
        roc.line([(math.log10(max(rate, 1e-3)) / 3 + 1, recall) for rate, recall in points["roc"]], stroke=shade)
        precision.line([(x, (y - 0.4) / 0.6) for x, y in points["precision_recall"]], stroke=shade)
        reliability.line(points["reliability"], stroke=shade)
    roc.line([(1 / 3, 0), (1 / 3, 1)], stroke="virus", width=0.8, is_dashed=True)
    reliability.line([(0, 0), (1, 1)], stroke="ink", width=0.8, is_dashed=True)
    roc.axes(("false positive rate", "recall"), (decades, tenths))
    precision.axes(("recall", "precision"), (tenths, upper))
    reliability.axes(("p_virus", "share of viruses"), (tenths, tenths))
    drawn = (
        ("ROC", roc, "Share of viruses found by share of hosts called, on a logarithmic scale, by length."),
        ("Precision and recall", precision, "At equal prevalence, by length."),
        ("Reliability", reliability, "Share of viruses by mean probability, in bins of equal weight, by length."),
    )
    return [PageFigure(title, Markup(canvas.svg()), text) for title, canvas, text in drawn]  # noqa: S704 - our own
