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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from virnucpro import __version__
from virnucpro.atomic import write_json
from virnucpro.bundles import Bundle, load_bundle
from virnucpro.bundles.rules import Limits
from virnucpro.encoders import TRANSFORMER_KINDS, read_config
from virnucpro.encoders.device import choose_devices, dtype_name, slowness
from virnucpro.errors import IncompleteRunError, UsageError
from virnucpro.executors.base import Kept
from virnucpro.inputs import check_inputs
from virnucpro.logs import log_to
from virnucpro.progress import Reporter
from virnucpro.request import Options, Request
from virnucpro.results import formats
from virnucpro.results.calls import Calling
from virnucpro.results.counts import Counts
from virnucpro.results.fragments import Fragments
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

    Resumes where an earlier call with the same inputs and settings stopped.

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
        with _cut(request, Path(folder) / "out", kept=kept) as cut, _scored(cut) as (_, table):
            return table.in_memory()


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
    with _cut(request, output, fresh=fresh, force=force, show_bars=show_bars, only_prepare=only_prepare) as cut:
        if only_prepare:
            return Results(output, tuple(request.stems), (), {})
        with _scored(cut) as (scores, table):
            counts, record = _write(cut, scores, table)
    return Results(output, tuple(request.stems), tuple(counts), record)


@dataclass(frozen=True, eq=False)
class _Cut:
    """A run whose units are cut; in a cascade, the first model has scored them."""

    request: Request  # what is asked
    run: Run  # of the model asked for
    index: Index  # of the units, with what this model computes of them
    devices: list[str]  # where
    started: datetime  # when
    look: FirstLook | None  # in a cascade, what the first model did
    cautions: list[str]  # what the user should know
    embedder: Embedder | None  # workers that have loaded the model asked for; None where none were started


@contextmanager
def _cut(
    request: Request,
    output: Path,
    *,
    fresh: bool = False,
    force: bool = False,
    show_bars: bool = False,
    only_prepare: bool = False,
    kept: Kept | None = None,
) -> Iterator[_Cut]:
    """Cut the inputs in the directory ``output``, which is locked as long as the block runs.

    Workers load the first model meanwhile, unless ``only_prepare``; those of ``kept`` stay for the next run.
    """
    _check(request)
    runtime, run_dir = request.settings.runtime, RunDir(output)
    devices = choose_devices(runtime.device, runtime.gpus)
    bundle = asked_bundle(request, devices)
    first = _load_first(request, bundle, devices) if request.settings.science.cascade else None
    run_dir.prepare({*request.stems, request.run_stem}, force=force)
    with run_dir.locked(), log_to(run_dir.result(request.run_stem, "log")), ExitStack() as stack:
        if fresh:
            run_dir.start_over()
        run_dir.sweep()
        started = datetime.now(UTC)
        run = make_run(run_dir, request, bundle, devices, Reporter(show_bars))
        _begin(run, request, first, devices)
        leading = run if first is None else cascade.first_run(run, first)
        embedder = None
        if not only_prepare and not run_dir.index.exists():
            embedder = embedder_of(leading, runtime, devices, estimate_rows(request, run.fragment_length), kept)
            stack.enter_context(embedder.lent())
            embed.start(leading, embedder.executor, embedder.settings)
        index = extract.run(run, request.samples, request.options.reference, None if first is None else first.bundle)
        cautions = _cautions(run, index, first, devices)
        look = None
        if first is not None:
            compute = partial(run_units, request=request, devices=devices, embedder=embedder)
            look = stack.enter_context(cascade.screened(leading, first, index, compute))
            embedder, index = None, cascade.select(run, index, look.decided)
            index.write(run_dir)
        yield _Cut(request, run, index, devices, started, look, cautions, embedder)
        if not only_prepare:
            _log.info("done in %.1f s: %s", (datetime.now(UTC) - started).total_seconds(), output)


@contextmanager
def _scored(cut: _Cut) -> Iterator[tuple[ScoredModels, Fragments]]:
    """Compute what is not computed yet: the scores of all rows, and the table of fragments."""
    run, index, look = cut.run, cut.index, cut.look
    genes.run(run, index, cut.request.settings.runtime.num_threads)
    run_units(run, index, cut.request, cut.devices, embedder=cut.embedder)
    with StoredScores(run.dir, run.rules, index, None if look is None else look.decided) as asked:
        scores = ScoredModels(asked, *(() if look is None else (look.scores, look.decided)))
        yield scores, tabulate.run(index, scores, run.reporter)


def _write(cut: _Cut, scores: ScoredModels, table: Fragments) -> tuple[list[Counts], dict[str, Any]]:
    """Write all results; returns what was counted for each input, and the run record.

    Raises:
        IncompleteRunError: some rows failed; everything is written.
    """
    run, request, options, look = cut.run, cut.request, cut.request.options, cut.look
    calling = Calling.from_settings(request.settings.science)
    written, counts = write.run(
        *(cut.index, table, scores, calling, options, run.reporter),
        proteins=genes.protein_table(run.bundle) if options.with_taxonomy else None,
        num_threads=request.settings.runtime.num_threads,
        cascade=None if look is None else cascade.described(look.run.rules, look.model.limits),
    )
    record = run_record(run, cut.index, request, cut.devices, counts, cut.started)
    record |= {"warnings": cut.cautions}
    if look is not None:
        record["cascade"] = first_record(look)
    write_json(run.dir.result(request.run_stem, "run.json"), record)
    pages = Pages(options.with_report, options.with_report, () if options.plots is None else (options.plots,))
    for finished in written:
        renew(replace(finished, record=record), pages)
    run.dir.sweep()
    _check_complete(run.dir, request.stems, counts, look)
    return counts, record


def _begin(run: Run, request: Request, first: FirstModel | None, devices: list[str]) -> None:
    """Say what is run, and leave in the directory what was asked.

    Raises:
        RunMismatchError: the directory holds a run made with other settings.
    """
    _log.info("VirNucPro %s on %s, %s", __version__, socket.gethostname(), ", ".join(devices))
    _log.info("command: %s", shlex.join(sys.argv))
    _log.info("model %s, fingerprint %s", run.bundle.name, run.bundle.fingerprint[:16])
    run.dir.agree(pinned(run) | (first.pinned(run.dtype) if first is not None else {}))
    write_json(run.dir.request, request.as_record())
    run.rules.write(run.dir.rules)


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
    num_bases = sum(item.num_bases for item in index.inputs)
    mean_length_nt = num_bases / index.num_sequences if index.num_sequences else math.inf
    cautions = run.bundle.cautions(run.fragment_length, mean_length_nt)
    slow = slowness(torch.device(devices[0]), getattr(torch, run.dtype))
    if slow is not None and any(read_config(run.bundle.encoder(role)).kind in TRANSFORMER_KINDS for role in ROLES):
        cautions.append(slow)  # the small encoders compute in float32 whatever is asked for
    cautions += first.cautions if first is not None else []
    for caution in cautions:
        _log.warning("%s", caution)
    return cautions


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
