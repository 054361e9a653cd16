"""Peak memory and time of the program against the number of reads: the one stays flat, the other is linear."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.made_models import model_named
from benchmarks.measure import Figure, Goal, Point, Settings
from benchmarks.program import ProgramRun, reads_for, run_predict

SECTION = "memory"
_GIB = 2**30
_GOAL_READS = 10_000_000
_GOAL_GIB = 0.7
_FLAT = 1.25
"""Largest peak to smallest peak that still is called flat."""
_LINEAR = 1.1
"""Exponent of time in the number of reads that still is called linear."""
_SETTLED_READS = 100_000
"""Below, the room of a unit is not full and the start of the program is much of the time: no word on larger inputs."""


def measure(settings: Settings) -> Iterator[Figure]:
    """Peak and time for each number of reads, how both grow, and what ten million would take at this growth."""
    runs: dict[int, ProgramRun] = {}
    with model_named(settings.model, settings.seed) as model:
        for num_reads in sorted(settings.memory_reads):
            with TemporaryDirectory(prefix="virnucpro-benchmark-") as folder:
                reads = reads_for(settings, Path(folder), num_reads)
                runs[num_reads] = run_predict(reads, Path(folder) / "out", model, settings.threads)
            yield from _size_figures(num_reads, runs[num_reads], settings)
    if len(runs) > 1:
        yield from _growth_figures(runs)


def _growth_figures(runs: Mapping[int, ProgramRun]) -> Iterator[Figure]:
    settled = {num_reads: run for num_reads, run in runs.items() if num_reads >= _SETTLED_READS}
    if 2 <= len(settled) < len(runs):
        yield _growth_of_peak(runs, Goal(), f"below {_SETTLED_READS:,} reads a unit is not full")
    if len(settled) < 2:
        yield _growth_of_peak(runs, Goal(most_ratio=_FLAT))
        return
    yield _growth_of_peak(settled, Goal(most_ratio=_FLAT))
    yield _growth_of_time(settled)
    if max(settled) < _GOAL_READS:
        yield _foreseen_peak(settled)


def _size_figures(num_reads: int, run: ProgramRun, settings: Settings) -> Iterator[Figure]:
    what = f"{num_reads:,} reads of {settings.read_length} b, model {settings.model}"
    yield Figure(
        SECTION,
        f"peak of {what}",
        "GiB",
        (run.peak_rss_bytes / _GIB,),
        goal=Goal(most=_GOAL_GIB),
        note=f"all processes together; {run.num_rows:,} rows",
        point=Point("peak memory", num_reads, "reads"),
    )
    yield Figure(
        SECTION,
        f"time of {what}",
        "s",
        (run.seconds,),
        note=f"{num_reads / run.seconds:,.0f} reads/s; threads: {settings.threads}",
        point=Point("time", num_reads, "reads"),
    )


def _growth_of_peak(runs: Mapping[int, ProgramRun], goal: Goal, note: str = "") -> Figure:
    """Largest input against smallest."""
    least, most = min(runs), max(runs)
    smallest, largest = runs[least].peak_rss_bytes / _GIB, runs[most].peak_rss_bytes / _GIB
    ratio = largest / smallest
    if not note:
        note = "flat" if ratio <= _FLAT else "not flat"
    what = f"peak of {most:,} reads against {least:,}"
    return Figure(SECTION, what, "GiB", (largest,), f"{least:,} reads", (smallest,), ratio, goal, note=note)


def _growth_of_time(runs: Mapping[int, ProgramRun]) -> Figure:
    """Slope of the straight line through the logarithms of reads and seconds."""
    reads, seconds = np.log(list(runs)), np.log([run.seconds for run in runs.values()])
    exponent = float(np.polyfit(reads, seconds, 1)[0])
    what = f"time grows with reads to the power of, {min(runs):,} to {max(runs):,} reads"
    note = f"a line through the logarithms of {len(runs)} sizes; 1 is linear"
    return Figure(SECTION, what, "", (exponent,), goal=Goal(most=_LINEAR), note=note)


def _foreseen_peak(runs: Mapping[int, ProgramRun]) -> Figure:
    """Peak of ten million reads if it goes on as between the last two sizes."""
    before, most = sorted(runs)[-2:]
    largest = runs[most].peak_rss_bytes
    growth = max(0.0, (largest - runs[before].peak_rss_bytes) / (most - before))
    foreseen = (largest + growth * (_GOAL_READS - most)) / _GIB
    note = f"foreseen from {growth:,.1f} bytes a read, not measured"
    return Figure(SECTION, f"peak of {_GOAL_READS:,} reads", "GiB", (foreseen,), goal=Goal(most=_GOAL_GIB), note=note)
