"""Parts of inputs to foresee the whole from: small files, cut out of large ones.

A file that is small is its own sample. Of a plain one pieces are taken all over it, of a compressed one its
beginning, cut into pieces. A piece of FASTA may begin or end inside a record; it then has a header of its own,
which is not counted as a sequence. A piece of FASTQ holds whole records.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from virnucpro.errors import InputError
from virnucpro.sequence.streams import STDIN, STDIN_NAME, InputStream, open_source

NUM_PIECES = 8
_READ_BYTES = 1 << 14
_NUCLEOTIDES = b"ACGTUNRYSWKMBDHVXacgtunryswkmbdhvx\r"


@dataclass(frozen=True)
class Piece:
    """A part of an input, or the whole.

    Attributes:
        path: a file of its own, or the input itself.
        source: number of the input.
        num_bytes: of text, unpacked; for a whole input the size of its file.
        begins_inside: whether its first header is not the input's.
    """

    path: Path
    source: int
    num_bytes: int
    begins_inside: bool = False


@dataclass(frozen=True)
class SampledInput:
    """What was taken of an input.

    Attributes:
        source: as the user named it.
        pieces: at least one.
        factor: the input's text in all to the text of the pieces; 1 for a whole input.
        is_beginning: the pieces are its beginning, and not from all over it.
        unpack_seconds: to read and unpack the pieces, for a compressed input.
    """

    source: str
    pieces: tuple[Piece, ...]
    factor: float
    is_beginning: bool = False
    unpack_seconds: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether the pieces are all of it."""
        return self.factor == 1.0


class _CountedStream(InputStream):
    """Knows how many bytes of the file it has read.

    Attributes:
        num_raw_bytes: so far.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source, _READ_BYTES)
        self.num_raw_bytes = 0

    def raw_chunks(self) -> Iterator[bytes]:
        for chunk in super().raw_chunks():
            self.num_raw_bytes += len(chunk)
            yield chunk


def sample_input(number: int, source: str, sample_bytes: int, folder: Path) -> SampledInput:
    """Take pieces of an input.

    Args:
        number: of the input.
        source: path.
        sample_bytes: about how much text to take.
        folder: for the pieces.

    Raises:
        InputError: it is stdin or a pipe, or cannot be read.
    """
    size = _size_of(source)
    beginning = _CountedStream(source)
    head = next(beginning.chunks(), b"")
    whole = SampledInput(source, (Piece(Path(source), number, size),), 1.0)
    if not head.lstrip().startswith((b">", b"@")):
        return whole  # extraction reads it or says what is wrong with it
    if beginning.compression != "none":
        return _sample_beginning(number, source, sample_bytes, folder) or whole
    if size <= sample_bytes:
        return whole
    return _sample_all_over(number, source, size, sample_bytes, folder) or whole


def _size_of(source: str) -> int:
    if source == STDIN:
        raise InputError(STDIN_NAME, "what a plan read of it would be lost for the run. Write it to a file first.")
    if Path(source).exists() and not (Path(source).is_file() or Path(source).is_dir()):
        raise InputError(source, "is a pipe: what a plan read of it would be lost for the run. Name a file.")
    open_source(source).close()
    return Path(source).stat().st_size


def _sample_beginning(number: int, source: str, sample_bytes: int, folder: Path) -> SampledInput | None:
    """The first ``sample_bytes`` of unpacked text; None where that is all."""
    stream = _CountedStream(source)
    start = time.perf_counter()
    text = bytearray()
    for chunk in stream.chunks():
        text += chunk
        if len(text) >= sample_bytes:
            break
    else:
        return None
    seconds = time.perf_counter() - start
    a_piece = len(text) // NUM_PIECES
    bounds = [(k * a_piece, (k + 1) * a_piece) for k in range(NUM_PIECES)]
    pieces = _write_pieces(number, [(first, bytes(text[first:stop])) for first, stop in bounds], folder)
    total = Path(source).stat().st_size / stream.num_raw_bytes * len(text)
    return _scaled(source, pieces, total, is_beginning=True, unpack_seconds=seconds)


def _sample_all_over(number: int, source: str, size: int, sample_bytes: int, folder: Path) -> SampledInput | None:
    """Pieces of equal size at equal distances, the first at the beginning and the last at the end."""
    a_piece = sample_bytes // NUM_PIECES
    texts = []
    with Path(source).open("rb") as stream:
        for k in range(NUM_PIECES):
            first = (size - a_piece) * k // (NUM_PIECES - 1)
            stream.seek(first)
            texts.append((first, stream.read(a_piece)))
    return _scaled(source, _write_pieces(number, texts, folder), size)


def _scaled(
    source: str, pieces: tuple[Piece, ...], total_bytes: float, *, is_beginning: bool = False, unpack_seconds: float = 0
) -> SampledInput | None:
    """The sample; None where the pieces hold no whole record, as of very long reads."""
    num_bytes = sum(piece.num_bytes for piece in pieces)
    if not num_bytes:
        return None
    return SampledInput(source, pieces, max(1.0, total_bytes / num_bytes), is_beginning, unpack_seconds)


def _write_pieces(number: int, texts: list[tuple[int, bytes]], folder: Path) -> tuple[Piece, ...]:
    """Write each (position, text) as a file that can be read by itself."""
    is_fasta = texts[0][1].lstrip().startswith(b">")
    pieces = []
    for index, (first, text) in enumerate(texts):
        body = _without_half_header(text, is_beginning=first == 0) if is_fasta else _whole_reads(text)
        if not body.strip():
            continue
        begins_inside = is_fasta and not body.lstrip().startswith(b">")
        path = folder / f"input-{number}-{index}"
        path.write_bytes((b">begins_inside\n" if begins_inside else b"") + body)
        pieces.append(Piece(path, number, len(body), begins_inside))
    return tuple(pieces)


def _without_half_header(text: bytes, *, is_beginning: bool) -> bytes:
    """From the first byte that is a base or begins a line; half a line of bases is as good as a whole one."""
    half_line, _, rest = text.partition(b"\n")
    is_bases = bool(half_line) and not half_line.translate(None, _NUCLEOTIDES)
    return text if is_bases or is_beginning else rest


def _whole_reads(text: bytes) -> bytes:
    """From the first record of four lines to the last that is whole."""
    lines = text.split(b"\n")
    first = next((k for k in range(min(len(lines) - 4, 8)) if _is_read(lines, k)), None)
    if first is None:
        return b""
    num_whole = (len(lines) - 1 - first) // 4
    return b"\n".join(lines[first : first + 4 * num_whole]) + b"\n"


def _is_read(lines: list[bytes], at: int) -> bool:
    """Whether a record begins here; an ``@`` alone may be a quality."""
    name, bases, plus, qualities = lines[at : at + 4]
    return name.startswith(b"@") and plus.startswith(b"+") and len(bases) == len(qualities)
