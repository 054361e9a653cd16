"""Window scores along the sequences that a report draws: the longest hits and those that hold a provirus."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import StoreError
from virnucpro.results.results import FinishedRun, SequenceLine, Tally, open_table, read_columns
from virnucpro.results.text import are, numbers
from virnucpro.sequence.ragged import Ragged

NUM_TRACKS = 20
NUM_PROVIRUSES = 50

_REGION_COLUMNS = ("sequence", "start", "stop", "kind")
_FRAGMENT_COLUMNS = ("name", "start", "stop", "p_virus")


@dataclass(frozen=True)
class Provirus:
    """A viral part of a longer sequence.

    Attributes:
        sequence: name.
        start: first base, 1-based.
        stop: last base, 1-based.
        p_virus: mean of its windows; NaN where the table has none.
        score: the finder's score; NaN where the table has none.
    """

    sequence: bytes
    start: int
    stop: int
    p_virus: float
    score: float


@dataclass(frozen=True)
class Proviruses:
    """The proviruses of an input.

    Attributes:
        num_found: all of them.
        best: those of highest score, at most ``NUM_PROVIRUSES``, the longer first among equals.
    """

    num_found: int
    best: tuple[Provirus, ...]


@dataclass(frozen=True)
class Track:
    """The windows of one sequence, in order.

    Attributes:
        line: the sequence.
        starts: (n,) first base of each window, 1-based.
        stops: (n,) last base of each, 1-based.
        p_virus: (n,) NaN where a window has no score.
        proviruses: those of this sequence.
    """

    line: SequenceLine
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    p_virus: NDArray[np.float64]
    proviruses: tuple[Provirus, ...]


def read_proviruses(run: FinishedRun) -> Proviruses | None:
    """The proviruses in the table of regions; None where the run looked for none.

    Raises:
        StoreError: the table is damaged.
    """
    path = run.path("regions.tsv")
    if not path.exists():
        return None
    num_found, best = 0, list[Provirus]()
    for columns in read_columns(path, _REGION_COLUMNS):
        places = np.flatnonzero(are(columns["kind"], b"provirus")).tolist()
        num_found += len(places)
        try:
            found = [_provirus(columns, place) for place in places]
        except ValueError as error:
            raise StoreError(path, f"holds a value that cannot be read ({error})") from error
        best = sorted([*best, *found], key=_rank)[:NUM_PROVIRUSES]
    return Proviruses(num_found, tuple(best))


def _provirus(columns: dict[str, Ragged], place: int) -> Provirus:
    cells = {name: column.slice(place, place + 1) for name, column in columns.items()}

    def number(*names: str) -> float:
        return next((float(numbers(cells[name])[0]) for name in names if name in cells), math.nan)

    return Provirus(
        sequence=cells["sequence"].values.tobytes(),
        start=int(number("start")),
        stop=int(number("stop")),
        p_virus=number("p_virus", "mean_p_virus"),
        score=number("score"),
    )


def _rank(provirus: Provirus) -> tuple[float, ...]:
    return (-float(np.nan_to_num(provirus.score)), provirus.start - provirus.stop)


def read_tracks(run: FinishedRun, tally: Tally, proviruses: Proviruses | None) -> list[Track]:
    """Window scores of at most ``NUM_TRACKS`` sequences: up to half hold a provirus, the rest are the longest hits.

    Sequences are found by their place, for names may occur twice; none are read where the run wrote no table of
    fragments.

    Raises:
        StoreError: the table of fragments is damaged, or is not of the same run as the table of sequences.
    """
    path = run.path("fragments.tsv.gz")
    if not path.exists():
        return []
    best = proviruses.best if proviruses is not None else ()
    by_name: dict[bytes, list[Provirus]] = {}
    for provirus in best:
        by_name.setdefault(provirus.sequence, []).append(provirus)
    order = {name: place for place, name in enumerate(by_name)}
    hosts = sorted((line for line in tally.named if line.num_fragments > 1), key=lambda line: order[line.name])
    chosen = {line.number: line for line in hosts[: NUM_TRACKS // 2]}
    for line in tally.longest:
        if len(chosen) < NUM_TRACKS:
            chosen.setdefault(line.number, line)
    tracks = _read_windows(path, sorted(chosen.values(), key=lambda line: line.first_fragment), by_name)
    return [tracks[number] for number in chosen]


def _read_windows(
    path: Path, lines: Sequence[SequenceLine], proviruses: dict[bytes, list[Provirus]]
) -> dict[int, Track]:
    """Tracks by number of their sequence; ``lines`` in the order of the table."""
    tracks, place = {}, 0
    try:
        with closing(open_table(path)) as stream:
            header = stream.readline().decode().rstrip("\n").split("\t")
            columns = [header.index(name) for name in _FRAGMENT_COLUMNS]
            for line in lines:
                wanted = islice(stream, line.first_fragment - place, line.first_fragment - place + line.num_fragments)
                cells = [window.rstrip(b"\n").split(b"\t") for window in wanted]
                place = line.first_fragment + line.num_fragments
                names, starts, stops, p_virus = ([window[column] for window in cells] for column in columns)
                if set(names) != {line.name} or len(names) != line.num_fragments:
                    raise StoreError(path, "is not of the same run as the table of sequences")
                tracks[line.number] = Track(
                    line,
                    np.array(starts, dtype=np.bytes_).astype(np.int64),
                    np.array(stops, dtype=np.bytes_).astype(np.int64),
                    numbers(Ragged.from_bytes(p_virus)),
                    tuple(found for found in proviruses.get(line.name, ()) if found.stop <= line.length),
                )
    except (ValueError, IndexError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise StoreError(path, f"is damaged ({error})") from error
    return tracks
