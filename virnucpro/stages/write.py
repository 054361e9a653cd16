"""Results: one pass over the units, one set of files for each input."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import CountError
from virnucpro.report import legacy, tables
from virnucpro.report.calls import CALL_NAMES, STATUS_NAMES, Call, answer
from virnucpro.run_dir import write_json
from virnucpro.sequence.table import FRAME_NAMES
from virnucpro.stages.base import Index, IndexedInput, Run
from virnucpro.stages.consensus import ScoredUnit, probability, scored_units

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """Which results are asked for beside the ordinary ones.

    Attributes:
        rows: ``.rows.tsv.gz`` (``--keep-intermediate``).
        legacy: the published program's two files.
    """

    rows: bool
    legacy: bool


@dataclass
class Counts:
    """What was written for one input; the numbers add up or the run fails.

    Attributes:
        calls: call to number of sequences.
        statuses: status to number of sequences.
        bases: call to number of bases.
        fragments: number written.
        scored_fragments: how many of them have a score.
        frames: frame name to number of rows (``N0``: scored from nucleotides alone).
    """

    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CALL_NAMES.values(), 0))
    statuses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUS_NAMES.values(), 0))
    bases: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CALL_NAMES.values(), 0))
    fragments: int = 0
    scored_fragments: int = 0
    frames: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FRAME_NAMES.values(), 0))


@dataclass(frozen=True)
class _NamedUnit:
    """A scored unit with the names of all sequences it touches.

    Attributes:
        unit: the unit.
        first: number of the sequence that ``names[0]`` belongs to.
        names: of consecutive sequences; the first may have begun in an earlier unit.
    """

    unit: ScoredUnit
    first: int
    names: list[bytes]

    @property
    def stop(self) -> int:
        """One after the number of the last sequence."""
        return self.first + len(self.names)

    def names_of(self, numbers: NDArray[np.int64]) -> list[bytes]:
        return [self.names[number] for number in (numbers - self.first).tolist()]


def run(run: Run, index: Index, sums: NDArray[np.void], wanted: Wanted) -> list[Counts]:
    """Write all results and return what was counted, an entry for each input.

    Raises:
        CountError: the results do not hold every sequence, fragment and row once.
    """
    counted = []
    with run.reporter.stage("write", index.num_sequences, "sequences") as advance:
        units = _named_units(run, index)
        unit = next(units, None)
        for item in index.inputs:
            stop = item.first_sequence + item.num_sequences
            with _InputWriter(run, item, sums, wanted) as writer:
                while unit is not None and unit.first < stop:
                    advance(writer.add(unit))
                    if unit.stop > stop:
                        break  # the rest of this unit belongs to the next input
                    unit = next(units, None)
            counted.append(writer.counts)
    _check(index, counted)
    for item, counts in zip(index.inputs, counted, strict=True):
        write_json(run.dir.result(item.stem, "summary.json"), _summary(run, item, counts))
        calls = ", ".join(f"{number:,} {call}" for call, number in counts.calls.items())
        _log.info("%s: %s sequences: %s", item.source, f"{item.num_sequences:,}", calls)
    return counted


def _named_units(run: Run, index: Index) -> Iterator[_NamedUnit]:
    last_name = b""
    for unit in scored_units(run, index):
        names = unit.table.names.to_bytes()
        numbers, fragments = unit.table.sequences["number"], unit.table.fragments["sequence"]
        first = int(numbers[0]) if len(numbers) else int(fragments[0]) + 1
        if len(fragments) and fragments[0] < first:
            names.insert(0, last_name)
            first -= 1
        last_name = names[-1]
        yield _NamedUnit(unit, first, names)


class _InputWriter:
    """The open result files of one input; they take their places when the block ends well."""

    def __init__(self, run: Run, item: IndexedInput, sums: NDArray[np.void], wanted: Wanted) -> None:
        self._run = run
        self._sums = sums
        self._first = item.first_sequence
        self._stop = item.first_sequence + item.num_sequences
        self._stem = item.stem
        self._wanted = wanted
        self._files = ExitStack()
        self._is_hit_open = False
        self.counts = Counts()

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # a failure half-way closes what was opened

            def table(suffix: str, columns: tuple[str, ...] = ()) -> IO[bytes]:
                return stack.enter_context(tables.open_output(self._run.dir.result(self._stem, suffix), columns))

            def legacy_table(name: str, columns: tuple[str, ...]) -> IO[bytes]:
                return stack.enter_context(tables.open_output(self._run.dir.legacy_result(self._stem, name), columns))

            self._sequences = table("sequences.tsv", tables.SEQUENCE_COLUMNS)
            self._fragments = table("fragments.tsv.gz", tables.FRAGMENT_COLUMNS)
            self._hits = table("virus.fna.gz")
            self._rows = table("rows.tsv.gz", tables.ROW_COLUMNS) if self._wanted.rows else None
            self._legacy = self._highest_file = None
            if self._wanted.legacy:
                self._legacy = legacy_table("prediction_results.txt", legacy.RESULT_COLUMNS)
                self._highest_file = legacy_table("prediction_results_highestscore.csv", legacy.HIGHEST_COLUMNS)
                self._highest = legacy.HighestScores()
            self._files = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._files as files:
            if kind is not None:
                files.__exit__(kind, error, trace)
                return
            if self._is_hit_open:
                self._hits.write(b"\n")
            if self._highest_file is not None:
                self._highest_file.write(self._highest.lines())

    def add(self, named: _NamedUnit) -> int:
        """Write what of a unit belongs to this input; return how many sequences began in it."""
        self._add_rows(named)
        self._add_fragments(named)
        begun = self._add_sequences(named)
        self._add_hits(named)
        return begun

    def _mine(self, numbers: NDArray[np.int64]) -> slice:
        """Where ascending sequence ``numbers`` are of this input."""
        first, stop = np.searchsorted(numbers, (self._first, self._stop))
        return slice(int(first), int(stop))

    def _add_sequences(self, named: _NamedUnit) -> int:
        table = named.unit.table
        mine = table.sequences[self._mine(table.sequences["number"])]
        if not len(mine):
            return 0
        sums = self._sums[mine["number"][0] : mine["number"][-1] + 1]
        answers = answer(self._run.bundle, self._run.threshold, sums)
        names = named.names_of(mine["number"])
        self._sequences.write(tables.sequence_lines(self._run.bundle, names, mine["length"], sums, answers))
        for call, name in CALL_NAMES.items():
            self.counts.calls[name] += int((answers.call == call).sum())
            self.counts.bases[name] += int(mine["length"][answers.call == call].sum())
        for status, name in STATUS_NAMES.items():
            self.counts.statuses[name] += int((answers.status == status).sum())
        return len(mine)

    def _add_fragments(self, named: _NamedUnit) -> None:
        unit = named.unit
        mine = self._mine(unit.table.fragments["sequence"])
        fragments = unit.table.fragments[mine]
        p_virus = probability(unit.log_odds[mine])
        names = named.names_of(fragments["sequence"])
        self._fragments.write(tables.fragment_lines(names, fragments, p_virus, unit.num_open[mine]))
        self.counts.fragments += len(fragments)
        self.counts.scored_fragments += int((~np.isnan(p_virus)).sum())

    def _add_rows(self, named: _NamedUnit) -> None:
        table = named.unit.table
        mine = self._mine(table.rows["sequence"])
        for frame, number in zip(*np.unique(table.rows["frame"][mine], return_counts=True), strict=True):
            self.counts.frames[FRAME_NAMES[int(frame)]] += int(number)
        if self._rows is None and self._legacy is None:
            return
        kept = np.flatnonzero(table.rows["frame"][mine] != 0) + mine.start
        rows, scores = table.rows[kept], named.unit.scores[kept]
        names = tables.row_names(named.names_of(rows["sequence"]), rows)
        if self._rows is not None:
            strings = table.nucleotides.take(kept), table.proteins.take(kept)
            self._rows.write(tables.row_lines(names, rows, *strings, scores))
        if self._legacy is not None:
            self._legacy.write(legacy.result_lines(names, scores))
            self._highest.add(names, scores)

    def _add_hits(self, named: _NamedUnit) -> None:
        table = named.unit.table
        mine = self._mine(table.piece_sequences)
        numbers = table.piece_sequences[mine]
        if not len(numbers):
            return
        calls = answer(self._run.bundle, self._run.threshold, self._sums[numbers]).call
        is_first = np.isin(numbers, table.sequences["number"])
        for piece in np.flatnonzero(calls == Call.VIRUS).tolist():
            if is_first[piece]:
                start = b"\n>" if self._is_hit_open else b">"
                self._hits.write(start + named.names[int(numbers[piece]) - named.first] + b"\n")
                self._is_hit_open = True
            self._hits.write(table.pieces[mine.start + piece].tobytes())


def _check(index: Index, counted: list[Counts]) -> None:
    for item, counts in zip(index.inputs, counted, strict=True):
        for what, numbers in (("calls", counts.calls), ("statuses", counts.statuses)):
            if sum(numbers.values()) != item.num_sequences:
                raise CountError(
                    f"{item.source}: {item.num_sequences} sequences in, {sum(numbers.values())} {what} out"
                )
    for what, expected, written in (
        ("fragments", index.num_fragments, sum(counts.fragments for counts in counted)),
        ("rows", index.num_rows, sum(sum(counts.frames.values()) for counts in counted)),
        ("bases", sum(item.num_bases for item in index.inputs), sum(sum(c.bases.values()) for c in counted)),
    ):
        if expected != written:
            raise CountError(f"{expected} {what} in, {written} out")


def _summary(run: Run, item: IndexedInput, counts: Counts) -> dict[str, object]:
    return {
        "input": item.source,
        "model": run.bundle.name,
        "model_fingerprint": run.bundle.fingerprint,
        "threshold": run.threshold,
        "num_sequences": item.num_sequences,
        "sequences_by_call": counts.calls,
        "sequences_by_status": counts.statuses,
        "num_bases": item.num_bases,
        "bases_by_call": counts.bases,
        "num_fragments": counts.fragments,
        "num_fragments_scored": counts.scored_fragments,
        "num_rows": sum(counts.frames.values()),
        "rows_by_frame": counts.frames,
    }
