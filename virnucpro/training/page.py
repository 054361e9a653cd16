"""The page of ``virnucpro evaluate``: one HTML file that loads nothing and runs nothing, in the style of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from virnucpro import __version__
from virnucpro.results import plots
from virnucpro.results.figures import CALL_COLOURS
from virnucpro.results.page import PageFigure
from virnucpro.run_dir import atomic_write

_SHADES = ("#9fb8d6", "#7b9cc6", "#5a80b4", "#3a659f", "#1f4a86")
"""From short to long sequences, darker with length."""
_VARIABLES = {
    CALL_COLOURS["virus"]: "var(--virus)",
    plots.INK: "var(--ink)",
    plots.FAINT: "var(--faint)",
    plots.PAPER: "var(--card)",
}
_SIZE_INCHES = (4.7, 3.6)


@dataclass(frozen=True)
class Table:
    """A table of text; the first cell of a row names it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    text: str
    tables: Sequence[Table]


def write_page(assessment: Mapping[str, Any], path: Path) -> None:
    """Write what ``assess`` returned as a page."""
    loader = jinja2.ChoiceLoader(
        [jinja2.PackageLoader("virnucpro.training"), jinja2.PackageLoader("virnucpro.results")]
    )
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["count"] = lambda value: f"{value:,}"
    css = loader.get_source(environment, "report.css")[0]
    page = environment.get_template("evaluation.html.j2").render(
        assessment=assessment,
        css=Markup(css),  # noqa: S704 - our own file
        figures=_figures(assessment["lengths"]),
        sections=list(_sections(assessment)),
        version=__version__,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _sections(assessment: Mapping[str, Any]) -> Iterator[Section]:
    lengths, panel = assessment["lengths"], assessment["panel"]
    rates = "A preset's recall is the share of viruses it calls virus, its false positive rate that of hosts."
    yield Section("By length", rates, [_length_table(lengths)])
    presets = next(iter(next(iter(lengths.values()))["by_host"].values()))
    tables = [_host_table(lengths, preset) for preset in presets]
    yield Section("Host classes", "Share of each class that is called virus.", tables)
    told = "Recall of families at the threshold that 1 % of the hosts reach; those with ten sequences or more."
    yield Section("Virus families", told, [_family_table(lengths["500"]["by_family"])])
    if panel:
        goal = panel["goal"]
        told = (
            f"{panel['num_sequences']:,} sequences that no organism has. Goal: preset {goal['preset']} calls at most "
            f"{_percent(goal['highest_share'])} of them virus."
        )
        yield Section("Sequences of no organism", told, [_panel_table(panel)])


def _length_table(lengths: Mapping[str, Any]) -> Table:
    titles = {
        "auroc": "AUROC",
        "auroc_novel": "AUROC, novel families",
        "auroc_seen": "AUROC, seen families",
        "average_precision": "average precision",
        "recall_at_1_percent_fpr": "recall at 1 % false positives",
        "calibration_error": "expected calibration error",
        "num_unscored": "sequences without a score",
        "num_sequences": "sequences",
    }
    rows = [[title, *(f"{found[name]:,}" for found in lengths.values())] for name, title in titles.items()]
    for name in ("average_precision", "recall_at_1_percent_fpr"):
        for kind in ("novel", "seen"):
            cells = (found["by_virus"].get(kind, {}).get(name, "NA") for found in lengths.values())
            rows.append([f"{titles[name]}, {kind} families", *map(str, cells)])
    for preset in next(iter(lengths.values()))["presets"]:
        for name, title in (("recall", "recall"), ("fpr", "false positive rate")):
            cells = (_percent(found["presets"][preset][name]) for found in lengths.values())
            rows.append([f"{preset}: {title}", *cells])
    return Table("Figures of merit at equal prevalence", _columns(lengths), rows)


def _host_table(lengths: Mapping[str, Any], preset: str) -> Table:
    hosts = sorted({host for found in lengths.values() for host in found["by_host"]})
    return Table(
        f"Preset {preset}",
        _columns(lengths),
        [
            [host, *(_percent(found["by_host"].get(host, {}).get(preset)) for found in lengths.values())]
            for host in hosts
        ],
    )


def _family_table(families: Mapping[str, Any]) -> Table:
    rows = [
        [name, "no" if found["is_novel"] else "yes", f"{found['num']:,}", _percent(found["recall"])]
        for name, found in families.items()
    ]
    return Table("At 500 bases", ["family", "in training", "sequences", "recall"], rows)


def _panel_table(panel: Mapping[str, Any]) -> Table:
    presets = panel["presets"].values()
    rows = [["all", *(_percent(found["called_virus"]) for found in presets)]]
    kinds = next(iter(presets))["by_kind"]
    rows += [[kind.replace("_", " "), *(_percent(found["by_kind"][kind]) for found in presets)] for kind in kinds]
    rows += [
        [f"{length:,} bases", *(_percent(found["by_length"][str(length)]) for found in presets)]
        for length in panel["lengths_nt"]
    ]
    return Table("Share called virus", ["kind", *panel["presets"]], rows)


def _columns(lengths: Mapping[str, Any]) -> list[str]:
    return ["bases", *(f"{int(length):,}" for length in lengths)]


def _percent(share: float | None) -> str:
    return "NA" if share is None else f"{100 * share:.2f} %"


def _figures(lengths: Mapping[str, Any]) -> list[PageFigure]:
    drawn = (
        ("ROC", _roc, "Share of viruses found by share of hosts called, on a logarithmic scale, by length."),
        ("Precision and recall", _precision, "At equal prevalence, by length."),
        ("Reliability", _reliability, "Share of viruses by mean probability, in bins of equal weight, by length."),
    )
    with plots.page_style():
        return [PageFigure(title, _svg(draw, lengths, title), text) for title, draw, text in drawn]


def _svg(draw: Callable[[Axes, Mapping[str, Any]], None], lengths: Mapping[str, Any], title: str) -> Markup:
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    draw(axes, lengths)
    axes.legend(title="bases", fontsize=9, title_fontsize=9)
    name = title.split(maxsplit=1)[0].lower()
    return Markup(plots.svg_of(figure, name, _VARIABLES))  # noqa: S704 - Matplotlib escapes the text in it


def _roc(axes: Axes, lengths: Mapping[str, Any]) -> None:
    for (length, figures), shade in zip(lengths.items(), _SHADES, strict=True):
        curve = figures["curves"]["roc"]
        axes.plot(curve["fpr"], curve["recall"], color=shade, label=f"{int(length):,}")
    axes.axvline(0.01, color=CALL_COLOURS["virus"], linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set(xscale="log", xlim=(1e-3, 1), ylim=(0, 1), xlabel="false positive rate", ylabel="recall")


def _precision(axes: Axes, lengths: Mapping[str, Any]) -> None:
    for (length, figures), shade in zip(lengths.items(), _SHADES, strict=True):
        curve = figures["curves"]["precision_recall"]
        axes.plot(curve["recall"], curve["precision"], color=shade, label=f"{int(length):,}")
    axes.set(xlim=(0, 1), ylim=(0.45, 1.01), xlabel="recall", ylabel="precision")


def _reliability(axes: Axes, lengths: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color=plots.INK, linewidth=0.8, linestyle=(0, (4, 3)))
    for (length, figures), shade in zip(lengths.items(), _SHADES, strict=True):
        curve = figures["curves"]["reliability"]
        axes.plot(
            curve["p_virus"], curve["share_virus"], color=shade, marker="o", markersize=3, label=f"{int(length):,}"
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="p_virus", ylabel="share of viruses")
