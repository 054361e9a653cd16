"""What a text is, told by its first bytes; what this program does not read is called by its name."""

from __future__ import annotations

import re

from virnucpro.errors import InputError
from virnucpro.sequence.streams import compression_of

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HEAD_BYTES = 4096

_FOREIGN: list[tuple[bytes, str]] = [
    (rb"BAM\x01|CRAM", "is a BAM or CRAM file that was packed once more. Unpack it first."),
    (
        rb"@(HD|SQ|RG|PG)\t[A-Z][A-Za-z]:|@CO\t",
        "is SAM text packed with a program other than gzip. Unpack it first.",
    ),
    (rb"PK(\x03\x04|\x05\x06|\x07\x08)", "is a zip archive. Unpack it first (`unzip`)."),
    (rb"Rar!\x1a\x07", "is a rar archive. Unpack it first (`unrar`)."),
    (rb"7z\xbc\xaf\x27\x1c", "is a 7z archive. Unpack it first (`7z x`)."),
    (rb"[\x5d\x6d]\x00\x00.{2}", "is packed with lzma, the format before xz. Unpack it first (`unlzma`)."),
    (rb"LZIP", "is packed with lzip. Unpack it first (`lzip -d`)."),
    (rb"\x04\x22\x4d\x18", "is packed with lz4. Unpack it first (`unlz4`)."),
    (rb"\x1f\x9d", "is packed with compress (.Z). Unpack it first (`gunzip` can)."),
    (rb"\x89LZO", "is packed with lzop. Unpack it first (`lzop -d`)."),
    (rb".{257}ustar", "is a tar archive. Unpack it and give the files in it (`tar -xf`)."),
    (rb"NCBI\.sra", "is an SRA archive. Convert it with `fasterq-dump`."),
    (rb"\x89HDF\r\n|\x8bPOD\r\n", "is a file of raw signals or arrays. Basecall or convert it to FASTQ first."),
    (rb"LOCUS {3}|ID {3}", "is a GenBank or EMBL file. Convert it to FASTA, for example with `seqret`."),
    (rb"##gff-version|##fileformat=VCF", "is a table of annotations or variants. Give the sequences themselves."),
    (rb"%PDF|(?i:\s*<(!doctype|html|\?xml))", "is a web page or a document. Check what was downloaded."),
    (rb"version https://git-lfs", "is a pointer of Git LFS to a file that was not fetched. Run `git lfs pull`."),
    *(
        (start, f"is {name} text. Convert it: iconv -f {name} -t UTF-8 old.fasta > new.fasta")
        for start, name in (
            (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "UTF-32"),
            (rb"\xff\xfe|\xfe\xff", "UTF-16"),
            (rb"[>@]\x00\x00\x00", "UTF-32LE"),
            (rb"\x00\x00\x00[>@]", "UTF-32BE"),
            (rb"[>@]\x00", "UTF-16LE"),
            (rb"\x00[>@]", "UTF-16BE"),
        )
    ),
]


def is_sniffable(head: bytes) -> bool:
    """Whether there is enough text to tell the format by: some thousand bytes, not all white space.

    Endless white space is told from a text, too: the reader refuses it by its length.
    """
    return len(head) >= _HEAD_BYTES and not head.isspace()


def tell_format(name: str, head: bytes) -> tuple[str, bytes]:
    """``fasta`` or ``fastq``, from the first byte that is not white space; and the text from there, its lines kept.

    Raises:
        InputError: it is something else.
    """
    for pattern, problem in _FOREIGN:
        if re.match(pattern, head, re.DOTALL):
            raise InputError(name, problem)
    if compression_of(head) != "none":
        raise InputError(name, "is packed twice. Unpack it once.")
    head = head.removeprefix(_BYTE_ORDER_MARK)
    text = head.lstrip()
    line = len(re.findall(rb"\r\n|\r|\n", head[: len(head) - len(text)])) + 1
    if text.startswith((b">", b"@")):
        return "fasta" if text.startswith(b">") else "fastq", b"\n" * (line - 1) + text
    if re.search(rb"[^\t\n\v\f\r\x20-\x7e\x80-\xff]", head[:_HEAD_BYTES]):
        raise InputError(
            name, "is not a sequence file of a known format, and not text at all. Give FASTA, FASTQ, BAM, CRAM or SAM."
        )
    if re.search(rb"[\r\n]>", head):
        raise InputError(name, "there is text before the first '>'. Remove it.", line)
    raise InputError(name, "is neither FASTA nor FASTQ: the first line begins with neither '>' nor '@'.", line)
