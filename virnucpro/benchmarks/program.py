"""The program as a user runs it: from end to end, and its peak memory against the number of reads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from virnucpro.benchmarks.inputs import write_reads
from virnucpro.benchmarks.measure import Figure, Goal, Settings
from virnucpro.errors import VirNucProError
from virnucpro.run_dir import read_json

PREDICT = "predict"
MEMORY = "memory"
_CODING_SHARE = 0.5
_GIB = 2**30
_GOAL_READS = 10_000_000
_GOAL_GIB = 2.0
_FLAT = 1.25
"""Largest peak to smallest peak that still is called flat."""
_SETTLED_READS = 100_000
"""Below, the room of a unit is not full yet, and growth says nothing of larger inputs."""


class ProgramError(VirNucProError):
    """The measured program failed.

    Args:
        arguments: it was given.
        code: it ended with.
        said: the end of its stderr.
    """

    def __init__(self, arguments: list[str], code: int, said: str) -> None:
        self.arguments = arguments
        self.code = code
        self.said = said
        super().__init__(arguments, code, said)

    def __str__(self) -> str:
        command = " ".join(["virnucpro", *self.arguments])
        return f"`{command}` ended with {self.code}; nothing was measured. It said:\n{self.said}"


@dataclass(frozen=True)
class ProgramRun:
    """One run of ``virnucpro predict``.

    Attributes:
        seconds: wall time of the process, its start included.
        peak_rss_bytes: of its largest process.
        num_fragments: cut.
        num_rows: embedded and scored.
        stage_seconds: stage to wall seconds.
    """

    seconds: float
    peak_rss_bytes: int
    num_fragments: int
    num_rows: int
    stage_seconds: dict[str, float]


def measure_predict(settings: Settings) -> Iterator[Figure]:
    """Fragments a second from start to end, and seconds a stage; at least one run, more while the budget lasts."""
    runs: list[ProgramRun] = []
    start = time.perf_counter()
    with TemporaryDirectory(prefix="virnucpro-benchmark-") as folder:
        reads = _reads(Path(folder), settings.predict_reads, settings)
        while not runs or time.perf_counter() - start < settings.seconds:
            runs.append(run_predict(reads, Path(folder) / "out", settings))
    rates = tuple(run.num_fragments / run.seconds for run in runs)
    what = f"{settings.predict_reads:,} reads of {settings.read_length} b, model {settings.model}"
    note = f"half coding; {runs[0].num_fragments:,} fragments, {runs[0].num_rows:,} rows; threads: {settings.threads}"
    yield Figure(PREDICT, what, "fragments/s", rates, goal=Goal(least=2000), note=note)
    for stage in runs[0].stage_seconds:
        yield Figure(PREDICT, f"  of it {stage}", "s", tuple(run.stage_seconds[stage] for run in runs))
    idle = tuple(run.seconds - sum(run.stage_seconds.values()) for run in runs)
    yield Figure(PREDICT, "  of it start and the rest", "s", idle)


def measure_memory(settings: Settings) -> Iterator[Figure]:
    """Peak memory for each number of reads, and what ten million would take if it goes on as between the last two."""
    peaks: dict[int, int] = {}
    for num_reads in sorted(settings.memory_reads):
        with TemporaryDirectory(prefix="virnucpro-benchmark-") as folder:
            run = run_predict(_reads(Path(folder), num_reads, settings), Path(folder) / "out", settings)
        peaks[num_reads] = run.peak_rss_bytes
        what = f"peak of {num_reads:,} reads of {settings.read_length} b"
        yield Figure(MEMORY, what, "GiB", (run.peak_rss_bytes / _GIB,), note=f"largest process, model {settings.model}")
    if len(peaks) < 2:
        return
    (least, smallest), (most, largest) = min(peaks.items()), max(peaks.items())
    ratio = largest / smallest
    yield Figure(
        MEMORY,
        f"{most:,} reads against {least:,}",
        "GiB",
        (largest / _GIB,),
        f"{least:,} reads",
        (smallest / _GIB,),
        ratio,
        Goal(most_ratio=_FLAT),
        note="flat" if ratio <= _FLAT else "not flat",
    )
    *_, before, _ = sorted(peaks)
    if before < _SETTLED_READS:
        return
    growth = max(0.0, (largest - peaks[before]) / (most - before))
    foreseen = (largest + growth * max(0, _GOAL_READS - most)) / _GIB
    note = f"foreseen from {growth:,.1f} bytes a read, not measured"
    yield Figure(MEMORY, f"peak of {_GOAL_READS:,} reads", "GiB", (foreseen,), goal=Goal(most=_GOAL_GIB), note=note)


def run_predict(reads: Path, output: Path, settings: Settings) -> ProgramRun:
    """Run the program once, in processes of its own, and read its run record.

    Raises:
        ProgramError: it failed.
    """
    shutil.rmtree(output, ignore_errors=True)
    arguments = ["predict", str(reads), "-o", str(output), "--model", settings.model, "-t", str(settings.threads)]
    arguments += ["--no-progress", "--quiet"]
    ended = subprocess.run(  # noqa: S603 - this program, by the interpreter it runs in
        [sys.executable, "-m", "virnucpro.benchmarks.launch", *arguments],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if ended.returncode:
        raise ProgramError(arguments, ended.returncode, ended.stderr[-1000:])
    measured = json.loads(ended.stdout.splitlines()[-1])
    if measured["code"]:
        raise ProgramError(arguments, measured["code"], ended.stderr[-1000:])
    record: dict[str, Any] = read_json(output / f"{reads.stem}.run.json")
    stages = {stage: value for stage, value in record["seconds"].items() if stage != "total"}
    counts = record["counts"]
    return ProgramRun(
        measured["seconds"], measured["peak_rss_bytes"], counts["num_fragments"], counts["num_rows"], stages
    )


def _reads(folder: Path, num_reads: int, settings: Settings) -> Path:
    return write_reads(folder / "reads.fasta", num_reads, settings.read_length, _CODING_SHARE, settings.seed)
