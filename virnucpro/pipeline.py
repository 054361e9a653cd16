"""The composition root: builds the bundle, the run directory and the executors, and runs the stages."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import platform
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from virnucpro import __version__
from virnucpro.bundles import Bundle, load_bundle
from virnucpro.config import Config
from virnucpro.encoders import read_config
from virnucpro.encoders.device import available_cpus, choose_devices, parse_dtype
from virnucpro.errors import UsageError
from virnucpro.executors.base import Executor, Worker
from virnucpro.executors.local import LocalExecutor
from virnucpro.executors.pool import PoolExecutor
from virnucpro.executors.serial import SerialExecutor
from virnucpro.logs import add_log_file, remove_log_file
from virnucpro.progress import Reporter
from virnucpro.run_dir import RunDir, write_json
from virnucpro.stages import classify, consensus, embed, extract, merge, write
from virnucpro.stages.base import ROLES, Index, Run

_log = logging.getLogger(__name__)

_LIBRARIES = ("torch", "numpy", "numba", "h5py", "safetensors", "tokenizers")


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
    counts: tuple[write.Counts, ...]
    record: dict[str, Any]

    def path(self, suffix: str, *, stem: str | None = None) -> Path:
        """A result file by its suffix, ``sequences.tsv`` for one; ``stem`` where there were several inputs."""
        return RunDir(self.directory).result(stem or self.stems[0], suffix)


def predict(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    config: Config | None = None,
    *,
    fresh: bool = False,
    force: bool = False,
    keep_intermediate: bool = False,
    keep_embeddings: bool = False,
    legacy_output: bool = False,
    is_length_meant: bool = False,
    show_bars: bool = False,
) -> Results:
    """Tell which sequences are viral.

    Goes on where an earlier call with the same inputs and settings stopped.

    Args:
        inputs: FASTA or FASTQ files, plain or compressed; ``-`` is stdin.
        output: directory for the results.
        config: settings; the defaults where None.
        fresh: drop what an earlier run in this directory stored.
        force: also write into a directory that holds other files; implies ``fresh``.
        keep_intermediate: write ``.rows.tsv.gz``, every kept frame with its scores.
        keep_embeddings: keep embeddings and merged features in ``run/``.
        legacy_output: also write the published program's two files.
        is_length_meant: cut fragments of ``config.science.fragment_length`` though the model was trained on others.
        show_bars: draw progress bars on a terminal.

    Raises:
        VirNucProError: see ``virnucpro.errors`` for the tree.
    """
    config = config or Config()
    sources = tuple(os.fspath(source) for source in inputs)
    if not sources:
        raise UsageError("no input. Name at least one FASTA or FASTQ file, or - for stdin.")
    if sources.count("-") > 1:
        raise UsageError("stdin (-) can be read once only.")
    stems = extract.stems_of(sources)
    devices = choose_devices(config.runtime.device, config.runtime.gpus or None)
    bundle = load_bundle(
        config.science.model,
        fragment_length=config.science.fragment_length,
        dtype=_dtype(config, devices),
    )
    bundle.check_fragment_length(config.science.fragment_length or bundle.fragment_length, is_meant=is_length_meant)
    request = _request(
        sources,
        config,
        keep_intermediate=keep_intermediate,
        keep_embeddings=keep_embeddings,
        legacy_output=legacy_output,
        is_length_meant=is_length_meant,
    )
    run_dir = RunDir(Path(output))
    run_dir.prepare(force=force)
    with run_dir.locked(), _log_to(run_dir.result(_run_stem(stems), "log")):
        if fresh or force:
            run_dir.start_over()
        run_dir.sweep()
        run = _make_run(run_dir, sources, bundle, config, devices, Reporter(show_bars))
        _log.info("VirNucPro %s on %s, %s", __version__, socket.gethostname(), ", ".join(devices))
        _log.info("command: %s", shlex.join(sys.argv))
        _log.info("model %s, fingerprint %s", bundle.name, bundle.fingerprint[:16])
        run_dir.agree(_pinned(run))
        write_json(run_dir.request, request)
        start = time.monotonic()
        index = extract.run(run)
        cautions = bundle.cautions(run.fragment_length, _mean_length_nt(index))
        for caution in cautions:
            _log.warning("%s", caution)
        _run_units(run, index, config, devices, keep_embeddings=keep_embeddings)
        sums = consensus.run(run, index)
        counts = write.run(run, index, sums, write.Wanted(rows=keep_intermediate, legacy=legacy_output))
        del sums
        run_dir.sequence_sums.unlink(missing_ok=True)
        record = _record(run, index, config, devices, counts, time.monotonic() - start) | {"warnings": cautions}
        write_json(run_dir.result(_run_stem(stems), "run.json"), record)
        run_dir.sweep()
        _log.info("done in %.1f s: %s", time.monotonic() - start, run_dir.root)
    return Results(run_dir.root, tuple(stems), tuple(counts), record)


def _request(sources: tuple[str, ...], config: Config, **options: bool) -> dict[str, Any]:
    """What was asked, so that it can be asked again from any folder."""
    model = config.science.model
    if Path(model).exists():
        config = replace(config, science=replace(config.science, model=str(Path(model).absolute())))
    return {
        "inputs": [source if source == "-" else str(Path(source).absolute()) for source in sources],
        "settings": {f"{kind}.{name}": value for kind, part in asdict(config).items() for name, value in part.items()},
        "options": options,
    }


def _make_run(
    run_dir: RunDir, sources: tuple[str, ...], bundle: Bundle, config: Config, devices: list[str], reporter: Reporter
) -> Run:
    """Fill in what the settings leave to the bundle and the device."""
    science = config.science
    return Run(
        dir=run_dir,
        inputs=sources,
        bundle=bundle,
        fragment_length=science.fragment_length or bundle.fragment_length,
        unit_rows=config.layout.unit_rows,
        dtype=_dtype(config, devices),
        threshold=science.threshold if science.threshold >= 0 else bundle.threshold,
        reporter=reporter,
    )


def _dtype(config: Config, devices: list[str]) -> str:
    """Float type the encoders compute in."""
    return str(parse_dtype(config.science.dtype, torch.device(devices[0]))).removeprefix("torch.")


def _mean_length_nt(index: Index) -> float:
    """Of the sequences of all inputs; infinite where there is none, for nothing is short then."""
    if not index.num_sequences:
        return math.inf
    return sum(item.num_bases for item in index.inputs) / index.num_sequences


def _pinned(run: Run) -> dict[str, Any]:
    """What the manifest holds: all that changes a number or the cut into units."""
    return {
        "schema": 1,
        "science.model": run.bundle.name,
        "science.model_fingerprint": run.bundle.fingerprint,
        **{f"science.{role}_digest": run.bundle.digests[role] for role in ROLES},
        "science.fragment_length": run.fragment_length,
        "science.dtype": run.dtype,
        "layout.unit_rows": run.unit_rows,
    }


def _run_units(run: Run, index: Index, config: Config, devices: list[str], *, keep_embeddings: bool) -> None:
    """Embed, merge and classify each unit that lacks scores.

    The three stages pull from one another, so a unit's embeddings are on the disk only until it is scored, and
    the devices go on while finished units are merged.
    """
    todo = classify.pending(run, index)
    threads = config.runtime.threads or available_cpus()
    merger = PoolExecutor(config.runtime.merge_threads or (threads if config.runtime.parallel else 1))
    classifier = SerialExecutor("cpu", threads)
    budgets = dict.fromkeys(ROLES, config.runtime.token_budget)
    settings = embed.settings_for(devices[0], budgets, config.runtime.loader_workers, threads)
    embedder = _embed_executor(devices, threads, settings.loader_workers, parallel=config.runtime.parallel)
    embedded = embed.run(run, index, todo, embedder, settings)
    merged = merge.run(run, embedded, len(todo), merger)
    classify.run(run, index, merged, classifier, batch_size=config.runtime.batch_size, keep_embeddings=keep_embeddings)


def _embed_executor(devices: list[str], threads: int, loader_workers: int, *, parallel: bool) -> Executor:
    """One process a GPU; on the CPU this process alone, or several with ``parallel``.

    Whoever owns DataLoader workers is a process apart, which may end when one of them is killed.
    """
    if devices == ["cpu"]:
        # Four threads a process: small matrices gain little from more.
        processes = min(threads, max(2, threads // 4)) if parallel else 1
        devices = ["cpu"] * processes
    if len(devices) == 1 and not loader_workers:
        return SerialExecutor(devices[0], threads)
    return LocalExecutor([Worker(i, device, max(1, threads // len(devices))) for i, device in enumerate(devices)])


def _run_stem(stems: list[str]) -> str:
    """Prefix of the files of the run as a whole."""
    return stems[0] if len(stems) == 1 else "all"


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    handler = add_log_file(path)
    try:
        yield
    finally:
        remove_log_file(handler)


def _record(
    run: Run, index: Index, config: Config, devices: list[str], counts: list[write.Counts], seconds: float
) -> dict[str, Any]:
    """The run record: enough to repeat the run and to check its results."""
    total = _total(counts)
    return {
        "schema": 1,
        "program": "virnucpro",
        "version": __version__,
        "command": sys.argv,
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
            "threshold": run.threshold,
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
        "outputs": {
            str(path.relative_to(run.dir.root)): f"sha256:{_digest(path)}"
            for item in index.inputs
            for path in run.dir.results(item.stem)
        },
        "seconds": {"total": round(seconds, 3), **{k: round(v, 3) for k, v in run.reporter.seconds.items()}},
    }


def _total(counts: list[write.Counts]) -> write.Counts:
    total = write.Counts()
    for item in counts:
        for name in ("calls", "statuses", "bases", "frames"):
            ours, theirs = getattr(total, name), getattr(item, name)
            for key, value in theirs.items():
                ours[key] += value
    return total


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
