"""Results: one pass over the units, one set of files for each input."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import CountError
from virnucpro.mapped import let_go
from virnucpro.results import formats, legacy, schema, tables, text
from virnucpro.results.calls import CALL_NAMES, STATUS_NAMES, Answers, Call, Calling, Judge, probability
from virnucpro.results.region_files import ScoredSequences, open_regions
from virnucpro.run_dir import RunDir, file_digest, write_json
from virnucpro.samples import SUMMARY_NAME
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import FRAME_NAMES
from virnucpro.settings import TABLE_FORMATS, TableFormat
from virnucpro.stages import consensus, tabulate
from virnucpro.stages.base import Index, IndexedInput, ScoredRun
from virnucpro.stages.cascade import FirstLook, Join, joined
from virnucpro.stages.consensus import ScoredUnit, scored_units

_log = logging.getLogger(__name__)

_CALLS_IN_FASTA = (Call.VIRUS, Call.UNCERTAIN)
"""Calls whose sequences are written beside the tables."""


@dataclass(frozen=True)
class Wanted:
    """Which results are asked for.

    Attributes:
        rows: ``.rows.tsv.gz`` too (``--keep-intermediate``).
        legacy: the published program's two files too.
        calling: what the user decided about calls.
        format: of the tables of sequences, fragments and rows.
        directory: where results go; None is the run's own.
    """

    rows: bool = False
    legacy: bool = False
    calling: Calling = field(default_factory=Calling)
    format: TableFormat = "tsv"
    directory: Path | None = None


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
        num_failed_rows: rows that could not be computed.
        regions: kind to number of virus regions.
        virus_fdr: estimated share of false calls among what is called virus; NaN where nothing is.
        sequences_by_model: of a cascade, model to number of sequences that it decided.
        bases_by_model: of a cascade, model to number of bases in them.
    """

    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CALL_NAMES.values(), 0))
    statuses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUS_NAMES.values(), 0))
    bases: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CALL_NAMES.values(), 0))
    fragments: int = 0
    scored_fragments: int = 0
    frames: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FRAME_NAMES.values(), 0))
    num_failed_rows: int = 0
    regions: dict[str, int] = field(default_factory=dict)
    virus_fdr: float = float("nan")
    sequences_by_model: dict[str, int] = field(default_factory=dict)
    bases_by_model: dict[str, int] = field(default_factory=dict)

    def add_sequences(self, answers: Answers, lengths: NDArray[np.int64]) -> None:
        """Count sequences; ``lengths`` are theirs in bases."""
        for call, name in CALL_NAMES.items():
            self.calls[name] += int((answers.call == call).sum())
            self.bases[name] += int(lengths[answers.call == call].sum())
        for status, name in STATUS_NAMES.items():
            self.statuses[name] += int((answers.status == status).sum())
        # The rate of the least likely one that is called virus is that of all of them.
        rates = answers.fdr[answers.call == Call.VIRUS]
        self.virus_fdr = float(np.fmax.reduce(rates, initial=self.virus_fdr))

    def add_models(self, join: Join, sums: NDArray[np.void], lengths: NDArray[np.int64]) -> None:
        """Count by whom sequences were decided; ``lengths`` are theirs in bases."""
        for model, title in join.titles.items():
            is_its = sums["model"] == model
            self.sequences_by_model[title] = self.sequences_by_model.get(title, 0) + int(is_its.sum())
            self.bases_by_model[title] = self.bases_by_model.get(title, 0) + int(lengths[is_its].sum())


@dataclass(frozen=True)
class _NamedUnit:
    """A scored unit with the names of all sequences it touches.

    Attributes:
        unit: the unit.
        first: number of the sequence that ``names[0]`` belongs to.
        names: ids of consecutive sequences; the first may have begun in an earlier unit.
    """

    unit: ScoredUnit
    first: int
    names: Ragged

    @property
    def stop(self) -> int:
        """One after the number of the last sequence."""
        return self.first + len(self.names)

    def names_of(self, numbers: NDArray[np.int64]) -> Ragged:
        return text.taken(self.names, numbers - self.first)


def from_scores(scored: ScoredRun, index: Index, wanted: Wanted, look: FirstLook | None = None) -> list[Counts]:
    """Add up stored scores and write all results; see ``run``.

    Args:
        scored: run of the model asked for.
        index: of its units.
        wanted: which results, and where.
        look: of a cascade, what the first model found.
    """
    try:
        sums = consensus.run(scored, index)
        tabulate.run(scored, index)
        if look is None:
            return run(scored, index, sums, wanted)
        with joined(scored, index, sums, look) as join:
            return run(scored, index, join.sums, wanted, join)
    finally:
        scored.dir.sequence_sums.unlink(missing_ok=True)


def run(run: ScoredRun, index: Index, sums: NDArray[np.void], wanted: Wanted, join: Join | None = None) -> list[Counts]:
    """Write all results and return what was counted, an entry for each input.

    Args:
        run: of the model asked for.
        index: of its units.
        sums: (num_sequences,) what all sequences add up to; of a cascade, those of ``join``.
        wanted: which results, and where.
        join: both runs of a cascade.

    Raises:
        CountError: the results do not hold every sequence, fragment and row once.
        UsageError: the library of the format is not installed.
    """
    formats.require(wanted.format)
    if not run.rules.presets and wanted.calling.preset != Calling.preset:
        _log.warning("model %s has no presets: its threshold is used, %g", run.rules.name, run.rules.threshold)
    results = RunDir(wanted.directory or run.dir.root)
    strings = ("names", "pieces", *(("nucleotides", "proteins") if wanted.rows else ()))
    counted = []
    with run.reporter.stage("write", index.num_sequences, "sequences") as advance:
        units = _named_units(
            scored_units(run, index, strings) if join is None else join.units(with_strings=wanted.rows)
        )
        unit = next(units, None)
        for item in index.inputs:
            stop = item.first_sequence + item.num_sequences
            mine = slice(item.first_sequence, stop)
            judge = Judge(run.rules, wanted.calling, sums[mine]) if join is None else join.judge(wanted.calling, mine)
            make = partial(_InputWriter, results=results, item=item, sums=sums, judge=judge, wanted=wanted, join=join)
            with tables.opened(make) as writer:
                while unit is not None and unit.first < stop:
                    advance(writer.add(unit))
                    if unit.stop > stop:
                        break  # the rest of this unit belongs to the next input
                    unit = next(units, None)
            counted.append(writer.counts)
    _check(index, counted, join)
    for item, counts in zip(index.inputs, counted, strict=True):
        _drop_stale(results, item.stem, counts, wanted)
        write_json(results.result(item.stem, "summary.json"), _summary(run, item, counts, wanted.calling, join))
        calls = ", ".join(f"{number:,} {call}" for call, number in counts.calls.items())
        _log.info("%s: %s sequences: %s", item.source, f"{item.num_sequences:,}", calls)
    return counted


def total(counted: list[Counts]) -> Counts:
    """What was written for all inputs; ``virus_fdr`` is of one input alone and stays out."""
    whole = Counts()
    for counts in counted:
        for name in ("calls", "statuses", "bases", "frames", "regions", "sequences_by_model", "bases_by_model"):
            ours, theirs = getattr(whole, name), getattr(counts, name)
            for key, value in theirs.items():
                ours[key] = ours.get(key, 0) + value
        for name in ("fragments", "scored_fragments", "num_failed_rows"):
            setattr(whole, name, getattr(whole, name) + getattr(counts, name))
    return whole


def output_digests(results: RunDir, index: Index) -> dict[str, str]:
    """Digest of each result file that is there, by its path in the directory."""
    digests = {}
    for paths in (*(results.results(item.stem) for item in index.inputs), results.root.glob(SUMMARY_NAME)):
        for path in paths:
            digests[str(path.relative_to(results.root))] = f"sha256:{file_digest(path)}"
    return digests


def _named_units(units: Iterable[ScoredUnit]) -> Iterator[_NamedUnit]:
    last_name = Ragged.from_bytes([b""])
    for unit in units:
        names = unit.table.names
        numbers, fragments = unit.table.sequences["number"], unit.table.fragments["sequence"]
        first = int(numbers[0]) if len(numbers) else int(fragments[0]) + 1
        if len(fragments) and fragments[0] < first:
            names = Ragged.concatenate([last_name, names])
            first -= 1
        last_name = names.slice(len(names) - 1, len(names))
        yield _NamedUnit(unit, first, names)


class _Fasta:
    """A file of sequences as they were read, which come in pieces."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._is_empty = True

    def add(self, names: Ragged, is_first: NDArray[np.bool_], pieces: Ragged) -> None:
        """Append pieces (n); where one ``is_first`` a sequence begins, elsewhere the one before goes on."""
        if not len(pieces):
            return
        begin, end = text.words([b"", b"\n>"], is_first), text.words([b"", b"\n"], is_first)
        records = text.joined(begin, names.keep(is_first), end, pieces).values.data
        self._stream.write(records[1:] if self._is_empty else records)
        self._is_empty = False

    def finish(self) -> None:
        if not self._is_empty:
            self._stream.write(b"\n")


class _InputWriter:
    """The result files of one input; see ``tables.opened``."""

    def __init__(
        self,
        files: ExitStack,
        results: RunDir,
        item: IndexedInput,
        sums: NDArray[np.void],
        judge: Judge,
        wanted: Wanted,
        join: Join | None,
    ) -> None:
        self._files = files
        self._results = results
        self._join = join
        self._sums = sums
        self._judge = judge
        self._first = item.first_sequence
        self._stop = item.first_sequence + item.num_sequences
        self._stem = item.stem
        self._wanted = wanted
        self._sequences = self._open_table(schema.SEQUENCES if join is None else schema.CASCADE)
        self._fragments = self._open_table(schema.FRAGMENTS)
        self._rows = self._open_table(schema.ROWS) if wanted.rows else None
        self._failed: formats.TableWriter | None = None
        self._fastas = {
            call: _Fasta(files.enter_context(tables.open_output(self._path(f"{CALL_NAMES[call]}.fna.gz"))))
            for call in _CALLS_IN_FASTA
        }
        self._regions = files.enter_context(open_regions(self._path))
        self._legacy = self._highest_file = None
        if wanted.legacy:
            self._legacy = self._open_legacy("prediction_results.txt", legacy.RESULT_COLUMNS)
            self._highest_file = self._open_legacy("prediction_results_highestscore.csv", legacy.HIGHEST_COLUMNS)
            self._highest = legacy.HighestScores()
        self.counts = Counts(regions=self._regions.num_regions)

    def finish(self) -> None:
        """Write what ends a file: all units have been added."""
        for fasta in self._fastas.values():
            fasta.finish()
        if self._highest_file is not None:
            self._highest_file.write(self._highest.lines())

    def add(self, named: _NamedUnit) -> int:
        """Write what of a unit belongs to this input; return how many sequences began in it."""
        touched = slice(max(named.first, self._first), min(named.stop, self._stop))
        sums = np.array(self._sums[touched])
        let_go(self._sums)
        answers = self._judge.answer(sums)
        self._add_rows(named)
        self._add_failed_rows(named)
        self._add_fragments(named)
        begun = self._add_sequences(named, sums, answers)
        self._add_pieces(named, answers)
        self._add_regions(named, touched, answers)
        return begun

    def _path(self, suffix: str) -> Path:
        return self._results.result(self._stem, suffix)

    def _open_table(self, table: schema.Table) -> formats.TableWriter:
        file_format = self._wanted.format if self._wanted.format in table.files else "tsv"
        path = self._path(table.suffix(file_format))
        return self._files.enter_context(formats.open_table(path, table, file_format))

    def _open_legacy(self, name: str, columns: tuple[str, ...]) -> IO[bytes]:
        return self._files.enter_context(tables.open_output(self._results.legacy_result(self._stem, name), columns))

    def _mine(self, numbers: NDArray[np.int64]) -> slice:
        """Where ascending sequence ``numbers`` are of this input."""
        if len(numbers) and self._first <= numbers[0] and numbers[-1] < self._stop:
            return slice(0, len(numbers))
        first, stop = np.searchsorted(numbers, (self._first, self._stop))
        return slice(int(first), int(stop))

    def _add_sequences(self, named: _NamedUnit, sums: NDArray[np.void], answers: Answers) -> int:
        """The sequences that begin in a unit; ``sums`` and ``answers`` are of all that it touches of this input."""
        table = named.unit.table
        mine = table.sequences[self._mine(table.sequences["number"])]
        if not len(mine):
            return 0
        begun = slice(len(sums) - len(mine), None)  # but the first may have begun in an earlier unit
        sums, answers = sums[begun], answers[begun]
        names = named.names_of(mine["number"])
        cells = tables.sequence_cells(self._judge.rules, names, mine["length"], sums, answers)
        if self._join is not None:
            cells = (*cells, self._join.cells(sums))
            self.counts.add_models(self._join, sums, mine["length"])
        self._sequences.write(cells)
        self.counts.add_sequences(answers, mine["length"])
        return len(mine)

    def _add_fragments(self, named: _NamedUnit) -> None:
        unit = named.unit
        mine = self._mine(unit.table.fragments["sequence"])
        fragments = unit.table.fragments[mine]
        p_virus = probability(unit.log_odds[mine] + self._wanted.calling.shift)
        names = named.names_of(fragments["sequence"])
        self._fragments.write(tables.fragment_cells(names, fragments, p_virus, unit.num_open[mine]))
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
            strings = text.taken(table.nucleotides, kept), text.taken(table.proteins, kept)
            self._rows.write(tables.row_cells(names, rows, *strings, scores))
        if self._legacy is not None:
            computed = np.flatnonzero(~named.unit.has_failed[kept])
            names, scores = text.taken(names, computed), scores[computed]
            self._legacy.write(legacy.result_lines(names, scores))
            self._highest.add(names, scores)

    def _add_failed_rows(self, named: _NamedUnit) -> None:
        table = named.unit.table
        mine = self._mine(table.rows["sequence"])
        rows = table.rows[mine][named.unit.has_failed[mine]]
        if not len(rows):
            return
        if self._failed is None:
            self._failed = self._open_table(schema.FAILED_ROWS)
        self._failed.write(tables.failed_cells(named.names_of(rows["sequence"]), rows))
        self.counts.num_failed_rows += len(rows)

    def _add_pieces(self, named: _NamedUnit, answers: Answers) -> None:
        table = named.unit.table
        mine = self._mine(table.piece_sequences)
        numbers = table.piece_sequences[mine]
        calls = answers.call[numbers - max(named.first, self._first)]
        is_first = np.isin(numbers, table.sequences["number"])
        for call, fasta in self._fastas.items():
            places = np.flatnonzero(calls == call)
            pieces = text.taken(table.pieces, mine.start + places)
            fasta.add(named.names_of(numbers[places]), is_first[places], pieces)

    def _add_regions(self, named: _NamedUnit, touched: slice, answers: Answers) -> None:
        table = named.unit.table
        fragments, pieces = self._mine(table.fragments["sequence"]), self._mine(table.piece_sequences)
        self._regions.add(
            ScoredSequences(
                first=touched.start,
                names=named.names.slice(touched.start - named.first, touched.stop - named.first),
                is_virus=answers.call == Call.VIRUS,
                p_virus=answers.p_virus,
                fragments=table.fragments[fragments],
                log_odds=named.unit.log_odds[fragments],
                pieces=table.pieces.slice(pieces.start, pieces.stop),
                piece_sequences=table.piece_sequences[pieces],
            )
        )


def _check(index: Index, counted: list[Counts], join: Join | None) -> None:
    by_model = {} if join is None else {"models": "sequences_by_model"}
    for item, counts in zip(index.inputs, counted, strict=True):
        for what, name in ({"calls": "calls", "statuses": "statuses"} | by_model).items():
            numbers: dict[str, int] = getattr(counts, name)
            if sum(numbers.values()) != item.num_sequences:
                raise CountError(
                    f"{item.source}: {item.num_sequences} sequences in, {sum(numbers.values())} {what} out"
                )
    for what, expected, written in (
        ("fragments", (join or index).num_fragments, sum(counts.fragments for counts in counted)),
        ("rows", (join or index).num_rows, sum(sum(counts.frames.values()) for counts in counted)),
        ("bases", sum(item.num_bases for item in index.inputs), sum(sum(c.bases.values()) for c in counted)),
    ):
        if expected != written:
            raise CountError(f"{expected} {what} in, {written} out")


def _drop_stale(results: RunDir, stem: str, counts: Counts, wanted: Wanted) -> None:
    """Delete tables of earlier calls that these results contradict."""
    for table in (schema.SEQUENCES, schema.FRAGMENTS, schema.ROWS):
        for file_format in TABLE_FORMATS:
            if file_format != wanted.format and (table is not schema.ROWS or wanted.rows):
                results.result(stem, table.suffix(file_format)).unlink(missing_ok=True)
    if not counts.num_failed_rows:
        results.result(stem, schema.FAILED_ROWS.suffix("tsv")).unlink(missing_ok=True)


def _summary(run: ScoredRun, item: IndexedInput, counts: Counts, calling: Calling, join: Join | None) -> dict[str, Any]:
    by_model = {"sequences_by_model": counts.sequences_by_model, "bases_by_model": counts.bases_by_model}
    return {
        "input": item.source,
        "model": run.rules.name,
        "model_fingerprint": run.rules.fingerprint,
        **calling.described(run.rules),
        "num_sequences": item.num_sequences,
        "sequences_by_call": counts.calls,
        "sequences_by_status": counts.statuses,
        "fdr_of_virus": None if math.isnan(counts.virus_fdr) else round(counts.virus_fdr, 4),
        "num_bases": item.num_bases,
        "bases_by_call": counts.bases,
        "num_fragments": counts.fragments,
        "num_fragments_scored": counts.scored_fragments,
        "num_rows": sum(counts.frames.values()),
        "rows_by_frame": counts.frames,
        "num_rows_failed": counts.num_failed_rows,
        "regions_by_kind": counts.regions,
        **({} if join is None else {"cascade": join.described() | by_model}),
    }
