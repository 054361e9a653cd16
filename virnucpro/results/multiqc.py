"""Counts of a run for MultiQC, as custom content.

MultiQC takes one kind of plot from a file and merges files that bear the same ``id``: an input has one file for the
bars of calls and one for its columns in the general statistics, and a report over many runs shows all inputs side by
side. Found by MultiQC through the ending ``_mqc.json`` of their names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from virnucpro.atomic import atomic_write, write_json
from virnucpro.results.drawing import COLOURS
from virnucpro.results.figures import CALL_TITLES
from virnucpro.results.finished import FinishedRun
from virnucpro.results.overview import CALLS
from virnucpro.run_dir import MULTIQC_SUFFIXES

_DESCRIPTION = "tells which sequences of a metagenome are viral, from nucleotide and protein language models."


def _column(title: str, description: str, scale: str = "Oranges", *, is_percent: bool = False) -> dict[str, object]:
    """A column of the general statistics."""
    head = {"title": title, "description": description}
    if is_percent:
        return {**head, "suffix": "%", "format": "{:,.1f}", "scale": scale, "min": 0, "max": 100}
    return {**head, "format": "{:,.0f}", "scale": scale, "min": 0}


_STATISTICS = {
    "num_sequences": _column("Sequences", "Sequences that were read", "Greys"),
    "percent_virus": _column("% virus", "Share of sequences called virus", is_percent=True),
    "num_proviruses": _column("Proviruses", "Viral parts of longer sequences"),
    "percent_viral_bases": _column(
        "% viral bases", "Share of all bases that lie in whole viruses or in proviruses", is_percent=True
    ),
    "bases_virus": _column("Bases virus", "Bases in sequences called virus"),
}


def write_multiqc(run: FinishedRun) -> list[Path]:
    """Write bars, columns and the version that made them: ``<stem>.`` and each of ``MULTIQC_SUFFIXES``."""
    bars, columns, versions = (run.path(suffix) for suffix in MULTIQC_SUFFIXES)
    for path, content in ((bars, _calls(run.stem, run.summary)), (columns, _statistics(run.stem, run.summary))):
        write_json(path, content | {"calls": run.calls_mark})
    version = run.record.get("called", run.record).get("version", "unknown")
    with atomic_write(versions) as temporary:
        temporary.write_text(f"# {run.calls_mark}\nVirNucPro: {json.dumps(str(version))}\n", encoding="utf-8")
    return [bars, columns, versions]


def _calls(stem: str, summary: dict[str, Any]) -> dict[str, object]:
    """The bars."""
    calls = summary["sequences_by_call"]
    return {
        "id": "virnucpro_calls",
        "parent_id": "virnucpro",
        "parent_name": "VirNucPro",
        "parent_description": _DESCRIPTION,
        "section_name": "Calls",
        "description": "Sequences by call.",
        "plot_type": "bargraph",
        "pconfig": {"id": "virnucpro_calls_plot", "title": "VirNucPro: calls", "ylab": "Sequences"},
        "categories": {call: {"name": CALL_TITLES[call], "color": COLOURS[call]} for call in CALLS},
        "data": {stem: {call: calls.get(call, 0) for call in CALLS}},
    }


def _statistics(stem: str, summary: dict[str, Any]) -> dict[str, object]:
    """The columns of the general statistics."""
    total, num_bases = summary["num_sequences"], summary["num_bases"]
    viral = sum(summary["bases_by_region_kind"].values())
    values = {
        "num_sequences": total,
        "num_proviruses": summary["regions_by_kind"]["provirus"],
        "percent_viral_bases": 100 * viral / num_bases if num_bases else 0.0,
        "percent_virus": 100 * summary["sequences_by_call"]["virus"] / total if total else 0.0,
        "bases_virus": summary["bases_by_call"]["virus"],
    }
    return {
        "id": "virnucpro_stats",
        "plot_type": "generalstats",
        "namespace": "VirNucPro",
        "headers": _STATISTICS,
        "data": {stem: values},
    }
