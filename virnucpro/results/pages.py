"""Report, figures and MultiQC's files of an input: which are there, which calls they show, and how they are renewed.

Each of them holds a mark with the digest of the calls it shows, so that none is taken for a page of other calls.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

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
        from virnucpro.results.multiqc import write_multiqc  # noqa: PLC0415 - its colours come with NumPy

        for path in write_multiqc(run):
            say(path)
    for file_format in wanted.figures:
        from virnucpro.results.figures import write_plots  # noqa: PLC0415 - only then are they needed

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
