"""How fast this machine is with a model on sampled rows: the encoders by themselves, and the whole program."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from virnucpro import store
from virnucpro.benchmarks.inputs import write_reads
from virnucpro.bundles import Bundle
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.loader import pack_unit
from virnucpro.engine.packing import GreedyPacker
from virnucpro.machine.forecast import Counted, Range
from virnucpro.sequence.ragged import Ragged
from virnucpro.stages.base import ROLES
from virnucpro.stages.embed import UnitStrings

_FIRST_ROWS, _MOST_ROWS = 16, 8192
_LONG_ENOUGH_SECONDS = 1.5
_MOST_RUNS = 3
_MARGIN = 1.1
"""The slowest and the fastest run are widened by this: a machine is seldom as it was a moment ago."""

_PROGRAM_SECONDS = 2.0
_MOST_UNITS = 4


@dataclass(frozen=True)
class ProgramFigures:
    """One run of the program.

    Attributes:
        embed_seconds: of the stage that loads the encoders and embeds.
        rest_seconds: of all stages but this and extraction, of both models of a cascade.
        total_seconds: from start to end.
        num_rows: kept frames, of a cascade those of the model that looks first.
        result_bytes: of the result files.
    """

    embed_seconds: float
    rest_seconds: float
    total_seconds: float
    num_rows: int
    result_bytes: int


RunProgram = Callable[[Path, Path], ProgramFigures]
"""Runs the program on a FASTA file, into a folder."""


@dataclass(frozen=True)
class RowCosts:
    """What a row costs beyond its embedding.

    Attributes:
        rest_seconds: in all stages after embedding; low without what a run of one read takes for them, high with it.
        result_bytes: of the result files, in the same way.
    """

    rest_seconds: Range
    result_bytes: Range


def run_on_one_read(run_program: RunProgram, bundle: Bundle, folder: Path) -> ProgramFigures:
    """All that is done once in a run: compiled kernels and the model are loaded, files opened.

    Args:
        run_program: as a user would.
        bundle: the model it runs with.
        folder: for input and results.
    """
    return run_program(write_reads(folder / "one.fasta", 1, bundle.fragment_length, 1.0, seed=1), folder / "one")


def sampled_strings(counted: Counted) -> dict[str, Ragged]:
    """Strings of each role of the rows to be computed, from units at equal distances in the sample."""
    units = np.unique(np.linspace(0, counted.num_units - 1, _MOST_UNITS).astype(int)) if counted.num_units else ()
    strings = {
        role: Ragged.concatenate([UnitStrings(counted.run_dir, role)(int(unit)) for unit in units]) for role in ROLES
    }
    num_rows = len(strings[ROLES[0]])
    rows = np.unique(np.linspace(0, num_rows - 1, min(num_rows, _MOST_ROWS)).astype(np.int64))
    return {role: of_role.take(rows) for role, of_role in strings.items()} if num_rows else strings


def embed_rate(
    strings: Mapping[str, Ragged],
    encoders: Mapping[str, Encoder],
    token_budgets: Mapping[str, int],
    device: torch.device,
) -> tuple[Range, int]:
    """Rows a second through both encoders, from strings to embeddings, and how many rows the longest run had.

    More rows are taken until a run takes long enough to be measured; a slow encoder gets a few and one run.
    The range is that of the runs, widened by a tenth.

    Args:
        strings: role to at least one string, the same number for both.
        encoders: role to encoder, on ``device``.
        token_budgets: role to tokens in a batch.
        device: where.
    """
    num_all = len(strings[ROLES[0]])
    num_rows = min(num_all, _FIRST_ROWS)
    seconds = _embed_seconds(strings, num_rows, encoders, token_budgets, device)
    while seconds < _LONG_ENOUGH_SECONDS and num_rows < num_all:
        num_rows = min(num_all, num_rows * max(2, min(8, int(_LONG_ENOUGH_SECONDS / seconds))))
        seconds = _embed_seconds(strings, num_rows, encoders, token_budgets, device)
    runs = [seconds]
    while len(runs) < _MOST_RUNS and seconds < 2 * _LONG_ENOUGH_SECONDS:
        runs.append(_embed_seconds(strings, num_rows, encoders, token_budgets, device))
    rates = sorted(num_rows / run for run in runs)
    return Range(rates[0] / _MARGIN, rates[len(rates) // 2], rates[-1] * _MARGIN), num_rows


def row_costs(
    run_program: RunProgram, one: ProgramFigures, counted: Counted, rows_per_second: float, folder: Path
) -> RowCosts:
    """Run the program on some of the sample; what that takes more than one read is what rows cost.

    Args:
        run_program: as a user would.
        one: its run on one read.
        counted: the sample.
        rows_per_second: of the encoders; decides how many rows are taken.
        folder: for input and results.
    """
    wanted = max(_FIRST_ROWS, min(_MOST_ROWS, int(rows_per_second * _PROGRAM_SECONDS)))
    some = run_program(_write_rows(folder / "some.fasta", counted, wanted), folder / "some")
    return RowCosts(
        rest_seconds=_a_row(one.rest_seconds, some.rest_seconds, some.num_rows),
        result_bytes=_a_row(one.result_bytes, some.result_bytes, some.num_rows),
    )


def _a_row(of_one_read: float, of_some: float, num_rows: int) -> Range:
    low, high = max(0.0, of_some - of_one_read) / max(1, num_rows), of_some / max(1, num_rows)
    return Range(low, (low + high) / 2, high)


def _embed_seconds(
    strings: Mapping[str, Ragged],
    num_rows: int,
    encoders: Mapping[str, Encoder],
    token_budgets: Mapping[str, int],
    device: torch.device,
) -> float:
    packing = embedding = 0.0
    rows = np.linspace(0, len(strings[ROLES[0]]) - 1, num_rows).astype(np.int64)
    for role in ROLES:
        start = time.perf_counter()
        packer = GreedyPacker(token_budgets[role])
        unit = pack_unit(0, strings[role].take(rows), encoders[role].tokenizer, packer)
        packed = time.perf_counter()
        for _ in AsyncInferenceRunner(encoders[role], device).embeddings([unit]):
            pass
        packing += packed - start
        embedding += time.perf_counter() - packed
    # A GPU has loader processes beside it, one of them at least.
    return packing + embedding if device.type == "cpu" else max(packing, embedding)


def _write_rows(path: Path, counted: Counted, num_rows: int) -> Path:
    """Sequences of the sample that hold about ``num_rows`` rows; a long one is cut."""
    left = max(1, counted.num_bases * num_rows // max(1, counted.num_rows))
    with path.open("wb") as stream:
        for unit in range(counted.num_units):
            for number, bases in enumerate(store.read_unit(counted.run_dir.unit(unit)).pieces):
                stream.write(b">unit_%d_%d\n%s\n" % (unit, number, bases[:left].tobytes()))
                left -= len(bases)
                if left <= 0:
                    return path
    return path
