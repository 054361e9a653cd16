"""All sections, and the record of the machine they ran on."""

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

from benchmarks import duplicates, encoders, extraction, gpu, memory, program, results, scaling
from benchmarks.made_models import MADE_MODELS
from benchmarks.measure import Figure, Settings
from benchmarks.record import Record
from benchmarks.tables import open_console, section_table
from virnucpro import __version__
from virnucpro.bundles import load_bundle
from virnucpro.resources import available_cpus

SECTIONS: dict[str, Callable[[Settings], Iterator[Figure]]] = {
    extraction.SECTION: extraction.measure,
    encoders.SECTION: encoders.measure,
    results.SECTION: results.measure,
    scaling.SECTION: scaling.measure,
    program.SECTION: program.measure,
    duplicates.SECTION: duplicates.measure,
    memory.SECTION: memory.measure,
    gpu.SECTION: gpu.measure,
}

_PACKAGES = (
    *("torch", "numpy", "numba", "h5py", "safetensors", "tokenizers", "xxhash"),
    *("fair-esm", "transformers", "biopython"),
)
_WITH_MODEL = {scaling.SECTION, program.SECTION, duplicates.SECTION, memory.SECTION}


def run(settings: Settings, only: Sequence[str], output: Path | None) -> Record:
    """Measure the sections named; after each, print its table. The record is written after each figure.

    Args:
        settings: what is measured.
        only: names of sections.
        output: JSON file, or None.

    Returns:
        the record of all.

    Raises:
        ModelError: a section needs a model that is not there; found before anything is measured.
    """
    if settings.model not in MADE_MODELS and not _WITH_MODEL.isdisjoint(only):
        load_bundle(settings.model)
    console = open_console()
    context = _context(settings)
    record = Record(context, ())
    for name in only:
        measured: list[Figure] = []
        for figure in SECTIONS[name](settings):
            measured.append(figure)
            record = Record(context | {"load_at_end": _load()}, (*record.figures, figure))
            if output is not None:
                record.write(output)
        console.print(section_table(name, measured))
    return record


def commit() -> str | None:
    """The commit this package lies in, ``-dirty`` where files differ from it; None outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    described = subprocess.run(
        [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"],
        check=False,
        capture_output=True,
        text=True,
    )
    return described.stdout.strip() or None


def _context(settings: Settings) -> dict[str, Any]:
    """What the figures depend on: program, machine and settings."""
    return {
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
