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
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote_from_bytes

import numpy as np
from numpy.typing import NDArray

from virnucpro.results import text
from virnucpro.results.calls import probability
from virnucpro.results.regions import DEFAULT_SETTINGS, FinderSettings, Region, evidence_of, find_proviruses
from virnucpro.results.schema import REGIONS
from virnucpro.results.tables import open_output, opened
from virnucpro.results.text import NOTHING
from virnucpro.sequence.ragged import Ragged

WHOLE, PROVIRUS = "whole", "provirus"

_GFF3_HEADER = b"##gff-version 3\n"
_KINDS = (WHOLE.encode(), PROVIRUS.encode())
_GFF3_TYPES = (b"viral_sequence", b"proviral_region")
"""Of either kind; terms of the Sequence Ontology: SO:0001041 and SO:0000751."""
_GFF3_PLAIN = ".:^*$@!+_?-|"
"""Beside letters and digits, what the GFF3 specification lets a seqid hold unescaped."""
_REGION_DTYPE = np.dtype(
    [
        ("position", "i8"),
        ("start", "i8"),
        ("stop", "i8"),
        ("is_provirus", "?"),
        ("p_virus", "f8"),
        ("score", "f8"),
        ("num_fragments", "i8"),
    ]
)
"""A region: position of its sequence among those it was found with, 0-based half-open bounds, and what is found."""
_MEMORY_BYTES = 1 << 24
"""An open sequence with more bases than this is kept on disk."""


@dataclass(frozen=True)
class ScoredSequences:
    """What a unit holds of one input.

    Attributes:
        first: number of the sequence that the first entries of the next three belong to.
        names: ids of consecutive sequences, all that the fragments and pieces below belong to.
        is_virus: (len(names),) whether each is called virus.
        p_virus: (len(names),) of the whole sequence, NaN where there is no call.
        fragments: (f,) FRAGMENT_DTYPE.
        log_odds: (f,) calibrated, NaN where there is no score.
        pieces: bases of the sequences, a piece each, as far as this unit has them.
        piece_sequences: (len(pieces),) ascending number of the sequence of each piece.
    """

    first: int
    names: Ragged
    is_virus: NDArray[np.bool_]
    p_virus: NDArray[np.float64]
    fragments: NDArray[np.void]
    log_odds: NDArray[np.float64]
    pieces: Ragged
    piece_sequences: NDArray[np.int64]


@dataclass(frozen=True)
class _Complete:
    """Sequences that have been read to their ends.

    Attributes:
        names: m ids.
        is_virus: (m,) called virus.
        p_virus: (m,) of the whole sequence.
        offsets: (m + 1,) where the fragments of each begin.
        bounds: (f, 2) start and stop of fragments.
        log_odds: (f,) calibrated.
        cut: from position in ``names``, start and stop to bases.
    """

    names: Ragged
    is_virus: NDArray[np.bool_]
    p_virus: NDArray[np.float64]
    offsets: NDArray[np.int64]
    bounds: NDArray[np.int64]
    log_odds: NDArray[np.float64]
    cut: Callable[[int, int, int], bytes]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(m,) bases of each: its last fragment ends where it does."""
        lengths: NDArray[np.int64] = self.bounds[self.offsets[1:] - 1, 1]
        return lengths


@dataclass
class _Open:
    """A sequence that the next unit may go on with; ``bounds`` and ``log_odds`` are lists of parts."""

    number: int
    name: bytes
    is_virus: bool
    p_virus: float
    bounds: list[NDArray[np.int64]]
    log_odds: list[NDArray[np.float64]]


def open_regions(
    place: Callable[[str], Path], settings: FinderSettings = DEFAULT_SETTINGS
) -> AbstractContextManager[RegionWriter]:
    """The region files of one input; they take their places when the block ends well.

    Args:
        place: from the end of a file's name to its path.
        settings: of the finder.
    """
    return opened(lambda files: RegionWriter(files, place, settings))


class RegionWriter:
    """See ``open_regions``.

    Attributes:
        num_regions: kind to number of regions written.
    """

    def __init__(self, files: ExitStack, place: Callable[[str], Path], settings: FinderSettings) -> None:
        def file(suffix: str, columns: tuple[str, ...] = ()) -> IO[bytes]:
            return files.enter_context(open_output(place(suffix), columns))

        self._settings = settings
        self._table = file("regions.tsv", REGIONS.header)
        self._gff3 = file("regions.gff3")
        self._gff3.write(_GFF3_HEADER)
        self._bed = file("regions.bed")
        self._windows = file("windows.bedgraph.gz")
        self._proviruses = file("proviruses.fna.gz")
        folder = str(place("proviruses.fna.gz").parent)
        self._bases: IO[bytes] = files.enter_context(tempfile.SpooledTemporaryFile(_MEMORY_BYTES, dir=folder))  # noqa: SIM115 - closed with them
        self._open: _Open | None = None
        self.num_regions = {WHOLE: 0, PROVIRUS: 0}

    def finish(self) -> None:
        """Write the sequence that is still open: there are no more units."""
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
            name, p_virus = unit.names[index].tobytes(), float(unit.p_virus[index])
            self._open = _Open(last, name, bool(unit.is_virus[index]), p_virus, [], [])
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
                names=Ragged.from_bytes([sequence.name]),
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
        if not len(sequences.names):
            return
        self._windows.write(_window_lines(sequences))
        regions = self._find(sequences)
        if not len(regions):
            return
        names = text.taken(sequences.names, regions["position"])
        region_names = _region_names(names, regions)
        self._table.write(_table_lines(names, region_names, regions))
        self._bed.write(_bed_lines(names, region_names, regions))
        lengths = sequences.lengths[regions["position"]]
        self._gff3.write(_gff3_lines(names, region_names, regions, lengths, sum(self.num_regions.values())))
        for place in np.flatnonzero(regions["is_provirus"]).tolist():
            position, start, stop = (int(regions[name][place]) for name in ("position", "start", "stop"))
            bases = sequences.cut(position, start, stop)
            self._proviruses.write(b">%b\n%b\n" % (region_names[place].tobytes(), bases))
        num_proviruses = int(regions["is_provirus"].sum())
        self.num_regions[PROVIRUS] += num_proviruses
        self.num_regions[WHOLE] += len(regions) - num_proviruses

    def _find(self, sequences: _Complete) -> NDArray[np.void]:
        """(r,) _REGION_DTYPE by sequence: its proviruses; itself where it is called virus and has none."""
        proviruses = np.array(
            [
                (position, item.start, item.stop, True, item.posterior, item.score, item.num_fragments)
                for position in np.flatnonzero(sequences.lengths >= self._settings.shortest_sequence_nt).tolist()
                for item in self._proviruses_of(sequences, position)
            ],
            dtype=_REGION_DTYPE,
        )
        is_whole = sequences.is_virus.copy()
        is_whole[proviruses["position"]] = False
        whole = np.zeros(is_whole.sum(), dtype=_REGION_DTYPE)
        whole["position"] = np.flatnonzero(is_whole)
        whole["stop"] = sequences.lengths[is_whole]
        whole["p_virus"] = sequences.p_virus[is_whole]
        evidence = evidence_of(sequences.log_odds, self._settings)
        whole["score"] = np.add.reduceat(evidence, sequences.offsets[:-1])[is_whole]
        whole["num_fragments"] = np.diff(sequences.offsets)[is_whole]
        found = np.concatenate([proviruses, whole])
        return found[np.argsort(found["position"], kind="stable")]

    def _proviruses_of(self, sequences: _Complete, position: int) -> list[Region]:
        start, stop = sequences.offsets[position : position + 2].tolist()
        return find_proviruses(sequences.bounds[start:stop], sequences.log_odds[start:stop], self._settings)


def _complete_of(unit: ScoredSequences, numbers: NDArray[np.int64], offsets: NDArray[np.int64]) -> _Complete:
    """The sequences ``numbers`` of a unit, which holds all of each; their fragments begin at ``offsets`` (m + 1)."""
    mine = slice(int(offsets[0]), int(offsets[-1]))
    indices = numbers - unit.first

    def cut(position: int, start: int, stop: int) -> bytes:
        return _piece(unit, int(numbers[position]))[start:stop].tobytes()

    return _Complete(
        names=text.taken(unit.names, indices),
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
    positions = np.repeat(np.arange(len(sequences.names)), np.diff(sequences.offsets))[scored]
    p_virus = text.decimals(probability(sequences.log_odds[scored]))
    return text.lines(
        [text.taken(sequences.names, positions), text.integers(starts[scored]), text.integers(stops[scored]), p_virus]
    )


def _region_names(names: Ragged, regions: NDArray[np.void]) -> Ragged:
    """The sequence's own for a whole one, ``<id>|provirus_<start>_<stop>`` (1-based closed) for a part."""
    starts, stops = text.integers(regions["start"] + 1), text.integers(regions["stop"])
    parts = text.joined(b"|provirus_", starts, b"_", stops)
    return text.joined(names, parts.keep(regions["is_provirus"]))


def _table_lines(names: Ragged, region_names: Ragged, regions: NDArray[np.void]) -> bytes:
    return text.lines(
        [
            region_names,
            names,
            text.integers(regions["start"] + 1),
            text.integers(regions["stop"]),
            text.integers(regions["stop"] - regions["start"]),
            text.words(_KINDS, regions["is_provirus"]),
            text.decimals(regions["p_virus"]),
            text.decimals(regions["score"], 2),
            text.integers(regions["num_fragments"]),
            NOTHING,
        ]
    )


def _gff3_lines(
    names: Ragged, region_names: Ragged, regions: NDArray[np.void], lengths: NDArray[np.int64], num_before: int
) -> bytes:
    """A line for each region, after one for each sequence; ``lengths`` (r,) are those of the regions' sequences.

    The ID counts regions from ``num_before`` on: a name is not unique where the input has an id twice.
    """
    names, region_names = _gff3_escaped(names), _gff3_escaped(region_names)
    begins = np.diff(regions["position"], prepend=-1) > 0
    sequences = text.joined(b"##sequence-region ", names, b" 1 ", text.integers(lengths), b"\n").keep(begins)
    attributes = text.joined(
        b"ID=region_",
        text.integers(num_before + 1 + np.arange(len(regions))),
        b";Name=",
        region_names,
        b";kind=",
        text.words(_KINDS, regions["is_provirus"]),
        b";p_virus=",
        text.decimals(regions["p_virus"]),
        b";num_fragments=",
        text.integers(regions["num_fragments"]),
    )
    return text.lines(
        [
            text.joined(sequences, names),
            b"virnucpro",
            text.words(_GFF3_TYPES, regions["is_provirus"]),
            text.integers(regions["start"] + 1),
            text.integers(regions["stop"]),
            text.decimals(regions["score"], 2),
            b".",
            b".",
            attributes,
        ]
    )


def _gff3_escaped(names: Ragged) -> Ragged:
    if not _IS_ESCAPED[names.values].any():
        return names
    return Ragged.from_bytes([_gff3_escape(name) for name in names.to_bytes()])


def _gff3_escape(name: bytes) -> bytes:
    # urllib never escapes the tilde, which the specification does not list.
    return quote_from_bytes(name, safe=_GFF3_PLAIN).replace("~", "%7E").encode()


_IS_ESCAPED = np.array([_gff3_escape(bytes([letter])) != bytes([letter]) for letter in range(256)])
"""(256,) whether each byte is."""


def _bed_lines(names: Ragged, region_names: Ragged, regions: NDArray[np.void]) -> bytes:
    starts, stops = text.integers(regions["start"]), text.integers(regions["stop"])
    scores = text.integers(np.rint(1000 * regions["p_virus"]))
    return text.lines([names, starts, stops, region_names, scores, b"."])
