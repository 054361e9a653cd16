"""Reading sequence files in blocks of records.

FASTA and FASTQ are parsed here, by a state machine over bytes that stops and goes on anywhere, so that a
chunk of input may end in the middle of whatever it likes; no Python object is made for a record. Reads of
BAM, CRAM and SAM come from ``alignments``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import InputError
from virnucpro.kernels import kernel
from virnucpro.sequence.alignments import alignment_format, read_blocks
from virnucpro.sequence.ragged import Ragged, grown
from virnucpro.sequence.streams import InputStream, compression_of, shown

BLOCK_BYTES = 1 << 20

# What a byte is inside a sequence line.
_BASE, _BLANK, _LINE_END, _WRONG = range(4)

# Where the state machine is. The FASTQ states count on from the FASTA ones.
_BEFORE, _NAME, _DESCRIPTION, _LINE_START, _SEQUENCE = range(5)
_QUALITY_NAME, _QUALITY, _PLUS = range(5, 8)

# The slots of the state array.
_MODE, _LINE, _NUM_RECORDS, _NAME_END, _BASE_END, _NUM_QUALITIES, _PROBLEM, _BYTE = range(8)

# What can be wrong.
_NO_PROBLEM, _WRONG_LETTER, _NO_AT, _NO_PLUS, _QUALITY_LENGTH = range(5)

_NUCLEOTIDE_CODES = b"ACGTURYSWKMBDHVNX"
_PROTEIN_ONLY = b"EFILPQZJOefilpqzjo"


def _sequence_kinds() -> NDArray[np.uint8]:
    table = np.full(256, _WRONG, dtype=np.uint8)
    table[list(_NUCLEOTIDE_CODES + _NUCLEOTIDE_CODES.lower())] = _BASE
    table[list(b" \t\r\v\f")] = _BLANK
    table[ord("\n")] = _LINE_END
    return table


_KIND = _sequence_kinds()
_IS_COMMON = np.isin(np.arange(256), list(b"ACGTUNacgtun"))


class _Records(NamedTuple):
    """Where the parsers put what they read; the last record may go on in the next chunk."""

    names: NDArray[np.uint8]
    name_starts: NDArray[np.int64]
    bases: NDArray[np.uint8]
    base_starts: NDArray[np.int64]


@dataclass(frozen=True)
class RecordBlock:
    """Some records, in input order.

    Attributes:
        names: header up to the first blank, byte for byte.
        bases: as read, without white space.
    """

    names: Ragged
    bases: Ragged

    def __len__(self) -> int:
        return len(self.names)


@kernel
def _count_plain(chunk: NDArray[np.uint8], start: int) -> int:
    """How many bytes from ``start`` on are nucleotide letters, in whole eights.

    One branch for 32 letters, compared with the common ones all at once, is several times faster than a
    branch for each; where there are others, a table tells of eight at a time. Unsigned indices spare numba
    the test for negative ones, which would keep the compiler from it.
    """
    at = start
    while at + 32 <= len(chunk):
        is_other = False
        for i in range(32):
            letter = chunk[np.uint64(at + i)] & np.uint8(0xDF)
            is_other |= (letter != 65) & (letter != 67) & (letter != 71) & (letter != 84) & (letter != 78)
        if is_other:
            break
        at += 32
    while at + 8 <= len(chunk):
        kinds = np.uint8(_BASE)
        for i in range(8):
            kinds |= _KIND[chunk[np.uint64(at + i)]]
        if kinds != _BASE:
            break
        at += 8
    return at - start


@kernel
def _read_bases(chunk: NDArray[np.uint8], at: int, bases: NDArray[np.uint8], base_end: int) -> tuple[int, int]:
    """Copy the letters of a line, without its blanks; returns where they end in both arrays.

    What stands there ends the line or the chunk, or does not belong in a sequence.
    """
    num_plain = _count_plain(chunk, at)
    for i in range(num_plain):
        bases[np.uint64(base_end + i)] = chunk[np.uint64(at + i)]
    at += num_plain
    base_end += num_plain
    while at < len(chunk):
        kind = _KIND[chunk[np.uint64(at)]]
        if kind == _BASE:
            bases[np.uint64(base_end)] = chunk[np.uint64(at)]
            base_end += 1
        elif kind != _BLANK:
            break
        at += 1
    return at, base_end


@kernel
def _read_name(chunk: NDArray[np.uint8], at: int, names: NDArray[np.uint8], name_end: int) -> tuple[int, int]:
    """Copy a name; returns where it ends in both arrays: at a blank, or with the line or the chunk."""
    while at < len(chunk):
        byte = chunk[np.uint64(at)]
        if byte <= 32 and byte in (32, 9, 13, 10):
            break
        names[np.uint64(name_end)] = byte
        name_end += 1
        at += 1
    return at, name_end


@kernel
def _find_blank(chunk: NDArray[np.uint8], at: int) -> int:
    """Where the next white space is, or the end of the chunk."""
    while at + 32 <= len(chunk):
        is_blank = False
        for i in range(32):
            is_blank |= chunk[np.uint64(at + i)] <= 32
        if is_blank:
            break
        at += 32
    while at < len(chunk) and chunk[np.uint64(at)] > 32:
        at += 1
    return at


@kernel
def _find_line_end(chunk: NDArray[np.uint8], at: int) -> int:
    while at < len(chunk) and chunk[np.uint64(at)] != 10:
        at += 1
    return at


@kernel
def _parse_fasta(chunk: NDArray[np.uint8], state: NDArray[np.int64], records: _Records) -> None:  # noqa: C901
    mode, line, num_records = state[_MODE], state[_LINE], state[_NUM_RECORDS]
    name_end, base_end = state[_NAME_END], state[_BASE_END]
    names, name_starts, bases, base_starts = records
    at = 0
    while at < len(chunk):
        if mode == _LINE_START and chunk[at] != 62:
            mode = _SEQUENCE
        if mode == _SEQUENCE:
            at, base_end = _read_bases(chunk, at, bases, base_end)
        elif mode == _NAME:
            at, name_end = _read_name(chunk, at, names, name_end)
        elif mode == _DESCRIPTION:
            at = _find_line_end(chunk, at)
        if at == len(chunk):
            break
        byte = chunk[at]
        if byte == 10:
            line += 1
            if mode != _BEFORE:
                mode = _LINE_START
        elif mode == _SEQUENCE:
            state[_PROBLEM], state[_LINE], state[_BYTE] = _WRONG_LETTER, line, byte
            return
        elif mode == _NAME:
            mode = _DESCRIPTION
        elif byte == 62:  # '>' begins a line; before the first is only white space, the caller has looked
            name_starts[num_records] = name_end
            base_starts[num_records] = base_end
            num_records += 1
            mode = _NAME
        at += 1
    state[_MODE], state[_LINE], state[_NUM_RECORDS] = mode, line, num_records
    state[_NAME_END], state[_BASE_END] = name_end, base_end


@kernel
def _parse_fastq(chunk: NDArray[np.uint8], state: NDArray[np.int64], records: _Records) -> None:  # noqa: C901, PLR0912, PLR0915
    mode, line, num_records = state[_MODE], state[_LINE], state[_NUM_RECORDS]
    name_end, base_end = state[_NAME_END], state[_BASE_END]
    num_qualities = state[_NUM_QUALITIES]
    problem = _NO_PROBLEM
    names, name_starts, bases, base_starts = records
    at = 0
    while at < len(chunk):
        if mode == _SEQUENCE:
            at, base_end = _read_bases(chunk, at, bases, base_end)
        elif mode == _QUALITY:
            first = at
            at = _find_blank(chunk, at)
            num_qualities += at - first
        elif mode == _NAME:
            at, name_end = _read_name(chunk, at, names, name_end)
        elif mode in (_DESCRIPTION, _QUALITY_NAME):
            at = _find_line_end(chunk, at)
        if at == len(chunk):
            break
        byte = chunk[at]
        if mode == _SEQUENCE:
            problem = _NO_PROBLEM if byte == 10 else _WRONG_LETTER
            mode = _PLUS
        elif mode == _QUALITY:
            if byte == 10:
                if num_qualities != base_end - base_starts[num_records - 1]:
                    problem = _QUALITY_LENGTH
                mode = _BEFORE
        elif mode in (_NAME, _DESCRIPTION):
            mode = _SEQUENCE if byte == 10 else _DESCRIPTION
        elif mode == _PLUS:
            if byte != 43:
                problem = _NO_PLUS
            mode = _QUALITY_NAME
        elif mode == _QUALITY_NAME:
            mode = _QUALITY
            num_qualities = 0
        elif byte == 64:  # '@' begins a record
            name_starts[num_records] = name_end
            base_starts[num_records] = base_end
            num_records += 1
            mode = _NAME
        elif byte > 32:
            problem = _NO_AT
        if problem != _NO_PROBLEM:
            state[_PROBLEM], state[_LINE], state[_BYTE] = problem, line, byte
            state[_NUM_QUALITIES], state[_BASE_END] = num_qualities, base_end
            state[_NUM_RECORDS] = num_records
            return
        line += byte == 10
        at += 1
    state[_MODE], state[_LINE], state[_NUM_RECORDS] = mode, line, num_records
    state[_NAME_END], state[_BASE_END], state[_NUM_QUALITIES] = name_end, base_end, num_qualities


class SequenceFile:
    """One input of FASTA or FASTQ records, whatever it is packed with, or of BAM, CRAM or SAM reads.

    Args:
        source: a path, or ``-`` for standard input.
        block_bytes: about how many bases a block holds.
        reference: FASTA file that the reads of a CRAM were aligned to.

    Attributes:
        format: ``fasta``, ``fastq``, ``bam``, ``cram``, ``sam``, or ``empty`` for a text without records.
    """

    def __init__(self, source: str, block_bytes: int = BLOCK_BYTES, reference: str | None = None) -> None:
        self.source = source
        self.format = "empty"
        self._reference = reference
        self._name = shown(source)
        self._block_bytes = block_bytes
        self._stream = InputStream(source, min(block_bytes, 1 << 18))
        self._state = np.zeros(8, dtype=np.int64)
        self._records = _Records(
            names=np.empty(0, dtype=np.uint8),
            name_starts=np.empty(0, dtype=np.int64),
            bases=np.empty(0, dtype=np.uint8),
            base_starts=np.empty(0, dtype=np.int64),
        )

    @property
    def compression(self) -> str:
        """``none``, ``gzip``, ``bzip2``, ``xz`` or ``zstd``; known from the first block on."""
        return self._stream.compression

    @property
    def sha256(self) -> str:
        """Hex digest of the raw bytes, known once :meth:`blocks` is exhausted."""
        return self._stream.sha256

    def blocks(self) -> Iterator[RecordBlock]:
        """The records in blocks of whole records; only a longer record makes a longer block.

        Raises:
            InputError: this is not, or not only, nucleotide sequences in a format known here.
            UsageError: reads aligned or unaligned, and no pysam to read them.
        """
        file_format = alignment_format(self._stream.peek())
        if not file_format:
            yield from self._text_blocks()
            return
        self.format = file_format
        for names, bases in read_blocks(self._stream, self._block_bytes, self._reference):
            yield RecordBlock(Ragged.from_bytes(names), Ragged.from_bytes(bases))

    def _text_blocks(self) -> Iterator[RecordBlock]:
        chunks = self._stream.chunks()
        head = _read_head(chunks)
        if not head or head.isspace():
            return
        self.format = _tell_format(self._name, head)
        head = head.removeprefix(_BYTE_ORDER_MARK)
        self._state[_LINE] = 1
        is_first = True
        for chunk in _prepend(head, chunks):
            self._parse(chunk)
            num_closed = self._num_closed()
            if num_closed and self._state[_BASE_END] + self._state[_NAME_END] >= self._block_bytes:
                block = self._take(num_closed)
                if is_first:
                    _refuse_protein(self._name, block)
                    is_first = False
                yield block
        self._check_end()
        block = self._take(int(self._state[_NUM_RECORDS]))
        if is_first:
            _refuse_protein(self._name, block)
        if len(block):
            yield block

    def _num_closed(self) -> int:
        """Records that are complete: all but the last, which may go on, save in FASTQ between two."""
        is_open = self.format == "fasta" or self._state[_MODE] != _BEFORE
        return int(self._state[_NUM_RECORDS]) - int(is_open)

    def _parse(self, chunk: bytes) -> None:
        self._reserve(len(chunk))
        parse = _parse_fasta if self.format == "fasta" else _parse_fastq
        parse(np.frombuffer(chunk, dtype=np.uint8), self._state, self._records)
        if self._state[_PROBLEM] != _NO_PROBLEM:
            raise InputError(self._name, self._problem(), int(self._state[_LINE]))

    def _reserve(self, num_bytes: int) -> None:
        """Make room for whatever ``num_bytes`` of input may hold."""
        records, num_records = self._records, int(self._state[_NUM_RECORDS])
        self._records = _Records(
            names=grown(records.names, int(self._state[_NAME_END]), num_bytes, self._block_bytes),
            name_starts=grown(records.name_starts, num_records, num_bytes // 2 + 1, self._block_bytes // 64),
            bases=grown(records.bases, int(self._state[_BASE_END]), num_bytes, self._block_bytes),
            base_starts=grown(records.base_starts, num_records, num_bytes // 2 + 1, self._block_bytes // 64),
        )

    def _take(self, num_records: int) -> RecordBlock:
        """The first ``num_records`` as a block; what follows moves to the front of new arrays."""
        records = self._records
        names, names_left = self._split(records.names, records.name_starts, num_records, _NAME_END)
        bases, bases_left = self._split(records.bases, records.base_starts, num_records, _BASE_END)
        num_left = int(self._state[_NUM_RECORDS]) - num_records  # at most one, which begins at 0
        self._state[_NUM_RECORDS] = num_left
        starts = np.zeros(num_left, dtype=np.int64)
        self._records = _Records(names_left, starts, bases_left, starts.copy())
        return RecordBlock(names, bases)

    def _split(
        self, values: NDArray[np.uint8], starts: NDArray[np.int64], num_records: int, end: int
    ) -> tuple[Ragged, NDArray[np.uint8]]:
        used = int(self._state[end])
        stop = int(starts[num_records]) if num_records < self._state[_NUM_RECORDS] else used
        offsets = np.empty(num_records + 1, dtype=np.int64)
        offsets[:-1] = starts[:num_records]
        offsets[-1] = stop
        self._state[end] = used - stop
        return Ragged(values[:stop], offsets), values[stop:used].copy()

    def _check_end(self) -> None:
        """A FASTQ may end without a line end, and nowhere else inside a record."""
        mode = self._state[_MODE]
        if self.format == "fasta" or mode == _BEFORE:
            return
        length = self._state[_BASE_END] - self._records.base_starts[self._state[_NUM_RECORDS] - 1]
        if mode == _QUALITY and self._state[_NUM_QUALITIES] == length:
            return
        raise InputError(
            self._name,
            "the file ends in the middle of a FASTQ record. Copy or download it again.",
            int(self._state[_LINE]),
        )

    def _problem(self) -> str:
        problem, byte = int(self._state[_PROBLEM]), int(self._state[_BYTE])
        if problem == _NO_AT:
            return (
                f"a FASTQ record begins with '@', this line with {_quoted(byte)}. Records must have four "
                "lines each; `seqtk seq` writes them so."
            )
        if problem == _NO_PLUS:
            return (
                f"the third line of a FASTQ record begins with '+', this one with {_quoted(byte)}. Records "
                "must have four lines each; `seqtk seq` writes them so."
            )
        if problem == _QUALITY_LENGTH:
            length = int(self._state[_BASE_END] - self._records.base_starts[self._state[_NUM_RECORDS] - 1])
            return (
                f"the record has {length} bases and {int(self._state[_NUM_QUALITIES])} qualities. "
                "The FASTQ file is damaged: copy or download it again."
            )
        return _wrong_letter(byte)


_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HEAD_BYTES = 4096

_FOREIGN: list[tuple[bytes, str]] = [
    (rb"BAM\x01|CRAM", "is a BAM or CRAM file that was packed once more. Unpack it first."),
    (
        rb"@(HD|SQ|RG|PG)\t[A-Z][A-Za-z]:|@CO\t",
        "is SAM text packed with a program other than gzip. Unpack it first.",
    ),
    (rb"PK\x03\x04", "is a zip archive. Unpack it first."),
    (rb"NCBI\.sra", "is an SRA archive. Convert it with `fasterq-dump`."),
    (rb"LOCUS {3}|ID {3}", "is a GenBank or EMBL file. Convert it to FASTA, for example with `seqret`."),
    (
        rb"\x1f\x9d|\x04\x22\x4d\x18|7z\xbc\xaf",
        "is packed with a program this one does not know. Use gzip, bzip2, xz or zstd.",
    ),
]


def _read_head(chunks: Iterator[bytes]) -> bytes:
    """Unpacked bytes up to some thousand that are not all white space; the rest stays in ``chunks``."""
    parts: list[bytes] = []
    num_bytes = 0
    has_text = False
    for chunk in chunks:
        parts.append(chunk)
        num_bytes += len(chunk)
        has_text = has_text or not chunk.isspace()
        if has_text and num_bytes >= _HEAD_BYTES:
            break
    return b"".join(parts)


def _prepend(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from chunks


def _tell_format(name: str, head: bytes) -> str:
    """``fasta`` or ``fastq``, from the first byte that is no white space."""
    for pattern, problem in _FOREIGN:
        if re.match(pattern, head):
            raise InputError(name, problem)
    if compression_of(head) != "none":
        raise InputError(name, "is packed twice. Unpack it once.")
    text = head.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if b"\r" in text and b"\n" not in text:
        raise InputError(
            name, "ends its lines with a carriage return alone. Convert it: tr '\\r' '\\n' < old.fasta > new.fasta"
        )
    if text.startswith(b">"):
        return "fasta"
    if text.startswith(b"@"):
        return "fastq"
    line = head[: len(head) - len(text)].count(b"\n") + 1
    if re.search(rb"[^\t\n\v\f\r\x20-\x7e\x80-\xff]", head[:_HEAD_BYTES]):
        raise InputError(
            name, "is no sequence file of a known format, and no text at all. Give FASTA, FASTQ, BAM, CRAM or SAM."
        )
    if b"\n>" in head:
        raise InputError(name, "there is text before the first '>'. Remove it.", line)
    raise InputError(name, "is neither FASTA nor FASTQ: the first line begins with neither '>' nor '@'.", line)


def _refuse_protein(name: str, block: RecordBlock) -> None:
    """Proteins written with letters that are all nucleotide codes too are told by how common A C G T are."""
    counts = np.bincount(block.bases.values, minlength=256)
    num_letters = int(counts.sum() - counts[ord("X")] - counts[ord("x")])  # X may mask a whole region
    if num_letters >= 100 and 2 * int(counts[_IS_COMMON].sum()) < num_letters:
        raise InputError(
            name,
            "fewer than half of the letters are A C G T U or N: these look like proteins. "
            "Give nucleotide sequences (genomes, contigs or reads).",
        )


def _quoted(byte: int) -> str:
    return repr(chr(byte)) if 32 <= byte < 127 else f"byte 0x{byte:02x}"


def _wrong_letter(byte: int) -> str:
    if byte in _PROTEIN_ONLY:
        return (
            f"{_quoted(byte)} is no nucleotide letter; this looks like a protein. "
            "Give nucleotide sequences (genomes, contigs or reads)."
        )
    if byte == ord("*"):
        return "'*' is no nucleotide letter; this looks like a translated protein. Give nucleotide sequences."
    if byte in b"-.":
        return f"{_quoted(byte)} is a gap. Remove the gaps (`seqkit seq -g`), or write N where a base is unknown."
    if byte in b">@":
        return f"{_quoted(byte)} stands inside a sequence line. Put every header on a line of its own."
    return (
        f"{_quoted(byte)} is no nucleotide letter. Allowed are A C G T U, the ambiguity codes "
        "R Y S W K M B D H V N, and X for masked bases."
    )
