"""The program as a user runs it, from start to end."""

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

from benchmarks.made_models import model_named
from benchmarks.measure import Figure, Goal, Settings
from virnucpro.atomic import read_json
from virnucpro.errors import VirNucProError
from virnucpro.machine.reads import write_reads

SECTION = "predict"
_CODING_SHARE = 0.5


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
        peak_rss_bytes: of all its processes together; off Linux, of the largest.
        num_fragments: cut.
        num_rows: embedded and scored.
        stage_seconds: stage to wall seconds.
    """

    seconds: float
    peak_rss_bytes: int
    num_fragments: int
    num_rows: int
    stage_seconds: dict[str, float]


def measure(settings: Settings) -> Iterator[Figure]:
    """Fragments a second from start to end, and seconds a stage; at least one run, more while the budget lasts."""
    runs: list[ProgramRun] = []
    start = time.perf_counter()
    with (
        TemporaryDirectory(prefix="virnucpro-benchmark-") as folder,
        model_named(settings.model, settings.seed) as model,
    ):
        reads = reads_for(settings, Path(folder), settings.predict_reads)
        while not runs or time.perf_counter() - start < settings.seconds:
            runs.append(run_predict(reads, Path(folder) / "out", model, settings.threads))
    rates = tuple(run.num_fragments / run.seconds for run in runs)
    what = f"{settings.predict_reads:,} reads of {settings.read_length} b, model {settings.model}"
    note = f"half coding; {runs[0].num_fragments:,} fragments, {runs[0].num_rows:,} rows; threads: {settings.threads}"
    yield Figure(SECTION, what, "fragments/s", rates, goal=Goal(least=2000), note=note)
    for stage in runs[0].stage_seconds:
        yield Figure(SECTION, f"  of it {stage}", "s", tuple(run.stage_seconds[stage] for run in runs))
    idle = tuple(run.seconds - sum(run.stage_seconds.values()) for run in runs)
    yield Figure(SECTION, "  of it start and the rest", "s", idle)


def run_predict(reads: Path, output: Path, model: str, threads: int) -> ProgramRun:
    """Run the program once, in processes of its own, and read its run record.

    Args:
        reads: input.
        output: directory; what it holds is deleted.
        model: as in ``predict``.
        threads: CPU threads in all.

    Raises:
        ProgramError: it failed.
    """
    shutil.rmtree(output, ignore_errors=True)
    arguments = ["predict", str(reads.absolute()), "-o", str(output.absolute()), "--model", model, "-t", str(threads)]
    arguments += ["--no-progress", "--quiet"]
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.launch", *arguments],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
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


def reads_for(settings: Settings, folder: Path, num_reads: int, *, num_copies: int = 1) -> Path:
    """Reads of the length asked for, half of them coding; see ``write_reads``."""
    path = folder / f"reads_{num_reads}x{num_copies}.fasta"
    return write_reads(path, num_reads, settings.read_length, _CODING_SHARE, settings.seed, num_copies=num_copies)
