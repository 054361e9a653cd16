"""The units of a run: with which model and in which processes they are computed, and the loop over them."""

from __future__ import annotations

import logging
import math
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from virnucpro.bundles import Bundle, load_bundle
from virnucpro.encoders import read_config
from virnucpro.encoders.device import dtype_name
from virnucpro.errors import CountError, ResourceError, StoreError, WorkerError
from virnucpro.executors.base import Executor, Kept, Worker
from virnucpro.executors.local import LocalExecutor, PoolExecutor
from virnucpro.executors.serial import SerialExecutor
from virnucpro.machine import profiles
from virnucpro.progress import Reporter
from virnucpro.request import Request
from virnucpro.run_dir import RunDir
from virnucpro.settings import Runtime
from virnucpro.stages import classify, embed, merge, nearest
from virnucpro.stages.base import ROLES, Index, Run

_log = logging.getLogger(__name__)

_PACKED = (".gz", ".bgz", ".bz2", ".xz", ".zst", ".bam", ".cram")


class Embedder(NamedTuple):
    """Who embeds, and how."""

    executor: Executor
    settings: embed.EmbedSettings
    is_kept: bool  # for other runs too

    def lent(self) -> AbstractContextManager[object]:
        """The executor as a context manager, which ends its workers unless they are kept."""
        return nullcontext() if self.is_kept else self.executor


def asked_bundle(request: Request, devices: list[str]) -> Bundle:
    """The model asked for, in the float type that these devices compute in."""
    science = request.settings.science
    dtype = dtype_name(science.dtype, devices[0])
    bundle = load_bundle(science.model, fragment_length=science.fragment_length, dtype=dtype)
    bundle.check_fragment_length(
        science.fragment_length or bundle.fragment_length, is_meant=request.options.is_length_meant
    )
    return bundle


def make_run(run_dir: RunDir, request: Request, bundle: Bundle, devices: list[str], reporter: Reporter) -> Run:
    """Fill in what the settings leave to the bundle and the device."""
    settings = request.settings
    return Run(
        dir=run_dir,
        inputs=request.sources,
        bundle=bundle,
        fragment_length=settings.science.fragment_length or bundle.fragment_length,
        unit_rows=settings.layout.unit_rows,
        dtype=dtype_name(settings.science.dtype, devices[0]),
        reporter=reporter,
    )


def pinned(run: Run) -> dict[str, Any]:
    """What the manifest holds: all that changes a number or the cut into units."""
    return {
        "science.model": run.bundle.name,
        "science.model_fingerprint": run.bundle.fingerprint,
        **{f"science.{role}_digest": run.bundle.digests[role] for role in ROLES},
        "science.fragment_length": run.fragment_length,
        "science.dtype": run.dtype,
        "layout.unit_rows": run.unit_rows,
    }


def run_units(
    run: Run,
    index: Index,
    request: Request,
    devices: list[str],
    todo: list[int] | None = None,
    embedder: Embedder | None = None,
) -> None:
    """Embed and score each unit that lacks scores, or those given; merge it in between with ``--merge-threads``.

    Embeddings that are to be kept are merged too.
    The nearest proteins come first, where the model asks for them: they need no device. The other stages pull from one
    another, so a unit's embeddings are on the disk only until it is scored, and the devices go on while finished units
    are merged.

    Raises:
        WorkerError: some units cannot be embedded, merged or scored; raised when all others are.
    """
    runtime, keep_embeddings = request.settings.runtime, request.options.keep_embeddings
    threads = runtime.num_threads
    nearest.run(run, index, range(len(index.units)) if todo is None else todo, threads)
    todo = classify.pending(run, index) if todo is None else todo
    if not todo:
        return
    merges = keep_embeddings or runtime.merge_threads is not None
    num_rows = sum(index.units[unit].num_sources for unit in todo)
    embedder = embedder or embedder_of(run, runtime, devices, num_rows)
    merger = PoolExecutor(runtime.merge_threads or (threads if runtime.parallel else 1)) if merges else None
    num_units = embed.UNITS_ON_DISK * embedder.executor.num_workers + (merger.num_workers if merger else 1)
    num_alive = len(todo) if keep_embeddings else num_units
    _check_disk(run, index, todo, num_alive, merges=merges, keeps_all=keep_embeddings)
    scorer = classify.Scorer(run, threads, runtime.batch_size, keep_embeddings=keep_embeddings)
    faults = []
    with embedder.lent(), merger or nullcontext(), run.reporter.stage("classify", num_rows, "rows") as advance:
        units = embed.run(run, index, todo, embedder.executor, embedder.settings)
        if merger is not None:
            units = merge.run(run, units, len(todo), merger)
        for unit in units:
            try:
                advance(scorer.score(unit))
            except (StoreError, CountError) as error:
                faults.append(f"  unit {unit}: {error}")
    if faults:
        raise WorkerError("\n".join([f"{len(faults)} units cannot be scored, all others are:", *faults]))


def _check_disk(run: Run, index: Index, todo: list[int], num_alive: int, *, merges: bool, keeps_all: bool) -> None:
    """Refuse a disk on which the run cannot end, before the first second of a device.

    Raises:
        ResourceError: it has too little room.
    """
    width = sum(read_config(run.bundle.encoder(role)).width for role in ROLES)
    num_bytes = 4 if run.dtype == "float32" else 2
    rows = sorted((index.units[unit].num_sources for unit in todo), reverse=True)
    # Merged embeddings lie in their shards and, next to each other, in the merged file; scores are two floats a row.
    needed = (2 if merges else 1) * width * num_bytes * sum(rows[:num_alive]) + 8 * (sum(rows) + index.num_rows)
    free = shutil.disk_usage(run.dir.root).free
    if needed > free:
        hint = " Without --keep-embeddings it needs less." if keeps_all else ""
        raise ResourceError(
            f"{run.dir.root}: the run needs about {needed / 1e6:,.0f} MB more, its disk has {free / 1e6:,.0f} MB. Free "
            f"some space and run the same command again, or name an --output on another disk.{hint}"
        )


def estimate_rows(request: Request, fragment_length: int) -> float:
    """About how many rows the inputs will give: one a fragment; infinite where a pipe does not say."""
    paths = [Path(path) for sample in request.samples for path in sample.paths]
    if not all(path.is_file() for path in paths):
        return math.inf
    num_bases = sum(path.stat().st_size * (4 if path.suffix in _PACKED else 1) for path in paths)
    return num_bases / fragment_length


def embedder_of(run: Run, runtime: Runtime, devices: list[str], num_rows: float, kept: Kept | None = None) -> Embedder:
    """Budgets, workers and processes: the user's, else those of a saved profile, else what suits most machines.

    Args:
        run: of the model.
        runtime: what the user asks for.
        devices: where.
        num_rows: about how many rows there are.
        kept: keeps the workers for other runs.
    """
    threads = runtime.num_threads
    profile = profiles.find(run.bundle, devices[0], run.dtype)
    budgets = {} if runtime.token_budget is None else dict.fromkeys(ROLES, runtime.token_budget)
    loader_workers, processes = runtime.loader_workers, 0
    if profile is not None:
        _log.info("token budgets and workers from a profile of this machine (virnucpro profile --show)")
        budgets = profile.token_budgets if runtime.token_budget is None else budgets
        loader_workers = profile.loader_workers if loader_workers is None else loader_workers
        # One process may have been best; --parallel asks for several all the same.
        processes = profile.num_processes if profile.threads == threads and profile.num_processes > 1 else 0
    settings = embed.settings_for(devices, budgets, loader_workers, runtime.compile)
    executor = _embed_executor(devices, threads, settings, processes, parallel=runtime.parallel)
    if kept is not None:
        new = executor
        executor = kept.once("executor", lambda: kept.enter_context(new))
    settings = replace(settings, rows_a_worker=num_rows / executor.num_workers)
    return Embedder(executor, settings, is_kept=kept is not None)


def _embed_executor(
    devices: list[str], threads: int, settings: embed.EmbedSettings, processes: int, *, parallel: bool
) -> Executor:
    """One process a GPU; on the CPU this process alone, or several (``processes``, where known) with ``parallel``.

    Whoever owns DataLoader workers is a process apart, which may end when one of them is killed; so is whoever computes
    on another device, whose errors may stay until its process ends.
    """
    if devices == ["cpu"]:
        # Four threads a process: small matrices gain little from more.
        processes = (processes or min(threads, max(2, threads // 4))) if parallel else 1
        devices = ["cpu"] * processes
    if devices == ["cpu"] and not settings.loader_workers:
        return SerialExecutor(devices[0], threads)
    return LocalExecutor([Worker(i, device, max(1, threads // len(devices))) for i, device in enumerate(devices)])
