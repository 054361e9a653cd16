"""The record of a run: what was asked, by what and on what it was done, and what came out."""

from __future__ import annotations

import platform
import socket
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from virnucpro import __version__
from virnucpro.encoders import read_config
from virnucpro.encoders.device import available_cpus
from virnucpro.report.calls import Calling
from virnucpro.request import Request
from virnucpro.stages import write
from virnucpro.stages.base import Index, Run

_LIBRARIES = ("torch", "numpy", "numba", "h5py", "safetensors", "tokenizers")


def run_record(
    run: Run, index: Index, request: Request, devices: list[str], counts: list[write.Counts], started: datetime
) -> dict[str, Any]:
    """The run record: enough to repeat the run and to check its results."""
    total = write.total(counts)
    config = request.config
    seconds = (datetime.now(UTC) - started).total_seconds()
    return {
        "schema": 1,
        "program": "virnucpro",
        "version": __version__,
        "command": sys.argv,
        "started": started.isoformat(timespec="seconds"),
        "request": request.as_record(),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _LIBRARIES}},
        "hardware": {
            "host": socket.gethostname(),
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cpus": available_cpus(),
            "devices": devices,
        },
        "parameters": {
            **asdict(replace(config.science, model=run.bundle.name)),
            "fragment_length": run.fragment_length,
            "dtype": run.dtype,
            **Calling.from_settings(config.science).described(run.rules),
            **asdict(config.layout),
            **asdict(config.runtime),
        },
        "model": {
            "name": run.bundle.name,
            "fingerprint": run.bundle.fingerprint,
            "files": {role: f"sha256:{digest}" for role, digest in run.bundle.digests.items()},
            "encoders": {role: read_config(run.bundle.encoder(role)).kind for role in ("nucleotide", "protein")},
        },
        "inputs": [asdict(item) for item in index.inputs],
        "counts": {
            "num_units": len(index.units),
            "num_sequences": index.num_sequences,
            "num_fragments": index.num_fragments,
            "num_rows": index.num_rows,
            "num_rows_computed": sum(unit.num_sources for unit in index.units),
            **{name: value for name, value in asdict(total).items() if isinstance(value, dict)},
        },
        "outputs": write.output_digests(run.dir, index),
        "seconds": {"total": round(seconds, 3), **{k: round(v, 3) for k, v in run.reporter.seconds.items()}},
    }
