"""The tables a unit is made of.

Numbers are positions in the whole run, in input order: sequence 0..M-1, row 0..N-1. Coordinates
are 0-based half-open on the forward strand of the record.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from virnucpro.sequence.ragged import Ragged

SEQUENCE_DTYPE = np.dtype([("number", "i8"), ("length", "i8"), ("status", "i1")])
"""A record that begins in the unit."""

FRAGMENT_DTYPE = np.dtype(
    [
        ("sequence", "i8"),
        ("index", "i4"),
        ("start", "i8"),
        ("stop", "i8"),
        ("num_rows", "i4"),
        ("masked", "u1"),
        ("length", "u4"),
    ]
)
"""A window of a record; ``index`` counts from 0 within the record, ``num_rows`` may be 0. One that is ``masked`` (a
``Mask`` other than 0) has no rows and says nothing of its sequence. ``length`` does not count gaps that were closed."""

GAP_DTYPE = np.dtype([("sequence", "i8"), ("start", "i8"), ("stop", "i8")])
"""A gap of a record, see ``sequence.gaps``."""

ROW_DTYPE = np.dtype(
    [("sequence", "i8"), ("fragment", "i4"), ("frame", "i1"), ("start", "i8"), ("stop", "i8"), ("source", "i8")]
)
"""A kept frame. ``fragment`` is the fragment's ``index`` within its record; ``frame`` is one of
+1 +2 +3 -1 -2 -3, or 0 for a whole fragment without an open frame (bundles that score those).
``source`` is the number of the first row of the run with the same nucleotides, its own number when it
is the first: only such rows are computed, the others have the score of their source."""


def are_own_source(rows: NDArray[np.void], first_row: int) -> NDArray[np.bool_]:
    """(n,) whether each of a unit's rows is the first of its kind in the run: only these are computed."""
    return np.asarray(rows["source"] == np.arange(first_row, first_row + len(rows)), dtype=np.bool_)


FRAME_NAMES = {1: "F1", 2: "F2", 3: "F3", -1: "R1", -2: "R2", -3: "R3", 0: "N0"}
"""Frame to the suffix of the published row name; ``N0`` is ours (no open frame)."""


class Status(IntEnum):
    """What became of a record at extraction; the results add ``failed``.

    All but ``OK`` and ``REPETITIVE`` are not fit to be called: all of their fragments are masked.
    """

    OK = 0
    EMPTY = 1
    TOO_SHORT = 2
    AMBIGUOUS = 3
    REPETITIVE = 4


class Mask(IntEnum):
    """Why a fragment says nothing."""

    NONE = 0
    FEW_BASES = 1
    REPETITIVE = 2


@dataclass(frozen=True)
class UnitTable:
    """One unit: a contiguous range of rows that never splits a fragment.

    Attributes:
        sequences: (m,) SEQUENCE_DTYPE, the records that begin in this unit.
        names: m record ids (header up to the first blank), byte for byte.
        descriptions: m, what else their headers said.
        gaps: (g,) GAP_DTYPE, those of these records.
        fragments: (f,) FRAGMENT_DTYPE.
        rows: (n,) ROW_DTYPE, grouped by fragment, in fragment order.
        first_row: number of the first row in the run.
        nucleotides: n kept nucleotide strings (upper case, U read as T).
        proteins: n proteins; empty where frame is 0.
        pieces: the record bases as read (case kept), cut where the unit ends; joined over the units
            in order they give every record back, duplicates included.
        piece_sequences: (len(pieces),) int64, the sequence each piece belongs to.
    """

    sequences: NDArray[np.void]
    names: Ragged
    descriptions: Ragged
    gaps: NDArray[np.void]
    fragments: NDArray[np.void]
    rows: NDArray[np.void]
    first_row: int
    nucleotides: Ragged
    proteins: Ragged
    pieces: Ragged
    piece_sequences: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def piece_descriptions(self) -> Ragged:
        """Of the record that begins with each piece; the first piece may go on with another, and has none."""
        continued = Ragged.from_bytes([b""] * (len(self.pieces) - len(self.sequences)))
        return Ragged.concatenate([continued, self.descriptions])
