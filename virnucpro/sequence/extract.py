"""From inputs to units: records, fragments, six frames, kept rows.

A unit closes before the fragment that would take it over ``unit_rows`` rows, or when it holds
``4 * unit_rows`` fragments or ``4 * unit_rows`` records that begin in it. What a unit holds depends
on the records alone, not on how they were read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import InputError, UsageError
from virnucpro.sequence.compiled import compiled
from virnucpro.sequence.dedup import SequenceIndex, hash_strings
from virnucpro.sequence.fasta import BLOCK_BYTES, RecordBlock, SequenceFile
from virnucpro.sequence.fragments import count_windows, window
from virnucpro.sequence.frames import RowBuffers, are_clear, keep_frames, normalise, row_buffers
from virnucpro.sequence.ragged import Ragged, offsets_of
from virnucpro.sequence.streams import STDIN, STDIN_NAME, open_source, shown
from virnucpro.sequence.table import FRAGMENT_DTYPE, ROW_DTYPE, SEQUENCE_DTYPE, Status, UnitTable

_MAX_FRAMES = 6
_FRAGMENTS_A_ROW = 4
_NUM_EXAMPLES = 5

# The slots of the cursor into a block: the record, its next fragment, bases covered so far.
_RECORD, _INDEX, _COVERED = range(3)
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
    """Room for one unit, filled by :func:`_fill`."""

    counts: NDArray[np.int64]
    fragment_sequences: NDArray[np.int64]
    fragment_indices: NDArray[np.int64]
    fragment_starts: NDArray[np.int64]
    fragment_stops: NDArray[np.int64]
    fragment_rows: NDArray[np.int64]
    piece_sequences: NDArray[np.int64]
    piece_lengths: NDArray[np.int64]


class _Block(NamedTuple):
    """Records of one block, ready to be cut."""

    numbers: NDArray[np.int64]
    letters: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    has_fragments: NDArray[np.bool_]


@compiled
def _fill(
    block: _Block,
    cursor: NDArray[np.int64],
    unit: _OpenUnit,
    buffers: RowBuffers,
    fragment_length: int,
    unit_rows: int,
    score_frameless: bool,
) -> bool:
    """Add fragments from ``cursor`` on until the unit is full (True) or the block used up (False)."""
    # unpacked once: numba counts references at each attribute
    numbers, letters, offsets, has_fragments = block
    (
        counts,
        fragment_sequences,
        fragment_indices,
        fragment_starts,
        fragment_stops,
        fragment_rows,
        piece_sequences,
        piece_lengths,
    ) = unit
    limit = _FRAGMENTS_A_ROW * unit_rows
    while cursor[_RECORD] < len(numbers):
        if counts[_SEQUENCES] >= limit or counts[_FRAGMENTS] >= limit:
            return True
        record = cursor[_RECORD]
        number = numbers[record]
        first_base = offsets[record]
        length = offsets[record + 1] - first_base
        index = cursor[_INDEX]
        stop = length
        num_windows = 0
        if has_fragments[record]:
            num_windows = count_windows(length, fragment_length)
            start, stop = window(length, fragment_length, index)
            num_rows = keep_frames(
                letters[first_base : first_base + length], start, stop, buffers, counts[_ROWS], score_frameless
            )
            if counts[_ROWS] > 0 and counts[_ROWS] + num_rows > unit_rows:
                return True
            fragment = counts[_FRAGMENTS]
            fragment_sequences[fragment] = number
            fragment_indices[fragment] = index
            fragment_starts[fragment] = start
            fragment_stops[fragment] = stop
            fragment_rows[fragment] = num_rows
            counts[_FRAGMENTS] += 1
            counts[_ROWS] += num_rows
        if index == 0:
            counts[_SEQUENCES] += 1
        piece = counts[_PIECES] - 1
        if piece < 0 or piece_sequences[piece] != number:
            piece += 1
            piece_sequences[piece] = number
            piece_lengths[piece] = 0
            counts[_PIECES] += 1
        piece_lengths[piece] += first_base + stop - cursor[_COVERED]
        cursor[_COVERED] = first_base + stop
        if index + 1 < num_windows:
            cursor[_INDEX] = index + 1
        else:
            cursor[_INDEX] = 0
            cursor[_RECORD] = record + 1
    return False


class _UnitBuilder:
    """Takes blocks, gives units."""

    def __init__(self, fragment_length: int, unit_rows: int, score_frameless: bool) -> None:
        self._fragment_length = fragment_length
        self._unit_rows = unit_rows
        self._score_frameless = score_frameless
        self._first_row = 0
        self._contents = SequenceIndex()
        limit = _FRAGMENTS_A_ROW * unit_rows
        # one fragment may fill a small unit beyond its rows, and the next is tried before it is turned away
        self._buffers = row_buffers(max(unit_rows, _MAX_FRAMES) + _MAX_FRAMES, fragment_length)
        self._unit = _OpenUnit(np.zeros(4, dtype=np.int64), *(np.empty(limit + 1, dtype=np.int64) for _ in range(7)))
        self._sequences: list[NDArray[np.void]] = []
        self._names: list[Ragged] = []
        self._bases: list[NDArray[np.uint8]] = []

    @property
    def is_empty(self) -> bool:
        """Nothing was added since the last unit."""
        return not self._unit.counts.any()

    def units(self, block: RecordBlock, sequences: NDArray[np.void], letters: NDArray[np.uint8]) -> Iterator[UnitTable]:
        """Add a block; yields the units that it closes."""
        has_fragments = sequences["length"] > 0
        ready = _Block(np.ascontiguousarray(sequences["number"]), letters, block.bases.offsets, has_fragments)
        cursor = np.zeros(3, dtype=np.int64)
        num_begun = 0
        is_full = True
        while is_full:
            num_before, covered = int(self._unit.counts[_SEQUENCES]), int(cursor[_COVERED])
            is_full = _fill(
                ready,
                cursor,
                self._unit,
                self._buffers,
                self._fragment_length,
                self._unit_rows,
                self._score_frameless,
            )
            stop = num_begun + int(self._unit.counts[_SEQUENCES]) - num_before
            self._sequences.append(sequences[num_begun:stop])
            self._names.append(block.names.slice(num_begun, stop))
            self._bases.append(block.bases.values[covered : cursor[_COVERED]])
            num_begun = stop
            if is_full:
                yield self.close()

    def close(self) -> UnitTable:
        """The open unit; a new one is begun."""
        _, num_fragments, num_rows, num_pieces = (int(count) for count in self._unit.counts)
        fragments = np.empty(num_fragments, dtype=FRAGMENT_DTYPE)
        fragments["sequence"] = self._unit.fragment_sequences[:num_fragments]
        fragments["index"] = self._unit.fragment_indices[:num_fragments]
        fragments["start"] = self._unit.fragment_starts[:num_fragments]
        fragments["stop"] = self._unit.fragment_stops[:num_fragments]
        fragments["num_rows"] = self._unit.fragment_rows[:num_fragments]
        rows = np.empty(num_rows, dtype=ROW_DTYPE)
        rows["sequence"] = np.repeat(fragments["sequence"], fragments["num_rows"])
        rows["fragment"] = np.repeat(fragments["index"], fragments["num_rows"])
        rows["frame"] = self._buffers.frames[:num_rows]
        rows["start"] = self._buffers.starts[:num_rows]
        rows["stop"] = self._buffers.stops[:num_rows]
        nucleotides = _copied(self._buffers.nucleotides, self._buffers.nucleotide_offsets, num_rows)
        hashes = hash_strings(nucleotides.values, nucleotides.offsets)
        rows["source"] = self._contents.find_sources(hashes, self._first_row)
        table = UnitTable(
            sequences=np.concatenate(self._sequences),
            names=Ragged.concatenate(self._names),
            fragments=fragments,
            rows=rows,
            first_row=self._first_row,
            nucleotides=nucleotides,
            proteins=_copied(self._buffers.proteins, self._buffers.protein_offsets, num_rows),
            pieces=Ragged(np.concatenate(self._bases), offsets_of(self._unit.piece_lengths[:num_pieces])),
            piece_sequences=self._unit.piece_sequences[:num_pieces].copy(),
        )
        self._first_row += num_rows
        self._unit.counts[:] = 0
        self._sequences, self._names, self._bases = [], [], []
        return table


def _pair_blocks(first: SequenceFile, second: SequenceFile) -> Iterator[RecordBlock]:
    """All records of the first file, then all of the second; their names end in ``/1`` and ``/2``.

    Raises:
        InputError: the files do not hold mates, one for one, in the same order.
    """
    digests: list[NDArray[np.uint32]] = []
    for block in first.blocks():
        _refuse_alignments(first)
        ids, names = _ids_and_names(block.names, b"/1")
        digests.append(_short_digests(ids))
        yield RecordBlock(names, block.bases)
    expected = np.concatenate(digests) if digests else np.empty(0, dtype=np.uint32)
    num_read = 0
    for block in second.blocks():
        _refuse_alignments(second)
        ids, names = _ids_and_names(block.names, b"/2")
        found = _short_digests(ids)
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


def _ids_and_names(names: Ragged, ending: bytes) -> tuple[Ragged, Ragged]:
    """What mates have in common, and what tells them apart."""
    ids = [name.removesuffix(ending) for name in names.to_bytes()]
    return Ragged.from_bytes(ids), Ragged.from_bytes(name + ending for name in ids)


def _short_digests(ids: Ragged) -> NDArray[np.uint32]:
    """(n,) four bytes for each id: files that do not match differ in more records than may fall together."""
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
    differs = np.flatnonzero(found[: len(expected)] != expected)
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


class Extraction:
    """The extraction of some inputs into units.

    Args:
        sources: an item an input: a path, ``-`` for standard input, or the two files of a pair.
        fragment_length: bases of a fragment, at least 3.
        min_length: records with fewer bases, or fewer unambiguous ones, are marked so
            (``Status.TOO_SHORT``, ``Status.AMBIGUOUS``); they are cut all the same.
        unit_rows: rows of a unit; one fragment's rows always stay together.
        score_frameless: a fragment without a kept frame gives one row of frame 0.
        block_bytes: how much is read at a time; changes nothing in the units.
        reference: FASTA file that the reads of CRAM inputs were aligned to.

    Attributes:
        inputs: one summary for each input that was read to its end.
        num_duplicate_names: records whose id an earlier record has.
        duplicate_names: the first few of these ids.
    """

    def __init__(
        self,
        sources: Sequence[str | tuple[str, str]],
        fragment_length: int,
        min_length: int,
        unit_rows: int,
        score_frameless: bool = False,
        block_bytes: int = BLOCK_BYTES,
        reference: str | None = None,
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
        self._min_length = min_length
        self._block_bytes = block_bytes
        self._reference = reference
        self._builder = _UnitBuilder(fragment_length, unit_rows, score_frameless)
        self._ids = SequenceIndex()
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
        if not self._builder.is_empty:
            yield self._builder.close()

    def _read(self, paths: tuple[str, ...]) -> Iterator[UnitTable]:
        file, *mates = (SequenceFile(path, self._block_bytes, self._reference) for path in paths)
        first_sequence, num_bases = self._num_sequences, 0
        for block in _pair_blocks(file, mates[0]) if mates else file.blocks():
            letters = normalise(block.bases.values)
            sequences = self._describe(block, letters)
            num_bases += len(letters)
            yield from self._builder.units(block, sequences, letters)
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

    def _describe(self, block: RecordBlock, letters: NDArray[np.uint8]) -> NDArray[np.void]:
        """The block's SEQUENCE_DTYPE table."""
        lengths = block.bases.lengths
        first_number = self._num_sequences
        self._num_sequences += len(block)
        sequences = np.empty(len(block), dtype=SEQUENCE_DTYPE)
        sequences["number"] = np.arange(first_number, self._num_sequences)
        sequences["length"] = lengths
        is_clear = are_clear(letters, block.bases.offsets, self._min_length)
        sequences["status"] = np.select(
            [lengths == 0, lengths < self._min_length, ~is_clear],
            [Status.EMPTY, Status.TOO_SHORT, Status.AMBIGUOUS],
            Status.OK,
        )
        same_name = self._ids.find_sources(hash_strings(block.names.values, block.names.offsets), first_number)
        is_repeated = same_name != sequences["number"]
        self.num_duplicate_names += int(is_repeated.sum())
        if len(self.duplicate_names) < _NUM_EXAMPLES:
            self._remember_names(block.names, np.flatnonzero(is_repeated))
        return sequences

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


def _copied(values: NDArray[np.uint8], offsets: NDArray[np.int64], num_items: int) -> Ragged:
    return Ragged(values[: offsets[num_items]].copy(), offsets[: num_items + 1].copy())
