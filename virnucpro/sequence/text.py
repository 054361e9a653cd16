"""Cutting text into records of FASTA and FASTQ, with the byte methods of Python, which run at the speed of memory.

Descriptions and white space take no memory, whatever their length; what has no end is refused. Decision 21 says why no
library does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from virnucpro.errors import InputError
from virnucpro.resources import free_memory_bytes

LONGEST_NAME_BYTES = 1 << 16
LONGEST_EMPTY_BYTES = 1 << 30
"""White space in a row, or a description, that is taken for a mistake."""
_BYTES_A_BASE = 8
"""Memory that a record takes while it is cut into fragments."""

_MOST_BLANK_LINES = 1 << 20
_LONGEST_HELD_BYTES = 1 << 22
"""Of a FASTQ record that is not here as a whole; a longer one is read line by line."""

_LETTERS = b"ACGTURYSWKMBDHVNXacgturyswkmbdhvnx"
_BLANKS = b" \t\v\f\n"
_WRONG, _BLANK = b"\0", b"\1"
"""What :data:`_CHECK` makes of a byte that is no letter, and of white space within a line."""
_PROTEIN_ONLY = b"EFILPQZJOefilpqzjo"


_CHECK = bytes(
    letter if letter == ord("\n") else _BLANK[0] if letter in _BLANKS else ord("A") if letter in _LETTERS else _WRONG[0]
    for letter in range(256)
)


Records = tuple[list[bytes], list[bytes]]
"""Headers, without their first letter, and bases of some records."""


Refuse = Callable[[str, int | None], InputError]
"""From a problem and its line to the error."""


class Fasta:
    """Cuts text into FASTA records; one record may span many chunks."""

    def __init__(self, refuse: Refuse) -> None:
        self._refuse = refuse
        self._line = 0  # line feeds before the chunk
        self._begin()
        self._longest = free_memory_bytes() // _BYTES_A_BASE

    def _begin(self) -> None:
        self._header = bytearray()
        self._is_header = True
        self._parts: list[bytes] = []
        self._num_bases = self._num_empty = 0

    def records(self, chunks: Iterable[bytes]) -> Iterator[Records]:
        """Headers and bases, of some records at a time.

        Args:
            chunks: text whose lines end with line feeds; the first that is not white space is ``>``.
        """
        held = b"\n"  # as if a line had ended before the first byte
        is_open = False
        for chunk in chunks:
            text = held + chunk
            # a line feed is held back, since the next chunk may begin with '>'
            held = b"\n" if text.endswith(b"\n") else b""
            text = text[: len(text) - len(held)]
            first, *whole = text.split(b"\n>")
            last = whole.pop() if whole else None
            records: Records = [], []
            if is_open:
                self._add(first, text, 0)
            if last is not None:
                if is_open:
                    self._close(records)
                self._take(whole, text, len(first) + 2, records)
                is_open = True
                self._begin()
                self._add(last, text, len(text) - len(last))
            self._line += text.count(b"\n")
            yield records
        if is_open:
            records = [], []
            self._close(records)
            yield records

    def _take(self, whole: list[bytes], text: bytes, at: int, records: Records) -> None:
        """Take whole records, the first of which is at ``at`` of the text."""
        parts = [piece.partition(b"\n") for piece in whole]
        headers, lines = [header for header, _, _ in parts], [lines for _, _, lines in parts]
        is_plain = max(map(len, headers), default=0) <= LONGEST_NAME_BYTES and len(text) <= self._longest
        if is_plain and _are_letters(b"".join(lines)):
            records[0].extend(headers)
            records[1].extend([line.replace(b"\n", b"") for line in lines])
            return
        for piece in whole:
            self._begin()
            self._add(piece, text, at)
            self._close(records)
            at += len(piece) + 2

    def _add(self, piece: bytes, text: bytes, at: int) -> None:
        """Take some more of the open record, which is at ``at - 2`` of the text (``at`` of it where it goes on)."""
        lines = piece
        if self._is_header:
            header, line_end, lines = piece.partition(b"\n")
            self._num_empty += len(header)
            if len(self._header) <= LONGEST_NAME_BYTES:
                self._header += header[: LONGEST_NAME_BYTES + 2]
            self._is_header = not line_end
        checked = lines.translate(_CHECK)
        if (place := checked.find(_WRONG)) >= 0:
            line = self._line + text.count(b"\n", 0, at + len(piece) - len(lines) + place)
            raise self._refuse(wrong_letter(lines[place]), line)
        bases = lines.translate(None, _BLANKS) if _BLANK in checked else lines.replace(b"\n", b"")
        if bases:
            self._parts.append(bases)
            self._num_bases += len(bases)
            self._num_empty = 0
        elif not self._is_header:
            self._num_empty += len(lines)
        self._refuse_endless()

    def _refuse_endless(self) -> None:
        if self._num_empty > LONGEST_EMPTY_BYTES:
            raise endless(self._refuse, self._name())
        if self._num_bases > self._longest:
            raise too_long(self._refuse, self._name(), self._num_bases)

    def _name(self) -> bytes:
        first = self._header.split(None, 1)
        return bytes(first[0]) if first else b""

    def _close(self, records: Records) -> None:
        name = self._name()
        if len(name) > LONGEST_NAME_BYTES:
            raise name_too_long(self._refuse, name)
        records[0].append(bytes(self._header))
        records[1].append(self._parts[0] if len(self._parts) == 1 else b"".join(self._parts))


class Fastq:
    """Cuts text into FASTQ records; sequence and qualities may be wrapped.

    Records of four lines are taken many at a time; from the first other one on, line by line.
    """

    def __init__(self, refuse: Refuse) -> None:
        self._refuse = refuse
        self._line = 0  # that was read last
        self._longest = free_memory_bytes() // _BYTES_A_BASE

    def records(self, chunks: Iterable[bytes]) -> Iterator[Records]:
        """Headers and bases, of some records at a time.

        Args:
            chunks: text whose lines end with line feeds.
        """
        chunks = iter(chunks)
        held = b""
        for chunk in chunks:
            text = held + chunk
            lines = text.split(b"\n")
            stop = (len(lines) - 1) // 4 * 4
            found = _four_lines_each(lines[:stop])
            if found is None or len(text) - len(chunk) > _LONGEST_HELD_BYTES:
                yield from (([header], [bases]) for header, bases in self._line_by_line(chain([text], chunks)))
                return
            yield found
            self._line += stop
            held = b"\n".join(lines[stop:])
        yield from (([header], [bases]) for header, bases in self._line_by_line([held]))

    def _line_by_line(self, chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        lines = self._lines(chunks)
        num_blank = 0
        while (header := self._header(lines)) is not None:
            if not header or header.isspace():
                num_blank += 1
                if num_blank > _MOST_BLANK_LINES:
                    raise self._refuse(f"more than {_MOST_BLANK_LINES:,} blank lines in a row.", self._line)
                continue
            num_blank = 0
            if header[0] != ord("@"):
                raise self._refuse(
                    f"a FASTQ record begins with '@', this line with {_quoted(header[0])}. `seqtk seq` writes FASTQ "
                    "with four lines a record.",
                    self._line,
                )
            title = header[1 : LONGEST_NAME_BYTES + 3]
            first = title.split(None, 1)
            if first and len(first[0]) > LONGEST_NAME_BYTES:
                raise name_too_long(self._refuse, first[0])
            bases, num_lines = self._sequence(lines)
            self._qualities(lines, len(bases), num_lines)
            yield title, bases

    def _header(self, lines: Iterator[bytes]) -> bytes | None:
        """The next line, of which no more than a name may be long is kept; None at the end."""
        self._is_header = True
        header = next(lines, None)
        self._is_header = False
        return header

    def _sequence(self, lines: Iterator[bytes]) -> tuple[bytes, int]:
        """Bases up to the line with '+', and how many lines they take."""
        parts: list[bytes] = []
        for line in lines:
            if line[:1] == b"+":
                return (parts[0] if len(parts) == 1 else b"".join(parts)), len(parts)
            bases = line.translate(None, _BLANKS)
            if wrong := bases.translate(None, _LETTERS):
                if parts:
                    raise self._refuse(
                        f"the sequence of a FASTQ record ends with a line that begins with '+'; this one begins with "
                        f"{_quoted(line[0])}. Records must have four lines each; `seqtk seq` writes them so.",
                        self._line,
                    )
                raise self._refuse(wrong_letter(wrong[0]), self._line)
            parts.append(bases)
        raise self._cut_off()

    def _qualities(self, lines: Iterator[bytes], num_bases: int, num_lines: int) -> None:
        """Pass over as many qualities as there are bases; they are wrapped only where the bases are."""
        num_qualities = 0
        for line in lines:
            num_qualities += len(line) if len(line) == num_bases else len(line.translate(None, _BLANKS))
            if num_qualities >= num_bases or num_lines == 1:
                break
        else:
            if num_qualities < num_bases:
                raise self._cut_off()
        if num_qualities < num_bases and self._is_last:
            raise self._cut_off()
        if num_qualities != num_bases:
            raise self._refuse(
                f"the record has {num_bases} bases and {num_qualities} qualities. "
                "The FASTQ file is damaged: copy or download it again.",
                self._line,
            )

    _is_last = _is_header = False

    def _cut_off(self) -> InputError:
        line = self._line + (not self._is_last)
        return self._refuse("the file ends in the middle of a FASTQ record. Copy or download it again.", line)

    def _lines(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Lines without their ends; ``_is_last`` where the last one has none."""
        begun: list[bytes] = []
        num_begun = 0
        for chunk in chunks:
            first, *rest = chunk.split(b"\n")
            begun.append(first)
            num_begun += len(first)
            if self._is_header and num_begun > LONGEST_NAME_BYTES:
                begun = [self._begun_header(b"".join(begun), num_begun)]
            elif num_begun > self._longest:
                raise too_long(self._refuse, b"", num_begun)
            if not rest:
                continue
            self._line += 1
            yield begun[0] if len(begun) == 1 else b"".join(begun)
            for line in rest[:-1]:
                self._line += 1
                yield line
            begun, num_begun = [rest[-1]], len(rest[-1])
        last = b"".join(begun)
        if last:
            self._line += 1
            self._is_last = True
            yield last

    def _begun_header(self, header: bytes, num_bytes: int) -> bytes:
        """What is kept of a long one of which the end has not come."""
        first = header[1:].split(None, 1)
        if first and len(first[0]) > LONGEST_NAME_BYTES:
            raise name_too_long(self._refuse, first[0])
        if num_bytes > LONGEST_EMPTY_BYTES:
            raise endless(self._refuse, first[0] if first else b"")
        return header[: LONGEST_NAME_BYTES + 3]


def _four_lines_each(lines: list[bytes]) -> Records | None:
    """Headers and bases of records of four lines each; None if there is anything odd about one."""
    headers, bases, pluses, qualities = (lines[i::4] for i in range(4))
    if any(header[:1] != b"@" for header in headers) or any(plus[:1] != b"+" for plus in pluses):
        return None
    if list(map(len, bases)) != list(map(len, qualities)):
        return None
    if not _are_letters(b"".join(bases)):
        return None
    if max(map(len, headers), default=0) > LONGEST_NAME_BYTES:
        return None
    return [header[1:] for header in headers], bases


def _are_letters(lines: bytes) -> bool:
    """Nothing but letters of nucleotides and line feeds."""
    checked = lines.translate(_CHECK)
    return _WRONG not in checked and _BLANK not in checked


def with_line_feeds(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same text with LF for each CRLF and CR."""
    held = b""
    for chunk in chunks:
        text = held + chunk
        held = b""
        if b"\r" in text:
            held = b"\r" if text.endswith(b"\r") else b""  # an LF may follow
            text = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if text:
            yield text
    if held:
        yield b"\n"


def name_too_long(refuse: Refuse, name: bytes) -> InputError:
    """Of a record whose header has no blank where one belongs."""
    return refuse(f"the name {_shown(name)} has more than {LONGEST_NAME_BYTES:,} bytes. Shorten the names.", None)


def endless(refuse: Refuse, name: bytes) -> InputError:
    """Of a record whose description, or the white space in it, has no end."""
    return refuse(
        f"record {_shown(name)} has more than {LONGEST_EMPTY_BYTES:,} bytes of description or white space in a row. "
        "The file is damaged, or made to fill memory.",
        None,
    )


def too_long(refuse: Refuse, name: bytes, num_bases: int) -> InputError:
    """Of a record that does not fit in memory."""
    return refuse(
        f"record {_shown(name)} has more than {num_bases:,} bases, which do not fit in the memory that is free. "
        "Give the job more memory, or cut the record.",
        None,
    )


def _shown(name: bytes) -> str:
    text = name[:60].decode(errors="backslashreplace")
    return repr(text + "..." * (len(name) > 60))


def _quoted(byte: int) -> str:
    return repr(chr(byte)) if 32 <= byte < 127 else f"byte 0x{byte:02x}"


def wrong_letter(byte: int) -> str:
    """What is wrong with a byte in a sequence, and what to do."""
    if byte in _PROTEIN_ONLY:
        return (
            f"{_quoted(byte)} is not a nucleotide letter; this looks like a protein. "
            "Give nucleotide sequences (genomes, contigs or reads)."
        )
    if byte == ord("*"):
        return "'*' is not a nucleotide letter; this looks like a translated protein. Give nucleotide sequences."
    if byte in b"-.":
        return f"{_quoted(byte)} is a gap. Remove the gaps (`seqkit seq -g`), or write N where a base is unknown."
    if byte == 0 or byte > 126:
        return (
            f"{_quoted(byte)} is not of a sequence: from here on the file is in another encoding (a byte order mark, "
            "UTF-16), packed or damaged. Give FASTA or FASTQ in one encoding, UTF-8."
        )
    if byte in b">@":
        return f"{_quoted(byte)} stands inside a sequence line. Put every header on a line of its own."
    return (
        f"{_quoted(byte)} is not a nucleotide letter. Allowed are A C G T U, the ambiguity codes "
        "R Y S W K M B D H V N, and X for masked bases."
    )
