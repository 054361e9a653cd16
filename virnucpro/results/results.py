"""What a finished run wrote, read back: its records, and what its table of sequences adds up to.

A table may have ten million lines: it is read once, some thousand lines at a time, and only counts and the few
sequences that are shown one by one are kept. Columns are found by the names in the header line, so that a table
with more columns, or without an optional one, reads as well.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import StoreError, UsageError
from virnucpro.results import text
from virnucpro.run_dir import RunDir, read_json
from virnucpro.sequence.ragged import Ragged

CALLS = ("virus", "uncertain", "not_virus", "no_call")
"""All calls, in the order in which they are shown."""

NUM_SCORE_BINS = 40
LENGTH_BINS_PER_DECADE = 8
LENGTH_EDGES = 10.0 ** (np.arange(10 * LENGTH_BINS_PER_DECADE + 1) / LENGTH_BINS_PER_DECADE)
"""Edges (nt) of the bins of length, from one base to ten billion."""

NUM_HITS = 50
NUM_LONGEST = 20

_SEQUENCE_COLUMNS = ("name", "length", "num_fragments", "call", "p_virus", "evidence", "status")
_BATCH_BYTES = 1 << 20
_EVEN_PREVALENCE = 0.5
_RECORD_SUFFIX = "run.json"


@dataclass(frozen=True)
class SequenceLine:
    """A line of the table of sequences.

    Attributes:
        number: place in the table, from 0.
        first_fragment: place of its first line in the table of fragments, from 0.
        name: as it is in the table.
        length: nt.
        num_fragments: lines it has in the table of fragments.
        call: one of ``CALLS``.
        p_virus: NaN where there is none.
        fdr: share of false calls among sequences with a p_virus at least as high; NaN where there is none.
        evidence: what the probability rests on.
    """

    number: int
    first_fragment: int
    name: bytes
    length: int
    num_fragments: int
    call: str
    p_virus: float
    fdr: float
    evidence: str


@dataclass
class Tally:
    """What the lines of a table of sequences add up to.

    Attributes:
        calls: sequences by call.
        bases: bases by call.
        statuses: sequences by status.
        num_fragments: lines these sequences have in the table of fragments.
        largest_fdr: of the sequences called virus; NaN where none has one.
        scores: (calls, score bins) sequences by call and p_virus, in bins of equal width from 0 to 1.
        lengths: (calls, length bins) sequences by call and length, in bins of ``LENGTH_EDGES``.
        hits: sequences called virus of highest p_virus, the longer first among equals.
        longest: longest sequences called virus that have several fragments.
        named: the sequences that were asked for by name.
    """

    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CALLS, 0))
    bases: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CALLS, 0))
    statuses: Counter[str] = field(default_factory=Counter)
    num_fragments: int = 0
    largest_fdr: float = float("nan")
    scores: NDArray[np.int64] = field(default_factory=lambda: np.zeros((len(CALLS), NUM_SCORE_BINS), np.int64))
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros((len(CALLS), len(LENGTH_EDGES) - 1), np.int64))
    hits: list[SequenceLine] = field(default_factory=list)
    longest: list[SequenceLine] = field(default_factory=list)
    named: list[SequenceLine] = field(default_factory=list)

    @property
    def num_sequences(self) -> int:
        """Of all calls."""
        return sum(self.calls.values())

    @property
    def num_bases(self) -> int:
        """Of all calls."""
        return sum(self.bases.values())


@dataclass(frozen=True)
class FinishedRun:
    """One input of a finished run.

    Attributes:
        root: the output directory.
        stem: prefix of the input's result files.
        record: the run record, ``.run.json``; empty where there is none.
        summary: the input's ``.summary.json``.
    """

    root: Path
    stem: str
    record: dict[str, Any]
    summary: dict[str, Any]

    def path(self, suffix: str) -> Path:
        """A result file of this input."""
        return RunDir(self.root).result(self.stem, suffix)

    @property
    def input(self) -> dict[str, Any]:
        """What the run record says of this input; empty where it says nothing."""
        return next((item for item in self.record.get("inputs", ()) if item.get("stem") == self.stem), {})

    @property
    def limits(self) -> tuple[float, ...]:
        """Probabilities at which a call changes, as set: two where calls may be uncertain, none with a highest FDR."""
        names = ("threshold_not_virus", "threshold_virus", "threshold")
        found = (self.summary.get(name) for name in names)
        return tuple(sorted({float(value) for value in found if value is not None}))

    @property
    def prevalence(self) -> float:
        """Expected share of viral sequences."""
        return float(self.summary.get("prevalence", _EVEN_PREVALENCE))

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The limits on the scale of the tables' p_virus, which a preset's are not: they hold at equal prevalence."""
        if not self.summary.get("preset"):
            return self.limits
        odds = self.prevalence / (1 - self.prevalence)
        return tuple(limit * odds / (limit * odds + 1 - limit) for limit in self.limits)


def stems_of(root: Path) -> list[str]:
    """The inputs whose results are in ``root``, by the prefix of their files.

    Raises:
        UsageError: there is none.
    """
    suffix = ".summary.json"
    stems = sorted(path.name.removesuffix(suffix) for path in root.glob(f"*{suffix}"))
    if not stems:
        raise UsageError(f"{root} holds no finished run. Name the output directory of a virnucpro predict that ended.")
    return stems


def open_run(root: Path, stem: str) -> FinishedRun:
    """The records of one input of a finished run.

    Raises:
        UsageError: this input has no results in ``root``.
        StoreError: a record is damaged.
    """
    folder = RunDir(root)
    summary = folder.result(stem, "summary.json")
    if not summary.exists():
        raise UsageError(f"{root} holds no results of {stem}. It holds those of {', '.join(stems_of(root))}.")
    places = (folder.result(name, _RECORD_SUFFIX) for name in (stem, "all"))
    record: dict[str, Any] = next((read_json(place) for place in places if place.exists()), {})
    return FinishedRun(root, stem, record, read_json(summary))


def tally_sequences(run: FinishedRun, named: Collection[bytes] = ()) -> Tally:
    """Add up the table of sequences.

    Args:
        run: the input.
        named: names of sequences to be given in ``Tally.named``.

    Raises:
        UsageError: the run wrote no such table.
        StoreError: it is damaged, or its lines are not as many as the summary says.
    """
    path = run.path("sequences.tsv")
    if not path.exists():
        raise UsageError(f"{path} is missing, and the report is made from it. Run predict with --format tsv.")
    tally = Tally()
    for columns in read_columns(path, _SEQUENCE_COLUMNS):
        try:
            _add(tally, columns, named)
        except (ValueError, KeyError) as error:
            raise StoreError(path, f"holds a value that cannot be read ({error})") from error
    expected = run.summary.get("num_sequences", tally.num_sequences)
    if tally.num_sequences != expected:
        raise StoreError(path, f"has {tally.num_sequences} lines where {expected} sequences were read")
    return tally


def read_columns(path: Path, needed: Collection[str]) -> Iterator[dict[str, Ragged]]:
    """The columns of a table, some thousand lines at a time, by name: those needed, and all others too.

    Raises:
        StoreError: the file is damaged or lacks a column of ``needed``.
    """
    try:
        with closing(open_table(path)) as stream:
            header = [name.decode(errors="replace") for name in stream.readline().rstrip(b"\n").split(b"\t")]
            missing = [name for name in needed if name not in header]
            if missing:
                raise StoreError(path, f"has no column {missing[0]}")
            while content := stream.read(_BATCH_BYTES):
                lines = text.Lines(content + stream.readline(), len(header))
                yield {name: lines.column(number) for number, name in enumerate(header)}
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise StoreError(path, f"is damaged ({error})") from error


def open_table(path: Path) -> IO[bytes]:
    """A table as bytes, decompressed where its name says that it is gzip."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _add(tally: Tally, columns: dict[str, Ragged], named: Collection[bytes]) -> None:
    call, length, p_virus = _calls(columns["call"]), _integers(columns["length"]), text.numbers(columns["p_virus"])
    for index, name in enumerate(CALLS):
        tally.bases[name] += int(length[call == index].sum())
    tally.statuses.update(cell.decode() for cell in columns["status"].to_bytes())
    scored = ~np.isnan(p_virus)
    # Probabilities have four decimals: as whole numbers they fall into bins without a rounding error.
    score_bin = np.minimum(
        np.rint(p_virus[scored] * 10_000).astype(np.int64) * NUM_SCORE_BINS // 10_000, NUM_SCORE_BINS - 1
    )
    np.add.at(tally.scores, (call[scored], score_bin), 1)
    length_bin = np.searchsorted(LENGTH_EDGES, length, side="right") - 1
    np.add.at(tally.lengths, (call, np.clip(length_bin, 0, len(LENGTH_EDGES) - 2)), 1)
    _add_lines(tally, columns, named, call, length, p_virus)
    for index, name in enumerate(CALLS):
        tally.calls[name] += int((call == index).sum())


def _calls(column: Ragged) -> NDArray[np.int64]:
    """(n,) places in ``CALLS``.

    Raises:
        ValueError: a cell is no call.
    """
    are_these = np.stack([text.are(column, name.encode()) for name in CALLS])
    if not are_these.any(axis=0).all():
        raise ValueError("a call that there is not")
    return np.asarray(are_these.argmax(axis=0), dtype=np.int64)


def _integers(column: Ragged) -> NDArray[np.int64]:
    values = text.numbers(column)
    if not np.array_equal(values, np.rint(values)):
        raise ValueError("a part where only whole numbers are")
    return values.astype(np.int64)


def _add_lines(
    tally: Tally,
    columns: dict[str, Ragged],
    named: Collection[bytes],
    call: NDArray[np.int64],
    length: NDArray[np.int64],
    p_virus: NDArray[np.float64],
) -> None:
    """Keep the sequences that are shown one by one; before the batch is counted, so that places are known."""
    num_fragments = _integers(columns["num_fragments"])
    first_fragment = tally.num_fragments + np.cumsum(num_fragments) - num_fragments
    fdr = text.numbers(columns["fdr"]) if "fdr" in columns else np.full(len(call), np.nan)
    first = tally.num_sequences

    def line(place: int) -> SequenceLine:
        return SequenceLine(
            number=first + place,
            first_fragment=int(first_fragment[place]),
            name=columns["name"][place].tobytes(),
            length=int(length[place]),
            num_fragments=int(num_fragments[place]),
            call=CALLS[call[place]],
            p_virus=float(p_virus[place]),
            fdr=float(fdr[place]),
            evidence=columns["evidence"][place].tobytes().decode(),
        )

    def merge(kept: list[SequenceLine], places: NDArray[np.int64], limit: int, rank: _Rank) -> list[SequenceLine]:
        return sorted([*kept, *(line(place) for place in places[:limit].tolist())], key=rank)[:limit]

    virus = np.flatnonzero(call == CALLS.index("virus"))
    tally.hits = merge(tally.hits, virus[np.lexsort((-length[virus], -p_virus[virus]))], NUM_HITS, _by_p_virus)
    long = virus[num_fragments[virus] > 1]
    tally.longest = merge(tally.longest, long[np.argsort(-length[long], kind="stable")], NUM_LONGEST, _by_length)
    if named:
        names = columns["name"].to_bytes()
        tally.named += [line(place) for place, name in enumerate(names) if name in named]
    tally.largest_fdr = float(np.fmax.reduce(fdr[virus], initial=tally.largest_fdr))
    tally.num_fragments += int(num_fragments.sum())


_Rank = Callable[[SequenceLine], tuple[float, ...]]


def _by_p_virus(line: SequenceLine) -> tuple[float, ...]:
    return (-line.p_virus, -line.length, line.number)


def _by_length(line: SequenceLine) -> tuple[float, ...]:
    return (-line.length, line.number)
