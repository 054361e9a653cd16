"""Virus regions and window scores as files that genome browsers and other programs read.

======================= ==========================================================================
``.regions.tsv``        a line for each region, 1-based closed
``.regions.gff3``       the same, 1-based closed, names percent-encoded as the format asks
``.regions.bed``        the same as BED6, 0-based half-open, score 1000 * p_virus
``.windows.bedgraph.gz`` p_virus of each scored fragment, 0-based half-open, up to where the next begins
``.proviruses.fna.gz``  the bases of the regions of kind provirus, as they were read
======================= ==========================================================================

Sequences come unit by unit and may span many. Of the one that is still open, bounds and log-odds stay in memory and
its bases in a temporary file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote_from_bytes

import numpy as np
from numpy.typing import NDArray

from virnucpro.report.regions import DEFAULT_SETTINGS, FinderSettings, evidence_of, find_proviruses
from virnucpro.report.schema import REGIONS
from virnucpro.report.tables import open_output
from virnucpro.sequence.ragged import Ragged

WHOLE, PROVIRUS = "whole", "provirus"

_GFF3_HEADER = b"##gff-version 3\n"
_GFF3_TYPES = {WHOLE: b"viral_sequence", PROVIRUS: b"proviral_region"}
"""Terms of the Sequence Ontology: SO:0001041 and SO:0000751."""
_GFF3_PLAIN = ".:^*$@!+_?-|"
"""Beside letters and digits, what the GFF3 specification lets a seqid hold unescaped."""
_MEMORY_BYTES = 1 << 24
"""An open sequence with more bases than this is kept on disk."""


@dataclass(frozen=True)
class ScoredSequences:
    """What a unit holds of one input.

    Attributes:
        first: number of the sequence that the first entries of the next three belong to.
        names: of consecutive sequences, all that the fragments and pieces below belong to.
        is_virus: (len(names),) whether each is called virus.
        p_virus: (len(names),) of the whole sequence, NaN where there is no call.
        fragments: (f,) FRAGMENT_DTYPE.
        log_odds: (f,) calibrated, NaN where there is no score.
        pieces: bases of the sequences, a piece each, as far as this unit has them.
        piece_sequences: (len(pieces),) ascending number of the sequence of each piece.
    """

    first: int
    names: list[bytes]
    is_virus: NDArray[np.bool_]
    p_virus: NDArray[np.float64]
    fragments: NDArray[np.void]
    log_odds: NDArray[np.float64]
    pieces: Ragged
    piece_sequences: NDArray[np.int64]


@dataclass(frozen=True)
class _Found:
    """A region as the files state it; start and stop are 0-based half-open."""

    sequence: bytes
    start: int
    stop: int
    kind: str
    p_virus: float
    score: float
    num_fragments: int

    @property
    def name(self) -> bytes:
        """The sequence's own for a whole one, ``<id>|provirus_<start>_<stop>`` (1-based closed) for a part."""
        if self.kind == WHOLE:
            return self.sequence
        return b"%b|provirus_%d_%d" % (self.sequence, self.start + 1, self.stop)


@dataclass(frozen=True)
class _Complete:
    """Sequences that have been read to their ends.

    Attributes:
        names: (m) ids.
        is_virus: (m,) called virus.
        p_virus: (m,) of the whole sequence.
        offsets: (m + 1,) where the fragments of each begin.
        bounds: (f, 2) start and stop of fragments.
        log_odds: (f,) calibrated.
        cut: from position in ``names``, start and stop to bases.
    """

    names: list[bytes]
    is_virus: NDArray[np.bool_]
    p_virus: NDArray[np.float64]
    offsets: NDArray[np.int64]
    bounds: NDArray[np.int64]
    log_odds: NDArray[np.float64]
    cut: Callable[[int, int, int], bytes]


@dataclass
class _Open:
    """A sequence that the next unit may go on with; ``bounds`` and ``log_odds`` are lists of parts."""

    number: int
    name: bytes
    is_virus: bool
    p_virus: float
    bounds: list[NDArray[np.int64]]
    log_odds: list[NDArray[np.float64]]


class RegionWriter:
    """The region files of one input; they take their places when the block ends well.

    Args:
        place: from the end of a file's name to its path.
        settings: of the finder.

    Attributes:
        num_regions: kind to number of regions written.
    """

    def __init__(self, place: Callable[[str], Path], settings: FinderSettings = DEFAULT_SETTINGS) -> None:
        self._place = place
        self._settings = settings
        self._open: _Open | None = None
        self._files = ExitStack()
        self.num_regions = {WHOLE: 0, PROVIRUS: 0}

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # a failure half-way closes what was opened

            def file(suffix: str, columns: tuple[str, ...] = ()) -> IO[bytes]:
                return stack.enter_context(open_output(self._place(suffix), columns))

            self._table = file("regions.tsv", REGIONS.header)
            self._gff3 = file("regions.gff3")
            self._gff3.write(_GFF3_HEADER)
            self._bed = file("regions.bed")
            self._windows = file("windows.bedgraph.gz")
            self._proviruses = file("proviruses.fna.gz")
            folder = str(self._place("proviruses.fna.gz").parent)
            self._bases: IO[bytes] = stack.enter_context(tempfile.SpooledTemporaryFile(_MEMORY_BYTES, dir=folder))
            self._files = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._files as files:
            if kind is not None:
                files.__exit__(kind, error, trace)
                return
            self._close_open()

    def add(self, unit: ScoredSequences) -> None:
        """Take the next unit; units come in order."""
        numbers, begins = np.unique(unit.fragments["sequence"], return_index=True)
        if not len(numbers):
            return
        offsets = np.append(begins, len(unit.fragments)).astype(np.int64)
        done = 0
        if self._open is not None and self._open.number == numbers[0]:
            self._extend(self._open, unit, slice(0, int(offsets[1])))
            done = 1
        if done < len(numbers):
            self._close_open()
            self._write(_complete_of(unit, numbers[done:-1], offsets[done:-1]))
            last = int(numbers[-1])
            index = last - unit.first
            self._open = _Open(last, unit.names[index], bool(unit.is_virus[index]), float(unit.p_virus[index]), [], [])
            self._extend(self._open, unit, slice(int(offsets[-2]), int(offsets[-1])))

    def _extend(self, sequence: _Open, unit: ScoredSequences, fragments: slice) -> None:
        """Add to the open sequence what a unit has of it."""
        sequence.bounds.append(_bounds(unit.fragments[fragments]))
        sequence.log_odds.append(unit.log_odds[fragments])
        self._bases.write(_piece(unit, sequence.number).tobytes())

    def _close_open(self) -> None:
        """Write the open sequence, if there is one: it has ended."""
        if self._open is None:
            return
        sequence, self._open = self._open, None
        log_odds = np.concatenate(sequence.log_odds)

        def cut(_position: int, start: int, stop: int) -> bytes:
            self._bases.seek(start)
            return self._bases.read(stop - start)

        self._write(
            _Complete(
                names=[sequence.name],
                is_virus=np.array([sequence.is_virus]),
                p_virus=np.array([sequence.p_virus]),
                offsets=np.array([0, len(log_odds)]),
                bounds=np.concatenate(sequence.bounds),
                log_odds=log_odds,
                cut=cut,
            )
        )
        self._bases.seek(0)
        self._bases.truncate()

    def _write(self, sequences: _Complete) -> None:
        if not sequences.names:
            return
        self._windows.write(_window_lines(sequences))
        evidence = np.add.reduceat(evidence_of(sequences.log_odds, self._settings), sequences.offsets[:-1])
        lengths = sequences.bounds[sequences.offsets[1:] - 1, 1]
        may_have_regions = sequences.is_virus | (lengths >= self._settings.shortest_sequence_nt)
        for position in np.flatnonzero(may_have_regions).tolist():
            found = self._find(sequences, position, float(evidence[position]))
            if found:
                name = _gff3_escaped(sequences.names[position])
                self._gff3.write(b"##sequence-region %b 1 %d\n" % (name, lengths[position]))
            for region in found:
                self._write_region(region)
                if region.kind == PROVIRUS:
                    bases = sequences.cut(position, region.start, region.stop)
                    self._proviruses.write(b">%b\n%b\n" % (region.name, bases))

    def _find(self, sequences: _Complete, position: int, evidence: float) -> list[_Found]:
        """The proviruses of a sequence; itself where it is called virus and has none."""
        name = sequences.names[position]
        start, stop = sequences.offsets[position : position + 2].tolist()
        bounds = sequences.bounds[start:stop]
        proviruses = find_proviruses(bounds, sequences.log_odds[start:stop], self._settings)
        if not proviruses and sequences.is_virus[position]:
            p_virus = float(sequences.p_virus[position])
            return [_Found(name, 0, int(bounds[-1, 1]), WHOLE, p_virus, evidence, stop - start)]
        return [
            _Found(name, item.start, item.stop, PROVIRUS, item.posterior, item.score, item.num_fragments)
            for item in proviruses
        ]

    def _write_region(self, region: _Found) -> None:
        self.num_regions[region.kind] += 1
        self._table.write(_table_line(region))
        self._gff3.write(_gff3_line(region, sum(self.num_regions.values())))
        self._bed.write(_bed_line(region))


def _complete_of(unit: ScoredSequences, numbers: NDArray[np.int64], offsets: NDArray[np.int64]) -> _Complete:
    """The sequences ``numbers`` of a unit, which holds all of each; their fragments begin at ``offsets`` (m + 1)."""
    mine = slice(int(offsets[0]), int(offsets[-1]))
    indices = numbers - unit.first

    def cut(position: int, start: int, stop: int) -> bytes:
        return _piece(unit, int(numbers[position]))[start:stop].tobytes()

    return _Complete(
        names=[unit.names[index] for index in indices.tolist()],
        is_virus=unit.is_virus[indices],
        p_virus=unit.p_virus[indices],
        offsets=offsets - offsets[0],
        bounds=_bounds(unit.fragments[mine]),
        log_odds=unit.log_odds[mine],
        cut=cut,
    )


def _bounds(fragments: NDArray[np.void]) -> NDArray[np.int64]:
    """(n, 2) start and stop."""
    return np.stack([fragments["start"], fragments["stop"]], axis=1)


def _piece(unit: ScoredSequences, number: int) -> NDArray[np.uint8]:
    """The bases that a unit has of a sequence."""
    return unit.pieces[int(np.searchsorted(unit.piece_sequences, number))]


def _window_lines(sequences: _Complete) -> bytes:
    """A bedGraph line for each scored fragment; where two overlap, the first ends where the second begins."""
    starts, stops = sequences.bounds[:, 0], sequences.bounds[:, 1].copy()
    has_next = np.ones(len(starts), dtype=bool)
    has_next[sequences.offsets[1:] - 1] = False
    stops[has_next] = starts[1:][has_next[:-1]]
    scored = ~np.isnan(sequences.log_odds)
    numbers = np.repeat(np.arange(len(sequences.names)), np.diff(sequences.offsets))[scored]
    with np.errstate(over="ignore"):
        p_virus = 1 / (1 + np.exp(-sequences.log_odds[scored]))
    columns = zip(
        [sequences.names[number] for number in numbers.tolist()],
        starts[scored].tolist(),
        stops[scored].tolist(),
        p_virus.tolist(),
        strict=True,
    )
    return b"".join([b"%b\t%d\t%d\t%.4f\n" % values for values in columns])


def _table_line(region: _Found) -> bytes:
    return b"%b\t%b\t%d\t%d\t%d\t%b\t%.4f\t%.2f\t%d\tNA\n" % (
        region.name,
        region.sequence,
        region.start + 1,
        region.stop,
        region.stop - region.start,
        region.kind.encode(),
        region.p_virus,
        region.score,
        region.num_fragments,
    )


def _gff3_line(region: _Found, number: int) -> bytes:
    """``number`` makes the ID unique, which a name is not where the input has an id twice."""
    return b"%b\tvirnucpro\t%b\t%d\t%d\t%.2f\t.\t.\tID=region_%d;Name=%b;kind=%b;p_virus=%.4f;num_fragments=%d\n" % (
        _gff3_escaped(region.sequence),
        _GFF3_TYPES[region.kind],
        region.start + 1,
        region.stop,
        region.score,
        number,
        _gff3_escaped(region.name),
        region.kind.encode(),
        region.p_virus,
        region.num_fragments,
    )


def _gff3_escaped(name: bytes) -> bytes:
    # urllib never escapes the tilde, which the specification does not list.
    return quote_from_bytes(name, safe=_GFF3_PLAIN).replace("~", "%7E").encode()


def _bed_line(region: _Found) -> bytes:
    score = round(1000 * region.p_virus)
    return b"%b\t%d\t%d\t%b\t%d\t.\n" % (region.sequence, region.start, region.stop, region.name, score)
