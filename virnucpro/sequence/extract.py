"""From inputs to units: records, fragments, six frames, kept rows.

A unit closes with its input, before the fragment that would take it over ``unit_rows`` rows, or when it
holds ``4 * unit_rows`` fragments or ``4 * unit_rows`` records that begin in it. What a unit holds depends
on the records alone, not on how they were read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import InputError, UsageError
from virnucpro.sequence.dedup import SequenceIndex, hash_strings
from virnucpro.sequence.fasta import BLOCK_BYTES, RecordBlock, SequenceFile
from virnucpro.sequence.fragments import windows_of
from virnucpro.sequence.frames import KeptFrames, find_frames, normalise
from virnucpro.sequence.masks import Masking, mask_windows
from virnucpro.sequence.pairs import pair_blocks
from virnucpro.sequence.ragged import Ragged, offsets_of
from virnucpro.sequence.streams import STDIN, STDIN_NAME, open_source, shown
from virnucpro.sequence.table import FRAGMENT_DTYPE, ROW_DTYPE, SEQUENCE_DTYPE, Mask, UnitTable

_FRAGMENTS_A_ROW = 4
_NUM_EXAMPLES = 5

_BATCH_ITEMS = 1 << 11  # whose frames are in memory at once


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


@dataclass
class _OpenUnit:
    """What a unit holds so far, a part for each run of items that were added."""

    num_sequences: int = 0
    num_fragments: int = 0
    num_rows: int = 0
    sequences: list[NDArray[np.void]] = field(default_factory=list)
    names: list[Ragged] = field(default_factory=list)
    descriptions: list[Ragged] = field(default_factory=list)
    fragments: list[NDArray[np.void]] = field(default_factory=list)
    rows: list[NDArray[np.void]] = field(default_factory=list)
    nucleotides: list[bytes] = field(default_factory=list)
    proteins: list[bytes] = field(default_factory=list)
    bases: list[NDArray[np.uint8]] = field(default_factory=list)
    piece_sequences: list[NDArray[np.int64]] = field(default_factory=list)
    piece_lengths: list[NDArray[np.int64]] = field(default_factory=list)


@dataclass(frozen=True)
class _Items:
    """Fragments of a block in order, with a place for each record that has none.

    Attributes:
        records: (n,) record in the block.
        starts: (n,) on the record.
        stops: (n,) on the record; 0 for a record without fragments.
        indices: (n,) of the fragment in its record.
        masked: (n,) ``Mask``.
        is_fragment: (n,) false for the place of a record without any.
    """

    records: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    indices: NDArray[np.int64]
    masked: NDArray[np.uint8]
    is_fragment: NDArray[np.bool_]

    @classmethod
    def of(cls, lengths: NDArray[np.int64], fragment_length: int, masked: NDArray[np.uint8]) -> _Items:
        """Items of records of some lengths; ``masked`` has an entry for each of their fragments."""
        num_windows, starts, stops = windows_of(lengths, fragment_length)
        num_items = np.maximum(num_windows, 1)
        is_fragment = np.repeat(num_windows > 0, num_items)
        first = np.cumsum(num_items) - num_items
        indices = np.arange(len(is_fragment)) - np.repeat(first, num_items)
        all_starts, all_stops = np.zeros((2, len(is_fragment)), dtype=np.int64)
        marks = np.zeros(len(is_fragment), dtype=np.uint8)
        all_starts[is_fragment], all_stops[is_fragment], marks[is_fragment] = starts, stops, masked
        records = np.repeat(np.arange(len(lengths)), num_items)
        return cls(records, all_starts, all_stops, indices, marks, is_fragment)

    def __getitem__(self, part: slice) -> _Items:
        return _Items(*(getattr(self, each.name)[part] for each in fields(self)))

    def __len__(self) -> int:
        return len(self.records)


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
        self._unit = _OpenUnit()

    @property
    def is_empty(self) -> bool:
        """Nothing was added since the last unit."""
        return not (self._unit.num_sequences or self._unit.num_fragments)

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
        items = _Items.of(block.bases.lengths, self._fragment_length, masked)
        covered = 0
        for at in range(0, len(items), _BATCH_ITEMS):
            batch = items[at : at + _BATCH_ITEMS]
            first_bases = block.bases.offsets[batch.records]
            kept = find_frames(
                letters,
                first_bases + batch.starts,
                first_bases + batch.stops,
                score_frameless=self._score_frameless,
                is_masked=~batch.is_fragment | (batch.masked != Mask.NONE),
            )
            num_rows = kept.counts
            rows = _row_table(kept, batch, num_rows, sequences, first_bases)
            ends = offsets_of(num_rows)
            start = 0
            while start < len(batch):
                stop = start + self._num_fitting(batch[start:], num_rows[start:])
                if stop > start:
                    part, mine = batch[start:stop], slice(int(ends[start]), int(ends[stop]))
                    self._add_records(part, block, sequences)
                    covered = self._add_bases(part, block, sequences, covered)
                    self._add_fragments(part, sequences, num_rows[start:stop])
                    self._unit.rows.append(rows[mine])
                    self._unit.nucleotides += kept.nucleotides[mine]
                    self._unit.proteins += kept.proteins[mine]
                    self._unit.num_rows += mine.stop - mine.start
                if stop < len(batch):
                    yield self.close()
                start = stop

    def _num_fitting(self, items: _Items, num_rows: NDArray[np.int64]) -> int:
        """How many of the items the open unit has room for."""
        unit, limit = self._unit, _FRAGMENTS_A_ROW * self._unit_rows
        after = unit.num_rows + np.cumsum(num_rows)
        # a fragment with more rows than a unit may hold is a unit of its own
        is_too_much = items.is_fragment & (after > self._unit_rows) & (after - num_rows > 0)
        by_rows = int(is_too_much.argmax()) if is_too_much.any() else len(items)
        begins, is_fragment = items.indices == 0, items.is_fragment
        by_sequences, by_fragments = (
            int(np.searchsorted(np.cumsum(counted) - counted, limit - used, side="left"))
            for counted, used in ((begins, unit.num_sequences), (is_fragment, unit.num_fragments))
        )
        return min(by_rows, by_sequences, by_fragments)

    def _add_records(self, items: _Items, block: RecordBlock, sequences: NDArray[np.void]) -> None:
        begun = items.records[items.indices == 0]
        if len(begun):
            first, stop = int(begun[0]), int(begun[-1]) + 1
            self._unit.sequences.append(sequences[first:stop])
            self._unit.names.append(block.names.slice(first, stop))
            self._unit.descriptions.append(block.descriptions.slice(first, stop))
            self._unit.num_sequences += stop - first

    def _add_fragments(self, items: _Items, sequences: NDArray[np.void], num_rows: NDArray[np.int64]) -> None:
        items, num_rows = _only(items, items.is_fragment), num_rows[items.is_fragment]
        fragments = np.empty(len(items), dtype=FRAGMENT_DTYPE)
        fragments["sequence"] = sequences["number"][items.records]
        fragments["index"] = items.indices
        fragments["start"], fragments["stop"] = items.starts, items.stops
        fragments["num_rows"], fragments["masked"] = num_rows, items.masked
        self._unit.fragments.append(fragments)
        self._unit.num_fragments += len(fragments)

    def _add_bases(self, items: _Items, block: RecordBlock, sequences: NDArray[np.void], covered: int) -> int:
        """Copy the bases from ``covered`` to the end of the last item; returns where that is in the block."""
        last = np.flatnonzero(np.diff(items.records, append=-1))  # of each record
        records = items.records[last]
        ends = block.bases.offsets[records] + items.stops[last]
        self._unit.piece_sequences.append(sequences["number"][records])
        self._unit.piece_lengths.append(np.diff(ends, prepend=covered))
        self._unit.bases.append(block.bases.values[covered : ends[-1]].copy())  # so that the block can go
        return int(ends[-1])

    def close(self) -> UnitTable:
        """The open unit; a new one is begun."""
        unit, self._unit = self._unit, _OpenUnit()
        rows = np.concatenate([np.empty(0, dtype=ROW_DTYPE), *unit.rows])
        rows["source"] = self._contents.find_sources(hash_strings(unit.nucleotides), self._first_row)
        numbers, lengths = np.concatenate(unit.piece_sequences), np.concatenate(unit.piece_lengths)
        begins = np.flatnonzero(np.diff(numbers, prepend=-1))  # a record may have come in several parts
        table = UnitTable(
            sequences=np.concatenate([np.empty(0, dtype=SEQUENCE_DTYPE), *unit.sequences]),
            names=Ragged.concatenate(unit.names),
            descriptions=Ragged.concatenate(unit.descriptions),
            fragments=np.concatenate([np.empty(0, dtype=FRAGMENT_DTYPE), *unit.fragments]),
            rows=rows,
            first_row=self._first_row,
            nucleotides=Ragged.from_bytes(unit.nucleotides),
            proteins=Ragged.from_bytes(unit.proteins),
            pieces=Ragged(np.concatenate(unit.bases), offsets_of(np.add.reduceat(lengths, begins))),
            piece_sequences=numbers[begins],
        )
        self._first_row += len(rows)
        return table


def _only(items: _Items, kept: NDArray[np.bool_]) -> _Items:
    return items if kept.all() else _Items(*(getattr(items, each.name)[kept] for each in fields(items)))


def _row_table(
    kept: KeptFrames,
    items: _Items,
    num_rows: NDArray[np.int64],
    sequences: NDArray[np.void],
    first_bases: NDArray[np.int64],
) -> NDArray[np.void]:
    """(n,) ROW_DTYPE of kept frames, without their sources."""
    of = np.repeat(np.arange(len(items)), num_rows)
    rows = np.empty(len(of), dtype=ROW_DTYPE)
    rows["sequence"] = sequences["number"][items.records[of]]
    rows["fragment"] = items.indices[of]
    rows["frame"] = kept.frames
    rows["start"] = kept.starts - first_bases[of]
    rows["stop"] = kept.stops - first_bases[of]
    return rows


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
        for block in pair_blocks(file, mates[0]) if mates else file.blocks():
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
        same_name = self._ids.find_sources(hash_strings(block.names.to_bytes()), first_number)
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
