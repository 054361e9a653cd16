"""Engines that exist, as thin skins over the units of a run: who does which is theirs, what is done is ``work``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from virnucpro.engines import ray, slurm
from virnucpro.executors.ray import require_ray
from virnucpro.progress import Reporter
from virnucpro.run import by_hand, shards

_log = logging.getLogger(__name__)

EngineName = Literal["local", "slurm", "ray"]


@dataclass(frozen=True)
class Engine:
    """An engine, and how it is asked."""

    name: EngineName  # slurm (Snakemake, on whatever its profile says) or ray
    jobs: int = 8  # jobs of a scheduler at a time
    parts: int | None = None  # pieces that the units are cut into; chosen where None
    gpus: int = 0  # of each job
    threads: int = 1  # CPU threads of each job or actor
    address: str = "local"  # HOST:PORT of a Ray cluster, or local
    shares_files: bool = True  # whether machines may be trusted to see the same files, where they seem to
    profile: str | None = None  # of Snakemake; its executor then takes the place of Slurm
    arguments: tuple[str, ...] = ()  # passed on to Snakemake


def require(engine: Engine) -> None:
    """Refuse an engine that is not installed, before anything is read.

    Raises:
        UsageError: it is not.
    """
    if engine.name == "ray":
        require_ray()
    else:
        slurm.require_snakemake(engine)


def compute(output: Path, engine: Engine, *, show_bars: bool = False) -> None:
    """Let an engine do the units of a prepared run that are not done.

    Raises:
        UsageError: the engine cannot be reached.
        WorkerError: some units cannot be computed; all others are.
    """
    run_dir, index = by_hand.prepared(output)
    faults = shards.faults(run_dir, index)
    todo = [unit for fault in faults for unit in range(fault.first, fault.last + 1)]
    if not todo:
        return
    parts = tuple(shards.split(todo, engine.parts or 4 * engine.jobs))
    _log.info("%s: %d units in %d parts", engine.name, len(todo), len(parts))
    (ray if engine.name == "ray" else slurm).compute(run_dir, parts, engine, Reporter(show_bars))
