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
from virnucpro.sequence.gaps import Gaps, Records
from virnucpro.sequence.masks import Masking, mask_windows
from virnucpro.sequence.pairs import pair_blocks
from virnucpro.sequence.ragged import Ragged, offsets_of
from virnucpro.sequence.streams import STDIN, STDIN_NAME, open_source, shown
from virnucpro.sequence.table import FRAGMENT_DTYPE, GAP_DTYPE, ROW_DTYPE, SEQUENCE_DTYPE, Mask, UnitTable

_FRAGMENTS_A_ROW = 4
_NUM_EXAMPLES = 5

_BATCH_NT = 1 << 18  # about as much is translated at once: the arrays of so many bases stay in a core's cache


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
    [
        ("record", "i8"),
        ("start", "i8"),
        ("stop", "i8"),
        ("given_stop", "i8"),
        ("index", "i8"),
        ("masked", "u1"),
        ("is_fragment", "?"),
    ]
)
"""A fragment of a block, or the place of a record that has none: where it lies in the block's letters, which have no
gaps any more, and up to where it takes the block's bases as they were given, the last of a record all that are left."""


@dataclass(frozen=True)
class _Block:
    """Whole records, ready to be cut."""

    given: RecordBlock  # as they were given
    sequences: NDArray[np.void]  # (n,) SEQUENCE_DTYPE
    cut: Records  # as they are cut
    gaps: NDArray[np.void]  # (g,) GAP_DTYPE
    masked: NDArray[np.uint8]  # (w,) ``Mask`` of each window

    def on_records(
        self, records: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where stretches of the letters lie on their records."""
        starts, stops = self.cut.gaps.opened(starts, stops)
        first_bases = self.cut.given[records]
        return starts - first_bases, stops - first_bases

    def gaps_of(self, start: int, stop: int) -> NDArray[np.void]:
        """(g,) GAP_DTYPE of the records ``start:stop``."""
        numbers = self.sequences["number"][0] + np.array([start, stop])
        return self.gaps[slice(*np.searchsorted(self.gaps["sequence"], numbers))]

    def items(self, fragment_length: int) -> NDArray[np.void]:
        """(i,) _ITEM_DTYPE."""
        num_windows, starts, stops = windows_of(np.diff(self.cut.offsets), fragment_length)
        num_items = np.maximum(num_windows, 1)
        items = np.zeros(num_items.sum(), dtype=_ITEM_DTYPE)
        items["record"] = np.repeat(np.arange(len(num_items)), num_items)
        items["index"] = np.arange(len(items)) - np.repeat(np.cumsum(num_items) - num_items, num_items)
        items["is_fragment"] = is_fragment = np.repeat(num_windows > 0, num_items)
        items["start"] = items["stop"] = self.cut.offsets[items["record"]]
        items["start"][is_fragment] += starts
        items["stop"][is_fragment] += stops
        items["masked"][is_fragment] = self.masked
        items["given_stop"] = self.cut.gaps.opened(items["start"], items["stop"])[1]
        items["given_stop"][np.cumsum(num_items) - 1] = self.cut.given[1:]
        return items


@dataclass(frozen=True)
class _Part:
    """What some items of a block add to a unit; fields are those of ``UnitTable``."""

    sequences: NDArray[np.void]
    names: Ragged
    descriptions: Ragged
    gaps: NDArray[np.void]
    fragments: NDArray[np.void]
    rows: NDArray[np.void]
    nucleotides: list[bytes]
    proteins: Ragged
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

    def units(self, block: _Block) -> Iterator[UnitTable]:
        """Add a block; yields the units that it closes."""
        items, given, sequences = block.items(self._fragment_length), block.given, block.sequences
        covered = 0  # of the block's bases
        num_together = max(1, _BATCH_NT * len(items) // max(1, len(block.cut.letters)))
        for at in range(0, len(items), num_together):
            batch = items[at : at + num_together]
            kept = find_frames(
                block.cut.letters,
                batch["start"],
                batch["stop"],
                score_frameless=self._score_frameless,
                is_masked=~batch["is_fragment"] | (batch["masked"] != Mask.NONE),
            )
            rows = _row_table(kept, batch, block)
            ends = offsets_of(kept.counts)
            start = 0
            while start < len(batch):
                stop = start + self._num_fitting(batch[start:], kept.counts[start:])
                if stop > start:
                    part, mine = batch[start:stop], slice(int(ends[start]), int(ends[stop]))
                    last = part[np.flatnonzero(np.diff(part["record"], append=-1))]  # of each record
                    piece_ends = last["given_stop"]
                    begun = part["record"][part["index"] == 0]
                    first, after = (int(begun[0]), int(begun[-1]) + 1) if len(begun) else (0, 0)
                    self._add(
                        _Part(
                            sequences[first:after],
                            given.names.slice(first, after),
                            given.descriptions.slice(first, after),
                            block.gaps_of(first, after),
                            _fragment_table(part, block, kept.counts[start:stop]),
                            rows[mine],
                            kept.nucleotides[mine],
                            kept.proteins.slice(mine.start, mine.stop),
                            given.bases.values[covered : piece_ends[-1]].copy(),  # so that the block can go
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
        sequences, gaps, fragments, rows, bases, numbers, lengths = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("sequences", "gaps", "fragments", "rows", "bases", "piece_sequences", "piece_lengths")
        )
        nucleotides = list(chain.from_iterable(part.nucleotides for part in parts))
        rows["source"] = self._contents.find_sources(hash_strings(nucleotides), self._first_row)
        begins = np.flatnonzero(np.diff(numbers, prepend=-1))  # a record may have come in several parts
        table = UnitTable(
            sequences=sequences,
            names=Ragged.concatenate(part.names for part in parts),
            descriptions=Ragged.concatenate(part.descriptions for part in parts),
            gaps=gaps,
            fragments=fragments,
            rows=rows,
            first_row=self._first_row,
            nucleotides=Ragged.from_bytes(nucleotides),
            proteins=Ragged.concatenate(part.proteins for part in parts),
            pieces=Ragged(bases, offsets_of(np.add.reduceat(lengths, begins))),
            piece_sequences=numbers[begins],
        )
        self._first_row += len(rows)
        return table


def _fragment_table(items: NDArray[np.void], block: _Block, num_rows: NDArray[np.int64]) -> NDArray[np.void]:
    """(f,) FRAGMENT_DTYPE of the items that are fragments."""
    items, num_rows = items[items["is_fragment"]], num_rows[items["is_fragment"]]
    fragments = np.empty(len(items), dtype=FRAGMENT_DTYPE)
    fragments["sequence"] = block.sequences["number"][items["record"]]
    for name in ("index", "masked"):
        fragments[name] = items[name]
    fragments["length"] = items["stop"] - items["start"]
    fragments["start"], fragments["stop"] = block.on_records(items["record"], items["start"], items["stop"])
    fragments["num_rows"] = num_rows
    return fragments


def _row_table(kept: KeptFrames, items: NDArray[np.void], block: _Block) -> NDArray[np.void]:
    """(n,) ROW_DTYPE of kept frames, without their sources."""
    of = np.repeat(items, kept.counts)
    rows = np.empty(len(of), dtype=ROW_DTYPE)
    rows["sequence"] = block.sequences["number"][of["record"]]
    rows["fragment"] = of["index"]
    rows["frame"] = kept.frames
    rows["start"], rows["stop"] = block.on_records(of["record"], kept.starts, kept.stops)
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
        close_gaps: records are cut as if they had no gaps.
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
        close_gaps: bool = False,
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
        self._masking = Masking(min_length, find_repetitive, close_gaps)
        self._close_gaps = close_gaps
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
            num_bases += len(block.bases.values)
            yield from self._builder.units(self._prepare(block))
        del self._ids  # some 50 MB, which nobody asks again
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

    def _prepare(self, block: RecordBlock) -> _Block:
        """Close gaps and look at all windows; repeated names are counted."""
        bases, first_number = block.bases, self._num_sequences
        cut = Records.of(normalise(bases.values), bases.offsets)
        found = Gaps.among(cut.others, bases.offsets)
        cut = cut.close(found) if self._close_gaps else cut
        sequences = np.empty(len(block), dtype=SEQUENCE_DTYPE)
        self._num_sequences += len(block)
        sequences["number"] = np.arange(first_number, self._num_sequences)
        sequences["length"] = bases.lengths
        masked, sequences["status"] = mask_windows(cut, self._fragment_length, self._masking)
        gaps = np.empty(len(found), dtype=GAP_DTYPE)
        records = np.searchsorted(bases.offsets, found.starts, side="right") - 1
        gaps["sequence"] = sequences["number"][records]
        gaps["start"], gaps["stop"] = found.starts - bases.offsets[records], found.stops - bases.offsets[records]
        self._count_repeated(block, first_number)
        return _Block(block, sequences, cut, gaps, masked)

    def _count_repeated(self, block: RecordBlock, first_number: int) -> None:
        """Find names that came before."""
        names = block.names.to_bytes()
        numbers = np.arange(first_number, first_number + len(names))
        is_repeated = self._ids.find_sources(hash_strings(names), first_number) != numbers
        self.num_duplicate_names += int(is_repeated.sum())
        for i in np.flatnonzero(is_repeated)[: 100 * _NUM_EXAMPLES].tolist():
            if len(self.duplicate_names) < _NUM_EXAMPLES and names[i] not in self.duplicate_names:
                self.duplicate_names.append(names[i])
