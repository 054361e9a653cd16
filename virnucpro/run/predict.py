"""The composition root: builds the bundle, the run directory and the executors, and runs the stages."""

from __future__ import annotations

import logging
import math
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from virnucpro import __version__
from virnucpro.bundles import Bundle, load_bundle
from virnucpro.bundles.cascade import Limits
from virnucpro.encoders import TRANSFORMER_KINDS, read_config
from virnucpro.encoders.device import available_cpus, choose_devices, parse_dtype, slowness
from virnucpro.errors import CountError, IncompleteRunError, ResourceError, StoreError, UsageError, WorkerError
from virnucpro.executors.base import Executor, Kept, Worker
from virnucpro.executors.local import LocalExecutor
from virnucpro.executors.pool import PoolExecutor
from virnucpro.executors.serial import SerialExecutor
from virnucpro.inputs import check_inputs
from virnucpro.logs import log_to
from virnucpro.machine import profiles
from virnucpro.progress import Reporter
from virnucpro.request import Options, Request
from virnucpro.results import formats
from virnucpro.results.calls import Calling
from virnucpro.results.counts import Counts
from virnucpro.results.finished import FinishedRun
from virnucpro.results.fragments import Fragments
from virnucpro.results.outputs import InputResults, Wanted
from virnucpro.results.pages import Pages, renew
from virnucpro.run.record import first_record, run_record
from virnucpro.run_dir import RunDir, read_json, write_json
from virnucpro.samples import Sample, samples_of
from virnucpro.settings import Runtime, Science, Settings
from virnucpro.stages import cascade, classify, embed, extract, genes, merge, nearest, tabulate, write
from virnucpro.stages.base import ROLES, Index, Run
from virnucpro.stages.cascade import FirstLook, FirstModel
from virnucpro.stages.tabulate import ScoredModels, StoredScores

_log = logging.getLogger(__name__)

_PACKED = (".gz", ".bgz", ".bz2", ".xz", ".zst", ".bam", ".cram")
Record = tuple[str | bytes, str | bytes]
"""Id and bases of a sequence."""


@dataclass(frozen=True)
class Results:
    """What a run wrote.

    Attributes:
        directory: where.
        stems: prefix of each input's files, in input order.
        counts: what was written for each input, in input order.
        record: the run record, as in ``.run.json``.
    """

    directory: Path
    stems: tuple[str, ...]
    counts: tuple[Counts, ...]
    record: dict[str, Any]

    def path(self, suffix: str, *, stem: str | None = None) -> Path:
        """A result file by its suffix, ``sequences.tsv`` for one; ``stem`` where there were several inputs."""
        return RunDir(self.directory).result(stem or self.stems[0], suffix)


def predict(
    inputs: Sequence[str | os.PathLike[str] | Sample],
    output: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    options: Options | None = None,
    fresh: bool = False,
    force: bool = False,
    show_bars: bool = False,
    only_prepare: bool = False,
) -> Results:
    """Tell which sequences are viral.

    Goes on where an earlier call with the same inputs and settings stopped.

    Args:
        inputs: FASTA, FASTQ, BAM, CRAM or SAM files, plain or compressed; ``-`` is stdin; or samples, of one
            file or of a pair.
        output: directory for the results.
        settings: the defaults if None.
        options: what else is written; nothing where None.
        fresh: drop what an earlier run in this directory stored.
        force: also replace files of the names of results that no run of this program wrote.
        show_bars: draw progress bars on a terminal.
        only_prepare: stop when the inputs are cut into units; see ``virnucpro.run.by_hand``.

    Raises:
        VirNucProError: see ``virnucpro.errors`` for the tree.
    """
    samples = samples_of([item if isinstance(item, Sample) else os.fspath(item) for item in inputs])
    request = Request(samples, settings or Settings(), options or Options())
    check_inputs(samples, Path(output), request.options.reference)
    return execute(request, Path(output), fresh=fresh, force=force, show_bars=show_bars, only_prepare=only_prepare)


def score(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Record],
    settings: Settings | None = None,
    *,
    kept: Kept | None = None,
) -> Fragments:
    """Score sequences and keep no files.

    Args:
        inputs: a file, files, or records as (id, bases); see ``predict`` for what files may be.
        settings: the defaults if None.
        kept: keeps workers with their encoders for the next call, until it is closed.

    Returns:
        The scores of all fragments, which can be called, searched for regions and turned into tables.

    Raises:
        VirNucProError: see ``virnucpro.errors`` for the tree.
    """
    items = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    with TemporaryDirectory(prefix="virnucpro-") as folder:
        paths = [os.fspath(item) for item in items if not isinstance(item, tuple)]
        records = [item for item in items if isinstance(item, tuple)]
        if records:
            paths.append(os.fspath(_write_records(Path(folder) / "records.fasta", records)))
        request = Request(samples_of(paths), settings or Settings(), Options(with_report=False))
        with _computed(request, Path(folder) / "out", kept=kept) as computed:
            return computed.table.in_memory()


def _write_records(path: Path, records: Iterable[Record]) -> Path:
    with path.open("wb") as stream:
        for name, bases in records:
            stream.write(
                b">%b\n%b\n" % tuple(part.encode() if isinstance(part, str) else part for part in (name, bases))
            )
    return path


def execute(
    request: Request,
    output: Path,
    *,
    fresh: bool = False,
    force: bool = False,
    show_bars: bool = False,
    only_prepare: bool = False,
) -> Results:
    """Do what is asked, in the directory ``output``; see ``predict``."""
    run_dir, options = RunDir(output), request.options
    if only_prepare:
        with _prepared(request, output, fresh=fresh, force=force, show_bars=show_bars, computes=False):
            return Results(run_dir.root, tuple(request.stems), (), {})
    with _computed(request, output, fresh=fresh, force=force, show_bars=show_bars) as computed:
        run, index, look = computed.run, computed.index, computed.look
        wanted = Wanted(
            rows=options.keep_intermediate,
            legacy=options.legacy_output,
            calling=Calling.from_settings(request.settings.science),
            format=options.table_format,
            proteins=genes.protein_table(run.bundle) if options.with_taxonomy else None,
            num_threads=request.settings.runtime.threads or available_cpus(),
        )
        described = None if look is None else look.described
        results, counts = write.run(index, computed.table, computed.scores, wanted, run.reporter, described)
        record = run_record(run, index, request, computed.devices, counts, computed.started)
        record |= {"warnings": computed.cautions}
        if look is not None:
            record["cascade"] = first_record(look)
        write_json(run_dir.result(request.run_stem, "run.json"), record)
        _write_pages(run_dir, request, record, results)
        run_dir.sweep()
        _check_complete(run_dir, request.stems, counts, look)
    return Results(run_dir.root, tuple(request.stems), tuple(counts), record)


class _Embedder(NamedTuple):
    """Who embeds, and how."""

    executor: Executor
    settings: embed.EmbedSettings
    is_kept: bool = False  # for other runs too


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A run whose units are cut; in a cascade, the first model has scored them."""

    run: Run  # of the model asked for
    index: Index  # of the units, with what this model computes of them
    devices: list[str]  # where
    started: datetime  # when
    look: FirstLook | None  # in a cascade, what the first model did
    cautions: list[str]  # what the user should know
    embedder: _Embedder | None  # workers that have loaded the model asked for; None where none were started


@dataclass(frozen=True, eq=False)
class _Computed(_Prepared):
    """A run whose units are all scored."""

    scores: ScoredModels  # of all rows
    table: Fragments  # of all fragments


@contextmanager
def _computed(
    request: Request,
    output: Path,
    *,
    fresh: bool = False,
    force: bool = False,
    show_bars: bool = False,
    kept: Kept | None = None,
) -> Iterator[_Computed]:
    """Score the inputs in the directory ``output``, which is locked as long as the block runs."""
    with ExitStack() as stack:
        ready = stack.enter_context(
            _prepared(request, output, fresh=fresh, force=force, show_bars=show_bars, kept=kept)
        )
        run, index, look = ready.run, ready.index, ready.look
        run_units(run, index, request, ready.devices, embedder=ready.embedder)
        genes.run(run, index, request.settings.runtime.threads or available_cpus())
        asked = stack.enter_context(StoredScores(run, index, None if look is None else look.decided))
        scores = ScoredModels(asked, *(() if look is None else (look.scores, look.decided)))
        yield _Computed(**vars(ready), scores=scores, table=tabulate.run(index, scores))
        _log.info("done in %.1f s: %s", (datetime.now(UTC) - ready.started).total_seconds(), output)


@contextmanager
def _prepared(
    request: Request,
    output: Path,
    *,
    fresh: bool = False,
    force: bool = False,
    show_bars: bool = False,
    computes: bool = True,
    kept: Kept | None = None,
) -> Iterator[_Prepared]:
    """Cut the inputs in the directory ``output``, which is locked as long as the block runs.

    With ``computes``, workers load the first model meanwhile.
    """
    _check(request)
    settings = request.settings
    devices = choose_devices(settings.runtime.device, settings.runtime.gpus)
    bundle = asked_bundle(request, devices)
    first = _load_first(request, bundle, devices) if settings.science.cascade else None
    run_dir = RunDir(output)
    run_dir.prepare({*request.stems, request.run_stem}, force=force)
    with run_dir.locked(), log_to(run_dir.result(request.run_stem, "log")), ExitStack() as stack:
        if fresh:
            run_dir.start_over()
        run_dir.sweep()
        started = datetime.now(UTC)
        run = make_run(run_dir, request, bundle, devices, Reporter(show_bars))
        _log.info("VirNucPro %s on %s, %s", __version__, socket.gethostname(), ", ".join(devices))
        _log.info("command: %s", shlex.join(sys.argv))
        _log.info("model %s, fingerprint %s", bundle.name, bundle.fingerprint[:16])
        run_dir.agree(pinned(run) | (first.pinned(run.dtype) if first is not None else {}))
        write_json(run_dir.request, request.as_record())
        run.rules.write(run_dir.rules)
        screening = None if first is None else cascade.first_run(run, first)
        embedder = None
        if computes and not run_dir.index.exists():
            num_rows = _estimate_rows(request, run.fragment_length)
            embedder = _embedder(screening or run, settings.runtime, devices, num_rows)
            if kept is None:
                stack.enter_context(embedder.executor)
            else:
                executor = kept.once("executor", partial(kept.enter_context, embedder.executor))
                embedder = _Embedder(executor, embedder.settings, is_kept=True)
            embed.start(screening or run, embedder.executor, embedder.settings)
        index = extract.run(run, request.samples, request.options.reference, None if first is None else first.bundle)
        cautions = _cautions(run, index, first, devices)
        look = None
        if first is not None and screening is not None:
            compute = partial(run_units, request=request, devices=devices, embedder=embedder)
            look = stack.enter_context(cascade.screened(screening, first, index, compute))
            embedder = None
            index = cascade.select(run, index, look.decided)
            index.write(run_dir)
        yield _Prepared(run, index, devices, started, look, cautions, embedder)


def _check(request: Request) -> None:
    """Refuse what cannot be done before anything is loaded.

    Raises:
        UsageError: no input, stdin twice, a table format whose library is not installed, or what a cascade cannot do.
    """
    if request.settings.science.cascade and request.options.legacy_output:
        raise UsageError(f"--legacy-output: {cascade.NO_LEGACY}")
    formats.require(request.options.table_format)
    if not request.samples:
        raise UsageError("no input. Name at least one FASTA or FASTQ file, or - for stdin.")
    if request.sources.count("-") > 1:
        raise UsageError("stdin (-) can be read once only.")


def asked_bundle(request: Request, devices: list[str]) -> Bundle:
    """The model asked for, in the float type that these devices compute in."""
    science = request.settings.science
    dtype = _dtype(request.settings, devices)
    bundle = load_bundle(science.model, fragment_length=science.fragment_length, dtype=dtype)
    bundle.check_fragment_length(
        science.fragment_length or bundle.fragment_length, is_meant=request.options.is_length_meant
    )
    return bundle


def _limits(science: Science) -> Limits | None:
    if science.cascade_low is None or science.cascade_high is None:
        return None
    return Limits(science.cascade_low, science.cascade_high)


def _load_first(request: Request, bundle: Bundle, devices: list[str]) -> FirstModel:
    """The model that looks first, with its limits."""
    science = request.settings.science
    given = _limits(science)
    return cascade.choose_first(bundle, load_bundle(bundle.first_model, dtype=_dtype(request.settings, devices)), given)


def _cautions(run: Run, index: Index, first: FirstModel | None, devices: list[str]) -> list[str]:
    """What the user should know, said in the log as well."""
    cautions = run.bundle.cautions(run.fragment_length, _mean_length_nt(index))
    slow = slowness(torch.device(devices[0]), getattr(torch, run.dtype))
    if slow is not None and any(read_config(run.bundle.encoder(role)).kind in TRANSFORMER_KINDS for role in ROLES):
        cautions.append(slow)  # the small encoders compute in float32 whatever is asked for
    cautions += first.cautions if first is not None else []
    for caution in cautions:
        _log.warning("%s", caution)
    return cautions


def _write_pages(run_dir: RunDir, request: Request, record: dict[str, Any], results: list[InputResults]) -> None:
    """Report, figures and MultiQC's files."""
    options = request.options
    figures = () if options.plots is None else (options.plots,)
    wanted = Pages(options.with_report, options.with_report, figures)
    for stem, result in zip(request.stems, results, strict=True):
        summary = read_json(run_dir.result(stem, "summary.json"))
        renew(FinishedRun(run_dir.root, stem, record, summary, result), wanted)


def _check_complete(run_dir: RunDir, stems: list[str], counts: list[Counts], look: FirstLook | None) -> None:
    """Say that rows failed, once everything else is written.

    Raises:
        IncompleteRunError: some did.
    """
    failed = {stem: item.num_failed_rows for stem, item in zip(stems, counts, strict=True) if item.num_failed_rows}
    losses = []
    if failed:
        files = ", ".join(str(run_dir.result(stem, "failed.tsv")) for stem in failed)
        losses.append(f"{sum(failed.values()):,} rows could not be computed; they are listed in {files}.")
    if look is not None and look.num_failed:
        losses.append(
            f"{look.num_failed:,} rows could not be computed by model {look.run.rules.name}; their sequences went "
            f"on to the next model, and {look.run.dir.failed(0).parent} has the reasons."
        )
    if losses:
        raise IncompleteRunError(
            f"{' '.join(losses)} Everything else is done. 'virnucpro verify {run_dir.root} --repair' tries them again."
        )


def make_run(run_dir: RunDir, request: Request, bundle: Bundle, devices: list[str], reporter: Reporter) -> Run:
    """Fill in what the settings leave to the bundle and the device."""
    settings = request.settings
    return Run(
        dir=run_dir,
        inputs=request.sources,
        bundle=bundle,
        fragment_length=settings.science.fragment_length or bundle.fragment_length,
        unit_rows=settings.layout.unit_rows,
        dtype=_dtype(settings, devices),
        reporter=reporter,
    )


def _dtype(settings: Settings, devices: list[str]) -> str:
    """Torch's name of the type the encoders compute in."""
    return str(parse_dtype(settings.science.dtype, torch.device(devices[0]))).removeprefix("torch.")


def _mean_length_nt(index: Index) -> float:
    """Of the sequences of all inputs; infinite where there is none, for nothing is short then."""
    if not index.num_sequences:
        return math.inf
    return sum(item.num_bases for item in index.inputs) / index.num_sequences


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
    embedder: _Embedder | None = None,
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
    threads = runtime.threads or available_cpus()
    nearest.run(run, index, range(len(index.units)) if todo is None else todo, threads)
    todo = classify.pending(run, index) if todo is None else todo
    if not todo:
        return
    merges = keep_embeddings or runtime.merge_threads is not None
    if embedder is None:
        embedder = _embedder(run, runtime, devices, sum(index.units[unit].num_sources for unit in todo))
    merger = PoolExecutor(runtime.merge_threads or (threads if runtime.parallel else 1))
    num_units = embed.UNITS_ON_DISK * embedder.executor.num_workers + merger.num_workers
    num_alive = len(todo) if keep_embeddings else num_units
    _check_disk(run, index, todo, num_alive, merges=merges, keeps_all=keep_embeddings)
    scorer = classify.Scorer(run, threads, runtime.batch_size, keep_embeddings=keep_embeddings)
    num_rows = sum(index.units[unit].num_sources for unit in todo)
    faults = []
    lent = nullcontext() if embedder.is_kept else embedder.executor
    with lent, merger, run.reporter.stage("classify", num_rows, "rows") as advance:
        units = embed.run(run, index, todo, embedder.executor, embedder.settings)
        if merges:
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


def _estimate_rows(request: Request, fragment_length: int) -> float:
    """About how many rows the inputs will give: one a fragment; infinite where a pipe does not say."""
    paths = [Path(path) for sample in request.samples for path in sample.paths]
    if not all(path.is_file() for path in paths):
        return math.inf
    num_bases = sum(path.stat().st_size * (4 if path.suffix in _PACKED else 1) for path in paths)
    return num_bases / fragment_length


def _embedder(run: Run, runtime: Runtime, devices: list[str], num_rows: float) -> _Embedder:
    """Budgets, workers and processes: the user's, else those of a saved profile, else what suits most machines."""
    threads = runtime.threads or available_cpus()
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
    return _Embedder(executor, replace(settings, rows_a_worker=num_rows / executor.num_workers))


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
