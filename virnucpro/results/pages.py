"""Report, figures and MultiQC's files of an input: which are there, which calls they show, and how they are renewed.

Each of them holds a mark with the digest of the calls it shows, so that none is taken for a page of other calls.

For MultiQC counts are written as custom content. It takes one kind of plot from a file, finds it by the ending
``_mqc.json`` of its name and merges files that bear the same ``id``: a report over many runs shows all inputs side by
side.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from virnucpro.atomic import atomic_write, write_json
from virnucpro.results.calls import CALLS
from virnucpro.results.drawing import COLOURS
from virnucpro.results.figures import CALL_TITLES, write_plots
from virnucpro.results.finished import FinishedRun
from virnucpro.run_dir import MULTIQC_SUFFIXES, RunDir

_log = logging.getLogger(__name__)

FIGURES = re.compile(r"(?:scores|lengths|shares|track_\d\d_[A-Za-z0-9._-]*)\.(png|svg|pdf)")
"""Names of figures, with their format."""
_PAGE, _READS = "report.html", "reads.json"
_MARK = re.compile(rb"virnucpro-calls:([0-9a-f]{32})")


@dataclass(frozen=True)
class Pages:
    """Which pages an input has, or is to have."""

    report: bool = False  # the page
    multiqc: bool = False  # the files for MultiQC
    figures: tuple[str, ...] = ()  # their formats

    @classmethod
    def there(cls, root: Path, stem: str) -> Self:
        """Those that are in a directory."""
        folder = RunDir(root)
        formats = {match[1] for path in _figures(root, stem) if (match := FIGURES.fullmatch(path.name))}
        return cls(
            report=folder.result(stem, _PAGE).is_file(),
            multiqc=any(folder.result(stem, suffix).is_file() for suffix in MULTIQC_SUFFIXES),
            figures=tuple(sorted(formats)),
        )


def stale(root: Path, stem: str, digest: str) -> list[Path]:
    """What is there and shows other calls than those of ``digest``: pages, and the reads that took calls."""
    reads = RunDir(root).result(stem, _READS)
    return [path for path in (*_files(root, stem), reads) if path.is_file() and _calls_of(path) != digest]


def renew(run: FinishedRun, wanted: Pages) -> None:
    """Write the pages that are wanted; others of other calls are removed, reads with other calls named."""
    for path in stale(run.root, run.stem, run.calls_digest):
        if path.name.endswith(f".{_READS}"):
            _log.warning("%s: its reads have the calls of before; run virnucpro assign again", path)
        else:
            path.unlink()
            _log.info("%s: removed, it showed other calls", path)
    write_pages(run, wanted)


def write_pages(run: FinishedRun, wanted: Pages, say: Callable[[Path], object] = lambda _: None) -> None:
    """Write the pages that are wanted; ``say`` is told what was written."""
    if wanted.report:
        from virnucpro.results.page import write_report  # noqa: PLC0415 - only then is Jinja needed

        say(write_report(run))
    if wanted.multiqc:
        for path in write_multiqc(run):
            say(path)
    for file_format in wanted.figures:
        say(write_plots(run, file_format))


def _files(root: Path, stem: str) -> list[Path]:
    folder = RunDir(root)
    pages = (folder.result(stem, suffix) for suffix in (_PAGE, *MULTIQC_SUFFIXES))
    return [*(path for path in pages if path.is_file()), *_figures(root, stem)]


def _figures(root: Path, stem: str) -> list[Path]:
    folder = RunDir(root).result(stem, "plots")
    if folder.is_symlink():  # what it leads to is not ours
        return []
    return sorted(path for path in folder.glob("*.*") if FIGURES.fullmatch(path.name))


def _calls_of(path: Path) -> str:
    """Digest of the calls that a page shows; empty if it does not say."""
    found = _MARK.search(path.read_bytes())
    return found[1].decode() if found else ""


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
