"""The composition root: builds the bundle, the run directory and the executors, and runs the stages."""

from __future__ import annotations

import logging
import math
import os
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from virnucpro import __version__
from virnucpro.atomic import read_json, write_json
from virnucpro.bundles import Bundle, load_bundle
from virnucpro.bundles.cascade import Limits
from virnucpro.encoders import TRANSFORMER_KINDS, read_config
from virnucpro.encoders.device import choose_devices, slowness
from virnucpro.errors import IncompleteRunError, UsageError
from virnucpro.executors.base import Kept
from virnucpro.inputs import check_inputs
from virnucpro.logs import log_to
from virnucpro.machine.machine import dtype_name
from virnucpro.progress import Reporter
from virnucpro.request import Options, Request
from virnucpro.resources import available_cpus
from virnucpro.results import formats
from virnucpro.results.called import InputResults
from virnucpro.results.calls import Calling
from virnucpro.results.counts import Counts
from virnucpro.results.finished import FinishedRun
from virnucpro.results.fragments import Fragments
from virnucpro.results.outputs import Wanted
from virnucpro.results.pages import Pages, renew
from virnucpro.run.record import first_record, run_record
from virnucpro.run.units import Embedder, asked_bundle, embedder_of, estimate_rows, make_run, pinned, run_units
from virnucpro.run_dir import RunDir
from virnucpro.samples import Sample, samples_of
from virnucpro.settings import Settings
from virnucpro.stages import cascade, embed, extract, genes, tabulate, write
from virnucpro.stages.base import ROLES, Index, Run
from virnucpro.stages.cascade import FirstLook, FirstModel
from virnucpro.stages.tabulate import ScoredModels, StoredScores

_log = logging.getLogger(__name__)

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
        described = None if look is None else cascade.described(look.run.rules, look.model.limits)
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


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A run whose units are cut; in a cascade, the first model has scored them."""

    run: Run  # of the model asked for
    index: Index  # of the units, with what this model computes of them
    devices: list[str]  # where
    started: datetime  # when
    look: FirstLook | None  # in a cascade, what the first model did
    cautions: list[str]  # what the user should know
    embedder: Embedder | None  # workers that have loaded the model asked for; None where none were started


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
            num_rows = estimate_rows(request, run.fragment_length)
            embedder = embedder_of(screening or run, settings.runtime, devices, num_rows)
            if kept is None:
                stack.enter_context(embedder.executor)
            else:
                executor = kept.once("executor", partial(kept.enter_context, embedder.executor))
                embedder = Embedder(executor, embedder.settings, is_kept=True)
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


def _load_first(request: Request, bundle: Bundle, devices: list[str]) -> FirstModel:
    """The model that looks first, with its limits."""
    science = request.settings.science
    low, high = science.cascade_low, science.cascade_high
    given = None if low is None or high is None else Limits(low, high)
    first = load_bundle(bundle.first_model, dtype=dtype_name(science.dtype, devices[0]))
    return cascade.choose_first(bundle, first, given)


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


def _mean_length_nt(index: Index) -> float:
    """Of the sequences of all inputs; infinite where there is none, for nothing is short then."""
    if not index.num_sequences:
        return math.inf
    return sum(item.num_bases for item in index.inputs) / index.num_sequences
