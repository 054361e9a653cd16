"""One process against several: merging by pool size, embedding by number of worker processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.made_models import model_named
from benchmarks.measure import MIN_RUNS, Figure, Point, Settings, ratio_of, take_turns
from benchmarks.results import Embedded, prepare
from virnucpro import store
from virnucpro.atomic import atomic_write
from virnucpro.bundles import load_bundle
from virnucpro.errors import WorkerError
from virnucpro.executors.base import Executor, UnitFailed, Work, Worker
from virnucpro.executors.local import LocalExecutor, PoolExecutor
from virnucpro.executors.serial import SerialExecutor
from virnucpro.machine.reads import write_reads
from virnucpro.progress import Reporter
from virnucpro.run_dir import RunDir
from virnucpro.stages import extract
from virnucpro.stages.base import Index, Run
from virnucpro.stages.embed import EmbedSettings, EmbedWork
from virnucpro.stages.merge import MergeWork

SECTION = "scaling"
_POOL_SIZES = (1, 2, 4)
_MERGED_UNIT_ROWS = 4096
_UNITS_A_PROCESS = 2
"""At least, of the largest pool, however few the rows."""
_MAX_EMBEDDED_READS = 4_000
"""Embedding is slower than merging, and shows its rate on fewer rows."""
_EMBEDDED_UNITS = 24
"""Units that they are cut into: enough that the workers end about together."""


def measure(settings: Settings) -> Iterator[Figure]:
    """Merge throughput for 1, 2 and 4 processes, and embedding in one process and in two."""
    yield from _measure_merging(settings)
    yield from _measure_embedding(settings)


def _measure_merging(settings: Settings) -> Iterator[Figure]:
    with TemporaryDirectory(prefix="virnucpro-benchmark-") as folder:
        unit_rows = min(_MERGED_UNIT_ROWS, settings.num_rows // (_UNITS_A_PROCESS * max(_POOL_SIZES)))
        ours = prepare(Path(folder), settings, unit_rows=max(1, unit_rows))
        run, sizes = ours.run, {str(size): size for size in _POOL_SIZES}
        work = MergeWork.of_model(run.dir, run.bundle.digests, run.bundle.fingerprint, run.dtype)
        digests: dict[str, list[str]] = {}

        def merge(num_processes: int) -> float:
            with PoolExecutor(num_processes) as executor:
                return float(sum(_rows_of_units(executor, work, ours.index)))

        def note_digests(name: str) -> None:
            digests[name] = _digests(ours)

        rates = take_turns(
            {**{name: partial(merge, size) for name, size in sizes.items()}, "disk": partial(_write_plainly, ours)},
            settings.seconds,
            before=dict.fromkeys([*sizes, "disk"], ours.clear),
            after={name: partial(note_digests, name) for name in sizes},
            warm_up=False,
        )
    for name, size in sizes.items():
        is_alone = size == 1
        note = f"start of processes included; CPUs: {settings.threads}"
        if not is_alone:
            against_one = ratio_of(rates[name], rates["1"])
            note = f"{against_one:.2f}x one process; {note}; max diff counts files unlike those of one process"
        others = sum(one != several for one, several in zip(digests["1"], digests[name], strict=True))
        yield Figure(
            SECTION,
            f"merge of {ours.index.num_rows:,} rows of 3,328, processes: {size}",
            "rows/s",
            rates[name],
            "as many bytes written plainly",
            rates["disk"],
            ratio_of(rates[name], rates["disk"]),
            max_difference=None if is_alone else float(others),
            tolerance=None if is_alone else 0,
            note=note,
            point=Point("merge", size, "processes"),
        )


def _rows_of_units(executor: Executor, work: Work, index: Index) -> Iterator[int]:
    """Do all units; the rows of each, as it is done.

    Raises:
        WorkerError: one cannot be done, and a rate would say nothing.
    """
    with executor:
        for outcome in executor.run(work, range(len(index.units))):
            if isinstance(outcome, UnitFailed):
                raise WorkerError(f"unit {outcome.unit} failed, so nothing was measured:\n{outcome.reason}")
            yield outcome.num_rows


def _digests(ours: Embedded) -> list[str]:
    """Digest of every merged file."""
    paths = [ours.run.dir.merged(unit) for unit in range(len(ours.index.units))]
    return [str(store.read_attributes(path, "merged")["digest"]) for path in paths]


def _write_plainly(ours: Embedded) -> float:
    """As many bytes as all merged files hold, in one file, with fsync; returns the number of rows."""
    path = ours.run.dir.work / "plain"
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        block = bytes(1 << 24)
        for start in range(0, ours.num_feature_bytes, len(block)):
            stream.write(block[: ours.num_feature_bytes - start])
    path.unlink()
    return float(ours.index.num_rows)


def _measure_embedding(settings: Settings) -> Iterator[Figure]:
    threads = max(1, settings.threads // 2)
    executors: dict[str, Callable[[], Executor]] = {
        "one": lambda: SerialExecutor("cpu", settings.threads),
        "two": lambda: LocalExecutor([Worker(number, "cpu", threads) for number in range(2)]),
    }
    rates: dict[str, list[float]] = {name: [] for name in executors}
    with (
        TemporaryDirectory(prefix="virnucpro-benchmark-") as folder,
        model_named(settings.model, settings.seed) as model,
    ):
        run, index = _extracted(Path(folder), settings, model)
        work = EmbedWork(run.dir, run.bundle, run.dtype, EmbedSettings({}, 0))
        for _ in range(MIN_RUNS):
            for name, make in executors.items():
                with make() as executor:
                    rates[name].append(_steady_rate(executor, work, index))
    one, two = tuple(rates["one"]), tuple(rates["two"])
    what = f"embedding of {index.num_rows:,} rows with {settings.model}"
    note = "from the first units on: start and loading left out"
    alone = f"one process of {_counted(settings.threads)}"
    yield Figure(SECTION, f"{what}, {alone}", "rows/s", one, note=note)
    several = f"{what}, two processes of {_counted(threads)}"
    yield Figure(SECTION, several, "rows/s", two, alone, one, ratio_of(two, one), note=note)


def _counted(num_threads: int) -> str:
    return f"{num_threads} thread" + "s" * (num_threads > 1)


def _steady_rate(executor: Executor, work: Work, index: Index) -> float:
    """Rows a second from the moment on at which as many units are done as there are workers."""
    rows: list[int] = []
    begun = 0.0
    for num_rows in _rows_of_units(executor, work, index):
        rows.append(num_rows)
        if len(rows) == executor.num_workers:
            begun = time.perf_counter()
    return sum(rows[executor.num_workers :]) / (time.perf_counter() - begun)


def _extracted(folder: Path, settings: Settings, model: str) -> tuple[Run, Index]:
    bundle = load_bundle(model)
    num_reads = min(settings.num_rows, _MAX_EMBEDDED_READS)
    reads = write_reads(folder / "reads.fasta", num_reads, settings.read_length, 1.0, settings.seed)
    run_dir = RunDir(folder / "run")
    run_dir.prepare(force=False)
    run = Run(
        dir=run_dir,
        inputs=(str(reads),),
        bundle=bundle,
        fragment_length=bundle.fragment_length,
        unit_rows=max(1, num_reads // _EMBEDDED_UNITS),
        dtype="float32",
        reporter=Reporter(bars=False),
    )
    return run, extract.run(run)
