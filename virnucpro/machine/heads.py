"""The first records of inputs, and how much of each input they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from virnucpro.errors import InputError
from virnucpro.sequence.alignments import alignment_format
from virnucpro.sequence.fasta import SequenceFile
from virnucpro.sequence.streams import STDIN, STDIN_NAME, InputStream

_READ_BYTES = 1 << 13  # at once: the estimate of the whole is off by no more


@dataclass
class InputHead:
    """Reads an input from its beginning, whole records at a time, as text that ``predict`` reads.

    Raises:
        InputError: it is stdin or a pipe, or cannot be opened or unpacked.
    """

    source: str
    reference: str | None = None  # of CRAM
    num_read: int = 0  # bytes of text that were read so far
    total: float = 0.0  # bytes of text of the whole input; estimated from the compressed bytes until ``is_over``
    _is_at_end: bool = False
    _texts: Iterator[bytes] = field(init=False)
    _rest: bytes = b""

    def __post_init__(self) -> None:
        """Look at the first bytes."""
        if self.source == STDIN:
            raise InputError(STDIN_NAME, "what a plan reads of it is lost for the run. Write it to a file first.")
        path = Path(self.source)
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(self.source, "is a pipe: what a plan reads of it is lost for the run. Name a file.")
        stream = InputStream(self.source, _READ_BYTES)
        self._texts = self._reads() if alignment_format(stream.peek()) else self._text(stream)

    def read(self, num_bytes: int) -> bytes:
        """The next records, about ``num_bytes``. A FASTA record that is longer is cut and continued under a new header.

        Returns:
            Text; empty at the end. Text that is not FASTA or FASTQ is given as it is: ``predict`` says what is wrong.
        """
        text = self._rest
        while len(text) < num_bytes and (more := next(self._texts, b"")):
            text += more
        stop = _border(text[:num_bytes]) if len(text) > num_bytes else len(text)
        while not stop and (more := next(self._texts, b"")):  # a read of FASTQ that is longer than that
            text += more
            stop = _border(text)
        stop = stop or len(text)
        self._rest = text[stop:]
        if stop and self._rest and text.lstrip().startswith(b">") and not self._rest.startswith(b">"):
            self._rest = b">continued\n" + self._rest
        self.num_read += stop
        return text[:stop]

    @property
    def is_over(self) -> bool:
        """Whether everything was read."""
        return self._is_at_end and not self._rest

    def _text(self, stream: InputStream) -> Iterator[bytes]:
        """Unpacked bytes; the estimate of the whole follows the position in the file."""
        num_bytes, num_unpacked = Path(self.source).stat().st_size, 0
        for chunk in stream.chunks():
            num_unpacked += len(chunk)
            self.total = num_unpacked * num_bytes / stream.num_raw_bytes
            yield chunk
        self.total, self._is_at_end = float(num_unpacked), True

    def _reads(self) -> Iterator[bytes]:
        """Reads of a BAM, CRAM or SAM file as FASTA; all are counted first."""
        self.total = float(sum(len(text) for text in self._fasta()))
        yield from self._fasta()
        self._is_at_end = True

    def _fasta(self) -> Iterator[bytes]:
        for block in SequenceFile(self.source, reference=self.reference).blocks():
            records = zip(block.names.to_bytes(), block.bases.to_bytes(), strict=True)
            yield b"".join(b">%b\n%b\n" % record for record in records)


def _border(text: bytes) -> int:
    """Where the last whole record ends; in FASTA without one, the last whole line; in FASTQ without one, 0."""
    if text.lstrip().startswith(b"@"):
        lines = text.split(b"\n")
        return sum(len(line) + 1 for line in lines[: (len(lines) - 1) // 4 * 4])
    border = text.rfind(b"\n>") + 1
    return border or text.rfind(b"\n") + 1 or len(text)
