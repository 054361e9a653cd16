"""From inputs to units: records, fragments, six frames, kept rows.

A unit closes with its input, before the fragment that would take it over ``unit_rows`` rows, or when it
holds ``4 * unit_rows`` fragments or ``4 * unit_rows`` records that begin in it. What a unit holds depends
on the records alone, not on how they were read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
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


_ITEM_DTYPE = np.dtype(
    [("record", "i8"), ("start", "i8"), ("stop", "i8"), ("index", "i8"), ("masked", "u1"), ("is_fragment", "?")]
)
"""A fragment of a block, on its record, or the place of a record that has none (``stop`` is 0 there)."""


def _items_of(lengths: NDArray[np.int64], fragment_length: int, masked: NDArray[np.uint8]) -> NDArray[np.void]:
    """(n,) _ITEM_DTYPE of records of some ``lengths``; ``masked`` has a ``Mask`` for each of their windows."""
    num_windows, starts, stops = windows_of(lengths, fragment_length)
    num_items = np.maximum(num_windows, 1)
    items = np.zeros(num_items.sum(), dtype=_ITEM_DTYPE)
    items["record"] = np.repeat(np.arange(len(lengths)), num_items)
    items["index"] = np.arange(len(items)) - np.repeat(np.cumsum(num_items) - num_items, num_items)
    items["is_fragment"] = is_fragment = np.repeat(num_windows > 0, num_items)
    items["start"][is_fragment], items["stop"][is_fragment], items["masked"][is_fragment] = starts, stops, masked
    return items


@dataclass(frozen=True)
class _Part:
    """What some items of a block add to a unit; fields are those of ``UnitTable``."""

    sequences: NDArray[np.void]
    names: Ragged
    descriptions: Ragged
    fragments: NDArray[np.void]
    rows: NDArray[np.void]
    nucleotides: list[bytes]
    proteins: list[bytes]
    bases: NDArray[np.uint8]  # of the pieces
    piece_sequences: NDArray[np.int64]
    piece_lengths: NDArray[np.int64]


class _Builder:
    """Takes blocks, gives units; the arguments are those of ``Extraction``."""

    def __init__(
        self, fragment_length: int, unit_rows: int, score_frameless: bool, contents: SequenceIndex | None
    ) -> None:
        self._fragment_length = fragment_length
        self._unit_rows = unit_rows
        self._score_frameless = score_frameless
        self._contents = contents or SequenceIndex()
        self._first_row = 0
        self._begin()

    def _begin(self) -> None:
        self._parts: list[_Part] = []
        self._num_sequences = self._num_fragments = self._num_rows = 0

    @property
    def is_empty(self) -> bool:
        """Nothing was added since the last unit."""
        return not self._parts

    def units(
        self, block: RecordBlock, sequences: NDArray[np.void], letters: NDArray[np.uint8], masked: NDArray[np.uint8]
    ) -> Iterator[UnitTable]:
        """Add a block; yields the units that it closes.

        Args:
            block: whole records.
            sequences: (n,) SEQUENCE_DTYPE of its records.
            letters: its bases, normalised.
            masked: (w,) ``Mask`` of each of its windows.
        """
        items = _items_of(block.bases.lengths, self._fragment_length, masked)
        covered = 0  # of the block's bases
        for at in range(0, len(items), _BATCH_ITEMS):
            batch = items[at : at + _BATCH_ITEMS]
            first_bases = block.bases.offsets[batch["record"]]
            kept = find_frames(
                letters,
                first_bases + batch["start"],
                first_bases + batch["stop"],
                score_frameless=self._score_frameless,
                is_masked=~batch["is_fragment"] | (batch["masked"] != Mask.NONE),
            )
            rows = _row_table(kept, batch, sequences, first_bases)
            ends = offsets_of(kept.counts)
            start = 0
            while start < len(batch):
                stop = start + self._num_fitting(batch[start:], kept.counts[start:])
                if stop > start:
                    part, mine = batch[start:stop], slice(int(ends[start]), int(ends[stop]))
                    last = part[np.flatnonzero(np.diff(part["record"], append=-1))]  # of each record
                    piece_ends = block.bases.offsets[last["record"]] + last["stop"]
                    begun = part["record"][part["index"] == 0]
                    first, after = (int(begun[0]), int(begun[-1]) + 1) if len(begun) else (0, 0)
                    self._add(
                        _Part(
                            sequences[first:after],
                            block.names.slice(first, after),
                            block.descriptions.slice(first, after),
                            _fragment_table(part, sequences, kept.counts[start:stop]),
                            rows[mine],
                            kept.nucleotides[mine],
                            kept.proteins[mine],
                            block.bases.values[covered : piece_ends[-1]].copy(),  # so that the block can go
                            sequences["number"][last["record"]],
                            np.diff(piece_ends, prepend=covered),
                        )
                    )
                    covered = int(piece_ends[-1])
                if stop < len(batch):
                    yield self.close()
                start = stop

    def _num_fitting(self, items: NDArray[np.void], num_rows: NDArray[np.int64]) -> int:
        """How many of the items the open unit has room for."""
        limit = _FRAGMENTS_A_ROW * self._unit_rows
        after = self._num_rows + np.cumsum(num_rows)
        # a fragment with more rows than a unit may hold is a unit of its own
        is_too_much = items["is_fragment"] & (after > self._unit_rows) & (after - num_rows > 0)
        by_rows = int(is_too_much.argmax()) if is_too_much.any() else len(items)
        by_sequences, by_fragments = (
            int(np.searchsorted(np.cumsum(counted) - counted, limit - used, side="left"))
            for counted, used in (
                (items["index"] == 0, self._num_sequences),
                (items["is_fragment"], self._num_fragments),
            )
        )
        return min(by_rows, by_sequences, by_fragments)

    def _add(self, part: _Part) -> None:
        self._parts.append(part)
        self._num_sequences += len(part.sequences)
        self._num_fragments += len(part.fragments)
        self._num_rows += len(part.rows)

    def close(self) -> UnitTable:
        """The open unit; a new one is begun."""
        parts = self._parts
        self._begin()
        sequences, fragments, rows, bases, numbers, lengths = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("sequences", "fragments", "rows", "bases", "piece_sequences", "piece_lengths")
        )
        nucleotides, proteins = (
            [*chain.from_iterable(strings)]
            for strings in zip(*((part.nucleotides, part.proteins) for part in parts), strict=True)
        )
        rows["source"] = self._contents.find_sources(hash_strings(nucleotides), self._first_row)
        begins = np.flatnonzero(np.diff(numbers, prepend=-1))  # a record may have come in several parts
        table = UnitTable(
            sequences=sequences,
            names=Ragged.concatenate(part.names for part in parts),
            descriptions=Ragged.concatenate(part.descriptions for part in parts),
            fragments=fragments,
            rows=rows,
            first_row=self._first_row,
            nucleotides=Ragged.from_bytes(nucleotides),
            proteins=Ragged.from_bytes(proteins),
            pieces=Ragged(bases, offsets_of(np.add.reduceat(lengths, begins))),
            piece_sequences=numbers[begins],
        )
        self._first_row += len(rows)
        return table


def _fragment_table(
    items: NDArray[np.void], sequences: NDArray[np.void], num_rows: NDArray[np.int64]
) -> NDArray[np.void]:
    """(f,) FRAGMENT_DTYPE of the items that are fragments."""
    items, num_rows = items[items["is_fragment"]], num_rows[items["is_fragment"]]
    fragments = np.empty(len(items), dtype=FRAGMENT_DTYPE)
    fragments["sequence"] = sequences["number"][items["record"]]
    for name in ("index", "start", "stop", "masked"):
        fragments[name] = items[name]
    fragments["num_rows"] = num_rows
    return fragments


def _row_table(
    kept: KeptFrames, items: NDArray[np.void], sequences: NDArray[np.void], first_bases: NDArray[np.int64]
) -> NDArray[np.void]:
    """(n,) ROW_DTYPE of kept frames, without their sources."""
    of = np.repeat(np.arange(len(items)), kept.counts)
    rows = np.empty(len(of), dtype=ROW_DTYPE)
    rows["sequence"] = sequences["number"][items["record"][of]]
    rows["fragment"] = items["index"][of]
    rows["frame"] = kept.frames
    rows["start"], rows["stop"] = kept.starts - first_bases[of], kept.stops - first_bases[of]
    return rows


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
        contents: finds rows with the same nucleotides; one that forgets what it has no room for where None.

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
        if list(chain.from_iterable(self._inputs)).count(STDIN) > 1:
            raise InputError(STDIN_NAME, "standard input can be read only once. Give '-' once.")
        self.inputs: list[InputSummary] = []
        self.num_duplicate_names = 0
        self.duplicate_names: list[bytes] = []
        self.num_unnamed = 0
        self._fragment_length = fragment_length
        self._masking = Masking(min_length, find_repetitive)
        self._block_bytes = block_bytes
        self._reference = reference
        self._builder = _Builder(fragment_length, unit_rows, score_frameless, contents)
        self._num_sequences = 0

    def units(self) -> Iterator[UnitTable]:
        """Read all inputs, once; yields the units in order. No records, no units.

        Raises:
            InputError: an input cannot be read as nucleotide sequences. Files that are missing or may
                not be read are found before the first unit.
        """
        for path in chain.from_iterable(self._inputs):
            if path != STDIN and not Path(path).is_fifo():  # opened and closed again, a pipe would end its writer
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
        """(n,) SEQUENCE_DTYPE of a block, and (w,) ``Mask`` of each of its windows; repeated names are counted."""
        sequences = np.empty(len(block), dtype=SEQUENCE_DTYPE)
        first_number = self._num_sequences
        self._num_sequences += len(block)
        sequences["number"] = np.arange(first_number, self._num_sequences)
        sequences["length"] = block.bases.lengths
        masked, sequences["status"] = mask_windows(letters, block.bases.offsets, self._fragment_length, self._masking)
        names = block.names.to_bytes()
        is_repeated = self._ids.find_sources(hash_strings(names), first_number) != sequences["number"]
        self.num_duplicate_names += int(is_repeated.sum())
        for i in np.flatnonzero(is_repeated)[: 100 * _NUM_EXAMPLES].tolist():
            if len(self.duplicate_names) < _NUM_EXAMPLES and names[i] not in self.duplicate_names:
                self.duplicate_names.append(names[i])
        return sequences, masked
