"""The report: one page of HTML that shows what a run found and how it was made.

The page stands alone: it loads nothing and runs nothing but the few lines that filter its list, which its content
security policy names by their digest. Names of sequences and files are foreign text: the template escapes whatever is
put into it.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import math
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from virnucpro import __version__
from virnucpro.atomic import atomic_write
from virnucpro.citation import Citation, methods_sentence, parse_cff, read_cff
from virnucpro.results import figures
from virnucpro.results.calls import CALLS
from virnucpro.results.counts import Overview
from virnucpro.results.drawing import Canvas, variable
from virnucpro.results.figures import (
    CALL_TITLES,
    bases,
    lengths_text,
    percent,
    probability,
    scores_text,
    share_text,
    shares_text,
    track_text,
)
from virnucpro.results.finished import FinishedRun
from virnucpro.results.schema import CASCADE, SEQUENCES, Table

_log = logging.getLogger(__name__)

_NAME_LETTERS = 120
_NOT_OF_AN_INPUT = ("source", "stem", "first_sequence")  # said elsewhere, or of the run's own use

STATUS_MEANINGS = {
    "ok": "scored",
    "empty": "holds no bases",
    "too_short": "shorter than the model needs",
    "ambiguous": "too few bases are A, C, G or T",
    "repetitive": "repeat themselves",
    "no_open_frame": "this model needs an open reading frame",
    "failed": "some rows could not be computed",
}
"""Status to what it means, for the table of counts."""


class PageFigure(NamedTuple):
    """A figure with its title and what it shows in words."""

    title: str | bytes
    svg: Markup
    text: str


def write_report(run: FinishedRun, output: Path | None = None) -> Path:
    """Write the report of one input of a finished run.

    Args:
        run: the input.
        output: where to; ``<stem>.report.html`` next to its results if None.

    Returns:
        where it is.
    """
    shown = run.overview
    path = output or run.path("report.html")
    with atomic_write(path) as temporary:
        temporary.write_bytes(_render(run, shown).encode("utf-8", "backslashreplace"))  # a file may have any name
    _log.info("%s: %s sequences, %d tracks", path, f"{shown.counts.num_sequences:,}", len(shown.tracks))
    return path


def short_name(name: str | bytes) -> str:
    """A name to be read: bytes that are no UTF-8 and characters that show nothing as escapes, the middle left out."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    half = _NAME_LETTERS // 2
    if len(text) > _NAME_LETTERS:
        text = f"{text[:half]}…{text[-half:]}"
    return "".join(letter if _is_visible(letter) else f"\\u{ord(letter):04x}" for letter in text)


def _is_visible(letter: str) -> bool:
    """Neither a control nor a mark that turns the direction of the text around it."""
    return unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn")


class Templates(jinja2.Environment):
    """Those of some packages; what is put into them is escaped."""

    def __init__(self, *packages: str) -> None:
        super().__init__(
            loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in packages]),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
        )
        self.filters |= {
            "bases": bases,
            "count": lambda value: f"{value:,}",
            "percent": percent,
            "probability": probability,
            "short_name": short_name,
        }

    def text(self, name: str) -> Markup:
        """A file of ours as it is."""
        assert self.loader is not None  # noqa: S101 - for mypy: it is given above
        return Markup(self.loader.get_source(self, name)[0])  # noqa: S704 - our own file


def _render(run: FinishedRun, tally: Overview) -> str:
    templates = Templates("virnucpro.results")
    works = parse_cff(read_cff())
    started = run.record.get("started")
    script = templates.text("filter.js")
    return templates.get_template("report.html.j2").render(
        _run_facts(run)
        | {
            "css": templates.text("report.css"),
            "script": script,
            "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            "run": run,
            "started": datetime.fromisoformat(started) if started else None,
            "version": __version__,
            "tally": tally,
            "calls": {call: CALL_TITLES[call] for call in CALLS},
            "colour": variable,
            "share_text": share_text,
            "statuses": {name: number for name, number in tally.counts.statuses.items() if number},
            "status_meanings": STATUS_MEANINGS,
            "cascade": run.summary.get("cascade", {}),
            "figures": _figures(tally, run.thresholds),
            "tracks": [
                _figure(track.line.name, figures.track_figure(track), track_text(track)) for track in tally.tracks
            ],
            "gene_maps": [
                _figure(shown.name, figures.map_figure(shown), figures.map_text(shown))
                for shown in figures.gene_maps(run.results, tally)
            ],
            "sunburst": _sunburst(run),
            "has_fdr": any(not math.isnan(hit.fdr) for hit in tally.listed),
            "methods": _methods(run, works),
            "references": [work.text for work in (works.method, works.software, *works.of_encoders(_kinds(run)))],
            "columns": _columns(CASCADE if "cascade" in run.summary else SEQUENCES),
        }
    )


def _sunburst(run: FinishedRun) -> Sequence[tuple[Any, ...]] | None:
    """Views of which viruses the hits are; None if nobody asked."""
    path = run.path("taxonomy.counts.tsv")
    if not path.is_file():
        return None
    from virnucpro.results import sunburst  # noqa: PLC0415 - it needs the taxonomy, which most pages do without

    return sunburst.views(sunburst.read_counts(path))


def _columns(table: Table) -> dict[str, str]:
    """What each column of the table of sequences means, with the values it may hold."""
    return {
        column.name: f"{column.meaning} ({', '.join(map(str, column.values))})" if column.values else column.meaning
        for column in table.columns
    }


def _figures(tally: Overview, thresholds: Sequence[float]) -> list[PageFigure]:
    if not tally.counts.num_sequences:
        return []
    return [
        _figure("Distribution of scores", figures.score_figure(tally, thresholds), scores_text(tally, thresholds)),
        _figure("Calls by length", figures.length_figure(tally), lengths_text(tally)),
        _figure("Share of calls by length", figures.share_figure(tally), shares_text(tally)),
    ]


def _figure(title: str | bytes, drawn: Canvas, text: str) -> PageFigure:
    return PageFigure(title, Markup(drawn.svg()), text)  # noqa: S704 - our own, which escapes text


def _run_facts(run: FinishedRun) -> dict[str, object]:
    """What the page says of how the run was made; parts that its record lacks stay empty."""
    record = run.record
    seconds, cascade = dict(record.get("seconds", {})), record.get("cascade", {})
    seconds |= {f"{stage}, first model": took for stage, took in cascade.get("seconds", {}).items()}
    total = float(seconds.pop("total", sum(seconds.values())))
    return {
        "command": short_command(record.get("command", [])),
        "warnings": _warnings(run),
        "total_seconds": total,
        "stages": seconds,
        "fact_groups": {
            "Input": _facts({"file": run.summary.get("input", run.stem)} | run.input, leave_out=_NOT_OF_AN_INPUT),
            "Model": _facts(_model_facts(run)),
            "Settings": _facts(record.get("parameters", {})),
            "Machine": _facts(record.get("hardware", {})),
            "Versions": _facts({"virnucpro": record.get("version", "unknown")} | record.get("versions", {})),
        },
    }


def _warnings(run: FinishedRun) -> list[str]:
    """Those of the run record, and rows that were lost."""
    num_failed = run.summary.get("num_rows_failed", 0)
    lost = [f"{num_failed:,} rows could not be computed; {run.stem}.failed.tsv lists them."] if num_failed else []
    return [*lost, *run.record.get("warnings", [])]


def short_command(words: Sequence[str]) -> str:
    """A command as it would be typed: the program by its name, also where it was started as a module."""
    return shlex.join(["virnucpro", *words[1:]]) if words else ""


def _model_facts(run: FinishedRun) -> dict[str, Any]:
    model, cascade = run.record.get("model", {}), run.summary.get("cascade", {})
    first = {{"first": "name", "first_fingerprint": "fingerprint"}.get(name, name): cascade[name] for name in cascade}
    return {
        "name": run.summary.get("model"),
        "fingerprint": run.summary.get("model_fingerprint"),
        **{f"{role} encoder": kind for role, kind in model.get("encoders", {}).items()},
        **model.get("files", {}),
        **{f"looked first: {name}": value for name, value in first.items() if not isinstance(value, dict)},
    }


def _facts(values: Mapping[str, Any], leave_out: Sequence[str] = ()) -> dict[str, str]:
    """Values as text; those that say nothing are left out."""
    facts = {}
    for name, value in values.items():
        if isinstance(value, list):
            text = ", ".join(map(str, value))
        else:
            text = f"{value:,}" if isinstance(value, int) and name.startswith("num_") else str(value)
        if name not in leave_out and value is not None and text:
            facts[name.replace("_", " ")] = text
    return facts


def _methods(run: FinishedRun, works: Citation) -> str:
    name = str(run.summary.get("model", "unknown"))
    kind = {"lite": "its bundled model", "300": "the published model", "500": "the published model"}
    length = run.record.get("parameters", {}).get("fragment_length")
    fragments = f", on fragments of {length} bases" if length else ""
    fingerprint = str(run.summary.get("model_fingerprint", "unknown"))[:16]
    return methods_sentence(
        works,
        version=str(run.record.get("version", __version__)),
        model=f"{kind.get(name, 'the model')} {name} (fingerprint {fingerprint}){fragments}",
        kinds=_kinds(run),
        rule=_rule(run),
    ) + _first_sentence(run)


def _first_sentence(run: FinishedRun) -> str:
    """What a cascade adds to the Methods section; nothing for other runs."""
    cascade = run.summary.get("cascade")
    if cascade is None:
        return ""
    first = f"{cascade['first']} (fingerprint {cascade['first_fingerprint'][:16]})"
    return (
        f" Model {first} looked at all sequences first and decided those to which it gave a calibrated probability at "
        f"equal prevalence below {cascade['low']:g} or above {cascade['high']:g}."
    )


def _rule(run: FinishedRun) -> str:
    """When a sequence was called viral, as the end of a sentence."""
    fdr, preset, limits = run.summary.get("fdr"), run.summary.get("preset"), run.limits
    uncertain = f", from {limits[0]:g} uncertain" if len(limits) > 1 else ""
    if fdr is not None:
        rule = f"sequences were called viral up to an estimated false discovery rate of {fdr:g}"
    elif not limits:
        rule = "sequences were called viral at the default setting"
    elif preset:
        limit = f"calibrated probability at equal prevalence of {limits[-1]:g} or more"
        rule = f"sequences were called viral by the preset {preset} ({limit}{uncertain})"
    else:
        rule = f"sequences with a calibrated probability of {limits[-1]:g} or more were called viral{uncertain}"
    return f"{rule}; probabilities are for {run.results.prevalence.sentence()}"


def _kinds(run: FinishedRun) -> list[str]:
    """Kinds of the encoders that the run used."""
    return list(run.record.get("model", {}).get("encoders", {}).values())
