"""The first records of inputs, and how much of each input they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from virnucpro.errors import InputError
from virnucpro.sequence.alignments import alignment_format
from virnucpro.sequence.fasta import SequenceFile
from virnucpro.sequence.streams import STDIN, STDIN_NAME, InputStream

_BLOCK_BYTES = 1 << 13  # read at once: the estimate of the whole is off by no more


class InputHead:
    """Reads an input from its beginning, as FASTA.

    Args:
        source: a file.
        reference: of CRAM.

    Attributes:
        num_read: bytes of FASTA that were read so far.
        total: bytes of FASTA of the whole input; estimated from how much of the file was read until ``is_over``.

    Raises:
        InputError: it is stdin or a pipe.
    """

    def __init__(self, source: str, reference: str | None = None) -> None:
        if source == STDIN:
            raise InputError(STDIN_NAME, "what a plan reads of it is lost for the run. Write it to a file first.")
        path = Path(source)
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(source, "is a pipe: what a plan reads of it is lost for the run. Name a file.")
        self.source, self.num_read, self.total = source, 0, 0.0
        self._reference, self._rest, self._is_at_end = reference, b"", False
        self._texts = self._read()

    @property
    def is_over(self) -> bool:
        """Whether everything was read."""
        return self._is_at_end and not self._rest

    def read(self, num_bytes: int) -> bytes:
        """The next records, about ``num_bytes``; a longer one is cut and continued under a new header.

        Returns:
            FASTA, a line a sequence; empty at the end.

        Raises:
            InputError: the input cannot be read as nucleotide sequences.
        """
        text = self._rest
        while len(text) < num_bytes and (more := next(self._texts, b"")):
            text += more
        stop = len(text) if len(text) <= num_bytes else text.rfind(b"\n>", 0, num_bytes) + 1 or num_bytes
        text, self._rest = text[:stop], text[stop:]
        if self._rest and not self._rest.startswith(b">"):
            self._rest = b">continued\n" + self._rest.removeprefix(b"\n")
        self.num_read += len(text)
        return text

    def _read(self) -> Iterator[bytes]:
        """The text; what reads alignments runs ahead of it by an unknown amount, so these are counted first."""
        is_counted = bool(alignment_format(InputStream(self.source).peek()))
        if is_counted:
            self.total = float(sum(len(text) for text, _ in self._fasta()))
        num_bytes, num_read = Path(self.source).stat().st_size, 0
        for text, num_raw in self._fasta():
            num_read += len(text)
            if not is_counted:
                self.total = num_read * num_bytes / num_raw
            yield text
        self.total, self._is_at_end = float(num_read), True

    def _fasta(self) -> Iterator[tuple[bytes, int]]:
        """Records, and how many bytes of the file were read for them and those before."""
        file = SequenceFile(self.source, _BLOCK_BYTES, self._reference)
        for block in file.blocks():
            records = zip(block.names.to_bytes(), block.bases.to_bytes(), strict=True)
            yield b"".join(b">%b\n%b\n" % record for record in records), file.num_raw_bytes
