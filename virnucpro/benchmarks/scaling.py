"""One process against several: merging by pool size, embedding by number of worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from virnucpro import store
from virnucpro.benchmarks.inputs import write_reads
from virnucpro.benchmarks.measure import Figure, Settings, ratio_of, take_turns
from virnucpro.benchmarks.results import Embedded, prepare
from virnucpro.bundles import load_bundle
from virnucpro.executors.base import Executor, UnitDone, Worker
from virnucpro.executors.local import LocalExecutor
from virnucpro.executors.pool import PoolExecutor
from virnucpro.executors.serial import SerialExecutor
from virnucpro.progress import Reporter
from virnucpro.run_dir import RunDir, atomic_write
from virnucpro.stages import extract
from virnucpro.stages.base import ROLES, Index, Run
from virnucpro.stages.embed import EmbedSettings, EmbedWork
from virnucpro.stages.merge import MergeWork

SECTION = "scaling"
_UNIT_ROWS = 4096
_POOL_SIZES = (1, 2, 4)
_EMBEDDED_SHARE = 0.2
"""Rows that are embedded, of those that are merged: embedding is that much slower."""


def measure(settings: Settings) -> Iterator[Figure]:
    """Merge throughput for 1, 2 and 4 processes, and embedding in one process and in two."""
    yield from _measure_merging(settings)
    yield from _measure_embedding(settings)


def _measure_merging(settings: Settings) -> Iterator[Figure]:
    with TemporaryDirectory(prefix="virnucpro-benchmark-") as folder:
        ours = prepare(Path(folder), settings, unit_rows=_UNIT_ROWS)
        run, units = ours.run, range(len(ours.index.units))
        digests = run.bundle.digests
        fingerprints = {role: f"{digests[role]}/float32" for role in ROLES}
        work = MergeWork(run.dir, fingerprints, f"{run.bundle.fingerprint}/float32")

        def merge(num_processes: int) -> float:
            outcomes = PoolExecutor(num_processes).run(work, units)
            return float(sum(done.num_rows for done in outcomes if isinstance(done, UnitDone)))

        rates = take_turns(
            {
                **{str(size): partial(merge, size) for size in _POOL_SIZES},
                "disk": partial(_write_plainly, ours),
            },
            settings.seconds,
            before={str(size): ours.clear for size in _POOL_SIZES},
        )
        sequential = _digests(ours, partial(merge, 1))
        for size in _POOL_SIZES:
            others = _digests(ours, partial(merge, size))
            yield Figure(
                SECTION,
                f"merge of {ours.index.num_rows:,} rows of 3,328, {size} processes",
                "rows/s",
                rates[str(size)],
                "one process",
                rates["1"],
                ratio_of(rates[str(size)], rates["1"]),
                max_difference=float(sum(a != b for a, b in zip(sequential, others, strict=True))),
                tolerance=0,
                note=f"start of the processes included; CPUs: {settings.threads}; max diff counts files",
            )
        yield Figure(
            SECTION, "  as many bytes written plainly", "rows/s", rates["disk"], note="write and fsync alone: the limit"
        )


def _digests(ours: Embedded, merge_again: Callable[[], float]) -> list[str]:
    """Digest of every merged file, made anew."""
    ours.clear()
    merge_again()
    paths = [ours.run.dir.merged(unit) for unit in range(len(ours.index.units))]
    return [str(store.read_attributes(path, "merged")["digest"]) for path in paths]


def _write_plainly(ours: Embedded) -> float:
    """As many bytes as all merged files hold, in one file; returns the number of rows."""
    path = ours.run.dir.work / "plain"
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        block = bytes(1 << 24)
        for start in range(0, ours.num_feature_bytes, len(block)):
            stream.write(block[: ours.num_feature_bytes - start])
    path.unlink()
    return float(ours.index.num_rows)


def _measure_embedding(settings: Settings) -> Iterator[Figure]:
    with TemporaryDirectory(prefix="virnucpro-benchmark-") as folder:
        run, index = _extracted(Path(folder), settings)
        work = EmbedWork(run.dir, run.bundle, run.dtype, EmbedSettings({}, 0))
        executors: dict[str, Executor] = {
            "one": LocalExecutor([Worker(0, "cpu", 1)]),
            "two": LocalExecutor([Worker(number, "cpu", 1) for number in range(2)]),
            "threads": SerialExecutor("cpu", 2),
        }

        def embed(executor: Executor) -> float:
            outcomes = executor.run(work, range(len(index.units)))
            return float(sum(done.num_rows for done in outcomes if isinstance(done, UnitDone)))

        rates = take_turns({name: partial(embed, executor) for name, executor in executors.items()}, settings.seconds)
        for name, what in (("two", "two processes of one thread"), ("threads", "one process of two threads")):
            yield Figure(
                SECTION,
                f"embedding of {index.num_rows:,} rows with {settings.model}, {what}",
                "rows/s",
                rates[name],
                "one process of one thread",
                rates["one"],
                ratio_of(rates[name], rates["one"]),
                note="start of the processes and loading included",
            )


def _extracted(folder: Path, settings: Settings) -> tuple[Run, Index]:
    bundle = load_bundle(settings.model)
    num_reads = max(1, round(settings.num_rows * _EMBEDDED_SHARE))
    reads = write_reads(folder / "reads.fasta", num_reads, settings.read_length, 1.0, settings.seed)
    run_dir = RunDir(folder / "run")
    run_dir.prepare(force=False)
    run = Run(
        dir=run_dir,
        inputs=(str(reads),),
        bundle=bundle,
        fragment_length=bundle.fragment_length,
        unit_rows=_UNIT_ROWS // 2,
        dtype="float32",
        reporter=Reporter(bars=False),
    )
    return run, extract.run(run)
