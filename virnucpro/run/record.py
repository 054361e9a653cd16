"""The record of a run: what was asked, by what and on what it was done, and what came out.

It is written at the end of a run, and read to repeat it.
"""

from __future__ import annotations

import platform
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from virnucpro import __version__
from virnucpro.atomic import read_json
from virnucpro.bundles import Bundle, load_bundle
from virnucpro.encoders import read_config
from virnucpro.errors import InputError, ModelError, StoreError, UsageError
from virnucpro.request import Request
from virnucpro.resources import available_cpus
from virnucpro.results import counts as counting
from virnucpro.results.calls import Calling
from virnucpro.results.counts import Counts
from virnucpro.sequence.streams import digest_of
from virnucpro.settings import Science
from virnucpro.stages import embed, write
from virnucpro.stages.base import ROLES, Index, Run
from virnucpro.stages.cascade import FirstLook

_LIBRARIES = ("torch", "numpy", "numba", "h5py", "safetensors", "tokenizers", "pysam", "xxhash", "isal")
_ENDING = ".run.json"


def run_record(
    run: Run, index: Index, request: Request, devices: list[str], counts: list[Counts], started: datetime
) -> dict[str, Any]:
    """The run record: enough to repeat the run and to check its results."""
    total = counting.total(counts)
    settings = request.settings
    seconds = (datetime.now(UTC) - started).total_seconds()
    return {
        "schema": 1,
        "program": "virnucpro",
        "version": __version__,
        "command": sys.argv,
        "directory": str(Path.cwd()),
        "started": started.isoformat(timespec="seconds"),
        "request": request.as_record(),
        "versions": _versions(),
        "hardware": {
            "host": socket.gethostname(),
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cpus": available_cpus(),
            "devices": devices,
            "computed_on": [note for model in run.dir.models for note in embed.notes(model)],
        },
        "parameters": {
            **_science(settings.science, run),
            "fragment_length": run.fragment_length,
            "dtype": run.dtype,
            **Calling.from_settings(settings.science).described(run.rules),
            **asdict(settings.layout),
            **asdict(settings.runtime),
        },
        "model": _model(run.bundle),
        "inputs": [asdict(item) for item in index.inputs],
        "counts": {
            "num_units": len(index.units),
            "num_sequences": index.num_sequences,
            "num_fragments": index.num_fragments,
            "num_rows": index.num_rows,
            "num_rows_computed": sum(unit.num_sources for unit in index.units),
            **{name: value for name, value in asdict(total).items() if isinstance(value, dict) and value},
        },
        "outputs": write.output_digests(run.dir, index.inputs),
        "seconds": {"total": round(seconds, 3), **{k: round(v, 3) for k, v in run.reporter.seconds.items()}},
    }


def first_record(look: FirstLook) -> dict[str, Any]:
    """What the record of a cascade holds of the model that looked first."""
    return {
        "model": _model(look.model.bundle),
        **look.model.limits._asdict(),
        "num_units": len(look.index.units),
        "num_fragments": look.index.num_fragments,
        "num_rows": look.index.num_rows,
        "num_rows_computed": sum(unit.num_sources for unit in look.index.units),
        "num_rows_failed": look.num_failed,
        "seconds": {name: round(value, 3) for name, value in look.run.reporter.seconds.items()},
    }


def _model(bundle: Bundle) -> dict[str, Any]:
    return {
        "name": bundle.name,
        "fingerprint": bundle.fingerprint,
        "files": {role: f"sha256:{digest}" for role, digest in bundle.digests.items()},
        "encoders": {role: read_config(bundle.encoder(role)).kind for role in ROLES},
    }


def _science(science: Science, run: Run) -> dict[str, Any]:
    """The settings; those of a cascade have their own place."""
    settings = asdict(replace(science, model=run.bundle.name))
    return {name: value for name, value in settings.items() if not name.startswith("cascade")}


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a run that can be repeated.

    Args:
        path: a ``.run.json``, or the directory of a run with one of them.

    Raises:
        UsageError: there is none, or the file is something else.
    """
    if path.is_dir():
        records = sorted(path.glob(f"*{_ENDING}"))
        if len(records) != 1:
            raise UsageError(f"{path} holds {len(records) or 'no'} run records (*{_ENDING}). Name one of a run.")
        (path,) = records
    if not path.is_file():
        raise UsageError(f"{path}: no such file. Name the {_ENDING} that a run wrote next to its results.")
    try:
        record = read_json(path)
    except StoreError:
        record = None
    needed = ("request", "inputs", "model", "outputs", "parameters", "versions")
    if not isinstance(record, dict) or not all(isinstance(record.get(name), (dict, list)) for name in needed):
        raise UsageError(f"{path} is not the record of a run. Name the {_ENDING} that predict wrote.")
    return record


def request_of(record: Mapping[str, Any]) -> Request:
    """What was asked, with inputs named as they were then, for results hold these names.

    Relative names are those of the folder that the run was started in, which must be the present one. The float
    type is the one that the run computed in, which ``auto`` may choose differently on another machine.

    Raises:
        UsageError: an input was stdin, or the record holds settings that this version does not know.
    """
    try:
        request = Request.from_record(record["request"], as_named=True)
        dict(zip(request.stems, record["inputs"], strict=True))  # an input for every sample
        request = request.changed(dtype=record["parameters"]["dtype"])
        if request.settings.science.cascade:  # the bundle may name other limits today
            first = record["cascade"]
            request = request.changed(cascade_low=float(first["low"]), cascade_high=float(first["high"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"the run record cannot be followed ({error!r}). Use the version that wrote it.") from error
    if "-" in request.sources:
        raise UsageError(
            "the run read standard input, which is not kept: it cannot be repeated. "
            "Pipe the same sequences into its predict command, with another --output."
        )
    return request


def check_inputs(request: Request, record: Mapping[str, Any]) -> None:
    """Hold every input against its recorded digest.

    Raises:
        InputError: one is gone, or holds something else.
    """
    for sample, item in zip(request.samples, record["inputs"], strict=True):
        for path, then in zip(sample.paths, (item["sha256"], item["mate_sha256"]), strict=False):
            now = digest_of(path)
            if now != then:
                raise InputError(
                    path,
                    f"is not what the run read: its sha256 was {then[:12]}... and is {now[:12]}... now. "
                    "Bring the former file back, or run predict on this one.",
                )


def check_model(request: Request, record: Mapping[str, Any]) -> None:
    """Hold the model of today against the recorded fingerprint.

    Raises:
        ModelError: it is missing, or another.
    """
    science = request.settings.science
    bundle = load_bundle(science.model, fragment_length=science.fragment_length, dtype=science.dtype)
    _check_bundle(bundle, record["model"])
    if science.cascade:
        _check_bundle(load_bundle(bundle.first_model), record["cascade"]["model"])


def _check_bundle(bundle: Bundle, then: Mapping[str, Any]) -> None:
    if bundle.fingerprint == then["fingerprint"]:
        return
    differing = [role for role, digest in bundle.digests.items() if then["files"].get(role) != f"sha256:{digest}"]
    raise ModelError(
        f"model {then['name']} is not the one of the run: its fingerprint was {then['fingerprint'][:12]}... and is "
        f"{bundle.fingerprint[:12]}... now; what differs: {', '.join(differing) or 'its settings (bundle.yaml)'}. "
        "Bring the former model back (virnucpro models import)."
    )


def version_differences(record: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Then and now of each version that is another one today, the program's own first."""
    then = {"virnucpro": record.get("version", "unknown"), **record["versions"]}
    now = {"virnucpro": __version__, **_versions()}
    return {name: (old, now.get(name, "missing")) for name, old in then.items() if now.get(name) != old}


def differing_outputs(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Name of each result file that is not the same in two runs, and in which way; arguments are digests by name."""
    differing = {name: "is missing" if name not in now else "differs" for name in then if now.get(name) != then[name]}
    return differing | {name: "was not written then" for name in now if name not in then}


def _versions() -> dict[str, str]:
    """Of what is installed: some libraries are wanted by some inputs alone."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
