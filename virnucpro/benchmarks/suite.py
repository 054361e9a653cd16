"""All sections, the table they make and the record of the machine they ran on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from virnucpro import __version__
from virnucpro.benchmarks import encoders, extraction, program, results, scaling
from virnucpro.benchmarks.measure import Figure, Settings
from virnucpro.bundles import load_bundle
from virnucpro.encoders.device import available_cpus
from virnucpro.run_dir import write_json

SECTIONS: dict[str, Callable[[Settings], Iterator[Figure]]] = {
    extraction.SECTION: extraction.measure,
    encoders.SECTION: encoders.measure,
    results.SECTION: results.measure,
    scaling.SECTION: scaling.measure,
    program.PREDICT: program.measure_predict,
    program.MEMORY: program.measure_memory,
}

_PACKAGES = ("torch", "numpy", "numba", "h5py", "safetensors", "tokenizers", "xxhash", "fair-esm", "biopython")
_WIDTH_WITHOUT_TERMINAL = 180


def run(settings: Settings, only: Sequence[str], output: Path | None) -> None:
    """Measure the sections named; after each, print its table and write the record of all so far.

    Args:
        settings: what is measured.
        only: names of sections.
        output: JSON file, or None.

    Raises:
        ModelError: a section needs a model that is not there; found before anything is measured.
    """
    if program.PREDICT in only or program.MEMORY in only:
        load_bundle(settings.model)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_WITHOUT_TERMINAL)
    context = _context(settings)
    figures: list[Figure] = []
    for name in only:
        measured = list(SECTIONS[name](settings))
        console.print(table(name, measured))
        figures += measured
        if output is not None:
            write_json(
                output, context | {"load_at_end": _load(), "figures": [_as_record(figure) for figure in figures]}
            )


def table(section: str, figures: Sequence[Figure]) -> Table:
    """A section as a table: ours, the peer, their ratio, and the goal beside them."""
    shown = Table(title=f"{section} (medians)", title_justify="left")
    shown.add_column("what")
    shown.add_column("figure", justify="right")
    shown.add_column("against")
    shown.add_column("its figure", justify="right")
    shown.add_column("ratio", justify="right")
    shown.add_column("goal", justify="right")
    shown.add_column("reached")
    shown.add_column("max diff", justify="right")
    shown.add_column("runs", justify="right")
    shown.add_column("note")
    for figure in figures:
        shown.add_row(
            figure.what,
            _number(figure.value, figure.unit),
            figure.peer,
            _number(figure.peer_value, figure.unit),
            "" if figure.ratio is None else f"{figure.ratio:,.2f}x",
            _goal(figure),
            {None: "", True: "yes", False: "no"}[figure.is_reached],
            _difference(figure),
            str(len(figure.values) or ""),
            figure.note,
        )
    return shown


def commit() -> str | None:
    """The commit this package lies in, ``-dirty`` where files differ from it; None outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    described = subprocess.run(  # noqa: S603 - a fixed command
        [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"],
        check=False,
        capture_output=True,
        text=True,
    )
    return described.stdout.strip() or None


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:,.3g} {unit}"


def _goal(figure: Figure) -> str:
    goal = figure.goal
    parts = [
        *(f">= {value:,g} {figure.unit}" for value in [goal.least] if value is not None),
        *(f"<= {value:,g} {figure.unit}" for value in [goal.most] if value is not None),
        *(f">= {value:,g}x" for value in [goal.least_ratio] if value is not None),
        *(f"<= {value:,g}x" for value in [goal.most_ratio] if value is not None),
    ]
    return ", ".join(parts)


def _difference(figure: Figure) -> str:
    if figure.max_difference is None:
        return ""
    return f"{figure.max_difference:.1g}" + ("" if figure.agrees is not False else f" (> {figure.tolerance:g})")


def _as_record(figure: Figure) -> dict[str, Any]:
    return asdict(figure) | {
        "value": figure.value,
        "peer_value": figure.peer_value,
        "agrees": figure.agrees,
        "is_reached": figure.is_reached,
    }


def _context(settings: Settings) -> dict[str, Any]:
    """What the figures depend on: program, machine and settings."""
    return {
        "schema": 1,
        "program": "virnucpro",
        "version": __version__,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "settings": asdict(settings),
    }


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "system": platform.platform(),
        "cpus": available_cpus(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_at_start": _load(),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _load() -> list[float]:
    """Processes that ran or waited to, over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
