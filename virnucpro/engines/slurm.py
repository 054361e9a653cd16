"""Slurm, or what else a Snakemake profile names: a job for each part of the units, over a common file system.

Receipts say what is done, not Snakemake: each call asks for the parts that are open, in a folder of its own, so that a
driver that was killed leaves no lock that matters.
"""

from __future__ import annotations

import importlib.util
import logging
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from virnucpro.atomic import write_json
from virnucpro.errors import UsageError, WorkerError
from virnucpro.lifeline import check_interrupt
from virnucpro.progress import Reporter
from virnucpro.run import shards
from virnucpro.run_dir import RunDir

if TYPE_CHECKING:
    from virnucpro.engines import Engine

_log = logging.getLogger(__name__)
_POLL_SECONDS = 2.0
_SECONDS_TO_CANCEL = 60.0
_TAIL = 20


def require_snakemake(engine: Engine) -> None:
    """Refuse where Snakemake, or its plugin for Slurm, is not installed.

    Raises:
        UsageError: it is not.
    """
    needed = ["snakemake"] + ([] if engine.profile else ["snakemake_executor_plugin_slurm"])
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the engine slurm needs {' and '.join(missing).replace('_', '-')}. "
            "Install it: pip install 'virnucpro[slurm]'"
        )


def compute(run_dir: RunDir, parts: Sequence[Sequence[int]], engine: Engine, reporter: Reporter) -> None:
    """Have each part done by a job.

    Args:
        run_dir: of a prepared run, on a file system that all machines see.
        parts: units of each job.
        engine: how Snakemake is asked.
        reporter: progress, by receipts.

    Raises:
        WorkerError: Snakemake gave up; its log says why.
    """
    folder = run_dir.work.absolute() / "snakemake" / secrets.token_hex(4)
    folder.mkdir(parents=True)
    resources: dict[str, int | str] = {"gres": f"gpu:{engine.gpus}"} if engine.gpus else {}
    configuration = {
        "python": sys.executable,
        "run": str(run_dir.root.absolute()),
        "parts": {f"part-{number:05d}": shards.as_ranges(part) for number, part in enumerate(parts)},
        "threads": engine.threads,
        "resources": resources,
    }
    write_json(folder / "config.json", configuration)
    where = ["--profile", engine.profile] if engine.profile else ["--executor", "slurm"]
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(Path(__file__).with_name("Snakefile"))),
        *("--directory", str(folder), "--configfile", str(folder / "config.json")),
        *("--jobs", str(engine.jobs), "--keep-going", "--nolock", *where, *engine.arguments),
    ]
    log = folder / "log"
    _log.info("snakemake runs %d jobs; its log is %s", len(parts), log)
    units = [unit for part in parts for unit in part]
    with reporter.stage("work", len(units), "units") as advance, log.open("wb") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)  # noqa: S603 - no shell
        try:
            num_done = 0
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                check_interrupt()
                now = sum(run_dir.receipt(unit).exists() for unit in units)
                advance(now - num_done)
                num_done = now
        finally:
            if process.poll() is None:
                _cancel(process)
    if process.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
        raise WorkerError(f"snakemake gave up (exit code {process.returncode}). {log} ends with:\n" + "\n".join(last))


def _cancel(process: subprocess.Popen[bytes]) -> None:
    """End Snakemake as Ctrl-C does: it cancels its jobs."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_SECONDS_TO_CANCEL)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
