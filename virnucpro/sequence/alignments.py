"""Reads of BAM, CRAM and SAM files, through pysam.

A file holds a read once as its primary alignment, or unaligned; secondary and supplementary alignments
show the same read again and are passed over. Nothing is ever fetched: the reference of a CRAM is in the
file, on this machine, or the file is refused.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from virnucpro.errors import InputError, UsageError
from virnucpro.sequence.streams import InputStream, compression_of, open_source, shown

if TYPE_CHECKING:
    import pysam

NAME_AND_BASES = 0x1 | 0x2 | 0x200
"""Columns of a CRAM to decode (htslib's SAM_QNAME, SAM_FLAG, SAM_SEQ): the fewer, the faster."""
ALL_COLUMNS = 0xFFF

_PAIRED, _REVERSE, _FIRST, _LAST = 0x1, 0x10, 0x40, 0x80
_SECONDARY, _SUPPLEMENTARY = 0x100, 0x800
_MATE_ENDINGS = {_PAIRED | _FIRST: b"/1", _PAIRED | _LAST: b"/2"}
_COMPLEMENT = bytes.maketrans(b"ACGTMRWSYKVHDBN", b"TGCAKYWSRMBDHVN")

_SAM_LINE = re.compile(
    rb"@(HD|SQ|RG|PG)\t[A-Z][A-Za-z]:|@CO\t"
    rb"|[!-=?A-~][!-?A-~]*\t\d+\t[!-~]+\t\d+\t\d+\t(\*|(\d+[MIDNSHP=X])+)\t"
)
_HEAD_BYTES = 1 << 12
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_CRAM_ENDS = (
    bytes.fromhex("0f000000ffffffff0fe0454f4600000000010005bdd94f0001000606010001000100ee63014b"),  # version 3
    bytes.fromhex("0b000000ffffffff0fe0454f460000000001000001000606010001000100"),  # version 2.1
)
_LONGEST_END_BYTES = 38
_REMOTE = re.compile(r"URL=|https?:|ftp:", re.IGNORECASE)
_NOWHERE = os.devnull


def alignment_format(head: bytes) -> str:
    """``bam``, ``cram`` or ``sam``, from the first raw bytes of a file; empty for anything else."""
    compression = compression_of(head)
    if compression == "gzip":
        unpacked = b""
        with suppress(zlib.error):
            unpacked = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS).decompress(head, _HEAD_BYTES)
        head = unpacked
    if head.startswith(b"BAM\x01"):
        return "bam"
    if head.startswith(b"CRAM") and compression == "none":
        return "cram"
    return "sam" if compression in ("none", "gzip") and _SAM_LINE.match(head) else ""


def primary_alignments(
    stream: InputStream, reference: str | None = None, columns: int = ALL_COLUMNS
) -> Iterator[pysam.AlignedSegment]:
    """Every read of a BAM, CRAM or SAM once, in file order, also those that failed quality control.

    Args:
        stream: the file, nothing but peeked into; it is read to its end, so that its digest is known.
        reference: FASTA file that the reads of a CRAM were aligned to.
        columns: which columns of a CRAM to decode.

    Raises:
        UsageError: pysam is not installed.
        InputError: the file is damaged or cut off, or a CRAM's reference is not at hand.
    """
    file_format = alignment_format(stream.peek())
    if reference is not None:
        _index_reference(reference)
    raw = _Watched(stream.raw_chunks())
    problem: Exception | None = None
    try:
        yield from _decoded(raw, reference, columns)
    except (OSError, ValueError) as error:
        problem = error
    for _ in raw:  # a CRAM may go on after its end marker
        pass
    if file_format == "bam" and raw.num_files > 1:
        raise InputError(
            shown(stream.source),
            "holds several BAM files, one behind the other. Join them with `samtools cat`, or give them one by one.",
        ) from problem
    if not raw.has_end(file_format):
        raise InputError(
            shown(stream.source),
            f"the {file_format.upper()} file is cut off: its end marker is missing. Copy or download it again.",
        ) from problem
    if problem is not None:
        raise InputError(shown(stream.source), _advice(file_format, reference)) from problem


def name_of(read: pysam.AlignedSegment) -> bytes:
    """The read's name; mates are told apart by ``/1`` and ``/2``, which is added where it is missing."""
    name = (read.query_name or "*").encode()
    ending = _MATE_ENDINGS.get(read.flag & (_PAIRED | _FIRST | _LAST))
    if ending is None or name.endswith((b"/1", b"/2")):
        return name
    return name + ending


def bases_of(read: pysam.AlignedSegment) -> bytes:
    """The bases as they were sequenced: those of a read aligned to the reverse strand are turned back."""
    bases = (read.query_sequence or "").encode()
    return bases.translate(_COMPLEMENT)[::-1] if read.flag & _REVERSE else bases


def read_blocks(
    stream: InputStream, block_bytes: int, reference: str | None = None
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Names and bases of reads, about ``block_bytes`` of them at a time.

    Raises:
        UsageError, InputError: as :func:`primary_alignments`, or a read that cannot be taken as it is.
    """
    names: list[bytes] = []
    bases: list[bytes] = []
    num_bytes = 0
    for read in primary_alignments(stream, reference, NAME_AND_BASES):
        try:
            name, letters = name_of(read), bases_of(read)
        except UnicodeDecodeError as error:
            raise InputError(shown(stream.source), "a read's name is not ASCII. Rename the reads.") from error
        if b"=" in letters:
            raise InputError(
                shown(stream.source),
                f"read {name.decode()} has '=' for bases that are those of the reference. "
                "Align the reads again, or give them as FASTQ.",
            )
        names.append(name)
        bases.append(letters)
        num_bytes += len(name) + len(letters)
        if num_bytes >= block_bytes:
            yield names, bases
            names, bases, num_bytes = [], [], 0
    if names:
        yield names, bases


class _Watched:
    """Chunks of a file as they pass, with its first and last bytes.

    Attributes:
        num_files: BAM files seen, one after the other.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._head = b""
        self._tail = b""
        self.num_files = 1

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self._head = self._head or chunk[:18]
        self._count_files(self._tail + chunk)
        self._tail = (self._tail + chunk[-_LONGEST_END_BYTES:])[-_LONGEST_END_BYTES:]
        return chunk

    def _count_files(self, seen: bytes) -> None:
        """Look for end markers with another file behind them; of a marker cut in two, the next chunk has the rest."""
        at = seen.find(BGZF_END)
        while at >= 0:
            behind = seen[at + len(BGZF_END) :][:_HEAD_BYTES]
            with suppress(zlib.error):
                unpacked = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS).decompress(behind, 4)
                self.num_files += unpacked == b"BAM\x01"
            at = seen.find(BGZF_END, at + 1)

    def has_end(self, file_format: str) -> bool:
        """Whether the end marker is there, where such a file has one."""
        if file_format == "cram":
            return self._tail.endswith(_CRAM_ENDS)
        is_bgzf = self._head.startswith(b"\x1f\x8b\x08\x04") and self._head[12:14] == b"BC"
        return not is_bgzf or self._tail.endswith(BGZF_END)


def _decoded(raw: Iterator[bytes], reference: str | None, columns: int) -> Iterator[pysam.AlignedSegment]:
    """Primary alignments of the file whose bytes are ``raw``, which is read in a thread of its own.

    A socket, not a pipe: shutting it down wakes the thread even where htslib leaks its descriptor.
    """
    pysam = _pysam()
    ours, theirs = socket.socketpair()
    with ThreadPoolExecutor(1) as feeder, ours:
        feeding = feeder.submit(_feed, raw, ours)
        try:
            with theirs, _silent_drop():
                file = pysam.AlignmentFile(
                    theirs.fileno(),  # pysam duplicates it
                    "r",
                    check_sq=False,
                    reference_filename=reference,
                    format_options=[f"required_fields={columns:#x}".encode()],
                )
            with file:
                for read in file.fetch(until_eof=True):
                    if not read.flag & (_SECONDARY | _SUPPLEMENTARY):
                        yield read
        finally:
            with suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            feeding.result()  # a source that cannot be read is the cause of what pysam says


def _feed(chunks: Iterator[bytes], connection: socket.socket) -> None:
    """Send chunks until they end or nobody listens."""
    try:
        for chunk in chunks:
            connection.sendall(chunk)
    except ConnectionError:
        return
    finally:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)


@contextmanager
def _silent_drop() -> Iterator[None]:
    """A file that pysam fails to open fails again when it is dropped, which would be printed as a traceback."""
    hooks = sys.excepthook, sys.unraisablehook  # Cython calls both
    sys.excepthook, sys.unraisablehook = (lambda *_: None), (lambda _: None)
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks


def _pysam() -> ModuleType:
    """The library, set up to be silent and to fetch nothing."""
    places = os.environ.get("REF_PATH", "")
    if not places or _REMOTE.search(places):
        os.environ["REF_PATH"] = _NOWHERE  # else htslib may look a CRAM's reference up on the network
    try:
        import pysam  # noqa: PLC0415 - only BAM, CRAM and SAM need it
    except ImportError as error:
        raise UsageError(
            "BAM, CRAM and SAM files are read by pysam, which is not installed. Install it with: pip install pysam"
        ) from error
    pysam.set_verbosity(0)
    return pysam


def _index_reference(reference: str) -> None:
    """See to it that the FASTA can be read by place; its ``.fai`` is written beside it where there is none.

    Raises:
        InputError: there is no such file, or it cannot be indexed.
    """
    open_source(reference).close()
    if Path(f"{reference}.fai").exists():
        return
    pysam = _pysam()
    try:
        pysam.faidx(reference)
    except pysam.SamtoolsError as error:
        raise InputError(
            reference,
            "has no index and cannot be given one here. Copy it to where you may write, as plain or bgzip FASTA, "
            "and run `samtools faidx` on it.",
        ) from error


def _advice(file_format: str, reference: str | None) -> str:
    if file_format == "cram" and reference is None:
        return (
            "the CRAM file needs the FASTA it was aligned to: name it with --reference FASTA "
            "(or set REF_PATH to a folder; nothing is downloaded). If it has none, the file is damaged."
        )
    if file_format == "cram":
        return f"the CRAM file is damaged, or was not aligned to {reference}. Give the right --reference."
    if file_format == "sam":
        return (
            "is damaged SAM text, or names reference sequences that its header lacks. "
            "Check it with `samtools view -h FILE > /dev/null`."
        )
    return "the BAM file is damaged. Check it with `samtools quickcheck`, then copy or download it again."
