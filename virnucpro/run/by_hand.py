"""A run in pieces, for whatever starts programs on machines: prepare, work on some units, finish.

``prepare`` cuts the inputs into units. Any number of ``work`` calls, on any machines, at any time, again and again,
compute units and leave receipts. ``finish`` checks the receipts and writes the results, which are those of ``predict``
byte for byte.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro import store
from virnucpro.encoders.device import choose_devices
from virnucpro.errors import StoreError, UsageError, WorkerError
from virnucpro.logs import log_to
from virnucpro.progress import Reporter
from virnucpro.request import Request
from virnucpro.run import shards
from virnucpro.run.predict import Results, execute
from virnucpro.run.units import asked_bundle, make_run, pinned, run_units
from virnucpro.run_dir import RunDir
from virnucpro.stages.base import Index

_log = logging.getLogger(__name__)

Choice = Callable[[int], Collection[int]]
"""From the number of units of a run to those that are meant, ascending."""


@dataclass(frozen=True)
class Worked:
    """What a call of ``work`` did."""

    num_done: int  # units computed now
    num_here: int  # units that were done before
    run: str  # digest of the run


def prepared(output: Path) -> tuple[RunDir, Index]:
    """The directory of a run whose inputs are cut, and its units.

    Raises:
        UsageError: there is none.
    """
    run_dir = RunDir(output)
    if not run_dir.manifest.is_file() or not run_dir.index.exists():
        raise UsageError(f"{output} holds no prepared run. Make one: virnucpro prepare INPUT... -o {output}")
    return run_dir, Index.read(run_dir)


def work(output: Path, choice: Choice, runtime: dict[str, Any], *, show_bars: bool = False) -> Worked:
    """Compute some units of a prepared run, and leave a receipt for each.

    Units that have one are left alone. Several processes may work in one directory at the same time.

    Raises:
        UsageError: there is no prepared run, or this machine has another model than the one it was prepared for.
        WorkerError: some units cannot be computed; all others are.
    """
    run_dir, index = prepared(output)
    with run_dir.reading():
        run_digest = shards.digest_of_run(run_dir, index)
        units = choice(len(index.units))
        todo = [unit for unit in units if _is_open(run_dir, index, run_digest, unit)]
        if todo:
            name = f"work-{socket.gethostname()}-{os.getpid()}.log"
            (run_dir.work / "logs").mkdir(exist_ok=True)
            with log_to(run_dir.work / "logs" / name):
                _compute(run_dir, index, todo, runtime, show_bars=show_bars)
        for unit in todo:
            shards.write_receipt(run_dir, index, run_digest, unit)
    return Worked(len(todo), len(units) - len(todo), run_digest)


def finish(output: Path, folders: Sequence[Path] = (), *, show_bars: bool = False) -> Results:
    """Check that every unit is done, by its receipt and its files, and write the results.

    Raises:
        UsageError: there is no prepared run.
        WorkerError: units are missing, damaged or of another run; each is named with its rows.
        VirNucProError: as of ``predict``.
    """
    run_dir, index = prepared(output)
    with run_dir.locked():
        problems = []
        for folder in folders:
            num_adopted, found = shards.adopt(run_dir, index, folder)
            problems += found
            _log.info("%s: %d units came", folder, num_adopted)
        _demand_all(run_dir, index, problems)
    for problem in problems:
        _log.warning("%s", problem)
    return again(run_dir, show_bars=show_bars)


def again(run_dir: RunDir, *, show_bars: bool = False) -> Results:
    """Do what is asked of the run in a directory; what is done is done.

    Raises:
        VirNucProError: as of ``predict``.
    """
    request, folder = _request_of(run_dir, as_named=True)
    output = run_dir.root.absolute()
    with contextlib.chdir(folder):  # results name inputs as they were given there
        return execute(request, output, show_bars=show_bars)


def check(output: Path) -> Index:
    """Check that every unit of a run is done, by its receipt and its files; returns what the units are.

    Raises:
        UsageError: there is no prepared run.
        WorkerError: units are missing, damaged or of another run; each is named with its rows.
    """
    run_dir, index = prepared(output)
    with run_dir.reading():
        _demand_all(run_dir, index, [])
    return index


def _demand_all(run_dir: RunDir, index: Index, problems: Sequence[str]) -> None:
    faults = shards.faults(run_dir, index)
    if not faults:
        return
    units = [unit for fault in faults for unit in range(fault.first, fault.last + 1)]
    lines = "\n".join(f"  {text}" for text in [*map(str, faults), *problems])
    raise WorkerError(
        f"{len(units):,} of {len(index.units):,} units are missing or damaged:\n{lines}\n"
        f"Compute them: virnucpro work {run_dir.root} --units {shards.as_ranges(units)}"
    )


def _request_of(run_dir: RunDir, *, as_named: bool = False) -> tuple[Request, str]:
    """What was asked, in the float type that the run was prepared for, on any machine; and the folder of then."""
    request, folder = Request.read(run_dir.request, as_named=as_named)
    return request.changed(dtype=run_dir.read_manifest()["science.dtype"]), folder


def _is_open(run_dir: RunDir, index: Index, run_digest: str, unit: int) -> bool:
    """Whether a unit has to be computed or lacks its receipt alone; what is damaged or of another run is dropped."""
    problem = shards.problem_of(run_dir, index, run_digest, unit)
    if problem is None:
        return False
    if run_dir.receipt(unit).exists():
        _log.warning("%s; it is computed again", problem)
        for path in (run_dir.receipt(unit), *shards.files_of(run_dir, unit).values()):
            path.unlink(missing_ok=True)
    return True


def _compute(run_dir: RunDir, index: Index, units: list[int], runtime: dict[str, Any], *, show_bars: bool) -> None:
    """Score the units that lack scores."""
    request, _ = _request_of(run_dir)
    places = {"device": "auto", "gpus": None} if runtime.keys() & {"device", "gpus"} else {}
    request = request.changed(**(places | runtime))
    devices = choose_devices(request.settings.runtime.device, request.settings.runtime.gpus)
    run = make_run(run_dir, request, asked_bundle(request, devices), devices, Reporter(show_bars))
    run_dir.agree(run_dir.read_manifest() | pinned(run))
    todo = [unit for unit in units if not _has_scores(run_dir, unit)]
    try:
        run_units(run, index, request, devices, todo)
    except WorkerError:
        # Another process may have had the same unit in hand, and taken its embeddings away when it was done.
        if not all(run_dir.scores(unit).exists() for unit in units):
            raise


def _has_scores(run_dir: RunDir, unit: int) -> bool:
    """Whether the scores of a unit are there and whole."""
    try:
        store.verify(run_dir.scores(unit), "scores", {})
    except StoreError:
        run_dir.scores(unit).unlink(missing_ok=True)
        return False
    return True
