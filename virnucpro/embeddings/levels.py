"""From records to the strings that are embedded, and from these to one embedding a frame, a fragment or a sequence.

DNA is cut as in a run: records, their gaps closed, into fragments, these into open reading frames (a fragment without
one is kept as a whole, with nucleotides alone). A nucleotide encoder reads the frames' bases, a protein encoder their
translation. A fragment's embedding is the mean of its frames', a sequence's the mean of its fragments'. A protein that
is longer than its encoder reads is cut into windows of equal size, and its embedding is their mean.

Where there is nothing to embed (no open frame for a protein encoder, an empty record) the count is 0 and the embedding
NaN.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice, pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from virnucpro.embeddings.cache import EmbeddingCache, sequence_digest
from virnucpro.embeddings.loader import Alphabet, LoadedEncoder
from virnucpro.errors import VirNucProError
from virnucpro.executors.base import Outcome, UnitFailed
from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import UnitTable
from virnucpro.stages import poison

Level = Literal["sequence", "fragment", "frame"]
LEVELS: tuple[Level, ...] = get_args(Level)
KEY_DTYPE = np.dtype([("sequence", "i8"), ("fragment", "i4"), ("frame", "i1"), ("start", "i8"), ("stop", "i8")])
"""What a row is of: the sequence's number; where they apply, the fragment's number within it and the frame (+1 to -3, 0
for a whole fragment); where it lies, 0-based half-open on the forward strand."""
COLUMNS: dict[Level, tuple[str, ...]] = {
    "sequence": (),
    "fragment": ("fragment", "start", "stop"),
    "frame": ("fragment", "start", "stop", "frame"),
}
"""What of a key says something, at each level."""
FRAGMENT_LENGTH = 500
_FAILURES = (VirNucProError, RuntimeError, ValueError, ArithmeticError, LookupError)
"""What an encoder may raise at a string that it cannot embed."""
_LOG = logging.getLogger(__name__)
_UNIT_ROWS = 4096
_PROTEINS_A_PART = 2048


@dataclass(frozen=True)
class Part:
    """Some records, or a piece of a long one."""

    number: int  # of the part
    first_sequence: int  # number of the first sequence that begins here
    names: Ragged  # of the m sequences that begin here
    lengths: NDArray[np.int64]  # (m,) of these
    keys: NDArray[np.void]  # (n,) KEY_DTYPE of each string
    strings: Mapping[Alphabet, Ragged]  # n strings in each alphabet that an encoder can read here
    fragments: NDArray[np.void]  # (f,) KEY_DTYPE, those without a string too; of proteins, one a sequence
    fragment_of: NDArray[np.int64]  # (n,) position in ``fragments``


@dataclass(frozen=True)
class PartRows:
    """What comes of a part."""

    number: int  # of the part
    first_sequence: int  # number of the first sequence that begins here
    names: Ragged  # of the m sequences that begin here
    lengths: NDArray[np.int64]  # (m,) of these
    keys: NDArray[np.void]  # (k,) KEY_DTYPE
    counts: dict[str, NDArray[np.int32]]  # encoder to (k,) how many embeddings (of a sequence: fragments) a row is of
    # Encoder to (k, width); of a sequence float64 sums of its fragments, which may continue in the next part.
    values: dict[str, NDArray[np.floating]]
    failed: NDArray[np.void]  # (x,) KEY_DTYPE of the strings that an encoder could not embed; no row has them

    @property
    def size(self) -> tuple[int, int]:
        """Sequences that begin here, and rows; a sequence that continues in the next part has a row in both."""
        return len(self.lengths), len(self.keys)


def parts_of_dna(source: str, fragment_length: int = FRAGMENT_LENGTH) -> Iterator[Part]:
    """Cut a file of nucleotide sequences; what a part holds depends on the records alone.

    Raises:
        InputError: it cannot be read.
    """
    extraction = Extraction(
        [source], fragment_length, min_length=0, unit_rows=_UNIT_ROWS, score_frameless=True, close_gaps=True
    )
    num_begun = 0
    for number, table in enumerate(extraction.units()):
        yield _part_of_table(number, num_begun, table)
        num_begun += len(table.sequences)


def _part_of_table(number: int, first_sequence: int, table: UnitTable) -> Part:
    fragments = np.zeros(len(table.fragments), dtype=KEY_DTYPE)
    for name in ("sequence", "start", "stop"):
        fragments[name] = table.fragments[name]
    fragments["fragment"] = table.fragments["index"]
    keys = np.zeros(len(table.rows), dtype=KEY_DTYPE)
    for name in ("sequence", "fragment", "frame", "start", "stop"):
        keys[name] = table.rows[name]
    fragment_of = np.repeat(np.arange(len(fragments)), table.fragments["num_rows"])
    lengths = table.sequences["length"].astype(np.int64)
    strings: dict[Alphabet, Ragged] = {"nt": table.nucleotides, "aa": table.proteins}
    return Part(number, first_sequence, table.names, lengths, keys, strings, fragments, fragment_of)


def parts_of_proteins(records: Iterable[tuple[bytes, bytes]], max_letters: int | None) -> Iterator[Part]:
    """Gather proteins; those longer than ``max_letters`` are cut into windows."""
    todo, first = iter(records), 0
    for number in count():
        batch = list(islice(todo, _PROTEINS_A_PART))
        if not batch:
            return
        yield _part_of_proteins(number, first, batch, max_letters)
        first += len(batch)


def _part_of_proteins(
    number: int, first_sequence: int, records: Sequence[tuple[bytes, bytes]], max_letters: int | None
) -> Part:
    lengths = np.array([len(protein) for _, protein in records], dtype=np.int64)
    fragments = np.zeros(len(records), dtype=KEY_DTYPE)
    fragments["sequence"] = np.arange(first_sequence, first_sequence + len(records))
    fragments["stop"] = lengths
    ends = [_windows(len(protein), max_letters) for _, protein in records]
    fragment_of = np.repeat(np.arange(len(records)), [len(each) for each in ends])
    keys = fragments[fragment_of]
    keys["start"], keys["stop"] = np.concatenate(ends).T
    windows = Ragged.from_bytes(
        protein[start:stop] for (_, protein), each in zip(records, ends, strict=True) for start, stop in each
    )
    names = Ragged.from_bytes(name for name, _ in records)
    return Part(number, first_sequence, names, lengths, keys, {"aa": windows}, fragments, fragment_of)


def _windows(length: int, max_letters: int | None) -> list[tuple[int, int]]:
    """As few windows as it takes, of sizes that differ by at most one."""
    num_windows = 1 if max_letters is None else max(1, -(-length // max_letters))
    ends = [length * number // num_windows for number in range(num_windows + 1)]
    return list(pairwise(ends))


def embed_strings(model: LoadedEncoder, strings: Ragged, cache: EmbeddingCache | None = None) -> NDArray[np.float32]:
    """(n, width) embeddings of n strings; those in the cache are not computed, those computed are kept there.

    NaN for a string that cannot be embedded, which the log names.

    Raises:
        WorkerError: more than ``poison.MAX_ROWS`` strings cannot be embedded.
    """
    fingerprint = model.source.fingerprint
    if cache is None or not fingerprint:
        return _embed_all_that_go(model, strings)
    digests = [sequence_digest(string) for string in strings.to_bytes()]
    firsts = dict(zip(reversed(digests), range(len(digests) - 1, -1, -1), strict=True))
    known = cache.get(fingerprint, model.dtype, model.source.width, list(firsts))
    missing = [digest for digest in firsts if digest not in known]
    if missing:
        positions = np.array([firsts[digest] for digest in missing], dtype=np.int64)
        new = _embed_all_that_go(model, strings.take(positions))
        is_finite = np.asarray(np.isfinite(new).all(axis=1))
        computed = [digest for digest, is_kept in zip(missing, is_finite.tolist(), strict=True) if is_kept]
        cache.put(fingerprint, model.dtype, model.source.name, computed, new[is_finite])
        known |= zip(missing, new, strict=True)
    if not digests:
        return np.empty((0, model.source.width), dtype=np.float32)
    return np.stack([known[digest] for digest in digests])


def _embed_all_that_go(model: LoadedEncoder, strings: Ragged) -> NDArray[np.float32]:
    """(n, width) embeddings; NaN for the strings that the encoder fails at even alone."""
    try:
        return model.embed(strings)
    except _FAILURES as error:
        _LOG.warning("%s: %s; looking for the strings that make it fail", model.source.name, error)

    def attempt(parts: tuple[range, ...]) -> Iterator[Outcome]:
        for number, part in enumerate(parts):
            try:
                model.embed(strings.slice(part.start, part.stop))
            except _FAILURES as error:
                yield UnitFailed(number, str(error))

    found = poison.find(len(strings), attempt)
    is_good = np.ones(len(strings), dtype=np.bool_)
    is_good[list(found)] = False
    embeddings = model.embed(strings.keep(is_good))
    embeddings[~is_good] = np.nan
    return embeddings


def embed_part(
    part: Part, models: Sequence[LoadedEncoder], level: Level, cache: EmbeddingCache | None = None
) -> PartRows:
    """Embed the strings of a part with each encoder, and pool them."""
    keys = _keys(part, level)
    counts: dict[str, NDArray[np.int32]] = {}
    values: dict[str, NDArray[np.floating]] = {}
    failed = [np.zeros(0, dtype=KEY_DTYPE)]
    for model in models:
        strings = part.strings[model.source.alphabet]
        embeddings = embed_strings(model, strings, cache)
        has_letters = strings.lengths > 0
        fails = has_letters & np.isnan(embeddings).any(axis=1)
        has_letters &= ~fails
        failed.append(part.keys[fails])
        name = model.source.name
        if level == "frame":
            counts[name] = has_letters.astype(np.int32)
            values[name] = np.where(has_letters[:, None], embeddings, np.float32(np.nan))
            continue
        sums, number = _sums(embeddings, has_letters, part.fragment_of, len(part.fragments))
        if level == "sequence":
            means = sums / np.maximum(number, 1)[:, None]
            position = part.fragments["sequence"] - (keys["sequence"][0] if len(keys) else 0)
            sums, number = _sums(means, number > 0, position, len(keys))
            values[name] = sums
        else:
            values[name] = _means(sums, number).astype(np.float32)
        counts[name] = number
    lost = np.unique(np.concatenate(failed))
    return PartRows(part.number, part.first_sequence, part.names, part.lengths, keys, counts, values, lost)


def _keys(part: Part, level: Level) -> NDArray[np.void]:
    """What the rows of a part are of."""
    if level == "frame":
        return part.keys
    if level == "fragment":
        return part.fragments
    first = part.first_sequence
    if len(part.fragments):
        first = min(first, int(part.fragments["sequence"][0]))
    keys = np.zeros(part.first_sequence + len(part.lengths) - first, dtype=KEY_DTYPE)
    keys["sequence"] = np.arange(first, first + len(keys))
    return keys


def _sums(
    rows: NDArray[np.floating], counted: NDArray[np.bool_], group_of: NDArray[np.int64], num_groups: int
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Sum of the counted rows of each group, one after the other, and their number."""
    sums = np.zeros((num_groups, rows.shape[1]), dtype=np.float64)
    np.add.at(sums, group_of[counted], rows[counted])
    return sums, np.bincount(group_of[counted], minlength=num_groups).astype(np.int32)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of all rows of an input.

    Attributes:
        ids: of the sequences.
        lengths: (m,) of the sequences, letters.
        level: what a row is of.
        keys: (k,) KEY_DTYPE; at the level of sequences, row i is of sequence i.
        counts: encoder to (k,) how many embeddings a row is the mean of; 0 where it is NaN.
        values: encoder to (k, width).
    """

    ids: list[str]
    lengths: NDArray[np.int64]
    level: Level
    keys: NDArray[np.void]
    counts: dict[str, NDArray[np.int32]]
    values: dict[str, NDArray[np.floating]]

    def __len__(self) -> int:
        return len(self.keys)

    def index(self) -> dict[str, NDArray[np.generic] | list[str]]:
        """What the rows are of: a column a property, as far as the level has it."""
        of = self.keys["sequence"]
        found: dict[str, NDArray[np.generic] | list[str]] = {"length": self.lengths[of]}
        found |= {name: np.ascontiguousarray(self.keys[name]) for name in COLUMNS[self.level]}
        return {"id": [self.ids[number] for number in of.tolist()]} | found

    def columns(self) -> dict[str, NDArray[np.generic] | list[str]]:
        """The index, and for each encoder how many embeddings a row is the mean of."""
        return self.index() | {f"num_{name}": number for name, number in self.counts.items()}

    def joined(self) -> NDArray[np.floating]:
        """(k, sum of widths) all encoders side by side; 0 where one had nothing to read and another had."""
        has_any = np.any([number > 0 for number in self.counts.values()], axis=0)
        parts = [
            np.where((self.counts[name] == 0)[:, None] & has_any[:, None], 0, rows).astype(rows.dtype)
            for name, rows in self.values.items()
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _in_memory(shape: tuple[int, int]) -> NDArray[np.floating]:
    return np.zeros(shape, dtype=np.float32)


def room_for(
    sizes: Collection[tuple[int, int]],
    level: Level,
    widths: Mapping[str, int],
    make: Callable[[tuple[int, int]], NDArray[np.floating]] = _in_memory,
) -> Embeddings:
    """Empty arrays for consecutive parts.

    Args:
        sizes: sequences that begin in each part, and its rows; see ``PartRows.size``.
        level: what a row is of.
        widths: encoder to the width of its embeddings.
        make: makes the array of an encoder's values.
    """
    num_sequences = sum(number for number, _ in sizes)
    num_rows = num_sequences if level == "sequence" else sum(number for _, number in sizes)
    return Embeddings(
        ids=[],
        lengths=np.zeros(num_sequences, np.int64),
        level=level,
        keys=np.zeros(num_rows, KEY_DTYPE),
        counts={name: np.zeros(num_rows, np.int32) for name in widths},
        values={name: make((num_rows, width)) for name, width in widths.items()},
    )


def fill(room: Embeddings, parts: Iterable[PartRows]) -> Embeddings:
    """Put the rows of consecutive parts into ``room``; the sums of sequences become means."""
    stop = 0
    carried: PartRows | None = None
    for part in parts:
        room.lengths[len(room.ids) : len(room.ids) + len(part.lengths)] = part.lengths
        room.ids.extend(name.decode(errors="backslashreplace") for name in part.names.to_bytes())
        if room.level == "sequence" and len(part.keys):
            _carry(carried, part)
            stop, carried = int(part.keys["sequence"][0]), part
        rows = slice(stop, stop + len(part.keys))
        stop = rows.stop
        room.keys[rows] = part.keys
        for name, values in part.values.items():
            room.counts[name][rows] = part.counts[name]
            room.values[name][rows] = _means(values, part.counts[name]) if room.level == "sequence" else values
    if room.level == "sequence":
        room.keys["stop"] = room.lengths
    return room


def _carry(before: PartRows | None, part: PartRows) -> None:
    """Add the sums of a sequence that goes on to those of its first row here."""
    if before is None or before.keys["sequence"][-1] != part.keys["sequence"][0]:
        return
    for name, values in part.values.items():
        values[0] += before.values[name][-1]
        part.counts[name][0] += before.counts[name][-1]


def _means(sums: NDArray[np.floating], counts: NDArray[np.int32]) -> NDArray[np.floating]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / counts[:, None]  # nothing over nothing is NaN
