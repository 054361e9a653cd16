"""From inputs to units: records, fragments, six frames, kept rows.

A unit closes with its input, before the fragment that would take it over ``unit_rows`` rows, or when it
holds ``4 * unit_rows`` fragments or ``4 * unit_rows`` records that begin in it. What a unit holds depends
on the records alone, not on how they were read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import InputError, UsageError
from virnucpro.kernels import kernel
from virnucpro.sequence.dedup import SequenceIndex, hash_strings
from virnucpro.sequence.fasta import BLOCK_BYTES, RecordBlock, SequenceFile
from virnucpro.sequence.fragments import count_windows, window
from virnucpro.sequence.frames import (
    MAX_FRAMES,
    count_frames,
    find_frames,
    normalise,
    read_codons,
    row_buffers,
    write_rows,
)
from virnucpro.sequence.masks import Masking, mask_windows
from virnucpro.sequence.ragged import Ragged, grown
from virnucpro.sequence.streams import STDIN, STDIN_NAME, open_source, shown
from virnucpro.sequence.table import FRAGMENT_DTYPE, SEQUENCE_DTYPE, UnitTable

_FRAGMENTS_A_ROW = 4
_NUM_EXAMPLES = 5

# The slots of the cursor into a block: the record, its next fragment, bases covered so far, windows seen so far.
_RECORD, _INDEX, _COVERED, _WINDOW = range(4)
# The slots of a unit's counts.
_SEQUENCES, _FRAGMENTS, _ROWS, _PIECES = range(4)


@dataclass(frozen=True)
class InputSummary:
    """What one input held: a file, or the two files of a pair.

    Attributes:
        source: file name, or ``<stdin>``; of a pair, the first.
        format: ``fasta``, ``fastq``, ``bam``, ``cram``, ``sam`` or ``empty``.
        compression: ``none``, ``gzip``, ``bzip2``, ``xz`` or ``zstd``.
        num_sequences: records read.
        num_bases: their bases.
        first_sequence: number of its first record in the run.
        sha256: hex digest of the raw bytes.
        mate_source: name of a pair's second file; empty where there is none.
        mate_sha256: hex digest of its raw bytes.
    """

    source: str
    format: str
    compression: str
    num_sequences: int
    num_bases: int
    first_sequence: int
    sha256: str
    mate_source: str = ""
    mate_sha256: str = ""


class _OpenUnit(NamedTuple):
    """Room for one unit, filled by :func:`_cut`.

    Attributes:
        counts: what there is of each.
        fragments: FRAGMENT_DTYPE.
        first_bases: where in its block the record of each fragment begins.
        frames: kept frames of each fragment, from :func:`find_frames`.
        piece_sequences: the record each piece belongs to.
        piece_offsets: where each piece ends, after a 0.
    """

    counts: NDArray[np.int64]
    fragments: NDArray[np.void]
    first_bases: NDArray[np.int64]
    frames: NDArray[np.uint8]
    piece_sequences: NDArray[np.int64]
    piece_offsets: NDArray[np.int64]


class _Block(NamedTuple):
    """Records of one block, ready to be cut."""

    first_number: int
    letters: NDArray[np.uint8]
    codons: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    masked: NDArray[np.uint8]


def _open_unit(unit_rows: int) -> _OpenUnit:
    limit = _FRAGMENTS_A_ROW * unit_rows
    return _OpenUnit(
        counts=np.zeros(4, dtype=np.int64),
        fragments=np.empty(limit, dtype=FRAGMENT_DTYPE),
        first_bases=np.empty(limit, dtype=np.int64),
        frames=np.empty(limit, dtype=np.uint8),
        piece_sequences=np.empty(limit + 1, dtype=np.int64),
        piece_offsets=np.zeros(limit + 2, dtype=np.int64),
    )


@kernel
def _cut(
    block: _Block,
    cursor: NDArray[np.int64],
    unit: _OpenUnit,
    fragment_length: int,
    unit_rows: int,
    score_frameless: bool,
) -> bool:
    """Add fragments from ``cursor`` on until the unit is full (True) or the block used up (False)."""
    # unpacked once: numba counts references at each attribute
    first_number, _, codons, offsets, masked = block
    counts, fragments, first_bases, frames, piece_sequences, piece_offsets = unit
    while cursor[_RECORD] < len(offsets) - 1:
        if counts[_SEQUENCES] >= len(fragments) or counts[_FRAGMENTS] >= len(fragments):
            return True
        record, index = cursor[_RECORD], cursor[_INDEX]
        number = first_number + record
        first_base = offsets[record]
        stop = length = offsets[record + 1] - first_base
        num_windows = count_windows(length, fragment_length)
        if num_windows > 0:
            start, stop = window(length, fragment_length, index)
            kept, mask = 0, masked[cursor[_WINDOW]]
            if mask == 0:
                kept = find_frames(codons, first_base + start, first_base + stop, score_frameless)
            num_rows = count_frames(kept)
            if counts[_ROWS] > 0 and counts[_ROWS] + num_rows > unit_rows:
                return True
            fragment = counts[_FRAGMENTS]
            fragments[fragment]["sequence"] = number
            fragments[fragment]["index"] = index
            fragments[fragment]["start"] = start
            fragments[fragment]["stop"] = stop
            fragments[fragment]["num_rows"] = num_rows
            fragments[fragment]["masked"] = mask
            cursor[_WINDOW] += 1
            first_bases[fragment] = first_base
            frames[fragment] = kept
            counts[_FRAGMENTS] += 1
            counts[_ROWS] += num_rows
        if index == 0:
            counts[_SEQUENCES] += 1
        if counts[_PIECES] == 0 or piece_sequences[counts[_PIECES] - 1] != number:
            piece_sequences[counts[_PIECES]] = number
            counts[_PIECES] += 1
            piece_offsets[counts[_PIECES]] = piece_offsets[counts[_PIECES] - 1]
        piece_offsets[counts[_PIECES]] += first_base + stop - cursor[_COVERED]
        cursor[_COVERED] = first_base + stop
        if index + 1 < num_windows:
            cursor[_INDEX] = index + 1
        else:
            cursor[_INDEX] = 0
            cursor[_RECORD] = record + 1
    return False


class UnitBuilder:
    """Takes blocks, gives units.

    Args:
        fragment_length: bases of a fragment, at least 3.
        unit_rows: rows of a unit; one fragment's rows always stay together.
        score_frameless: a fragment without a kept frame gives one row of frame 0.
        contents: finds rows with the same nucleotides; one that forgets what it has no room for where None.
    """

    def __init__(
        self, fragment_length: int, unit_rows: int, score_frameless: bool, contents: SequenceIndex | None = None
    ) -> None:
        self._fragment_length = fragment_length
        self._unit_rows = unit_rows
        self._score_frameless = score_frameless
        self._first_row = 0
        self._contents = contents or SequenceIndex()
        self._bases = np.empty(0, dtype=np.uint8)
        self._begin()

    def _begin(self) -> None:
        """Take new arrays: those of the last unit are its table's."""
        self._unit = _open_unit(self._unit_rows)
        # one fragment may fill a small unit beyond its rows
        self._buffers = row_buffers(max(self._unit_rows, MAX_FRAMES), self._fragment_length)
        self._bases = np.empty(len(self._bases), dtype=np.uint8)
        self._sequences: list[NDArray[np.void]] = []
        self._names: list[Ragged] = []

    @property
    def is_empty(self) -> bool:
        """Nothing was added since the last unit."""
        return not self._unit.counts.any()

    def units(
        self, block: RecordBlock, sequences: NDArray[np.void], letters: NDArray[np.uint8], masked: NDArray[np.uint8]
    ) -> Iterator[UnitTable]:
        """Add a block; yields the units that it closes. A record without bases in the block gets no fragment.

        Args:
            block: whole records.
            sequences: (n,) SEQUENCE_DTYPE of its records.
            letters: its bases, normalised.
            masked: (w,) ``Mask`` of each of its windows.
        """
        first_number = int(sequences["number"][0]) if len(sequences) else 0
        ready = _Block(first_number, letters, read_codons(letters), block.bases.offsets, masked)
        cursor = np.zeros(4, dtype=np.int64)
        num_begun = 0
        is_full = True
        while is_full:
            before, covered = self._unit.counts.tolist(), int(cursor[_COVERED])
            is_full = _cut(ready, cursor, self._unit, self._fragment_length, self._unit_rows, self._score_frameless)
            self._write_rows(ready, before[_FRAGMENTS], before[_ROWS])
            self._add_bases(block.bases.values[covered : cursor[_COVERED]])
            stop = num_begun + int(self._unit.counts[_SEQUENCES]) - before[_SEQUENCES]
            self._sequences.append(sequences[num_begun:stop])
            self._names.append(block.names.slice(num_begun, stop))
            num_begun = stop
            if is_full:
                yield self.close()

    def _write_rows(self, block: _Block, first_fragment: int, num_rows: int) -> None:
        """Write the rows of the fragments that were added last, behind ``num_rows`` others."""
        unit = self._unit
        added = slice(first_fragment, int(unit.counts[_FRAGMENTS]))
        write_rows(
            block.letters,
            block.codons,
            unit.fragments[added],
            unit.first_bases[added],
            unit.frames[added],
            self._buffers,
            num_rows,
        )

    def _add_bases(self, bases: NDArray[np.uint8]) -> None:
        """Copy the bases of the pieces that were added last: the block can go while it is still in the cache."""
        stop = int(self._unit.piece_offsets[self._unit.counts[_PIECES]])
        self._bases = grown(self._bases, stop - len(bases), len(bases))
        self._bases[stop - len(bases) : stop] = bases

    def close(self) -> UnitTable:
        """The open unit; a new one is begun."""
        unit, buffers = self._unit, self._buffers
        _, num_fragments, num_rows, num_pieces = unit.counts.tolist()
        nucleotides = _used(buffers.nucleotides, buffers.nucleotide_offsets, num_rows)
        hashes = hash_strings(nucleotides.values, nucleotides.offsets)
        rows = buffers.rows[:num_rows]
        rows["source"] = self._contents.find_sources(hashes, self._first_row)
        table = UnitTable(
            sequences=np.concatenate(self._sequences),
            names=Ragged.concatenate(self._names),
            fragments=unit.fragments[:num_fragments],
            rows=rows,
            first_row=self._first_row,
            nucleotides=nucleotides,
            proteins=_used(buffers.proteins, buffers.protein_offsets, num_rows),
            pieces=_used(self._bases, unit.piece_offsets, num_pieces),
            piece_sequences=unit.piece_sequences[:num_pieces],
        )
        self._first_row += num_rows
        self._begin()
        return table


def _pair_blocks(first: SequenceFile, second: SequenceFile) -> Iterator[RecordBlock]:
    """All records of the first file, then all of the second; their names end in ``/1`` and ``/2``.

    Raises:
        InputError: the files do not hold mates, one for one, in the same order.
    """
    digests: list[NDArray[np.uint32]] = []
    for block in first.blocks():
        _refuse_alignments(first)
        digests.append(_mate_digests(block.names, 1))
        yield RecordBlock(_named_mates(block.names, b"/1"), block.bases)
    expected = np.concatenate(digests) if digests else np.empty((0, 2), dtype=np.uint32)
    num_read = 0
    for block in second.blocks():
        _refuse_alignments(second)
        names = _named_mates(block.names, b"/2")
        found = _mate_digests(block.names, 2)
        _check_mates(found, expected[num_read : num_read + len(found)], block.names, num_read, first, second)
        num_read += len(found)
        yield RecordBlock(names, block.bases)
    if num_read < len(expected):
        raise InputError(
            shown(second.source),
            f"holds {num_read:,} records, and {shown(first.source)}, the other file of the pair, {len(expected):,}. "
            f"{_PAIR_ADVICE}",
        )


_PAIR_ADVICE = "Both must hold the same reads in the same order (`seqkit pair` makes them so)."


def _refuse_alignments(file: SequenceFile) -> None:
    if file.format in ("bam", "cram", "sam"):
        raise InputError(
            shown(file.source),
            f"is {file.format.upper()} and given as one file of a pair. Give it alone: it tells mates apart itself.",
        )


def _named_mates(names: Ragged, ending: bytes) -> Ragged:
    """The names, told apart by ``/1`` or ``/2``."""
    return Ragged.from_bytes(name.removesuffix(ending) + ending for name in names.to_bytes())


_MATE_ENDINGS = {number: re.compile(rb"[/._:#-][Rr]?%d$" % number) for number in (1, 2)}
"""What tells mates apart: ``/1``, ``.1`` (SRA), ``_1``, ``.R1`` and the like."""


def _mate_digests(names: Ragged, number: int) -> NDArray[np.uint32]:
    """(n, 2) four bytes of the name without what makes it that of mate ``number``, and of the whole name.

    Mates share one or the other: ``r.1`` may be read 1 of both files, or the first mate of read r. A name that says
    ``/1`` or ``/2`` is never the name of both. Files that do not match differ in more records than may fall together.
    """
    whole = names.to_bytes()
    ids = [_MATE_ENDINGS[number].sub(b"", name) for name in whole]
    plain = [name + b"/%d" % number if name.endswith((b"/1", b"/2")) else name for name in whole]
    return np.column_stack([_short_digests(Ragged.from_bytes(ids)), _short_digests(Ragged.from_bytes(plain))])


def _short_digests(ids: Ragged) -> NDArray[np.uint32]:
    return hash_strings(ids.values, ids.offsets)[:, 0].astype(np.uint32)


def _check_mates(
    found: NDArray[np.uint32],
    expected: NDArray[np.uint32],
    names: Ragged,
    num_before: int,
    first: SequenceFile,
    second: SequenceFile,
) -> None:
    """Refuse a record of the second file that is not the mate of the same record of the first."""
    differs = np.flatnonzero((found[: len(expected)] != expected).all(axis=1))
    if len(differs):
        at = int(differs[0])
        name = names[at].tobytes().decode(errors="backslashreplace")
        raise InputError(
            shown(second.source),
            f"record {num_before + at + 1:,}, {name}, has another id than record {num_before + at + 1:,} of "
            f"{shown(first.source)}, the other file of the pair. {_PAIR_ADVICE}",
        )
    if len(found) > len(expected):
        raise InputError(
            shown(second.source),
            f"holds more records than {shown(first.source)}, the other file of the pair, which ends after "
            f"{num_before + len(expected):,}. {_PAIR_ADVICE}",
        )


def describe_records(
    block: RecordBlock, letters: NDArray[np.uint8], first_number: int, fragment_length: int, masking: Masking
) -> tuple[NDArray[np.void], NDArray[np.uint8]]:
    """(n,) SEQUENCE_DTYPE of a block, and (w,) ``Mask`` of each of its windows.

    Args:
        block: n whole records.
        letters: its bases, normalised.
        first_number: of its first record in the run.
        fragment_length: nt.
        masking: which fragments say nothing.
    """
    sequences = np.empty(len(block), dtype=SEQUENCE_DTYPE)
    sequences["number"] = np.arange(first_number, first_number + len(block))
    sequences["length"] = block.bases.lengths
    masked, sequences["status"] = mask_windows(letters, block.bases.offsets, fragment_length, masking)
    return sequences, masked


class Extraction:
    """The extraction of some inputs into units.

    Args:
        sources: an item an input: a path, ``-`` for standard input, or the two files of a pair.
        fragment_length: bases of a fragment, at least 3.
        min_length: records with fewer bases, or fewer unambiguous ones, are marked so
            (``Status.TOO_SHORT``, ``Status.AMBIGUOUS``); they are cut all the same, and their fragments masked.
        unit_rows: rows of a unit; one fragment's rows always stay together.
        score_frameless: a fragment without a kept frame gives one row of frame 0.
        find_repetitive: fragments that repeat themselves are masked, and records of which half does so are marked
            (``Status.REPETITIVE``).
        block_bytes: how much is read at a time; changes nothing in the units.
        reference: FASTA file that the reads of CRAM inputs were aligned to.
        contents: as of ``UnitBuilder``.

    Attributes:
        inputs: one summary for each input that was read to its end.
        num_duplicate_names: records whose id an earlier record of the same input has.
        duplicate_names: the first few of these ids.
        num_unnamed: records without a name.
    """

    def __init__(
        self,
        sources: Sequence[str | tuple[str, str]],
        fragment_length: int,
        min_length: int,
        unit_rows: int,
        score_frameless: bool = False,
        find_repetitive: bool = False,
        block_bytes: int = BLOCK_BYTES,
        reference: str | None = None,
        contents: SequenceIndex | None = None,
    ) -> None:
        if fragment_length < 3:
            raise UsageError(f"the fragment length must be at least 3, not {fragment_length}")
        if unit_rows < 1:
            raise UsageError(f"a unit must have at least 1 row, not {unit_rows}")
        self._inputs = tuple((item,) if isinstance(item, str) else item for item in sources)
        if [path for paths in self._inputs for path in paths].count(STDIN) > 1:
            raise InputError(STDIN_NAME, "standard input can be read only once. Give '-' once.")
        self.inputs: list[InputSummary] = []
        self.num_duplicate_names = 0
        self.duplicate_names: list[bytes] = []
        self.num_unnamed = 0
        self._fragment_length = fragment_length
        self._masking = Masking(min_length, find_repetitive)
        self._block_bytes = block_bytes
        self._reference = reference
        self._builder = UnitBuilder(fragment_length, unit_rows, score_frameless, contents)
        self._num_sequences = 0

    def units(self) -> Iterator[UnitTable]:
        """Read all inputs, once; yields the units in order. No records, no units.

        Raises:
            InputError: an input cannot be read as nucleotide sequences. Files that are missing or may
                not be read are found before the first unit.
        """
        for path in (path for paths in self._inputs for path in paths):
            if path != STDIN and not _is_pipe(path):
                open_source(path).close()
        for paths in self._inputs:
            yield from self._read(paths)
            if not self._builder.is_empty:  # no unit spans two inputs
                yield self._builder.close()

    def _read(self, paths: tuple[str, ...]) -> Iterator[UnitTable]:
        file, *mates = (SequenceFile(path, self._block_bytes, self._reference) for path in paths)
        first_sequence, num_bases = self._num_sequences, 0
        self._ids = SequenceIndex()  # of each input by itself
        for block in _pair_blocks(file, mates[0]) if mates else file.blocks():
            letters = normalise(block.bases.values)
            sequences, masked = self._describe(block, letters)
            num_bases += len(letters)
            yield from self._builder.units(block, sequences, letters, masked)
        self.num_unnamed += sum(part.num_unnamed for part in (file, *mates))
        self.inputs.append(
            InputSummary(
                source=shown(file.source),
                format=file.format,
                compression=file.compression,
                num_sequences=self._num_sequences - first_sequence,
                num_bases=num_bases,
                first_sequence=first_sequence,
                sha256=file.sha256,
                mate_source="".join(shown(mate.source) for mate in mates),
                mate_sha256="".join(mate.sha256 for mate in mates),
            )
        )

    def _describe(self, block: RecordBlock, letters: NDArray[np.uint8]) -> tuple[NDArray[np.void], NDArray[np.uint8]]:
        """As ``describe_records``; repeated names are counted."""
        first_number = self._num_sequences
        self._num_sequences += len(block)
        sequences, masked = describe_records(block, letters, first_number, self._fragment_length, self._masking)
        same_name = self._ids.find_sources(hash_strings(block.names.values, block.names.offsets), first_number)
        is_repeated = same_name != sequences["number"]
        self.num_duplicate_names += int(is_repeated.sum())
        if len(self.duplicate_names) < _NUM_EXAMPLES:
            self._remember_names(block.names, np.flatnonzero(is_repeated))
        return sequences, masked

    def _remember_names(self, names: Ragged, repeated: NDArray[np.int64]) -> None:
        for i in repeated[: 100 * _NUM_EXAMPLES]:
            name = names[i].tobytes()
            if name not in self.duplicate_names:
                self.duplicate_names.append(name)
            if len(self.duplicate_names) == _NUM_EXAMPLES:
                return


def _is_pipe(source: str) -> bool:
    """Opening a named pipe and closing it again would end its writer."""
    path = Path(source)
    return path.is_fifo()


def _used(values: NDArray[np.uint8], offsets: NDArray[np.int64], num_items: int) -> Ragged:
    """The items that there are in arrays with room for more."""
    return Ragged(values[: offsets[num_items]], offsets[: num_items + 1])
