"""Reads of BAM, CRAM and SAM come out once each, as they were sequenced, or the file is refused with advice."""

from __future__ import annotations

import gzip
import hashlib
import random
import subprocess
import sys
import tracemalloc

import pysam
import pytest
from Bio import SeqIO
from Bio.Seq import Seq
from conftest import open_dna, read_tsv
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.errors import InputError, UsageError
from virnucpro.machine.plan import InputHead
from virnucpro.sequence.alignments import alignment_format, primary_alignments
from virnucpro.sequence.fasta import SequenceFile
from virnucpro.sequence.streams import InputStream

GENOME = open_dna(3000, 5)
HEADER = {"HD": {"VN": "1.6"}, "SQ": [{"SN": "chr1", "LN": len(GENOME)}]}
MODES = {"bam": "wb", "cram": "wc", "sam": "w"}


@pytest.fixture
def reference(tmp_path):
    """The genome the reads are aligned to."""
    path = tmp_path / "reference.fa"
    path.write_text(f">chr1\n{GENOME}\n")
    return path


def segment(name, bases, flag=4, position=None, cigar=None):
    """One line of a file of alignments; ``bases`` as the file has them."""
    read = pysam.AlignedSegment(pysam.AlignmentHeader.from_dict(HEADER))
    read.query_name, read.query_sequence, read.flag = name, bases, flag
    read.query_qualities = pysam.qualitystring_to_array("I" * len(bases or ""))
    if position is not None:
        read.reference_id, read.reference_start, read.cigarstring = 0, position, cigar or f"{len(bases)}M"
        read.mapping_quality = 60
    return read


def write(path, segments, header=HEADER, **options):
    """A BAM, CRAM or SAM, by the ending of its name."""
    with pysam.AlignmentFile(str(path), MODES[path.suffix[1:]], header=header, **options) as file:
        for item in segments:
            file.write(item)
    return path


def read(path, **options):
    """Names and bases, and the file."""
    file = SequenceFile(str(path), **options)
    records = []
    for block in file.blocks():
        records += zip(block.names.to_bytes(), block.bases.to_bytes(), strict=True)
    return records, file


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert caught.value.source == str(path)
    return caught.value.problem


def reverse(bases):
    return str(Seq(bases).reverse_complement())


MIXED = [
    segment("plain", GENOME[:100]),
    segment("forward", GENOME[10:110], 0, 10),
    segment("backward", GENOME[20:120], 16, 20),
    segment("clipped", GENOME[30:130], 0, 40, "10S80M10S"),
    segment("forward", GENOME[10:110], 256, 500),
    segment("forward", GENOME[10:60], 2048, 700, "50M50H"),
    segment("failed_quality", GENOME[50:150], 4 | 512),
    segment("copy_of_a_molecule", GENOME[50:150], 1024, 50),
    segment("pair", GENOME[60:160], 1 | 64 | 4 | 8),
    segment("pair", GENOME[70:170], 1 | 128 | 16, 70),
    segment("named/1", GENOME[60:160], 1 | 64 | 4 | 8),
    segment("named/2", GENOME[60:160], 1 | 128 | 4 | 8),
    segment("part_of_neither", GENOME[60:160], 1 | 4 | 8),
    segment("single/1", GENOME[60:160]),
]
EXPECTED = [
    ("plain", GENOME[:100]),
    ("forward", GENOME[10:110]),
    ("backward", reverse(GENOME[20:120])),
    ("clipped", GENOME[30:130]),
    ("failed_quality", GENOME[50:150]),
    ("copy_of_a_molecule", GENOME[50:150]),
    ("pair/1", GENOME[60:160]),
    ("pair/2", reverse(GENOME[70:170])),
    ("named/1", GENOME[60:160]),
    ("named/2", GENOME[60:160]),
    ("part_of_neither", GENOME[60:160]),
    ("single/1", GENOME[60:160]),
]


@pytest.mark.parametrize("name", ["x.bam", "x.cram", "x.sam"])
@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_each_read_comes_once_on_its_own_strand(tmp_path, reference, name, block_bytes):
    """Secondary and supplementary alignments are passed over; mates are told apart; quality is not judged."""
    options = {"reference_filename": str(reference)} if name == "x.cram" else {}
    path = write(tmp_path / name, MIXED, **options)
    unnamed = path.rename(tmp_path / "reads")  # formats are told by content
    found, file = read(unnamed, block_bytes=block_bytes, reference=str(reference))
    assert found == [(item.encode(), bases.encode()) for item, bases in EXPECTED]
    assert file.format == name[2:]
    assert file.sha256 == hashlib.sha256(unnamed.read_bytes()).hexdigest()


letters = st.text("ACGTMRWSYKVHDBN", min_size=1, max_size=60)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(letters, st.booleans()), max_size=6))
def test_reverse_strand_is_turned_back(tmp_path_factory, items):
    """Ambiguity codes too have their complement; Biopython agrees."""
    path = tmp_path_factory.mktemp("turned") / "x.bam"
    write(path, [segment(f"r{i}", bases, 16 * turned, 0) for i, (bases, turned) in enumerate(items)])
    found, _ = read(path)
    assert [bases.decode() for _, bases in found] == [reverse(b) if turned else b for b, turned in items]


def test_a_read_without_bases_is_an_empty_record(tmp_path):
    """``*`` is a record of no bases, not a lost one."""
    assert read(write(tmp_path / "x.bam", [segment("none", None), segment("some", "ACGT")]))[0] == [
        (b"none", b""),
        (b"some", b"ACGT"),
    ]


def test_a_file_without_reads(tmp_path):
    """A header alone has no records, and is no error."""
    found, file = read(write(tmp_path / "x.bam", []))
    assert (found, file.format) == ([], "bam")
    assert file.sha256 == hashlib.sha256((tmp_path / "x.bam").read_bytes()).hexdigest()


def test_sam_text_plain_packed_and_without_a_header(tmp_path):
    """Unaligned SAM needs no header."""
    line = b"r1\t4\t*\t0\t0\t*\t*\t0\t0\tACGT\tIIII\n"
    for i, content in enumerate((line, b"@HD\tVN:1.6\n" + line, gzip.compress(b"@CO\tnote\n" + line))):
        path = tmp_path / f"{i}"
        path.write_bytes(content)
        assert read(path)[0] == [(b"r1", b"ACGT")]


def test_a_long_header_does_not_stop_the_reader(tmp_path):
    """Headers of assemblies hold millions of bytes."""
    path = tmp_path / "x.sam"
    text = "@HD\tVN:1.6\n" + "".join(f"@SQ\tSN:contig_{i}\tLN:1000\n" for i in range(100_000))
    path.write_text(text + "r1\t0\tcontig_99999\t1\t60\t4M\t*\t0\t0\tACGT\tIIII\n")
    assert read(path)[0] == [(b"r1", b"ACGT")]


@pytest.mark.parametrize("head", [b"", b">x\nACGT\n", b"@r1\nACGT\n+\nIIII\n", b"@HD 1\nAC\n+\nII\n", b"\x1f\x8b\x08"])
def test_other_formats_are_not_alignments(head):
    """FASTA and FASTQ, also with names like SAM's, are none."""
    assert alignment_format(head) == ""


def test_bam_on_stdin(tmp_path):
    """``-`` may be BAM."""
    path = write(tmp_path / "x.bam", MIXED)
    program = (
        "from virnucpro.sequence.fasta import SequenceFile\n"
        "file = SequenceFile('-')\n"
        "print(sum(len(block) for block in file.blocks()), file.format, file.sha256)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=path.read_bytes(), capture_output=True, check=True)
    assert done.stdout.decode().split() == ["12", "bam", hashlib.sha256(path.read_bytes()).hexdigest()]


def many(num):
    return (segment(f"r{i}", GENOME[i % 2800 : i % 2800 + 150]) for i in range(num))


def test_a_plan_reads_a_cram_with_its_reference(tmp_path, reference):
    """As predict does."""
    path = write(tmp_path / "x.cram", MIXED, reference_filename=str(reference))
    named = reference.rename(tmp_path / "moved.fa")
    assert InputHead(str(path), str(named)).read(1000).startswith(b">")


@pytest.mark.parametrize("name", ["x.bam", "x.cram"])
def test_a_file_that_was_cut_off_is_refused(tmp_path, reference, name):
    """Wherever it was cut, at a border of blocks too: no read is silently lost."""
    options = {"reference_filename": str(reference)} if name == "x.cram" else {}
    whole = write(tmp_path / name, many(5000), **options).read_bytes()
    cut = tmp_path / "cut"
    end_marker = 28 if name == "x.bam" else 38
    for stop in (100, len(whole) // 2, len(whole) - end_marker, len(whole) - 1):
        cut.write_bytes(whole[:stop])
        assert "cut off" in refusal(cut)


def test_bam_files_laid_end_to_end_are_refused(tmp_path):
    """What stops at the first end marker would lose the reads of the second."""
    one = write(tmp_path / "x.bam", many(300)).read_bytes()
    path = tmp_path / "both.bam"
    path.write_bytes(one + one)
    for block_bytes in (7, 1 << 20):
        assert "several BAM files" in refusal(path, block_bytes=block_bytes)


def test_a_damaged_file_is_refused_and_nothing_is_printed(tmp_path, capfd):
    """Whatever byte is wrong, the answer is one error and no noise from the library."""
    whole = write(tmp_path / "x.bam", many(300)).read_bytes()
    path = tmp_path / "damaged"
    rng = random.Random(1)
    for _ in range(30):
        content = bytearray(whole)
        content[rng.randrange(40, len(whole) - 28)] ^= 0xFF
        path.write_bytes(content)
        refusal(path)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_reads_that_lean_on_the_reference_are_refused(tmp_path):
    """``=`` for a base is no base."""
    assert "'='" in refusal(write(tmp_path / "x.bam", [segment("r", "AC=T", 0, 0)]))


def test_cram_with_its_reference_inside_or_without_any_needs_no_option(tmp_path, reference):
    """Embedded reference bases, and CRAM written without a reference, are read as they are."""
    inside = write(tmp_path / "inside.cram", MIXED, reference_filename=str(reference), format_options=[b"embed_ref=1"])
    without = write(tmp_path / "without.cram", MIXED, format_options=[b"no_ref=1"])
    reference.unlink()
    assert len(read(inside)[0]) == len(read(without)[0]) == 12


@pytest.mark.parametrize("version", ["2.1", "3.0", "3.1"])
def test_every_version_of_cram_has_its_end_marker(tmp_path, version):
    """The end marker of each version is known."""
    options = [b"no_ref=1", f"version={version}".encode()]
    path = write(tmp_path / "x.cram", MIXED, format_options=options)
    assert len(read(path)[0]) == 12
    path.write_bytes(path.read_bytes()[:-30])
    assert "cut off" in refusal(path)


def test_cram_whose_reference_is_missing_names_the_option(tmp_path, reference, monkeypatch):
    """Nothing is fetched; ``--reference`` and ``REF_PATH`` are named, and either of them works."""
    path = write(tmp_path / "x.cram", MIXED, reference_filename=str(reference))
    moved = reference.rename(tmp_path / "moved.fa")
    assert "--reference" in refusal(path)
    monkeypatch.setenv("REF_PATH", "https://example.invalid/%s")
    assert "--reference" in refusal(path)
    assert len(read(path, reference=str(moved))[0]) == 12
    with pysam.AlignmentFile(str(path), check_sq=False) as file:
        digest = file.header["SQ"][0]["M5"]
    folder = tmp_path / "by_digest"
    folder.mkdir()
    (folder / digest).write_text(GENOME)
    monkeypatch.setenv("REF_PATH", f"{folder}/%s")
    assert len(read(path)[0]) == 12


def test_a_wrong_or_missing_reference_is_refused(tmp_path, reference):
    """A CRAM is never decoded against another genome."""
    path = write(tmp_path / "x.cram", MIXED, reference_filename=str(reference))
    reference.unlink()
    other = tmp_path / "other.fa"
    other.write_text(f">chr1\n{open_dna(3000, 6)}\n")
    assert "other.fa" in refusal(path, reference=str(other))
    with pytest.raises(InputError, match="no such file"):
        read(path, reference=str(tmp_path / "nowhere.fa"))


def test_without_pysam_its_name_is_given(tmp_path, monkeypatch):
    """FASTA needs no pysam; BAM says how to get it."""
    path = write(tmp_path / "x.bam", MIXED)
    monkeypatch.setitem(sys.modules, "pysam", None)
    with pytest.raises(UsageError, match="pip install pysam"):
        read(path)
    fasta = tmp_path / "x.fa"
    fasta.write_text(">a\nACGT\n")
    assert read(fasta)[0] == [(b"a", b"ACGT")]


def test_reading_stops_when_nobody_wants_more(tmp_path):
    """A reader that is left early leaves no thread behind that waits."""
    path = write(tmp_path / "x.bam", many(20_000))
    alignments = primary_alignments(InputStream(str(path)))
    assert next(alignments).query_name == "r0"
    alignments.close()


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Blocks are dropped as they are used: ten times the reads take no more memory."""
    peaks = []
    for num in (4_000, 40_000):
        path = write(tmp_path / f"{num}.bam", many(num))
        tracemalloc.start()
        for _ in SequenceFile(str(path), 1 << 16).blocks():
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + (1 << 20)


def test_bam_fastq_and_fasta_of_the_same_reads_give_the_same_table(virnucpro, tmp_path):
    """The answer depends on the reads, not on what they are written in; Biopython reads the FASTQ."""
    reads = [segment(f"r{i}", GENOME[i * 9 : i * 9 + 300], 16 * (i % 2), i * 9) for i in range(40)]
    bam = write(tmp_path / "a.bam", reads)
    with gzip.open(tmp_path / "b.fastq.gz", "wt") as stream:
        for item in reads:
            bases = reverse(item.query_sequence) if item.is_reverse else item.query_sequence
            stream.write(f"@{item.query_name} 1:N:0\n{bases}\n+\n{'I' * len(bases)}\n")
    with gzip.open(tmp_path / "b.fastq.gz", "rt") as stream:
        SeqIO.write(SeqIO.parse(stream, "fastq"), tmp_path / "c.fasta", "fasta")
    inputs = (bam, tmp_path / "b.fastq.gz", tmp_path / "c.fasta")
    ended = virnucpro("predict", *inputs, "-o", tmp_path / "out", "--threads", 1)
    assert ended.code == 0, ended.err
    tables = [read_tsv(tmp_path / "out" / f"{stem}.sequences.tsv") for stem in "abc"]
    assert len(tables[0]) == 40
    assert tables[0] == tables[1] == tables[2]
    again = virnucpro("predict", *inputs, "-o", tmp_path / "out", "--threads", 1)
    assert again.code == 0
    assert "done before" in again.err


def test_a_cut_bam_is_exit_3_with_one_line(virnucpro, tmp_path):
    """The command line says so in one sentence."""
    path = write(tmp_path / "x.bam", MIXED)
    path.write_bytes(path.read_bytes()[:-28])
    ended = virnucpro("predict", path, "-o", tmp_path / "out", "--threads", 1, "-q")
    assert ended.code == 3
    assert ended.err.count("\n") == 1
    assert ended.err.startswith(f"Error: {path}: the BAM file is cut off")
