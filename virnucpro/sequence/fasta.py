"""Reading sequence files in blocks of records.

FASTA and FASTQ are cut by ``text``; reads of BAM, CRAM and SAM come from ``alignments``. Lines end at LF, CRLF or CR,
anywhere.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from virnucpro.errors import InputError
from virnucpro.sequence.alignments import alignment_format, read_blocks
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.sniff import is_sniffable, tell_format
from virnucpro.sequence.streams import InputStream, shown
from virnucpro.sequence.text import Fasta, Fastq, Records, with_line_feeds

BLOCK_BYTES = 1 << 20
_LONGEST_BLANK_START_BYTES = 1 << 24
_LONGEST_DESCRIPTION_BYTES = 1000


@dataclass(frozen=True)
class RecordBlock:
    """Some records, in input order.

    Attributes:
        names: header up to the first blank, byte for byte; ``unnamed_N`` for record N of a file if there is none.
        bases: as read, without white space.
        descriptions: the rest of the header; of a longer one its first thousand bytes.
    """

    names: Ragged
    bases: Ragged
    descriptions: Ragged

    def __len__(self) -> int:
        return len(self.names)


class SequenceFile:
    """One input of FASTA or FASTQ records, whatever it is packed with, or of BAM, CRAM or SAM reads.

    Args:
        source: a path, or ``-`` for standard input.
        block_bytes: about how many bases a block holds.
        reference: FASTA file that the reads of a CRAM were aligned to.

    Attributes:
        format: ``fasta``, ``fastq``, ``bam``, ``cram``, ``sam``, or ``empty`` for a text without records.
        num_unnamed: records without a name so far.
    """

    def __init__(self, source: str, block_bytes: int = BLOCK_BYTES, reference: str | None = None) -> None:
        self.source = source
        self.format = "empty"
        self.num_unnamed = 0
        self._longest_text: int | None = None
        self._reference = reference
        self._block_bytes = block_bytes
        self._stream = InputStream(source, min(block_bytes, 1 << 18))

    @property
    def compression(self) -> str:
        """``none``, ``gzip``, ``bzip2``, ``xz`` or ``zstd``; known from the first block on."""
        return self._stream.compression

    @property
    def sha256(self) -> str:
        """Hex digest of the raw bytes, known once :meth:`blocks` is exhausted."""
        return self._stream.sha256

    @property
    def num_raw_bytes(self) -> int:
        """Bytes of the file that were read so far."""
        return self._stream.num_raw_bytes

    def blocks(self) -> Generator[RecordBlock]:
        """The records in blocks of whole records; only a longer record makes a longer block.

        Raises:
            InputError: this is not, or not only, nucleotide sequences in a format known here.
            UsageError: reads aligned or unaligned, and no pysam to read them.
        """
        num_records = 0
        is_first = True
        for headers, bases in self._records():
            parts = [header.split(None, 1) for header in headers]
            names = [part[0] if part else b"" for part in parts]
            descriptions = [part[1][:_LONGEST_DESCRIPTION_BYTES].rstrip() if part[1:] else b"" for part in parts]
            for i in [i for i, name in enumerate(names) if not name]:
                names[i] = b"unnamed_%d" % (num_records + i + 1)
                self.num_unnamed += 1
            num_records += len(names)
            block = RecordBlock(*map(Ragged.from_bytes, (names, bases, descriptions)))
            if is_first:
                self._refuse_protein(block)
                is_first = False
            yield block

    def check_start(self) -> None:
        """Read the first records, of a text no more than about a million bytes.

        Raises:
            InputError, UsageError: as :meth:`blocks`.
        """
        self._longest_text = BLOCK_BYTES
        blocks = self.blocks()
        next(blocks, None)
        blocks.close()

    def _records(self) -> Iterator[Records]:
        """Headers and bases, about a block of them at a time."""
        file_format = alignment_format(self._stream.peek())
        if file_format:
            self.format = file_format
            yield from read_blocks(self._stream, self._block_bytes, self._reference)
            return
        chunks = self._stream.chunks()
        head = b""
        while not is_sniffable(head) and (chunk := next(chunks, b"")):
            head += chunk
            if len(head) > _LONGEST_BLANK_START_BYTES and head.isspace():
                raise self._refuse(f"begins with more than {_LONGEST_BLANK_START_BYTES:,} bytes of white space.")
        if not head or head.isspace():
            return
        self.format, head = tell_format(shown(self.source), head)
        parse = Fasta(self._refuse) if self.format == "fasta" else Fastq(self._refuse)
        if self._longest_text is not None and self.format == "fasta":  # FASTA may end anywhere
            chunks = islice(chunks, self._longest_text >> 18)
        text = with_line_feeds(chain([head], chunks))
        yield from _in_blocks(parse.records(text), self._block_bytes)

    def _refuse(self, problem: str, line: int | None = None) -> InputError:
        return InputError(shown(self.source), problem, line)

    def _refuse_protein(self, block: RecordBlock) -> None:
        """Proteins written with letters that are all nucleotide codes too are told by how common A C G T are."""
        upper = block.bases.values & 0xDF
        num_masked, *num_common = (np.count_nonzero(upper == letter) for letter in b"XACGTUN")
        num_letters = len(upper) - num_masked  # X may mask a whole region
        if num_letters >= 100 and 2 * sum(num_common) < num_letters:
            raise self._refuse(
                "fewer than half of the letters are A C G T U or N: these look like proteins. "
                "Give nucleotide sequences (genomes, contigs or reads)."
            )


def _in_blocks(records: Iterator[Records], block_bytes: int) -> Iterator[Records]:
    headers: list[bytes] = []
    bases: list[bytes] = []
    num_bytes = 0
    for some_headers, some_bases in records:
        headers += some_headers
        bases += some_bases
        num_bytes += sum(map(len, some_headers)) + sum(map(len, some_bases))
        if num_bytes >= block_bytes:
            yield headers, bases
            headers, bases, num_bytes = [], [], 0
    if headers:
        yield headers, bases
