"""Records come out as they were written; what is not FASTA or FASTQ of nucleotides is refused with advice."""

import bz2
import gzip
import hashlib
import lzma
import os
import random
import subprocess
import sys
import tracemalloc
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.errors import InputError
from virnucpro.sequence import text
from virnucpro.sequence.fasta import SequenceFile
from virnucpro.sequence.streams import digest_of

PACK = {
    "none": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}
packings = pytest.mark.parametrize("packing", PACK)


def read(path, block_bytes=1 << 20):
    file = SequenceFile(str(path), block_bytes)
    records = []
    for block in file.blocks():
        records += zip(block.names.to_bytes(), block.bases.to_bytes(), strict=True)
    return records, file


@pytest.fixture
def written(tmp_path):
    """Write bytes to a file; its name tells nothing."""

    def write(content):
        path = tmp_path / "input.data"
        path.write_bytes(content)
        return path

    return write


def refusal(path, block_bytes=1 << 20):
    with pytest.raises(InputError) as caught:
        read(path, block_bytes)
    assert caught.value.source == str(path)
    return caught.value


names = st.lists(st.integers(1, 255).filter(lambda byte: byte not in b"\n\r\t\v\f "), min_size=1, max_size=8).map(bytes)
rare_bases = st.text("ACGTURYSWKMBDHVNXacgtn", max_size=40)
common_bases = st.text("ACGTNacgtn", min_size=30, max_size=100)
bases = (rare_bases | st.tuples(common_bases, rare_bases, common_bases).map("".join)).map(str.encode)
records = st.lists(st.tuples(names, bases), max_size=8)


def wrapped(sequence, width, line_end):
    return b"".join(sequence[i : i + width] + line_end for i in range(0, len(sequence), width))


@settings(deadline=None)
@given(
    records.filter(len),
    st.integers(1, 150),
    st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n"]),
    st.sampled_from([b"", b" a description", b"\tand > another"]),
    st.booleans(),
    st.integers(1, 60) | st.just(1 << 20),
)
def test_fasta_comes_back(tmp_path_factory, items, width, line_end, description, ends_with_line_end, block_bytes):
    """Names and bases come back byte for byte, however lines are wrapped and ended and whatever is read at once."""
    header_end = line_end if line_end != b" \n" else b"\n"
    content = b"".join(
        b">" + name + description + header_end + wrapped(sequence, width, line_end) for name, sequence in items
    )
    path = tmp_path_factory.getbasetemp() / "comes_back.fasta"
    path.write_bytes(content if ends_with_line_end else content.rstrip(b"\r\n ") + (b"" if items[-1][1] else b"\n"))
    assert read(path, block_bytes)[0] == items


@settings(deadline=None)
@given(
    records,
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.integers(1, 60) | st.just(1 << 20),
)
def test_fastq_comes_back(tmp_path_factory, items, line_end, ends_with_line_end, block_bytes):
    """Four-line records come back, also when qualities begin with '@' and the last line end is missing."""
    content = b"".join(
        b"@" + name + b" x" + line_end + sequence + line_end + b"+" + line_end + b"@" * len(sequence) + line_end
        for name, sequence in items
    )
    if not ends_with_line_end and items and items[-1][1]:
        content = content.rstrip(b"\r\n")
    path = tmp_path_factory.getbasetemp() / "comes_back.fastq"
    path.write_bytes(content)
    found, file = read(path, block_bytes)
    assert found == items
    assert file.format == ("fastq" if items else "empty")


def test_odd_fasta():
    """A lone '>' has no bases and gets a name; blanks inside lines and blank lines are nothing."""
    program = (
        "from virnucpro.sequence.fasta import SequenceFile\n"
        "for block in SequenceFile('-').blocks(): print(block.names.to_bytes(), block.bases.to_bytes())"
    )
    content = b"\n\n  \n>\n>a|b;c=1\tdescription\n\nAC GT\n\n nn\t\r\n>b"
    done = subprocess.run([sys.executable, "-c", program], input=content, capture_output=True, check=True)
    assert done.stdout == b"[b'unnamed_1', b'a|b;c=1', b'b'] [b'', b'ACGTnn', b'']\n"


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 5, 1 << 20])
@pytest.mark.parametrize(
    "content",
    [
        b">a x\rACGT\r>b\rGGTT\rCC\r",
        b">a x\rACGT\r>b\rGGTT\rCC\n",
        b">a x\rACGT\r>b\r\nGGTT\nCC",
        b">a x\nACGT\n\r\n>b\r\rGGTT\rCC\r\n",
        b"\r\n  >a x\r\nAC\rGT\r\n>b\nGGTTCC",
        b"@a x\rACGT\r+\r@III\r@b\r\nGGTT\nCC\r\n+b\r\n@@II\rII",
    ],
)
def test_lines_end_in_any_way_anywhere(written, content, block_bytes):
    """LF, CRLF and CR, mixed as programs and people mix them: no record is lost."""
    assert read(written(content), block_bytes)[0] == [(b"a", b"ACGT"), (b"b", b"GGTTCC")]


@pytest.mark.parametrize("start", [b">", b"@"])
def test_descriptions_come_with_their_records(written, start):
    """What follows the name, of which more than a thousand bytes are not kept."""
    rest = b"\nAC\n" if start == b">" else b"\nAC\n+\nII\n"
    headers = [b"a", b"b one  two ", b" c\tthree", b"d " + b"x" * 2000, b""]
    path = written(b"".join(start + header + rest for header in headers))
    (block,) = SequenceFile(str(path)).blocks()
    assert block.names.to_bytes() == [b"a", b"b", b"c", b"d", b"unnamed_5"]
    assert block.descriptions.to_bytes() == [b"", b"one  two", b"three", b"x" * 1000, b""]


@pytest.mark.parametrize("start", [b">", b"@"])
def test_records_without_a_name_are_numbered(written, start):
    """A blank before the name is no name, and what follows it is the name."""
    rest = b"\nAC\n" if start == b">" else b"\nAC\n+\nII\n"
    headers = [b"", b" a one", b"  ", b"\tb\ttwo", b"c"]
    found, file = read(written(b"".join(start + header + rest for header in headers)))
    assert [name for name, _ in found] == [b"unnamed_1", b"a", b"unnamed_3", b"b", b"c"]
    assert file.num_unnamed == 2


@pytest.mark.parametrize("width", [1, 3, 10])
def test_wrapped_fastq_is_read(written, width):
    """Qualities may begin with '@' and '+'."""
    qualities = [b"@+@+I@+@+@", b"++++++++++"]
    content = b"".join(
        b"@r%d\n" % i + wrapped(b"ACGTTGCAAC", width, b"\n") + b"+\n" + wrapped(quality, width, b"\n")
        for i, quality in enumerate(qualities)
    )
    assert read(written(content))[0] == [(b"r0", b"ACGTTGCAAC"), (b"r1", b"ACGTTGCAAC")]


ENDLESS = {
    "name": (b">" + b"n" * 100_000, "65,536 bytes"),
    "FASTQ name": (b"@" + b"n" * 100_000 + b"\nA\n+\nI\n", "65,536 bytes"),
    "FASTQ name without end": (b"@" + b"n" * 70_000_000, "65,536 bytes"),
    "FASTQ description": (b"@a " + b"d" * 70_000_000, "description"),
    "blank lines": (b">a\n" + b"\n" * 70_000_000, "white space"),
    "leading blanks": (b"\n" * 70_000_000, "white space"),
    "blank lines of FASTQ": (b"@a\nA\n+\nI\n" + b"\n" * 70_000_000, "blank lines"),
    "description": (b">a " + b"d" * 70_000_000, "description"),
    "bases": (b">a\n" + b"A" * 70_000_000, "do not fit"),
    "FASTQ bases": (b"@a\n" + b"A" * 70_000_000, "do not fit"),
}


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
@pytest.mark.parametrize("what", ENDLESS)
def test_what_has_no_end_is_refused_in_little_memory(written, monkeypatch, packing, what):
    """A small packed file does not fill the memory, whatever it holds; the limits are smaller here."""
    monkeypatch.setattr(text, "LONGEST_EMPTY_BYTES", 1 << 25)
    monkeypatch.setattr(text, "free_memory_bytes", lambda: 8 << 25)
    content, problem = ENDLESS[what]
    path = written(PACK[packing](content))
    tracemalloc.start()
    try:
        assert problem in refusal(path).problem
        assert tracemalloc.get_traced_memory()[1] < 160 << 20
    finally:
        tracemalloc.stop()


def test_a_long_description_and_blank_lines_are_nothing(written):
    """They take no part of what is kept."""
    content = b">a " + b"d" * 3_000_000 + b"\nAC\n" + b"\n" * 3_000_000 + b"GT\n>b\n"
    assert read(written(gzip.compress(content)))[0] == [(b"a", b"ACGT"), (b"b", b"")]
    content = b"@a " + b"d" * 5_000_000 + b"\nAC\n+\nII\n@b\nG\n+\nI\n"
    assert read(written(gzip.compress(content)))[0] == [(b"a", b"AC"), (b"b", b"G")]


def test_byte_order_mark_is_skipped(written):
    """A UTF-8 byte order mark before the first '>' is no text."""
    assert read(written(b"\xef\xbb\xbf>a\nACGT\n"))[0] == [(b"a", b"ACGT")]


@packings
def test_packing_is_told_by_content(written, packing):
    """Packed input reads as plain, in one member or many, and the digest is that of the raw bytes."""
    half_1, half_2 = b">a\nACGTACGT\nAC", b"GT\n>b\nTTT\n" * 1000
    raw = PACK[packing](half_1) + PACK[packing](half_2)
    path = written(raw)
    found, file = read(path)
    assert found == [(b"a", b"ACGTACGTACGT"), *[(b"b", b"TTTGT")] * 999, (b"b", b"TTT")]
    assert file.compression == packing
    assert file.sha256 == hashlib.sha256(raw).hexdigest() == digest_of(str(path))


@packings
@pytest.mark.parametrize("content", [b"", b"\n \n\r\n", b"\n" * 10_000])
def test_nothing_is_no_record(written, packing, content):
    """An empty input, or one of white space, has no records and is no error; its digest is known."""
    raw = PACK[packing](content)
    found, file = read(written(raw))
    assert found == []
    assert (file.format, file.compression) == ("empty", packing)
    assert file.sha256 == hashlib.sha256(raw).hexdigest()


def test_gzip_padding_is_nothing(written):
    """Zero bytes after a gzip member are padding."""
    assert read(written(gzip.compress(b">a\nACGT\n") + b"\0" * 512))[0] == [(b"a", b"ACGT")]


@pytest.mark.parametrize("more", [">b\nACGT\n".encode("utf-16"), "\ufeff>b\nACGT\n".encode(), b"AC\x00"])
def test_another_encoding_further_down_is_called_that(written, more):
    """As where files were joined."""
    assert "another encoding" in str(refusal(written(b">a\nACGT\n" + more)))


@pytest.mark.parametrize("more", [b"garbage", b"BZh9", b"\n", b"\x1fgarbage", b"\x28\xb5"])
def test_bytes_after_the_end_of_a_gzip_member_are_named_as_that(written, more):
    """Not as damage of what was packed, whatever they begin with."""
    path = written(gzip.compress(b">a\nACGT\n") + more)
    with pytest.raises(InputError, match="other bytes follow the end of the gzip data"):
        list(SequenceFile(str(path)).blocks())


def test_zstd_skippable_frame_first(written):
    """The parallel zstd program puts a skippable frame first."""
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    assert read(written(skippable + PACK["zstd"](b">a\nACGT\n")))[0] == [(b"a", b"ACGT")]


@pytest.mark.parametrize("packing", [name for name in PACK if name != "none"])
def test_cut_off_packing_is_refused(written, packing):
    """A packed file cut anywhere after its magic is refused; no record is silently lost."""
    generator = random.Random(1)
    content = b">a\n" + bytes(generator.choices(b"ACGT", k=3000)) + b"\n"
    raw = PACK[packing](content)
    for stop in (6, 20, len(raw) // 2, len(raw) - 5, len(raw) - 1):
        assert "cut off before its end" in refusal(written(raw[:stop])).problem


@pytest.mark.parametrize("packing", [name for name in PACK if name != "none"])
def test_damaged_packing_is_refused(written, packing):
    """Packed data that does not unpack is refused, and so is rubbish after it."""
    raw = bytearray(PACK[packing](b">a\n" + b"ACGTTGCA" * 4000 + bytes(random.Random(2).choices(b"ACGT", k=999))))
    for rest in (b"rubbish, and more of it", b"\n", b"\0\0x"):
        assert "other bytes follow the end" in refusal(written(bytes(raw) + rest)).problem
    raw[len(raw) // 2] ^= 0xFF
    with pytest.raises(InputError, match=r"damaged|cut off"):
        read(written(bytes(raw)))


def test_missing_file(tmp_path):
    """A missing file is named as such."""
    assert "no such file" in refusal(tmp_path / "missing.fasta").problem


def test_directory(tmp_path):
    """A directory is named as such."""
    assert "directory" in refusal(tmp_path).problem


def test_unreadable_file(written):
    """A file one may not read is refused with what to do."""
    path = written(b">a\nACGT\n")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything, nobody may not
    try:
        assert "chmod" in refusal(path).problem
    finally:
        os.seteuid(user)


@packings
@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"PK\x03\x04rest", "zip"),
        (b"LOCUS       X 9 bp\n", "GenBank"),
        (gzip.compress(b">a\nACGT\n", mtime=0), "packed twice"),
        (bytes(range(256)) * 20, "not text at all"),
        (lzma.compress(b">a\nACGT\n", format=lzma.FORMAT_ALONE), "lzma"),
        (b"Rar!\x1a\x07\x01\x00", "rar"),
        (b"7z\xbc\xaf\x27\x1c\x00", "7z"),
        (b"a.fa" + bytes(253) + b"ustar  \0", "tar"),
        (">a\nACGT\n".encode("utf-16-le"), "UTF-16LE"),
        (">a\nACGT\n".encode("utf-16-be"), "UTF-16BE"),
        (">a\nACGT\n".encode("utf-32"), "UTF-32 "),
        (">a\nACGT\n".encode("utf-32-be"), "UTF-32BE"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"\xff\xfe>\0a\0\n\0", "UTF-16"),
        (b"ACGTACGT\n", "neither '>' nor '@'"),
        (b"name,sequence\nx,ACGT\n", "neither '>' nor '@'"),
    ],
)
def test_other_formats_are_refused(written, packing, content, advice):
    """What is neither FASTA nor FASTQ is refused, with the program that converts it where there is one."""
    if packing == "none" and content.startswith(b"\x1f\x8b"):
        pytest.skip("packed once")
    assert advice in refusal(written(PACK[packing](content))).problem


@pytest.mark.parametrize("packing", ["bzip2", "xz", "zstd"])
@pytest.mark.parametrize("content", [b"BAM\x01" + bytes(8), b"CRAM\x03\0\0\0", b"@HD\tVN:1.6\n@SQ\tSN:chr1\tLN:9\n"])
def test_alignments_packed_once_more_are_refused(written, packing, content):
    """BAM, CRAM and SAM are read as they are, SAM in gzip too; another packing is to be taken off first."""
    assert "Unpack it first" in refusal(written(PACK[packing](content))).problem


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("content", "line", "advice"),
    [
        (b"\nsome text\n>a\nACGT\n", 2, "before the first '>'"),
        (b">a\nACGT\n>p\nMKELV\n", 4, "protein"),
        (b">a\nACGT\nACGT*\n", 3, "protein"),
        (b">a\nAC-GT\n", 2, "gaps"),
        (b">a\n\nAC.GT\n", 3, "gaps"),
        (b">a\nACGT>b\nACGT\n", 2, "line of its own"),
        (b">a\n" + 9 * b"ACGTN" + b"-" + 9 * b"ACGTN" + b"\n", 2, "gaps"),
        (b">a\n" + 9 * b"ACGRN" + b"-" + 9 * b"ACGTN" + b"\n", 2, "gaps"),
        (b">a\nACGT\n   1 acgt\n", 3, "not a nucleotide letter"),
        (b">a\nAC\xc3\xa9\n", 2, "byte 0xc3"),
        (b">a\nAC\0GT\n", 2, "byte 0x00"),
        (b"@a\nACGT\n+\nIII\n", 4, "4 bases and 3 qualities"),
        (b"@a\nACGT\n+\nIIIII\n@b\nA\n+\nI\n", 4, "4 bases and 5 qualities"),
        (b"@a\n" + 9 * b"ACGT" + b"\n+\n" + 10 * b"IIII" + b"\n", 4, "36 bases and 40 qualities"),
        (b"@a\n" + 9 * b"ACGT" + b"E\n+\n", 2, "protein"),
        (b"@a\nACGT\nIIII\n@b\nACGT\nIIII\n", 3, "four lines"),
        (b"@a\nACGT\n+\nIIII\nb\nA\n+\nI\n", 5, "four lines"),
        (b"@a\nMKEL\n+\nIIII\n", 2, "protein"),
        (b"@a\nACGT\n+\nIIII\n@b", 5, "middle of a FASTQ record"),
        (b"@a\nACGT\n+\nIIII\n@b\nAC", 6, "middle of a FASTQ record"),
        (b"@a\nACGT\n+\nIIII\n@b\nAC\n", 7, "middle of a FASTQ record"),
        (b"@a\nACGT\n+\nIIII\n@b\nAC\n+", 7, "middle of a FASTQ record"),
        (b"@a\nACGT\n+\nIIII\n@b\nAC\n+\nI", 8, "middle of a FASTQ record"),
    ],
)
def test_broken_line_is_named(written, content, line, advice, block_bytes):
    """A broken FASTA or FASTQ is refused with its line, whatever is read at once."""
    error = refusal(written(content), block_bytes)
    assert error.line == line
    assert advice in error.problem


def test_protein_of_nucleotide_letters_is_refused(written):
    """Proteins written with letters that are all nucleotide codes too are told by how rare A C G T are."""
    assert "look like proteins" in refusal(written(b">p\n" + b"KRHDVSWMKYAG" * 20 + b"\n")).problem


def test_masked_nucleotides_are_read(written):
    """X, N and ambiguity codes are legal, also many of them."""
    masked = b"X" * 5000 + b"ACGT" + b"N" * 5000 + b"RYSWKMBDHV"
    assert read(written(b">m\n" + masked + b"\n"))[0] == [(b"m", masked)]


def test_repetitive_gzip(written):
    """A record that unpacks to a thousand times its size comes out whole."""
    compressor = zlib.compressobj(9, wbits=31)
    raw = compressor.compress(b">a\n") + b"".join(compressor.compress(b"N" * 10_000_000) for _ in range(2))
    found, _ = read(written(raw + compressor.flush()))
    assert [len(sequence) for _, sequence in found] == [20_000_000]
