"""How fast this machine is with this program: extraction, encoders, merging, and whole runs with their memory."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from virnucpro import __version__, store
from virnucpro.atomic import write_json
from virnucpro.bundles import Bundle, load_bundle
from virnucpro.encoders import load_encoder
from virnucpro.encoders.device import device_name, synchronise
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.loader import pack_unit
from virnucpro.engine.packing import GreedyPacker
from virnucpro.engine.threads import use_threads
from virnucpro.errors import UsageError, WorkerError
from virnucpro.executors.base import UnitFailed
from virnucpro.executors.local import PoolExecutor
from virnucpro.machine.reads import draw_strings, store_units, write_reads
from virnucpro.resources import available_cpus, held_memory_bytes
from virnucpro.sequence.extract import Extraction
from virnucpro.stages.base import ROLES
from virnucpro.stages.embed import usual_token_budget
from virnucpro.stages.merge import MergeWork
from virnucpro.text import aligned, rate

SCHEMA = 2
_RUNS = 3
_READ_NT, _CODING_SHARE, _SEED = 300, 0.5, 1
_MERGE_WIDTHS = {"nucleotide": 768, "protein": 2560}  # those of the published encoders
_MERGE_PROCESSES = (1, 2, 4)
_MERGE_UNITS, _MERGE_UNIT_ROWS = 8, 2048
_ENCODED_ROWS = 4096
_LOOK_SECONDS = 0.1
_LEAST_CHANGE = 0.1
"""Share of the old figure below which a change is noise, whatever the runs say."""


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured."""

    model: str  # as in predict
    device: str  # torch's name of it
    dtype: str  # torch's name of the float type
    threads: int  # CPU threads in all
    num_reads: int  # of 300 bases, of the extraction and of the larger of the two whole runs


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str  # what was measured
    unit: str  # ``.../s`` (more is better), ``s`` or ``MB`` (less is better)
    values: tuple[float, ...]  # one for each run

    @property
    def value(self) -> float:
        """Median of the runs."""
        return median(self.values)


def measure(settings: BenchmarkSettings, sections: Sequence[str]) -> Iterator[Figure]:
    """The figures of each section, as they are measured.

    Raises:
        ModelError: the model is missing or damaged.
        WorkerError: the program fails.
    """
    use_threads(settings.threads)
    bundle = load_bundle(settings.model, dtype=settings.dtype)
    for section in sections:
        with TemporaryDirectory(prefix="virnucpro-benchmark-") as folder:
            yield from SECTIONS[section](settings, bundle, Path(folder))


def _measure_extraction(settings: BenchmarkSettings, bundle: Bundle, folder: Path) -> Iterator[Figure]:
    reads = write_reads(folder / "reads.fasta", settings.num_reads, _READ_NT, _CODING_SHARE, _SEED)

    def extract() -> int:
        extraction = Extraction([str(reads)], bundle.fragment_length, bundle.min_length, unit_rows=16_384)
        return sum(len(table.fragments) for table in extraction.units())

    extract()
    yield Figure(f"extraction of {settings.num_reads:,} reads, one core", "fragments/s", _rates(extract))


def _measure_encoders(settings: BenchmarkSettings, bundle: Bundle, folder: Path) -> Iterator[Figure]:
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    strings = draw_strings(folder, bundle, min(_ENCODED_ROWS, settings.num_reads))
    for role in ROLES:
        encoder = load_encoder(bundle.encoder(role), device, dtype)
        packer = GreedyPacker(usual_token_budget(encoder, device, settings.dtype))
        unit = pack_unit(0, strings[role], encoder.tokenizer, packer)

        def embed() -> int:
            ((_, embedding),) = AsyncInferenceRunner(encoder, device).embeddings([unit])  # noqa: B023 - called at once
            synchronise(device)
            return len(embedding)

        embed()
        yield Figure(f"{role} encoder ({encoder.kind}) of {bundle.name} on {device}", "rows/s", _rates(embed))


def _measure_merging(settings: BenchmarkSettings, bundle: Bundle, folder: Path) -> Iterator[Figure]:
    """Shards as wide as those of the published encoders, whatever the model: merging only copies."""
    num_rows = min(_MERGE_UNIT_ROWS, settings.num_reads)
    run_dir = store_units(folder, bundle, num_rows, _MERGE_UNITS)
    rng = np.random.default_rng(_SEED)
    for unit in range(_MERGE_UNITS):
        path = run_dir.unit(unit)
        made_from = {"unit_digest": store.read_attributes(path, "unit")["digest"], "fingerprint": "benchmark"}
        for role, width in _MERGE_WIDTHS.items():
            array = rng.random((len(store.read_unit(path)), width), dtype=np.float32)
            store.write_arrays(run_dir.embedding(role, unit), "embedding", {"embedding": array}, made_from)
    work = MergeWork(run_dir, dict.fromkeys(ROLES, "benchmark"), "benchmark")
    for num_processes in _MERGE_PROCESSES:

        def merge() -> int:
            with PoolExecutor(num_processes) as executor:  # noqa: B023 - called at once
                outcomes = list(executor.run(work, range(_MERGE_UNITS)))
            failed = [outcome for outcome in outcomes if isinstance(outcome, UnitFailed)]
            if failed:
                raise WorkerError(f"units cannot be merged:\n{failed[0].reason}")
            return sum(outcome.num_rows for outcome in outcomes if not isinstance(outcome, UnitFailed))

        name = f"merge of {_MERGE_UNITS} x {num_rows:,} rows of {sum(_MERGE_WIDTHS.values()):,}"
        yield Figure(f"{name}, processes: {num_processes}", "rows/s", _rates(merge))


def _measure_runs(settings: BenchmarkSettings, bundle: Bundle, folder: Path) -> Iterator[Figure]:
    """The program as a process of its own, with a tenth of the reads and with all."""
    for num_reads in (max(1, settings.num_reads // 10), settings.num_reads):
        reads = write_reads(folder / f"reads-{num_reads}.fasta", num_reads, _READ_NT, _CODING_SHARE, _SEED)
        arguments = ["predict", str(reads), "-o", str(folder / "out"), "-m", settings.model, "-q", "--fresh"]
        arguments += ["--device", settings.device, "--dtype", settings.dtype, "-t", str(settings.threads)]
        runs = [_run(arguments) for _ in range(_RUNS)]
        name = f"predict, {num_reads:,} reads, model {bundle.name}"
        yield Figure(f"{name}: wall time", "s", tuple(seconds for seconds, _, _ in runs))
        yield Figure(f"{name}: CPU time", "s", tuple(seconds for _, seconds, _ in runs))
        yield Figure(f"{name}: peak memory of all processes", "MB", tuple(peak / 1e6 for _, _, peak in runs))
        yield Figure(f"{name}: throughput", "reads/s", tuple(num_reads / seconds for seconds, _, _ in runs))


SECTIONS: dict[str, Callable[[BenchmarkSettings, Bundle, Path], Iterator[Figure]]] = {
    "extraction": _measure_extraction,
    "encoders": _measure_encoders,
    "merge": _measure_merging,
    "run": _measure_runs,
}


def _rates(work: Callable[[], int]) -> tuple[float, ...]:
    """Amount per second of some runs."""
    rates = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        amount = work()
        rates.append(amount / (time.perf_counter() - start))
    return tuple(rates)


def _run(arguments: Sequence[str]) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and peak memory of one command, with its child processes.

    Raises:
        WorkerError: it failed.
    """
    before, start, peak = os.times(), time.perf_counter(), 0
    with subprocess.Popen(  # noqa: S603 - this program, by the interpreter it runs in
        [sys.executable, "-m", "virnucpro", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while process.poll() is None:
                peak = max(peak, held_memory_bytes(process.pid))
                time.sleep(_LOOK_SECONDS)
        except BaseException:
            process.terminate()
            raise
        said = process.stderr.read() if process.stderr is not None else ""
    wall, after = time.perf_counter() - start, os.times()
    if process.returncode:
        command = " ".join(["virnucpro", *arguments])
        raise WorkerError(f"`{command}` ended with {process.returncode}; nothing was measured. It said:\n{said}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu, peak


def write(path: Path, settings: BenchmarkSettings, figures: Sequence[Figure]) -> None:
    """Write figures as JSON, with the machine and the versions they were measured with."""
    content = {
        "schema": SCHEMA,
        "version": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "device": device_name(torch.device(settings.device)),
            "cpus": available_cpus(),
            "system": platform.platform(),
            "load": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "settings": asdict(settings),
        "figures": [asdict(figure) | {"value": figure.value} for figure in figures],
    }
    write_json(path, content)


def read(path: Path) -> dict[str, Figure]:
    """Figures by name, as ``write`` wrote them.

    Raises:
        UsageError: the file holds something else.
    """
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise UsageError(f"{path}: schema {content['schema']}; this program reads {SCHEMA}. Measure again.")
        figures = [Figure(str(f["name"]), str(f["unit"]), tuple(map(float, f["values"]))) for f in content["figures"]]
        return {figure.name: figure for figure in figures if figure.value > 0}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} is not a file that virnucpro benchmark --output wrote ({error}).") from error


def is_worse(old: Figure, new: Figure) -> bool:
    """Whether a figure got worse by more than a tenth, and by more than the runs of either vary."""
    spread = max((max(figure.values) - min(figure.values)) for figure in (old, new))
    loss = (old.value - new.value) * (1 if new.unit.endswith("/s") else -1)
    return loss > max(spread, _LEAST_CHANGE * old.value)


def table(figures: Sequence[Figure], old: Mapping[str, Figure]) -> str:
    """Figures as text, next to older ones of the same name."""
    rows = [("", "median", "lowest", "highest", "", *(("before", "change", "") if old else ()))]
    for figure in figures:
        cells = [rate(value) for value in (figure.value, min(figure.values), max(figure.values))]
        row = [figure.name, *cells, figure.unit]
        if old:
            then = old.get(figure.name)
            mark = "worse" if then is not None and is_worse(then, figure) else ""
            change = ("", "") if then is None else (rate(then.value), f"{figure.value / then.value - 1:+.1%}")
            row += [*change, mark]
        rows.append(tuple(row))
    return aligned(rows)
