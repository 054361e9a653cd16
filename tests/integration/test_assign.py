"""A read takes the call of the contig it aligns best to, or a status says why not; counts add up."""

from __future__ import annotations

import gzip
import json
import math

import pysam
import pytest
from conftest import open_dna, read_tsv, write_fasta
from hypothesis import given
from hypothesis import strategies as st
from made_tables import line, table_of, write_run

from virnucpro.errors import InputError
from virnucpro.results.assign import AMBIGUOUS, ContigCall, best_alignments, calls_by_name
from virnucpro.results.called import InputResults
from virnucpro.results.calls import Calling
from virnucpro.sequence.streams import InputStream
from virnucpro.sequence.table import Status

CONTIGS = [
    line("virus", 900, 0.9876),
    line("host", 900, 0.0123),
    line("unsure", 900, 0.7),
    line("short", 90, math.nan, Status.TOO_SHORT),
    line("twice", 900, 0.95),
    line("twice", 900, 0.2),
    line("host", 900, 0.0999),
]


def paf(read, contig, matches=100, columns=100, part=(0, 100), length=100, tags=""):
    """A line of PAF."""
    start, stop = part
    fields = (read, length, start, stop, "+", contig, 5000, 10, 10 + columns, matches, columns, 60)
    return "\t".join(map(str, fields)) + (f"\t{tags}" if tags else "") + "\n"


@pytest.fixture
def run(tmp_path):
    """A finished run of contigs."""
    return write_run(tmp_path / "run", CONTIGS, stem="contigs")


LINES = [
    paf("r1", "virus"),
    paf("r2", "host", 97),
    paf("r2", "virus", 98),
    paf("r2", "unsure", 98),
    paf("r3", "unsure", part=(10, 95)),
    paf("r4", "virus", 94),
    paf("r5", "virus", part=(0, 79)),
    paf("r6", "nowhere"),
    paf("r7", "short"),
    paf("r8", "twice"),
    "r9\t100\t0\t0\t*\t*\t0\t0\t0\t0\t0\t0\n",
    paf("r10", "host", 98, 101),
]
EXPECTED = [
    "r1 virus 1.0000 1.0000 virus 0.9876 assigned",
    "r2 virus 0.9800 1.0000 virus 0.9876 assigned",
    "r3 unsure 1.0000 0.8500 uncertain 0.7000 assigned",
    "r4 virus 0.9400 1.0000 NA NA low_identity",
    "r5 virus 1.0000 0.7900 NA NA low_coverage",
    "r6 nowhere 1.0000 1.0000 NA NA contig_unknown",
    "r7 short 1.0000 1.0000 NA NA contig_no_call",
    "r8 twice 1.0000 1.0000 NA NA contig_ambiguous",
    "r9 NA NA NA NA NA unmapped",
    "r10 host 0.9703 1.0000 not_virus 0.0123 assigned",
]


def table(path):
    return [" ".join(row.values()) for row in read_tsv(path)]


def test_each_read_of_a_paf_has_one_line_and_a_status(virnucpro, run, tmp_path):
    """The best alignment is the one with the most matches, then the highest identity, then the first."""
    path = tmp_path / "reads.paf.gz"
    path.write_bytes(gzip.compress("".join(LINES).encode()))
    ended = virnucpro("assign", run, "--reads", path)
    assert ended.code == 0, ended.err
    assert table(run / "contigs.reads.tsv.gz") == EXPECTED
    statuses = {
        "unmapped": 1, "contig_unknown": 1, "low_identity": 1, "low_coverage": 1, "contig_ambiguous": 1,
        "contig_no_call": 1, "assigned": 4,
    }  # fmt: skip
    summary = json.loads((run / "contigs.reads.json").read_text())
    assert (summary["num_reads"], summary["reads_by_status"]) == (10, statuses)
    assert summary["reads_by_call"] == {"not_virus": 1, "uncertain": 1, "virus": 2}
    assert (summary["min_identity"], summary["min_coverage"]) == (0.95, 0.8)
    printed = dict(line.split("\t") for line in ended.out.splitlines())
    assert printed == {
        "reads": "10",
        **{name: str(number) for name, number in statuses.items()},
        "assigned to virus": "2", "assigned to uncertain": "1", "assigned to not_virus": "1",
    }  # fmt: skip
    first = (run / "contigs.reads.tsv.gz").read_bytes(), (run / "contigs.reads.json").read_bytes()
    assert virnucpro("assign", run, "--reads", path).code == 0
    assert first == ((run / "contigs.reads.tsv.gz").read_bytes(), (run / "contigs.reads.json").read_bytes())


def test_limits_and_output_are_the_users(virnucpro, run, tmp_path):
    """A read at the limit is taken."""
    path = tmp_path / "reads.paf"
    path.write_text("".join(LINES))
    output = tmp_path / "other.tsv"
    limits = ("--min-identity", 0.94, "--min-coverage", 0.79)
    assert virnucpro("assign", run, "--reads", path, *limits, "-o", output).code == 0
    assert [line.split()[-1] for line in table(output)][3:5] == ["assigned", "assigned"]
    assert json.loads((tmp_path / "other.json").read_text())["num_reads"] == 10


def best(tmp_path, text):
    path = tmp_path / "x.paf"
    path.write_text(text)
    return list(best_alignments(InputStream(str(path))))


def test_identity_comes_from_divergence_then_distance_then_matches(tmp_path):
    """Of ``de``, ``NM`` and the columns the first that is there; tags stand in any order."""
    found = best(
        tmp_path,
        paf("a", "c", 90, tags="NM:i:7\tde:f:0.0123\tcg:Z:100M")
        + paf("b", "c", 90, tags="tp:A:P\tNM:i:7")
        + paf("c", "c", 90, tags="tp:A:P")
        + paf("d", "c", 0, 0, (0, 0), 0),
    )
    assert [alignment.identity for alignment in found] == pytest.approx([0.9877, 0.93, 0.9, 0.0])


def test_lines_of_a_read_must_stand_together(tmp_path):
    """A PAF sorted by contig is refused, not miscounted."""
    with pytest.raises(InputError, match="lines of read a do not stand together"):
        best(tmp_path, paf("a", "c") + paf("b", "c") + paf("a", "d"))
    apart = "".join(paf(f"r{i}", "c") for i in range(20_000))
    assert len(best(tmp_path, apart)) == 20_000
    with pytest.raises(InputError, match="lines of read r5 do not"):
        best(tmp_path, apart + paf("r5", "c"))


@pytest.mark.parametrize("text", ["hello\n", ">a\nACGT\n", paf("a", "c") + "b\t1\n", paf("a", "c", "x")])
def test_what_is_no_paf_is_refused_with_its_line(tmp_path, text):
    """The last line is the bad one."""
    with pytest.raises(InputError, match="is not a PAF line") as caught:
        best(tmp_path, text)
    assert caught.value.line == (1 if text.startswith(">") else text.count("\n"))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100), st.integers(1, 100)), max_size=20))
def test_the_best_alignment_is_the_oracles(tmp_path_factory, hits):
    """Sorting all lines of a read gives the same."""
    hits = sorted(((read, min(matches, columns), columns) for read, matches, columns in hits), key=lambda hit: hit[0])
    text = "".join(paf(f"r{read}", f"c{i}", matches, columns) for i, (read, matches, columns) in enumerate(hits))
    found = best(tmp_path_factory.getbasetemp(), text)
    expected = {}
    for i, (read, matches, columns) in enumerate(hits):
        expected.setdefault(read, []).append((-matches, -matches / columns, i))
    assert [int(alignment.contig[1:]) for alignment in found] == [min(items)[2] for items in expected.values()]


def test_equal_names_are_ambiguous_only_if_their_calls_differ():
    """The first one's p_virus stands."""
    calls = calls_by_name(InputResults.of(table_of(CONTIGS), Calling()))
    assert calls[b"twice"] is AMBIGUOUS
    assert calls[b"host"] == ContigCall(b"not_virus", b"0.0123")
    assert calls[b"short"] == ContigCall(b"no_call", b"NA")


HEADER = pysam.AlignmentHeader.from_dict({"SQ": [{"SN": "virus", "LN": 5000}, {"SN": "host", "LN": 5000}]})


def segment(name, cigar, flag=0, tags=()):
    """A read of a BAM aligned to the contig ``virus``, unaligned without a CIGAR."""
    read = pysam.AlignedSegment(HEADER)
    read.query_name, read.flag = name, flag if cigar else flag | 4
    if cigar:
        read.reference_id, read.reference_start, read.cigarstring = 0, 100, cigar
    read.query_sequence = "A" * (read.infer_query_length() or 100)
    read.set_tags(list(tags))
    return read


def write_bam(path, segments):
    with pysam.AlignmentFile(str(path), "wb", header=HEADER) as file:
        for item in segments:
            file.write(item)
    return path


def test_each_read_of_a_bam_has_one_line(virnucpro, run, tmp_path):
    """Identity from NM and CIGAR, or ``de``; coverage of the whole read; primary alignments alone."""
    path = write_bam(
        tmp_path / "reads.bam",
        [
            segment("whole", "100M", tags=[("NM", 3)]),
            segment("clipped", "5S85M10S", tags=[("NM", 0)]),
            segment("hard", "50H50M", tags=[("NM", 0)]),
            segment("gaps", "40M5I10M5D45M", 16, tags=[("NM", 12)]),
            segment("divergence", "40M5I10M5D45M", 16, tags=[("NM", 12), ("de", 0.04)]),
            segment("equal", "96=4X"),
            segment("whole", "100M", 256, tags=[("NM", 0)]),
            segment("whole", "50M50H", 2048, tags=[("NM", 0)]),
            segment("pair", "100M", 1 | 64, tags=[("NM", 0)]),
            segment("pair", None, 1 | 128),
        ],
    )
    assert virnucpro("assign", run, "--reads", path).code == 0
    assert table(run / "contigs.reads.tsv.gz") == [
        "whole virus 0.9700 1.0000 virus 0.9876 assigned",
        "clipped virus 1.0000 0.8500 virus 0.9876 assigned",
        "hard virus 1.0000 0.5000 NA NA low_coverage",
        "gaps virus 0.8857 1.0000 NA NA low_identity",
        "divergence virus 0.9600 1.0000 virus 0.9876 assigned",
        "equal virus 0.9600 1.0000 virus 0.9876 assigned",
        "pair/1 virus 1.0000 1.0000 virus 0.9876 assigned",
        "pair/2 NA NA NA NA NA unmapped",
    ]


def test_a_bam_without_distances_is_refused(run, virnucpro, tmp_path):
    """An identity is never made up."""
    path = write_bam(tmp_path / "reads.bam", [segment("r", "100M")])
    ended = virnucpro("assign", run, "--reads", path)
    assert ended.code == 3
    assert "NM tag" in ended.err
    assert not (run / "contigs.reads.tsv.gz").exists()


def test_which_contigs_are_meant_must_be_clear(virnucpro, run, tmp_path):
    """Several samples need ``--sample``; none is a usage error."""
    reads = tmp_path / "reads.paf"
    reads.write_text(paf("r", "virus"))
    (run / "more.summary.json").write_text("{}")
    ended = virnucpro("assign", run, "--reads", reads)
    assert (ended.code, "contigs, more" in ended.err) == (2, True)
    assert virnucpro("assign", run, "--reads", reads, "--sample", "contigs").code == 0
    assert (run / "contigs.reads.tsv.gz").exists()
    assert virnucpro("assign", run, "--reads", reads, "--sample", "x").code == 2
    assert virnucpro("assign", tmp_path / "none", "--reads", reads).code == 2
    assert virnucpro("assign", run, "--sample", "contigs", "--reads", tmp_path / "none.paf").code == 3


def test_reads_take_the_calls_of_a_real_run(virnucpro, tmp_path):
    """From contigs to reads through both commands."""
    contigs = write_fasta(tmp_path / "contigs.fa", {f"c{i}": open_dna(900, i) for i in range(4)} | {"tiny": "ACGT"})
    assert virnucpro("predict", contigs, "-o", tmp_path / "out", "--threads", 1).code == 0
    reads = tmp_path / "reads.paf"
    reads.write_text("".join(paf(f"r{i}", name) for i, name in enumerate(("c0", "c1", "c2", "c3", "tiny"))))
    assert virnucpro("assign", tmp_path / "out", "--reads", reads).code == 0
    calls = {row["name"]: row for row in read_tsv(tmp_path / "out" / "contigs.sequences.tsv")}
    for row in read_tsv(tmp_path / "out" / "contigs.reads.tsv.gz"):
        contig = calls[row["contig"]]
        if contig["call"] == "no_call":
            assert (row["call"], row["status"]) == ("NA", "contig_no_call")
        else:
            assert (row["call"], row["p_virus"], row["status"]) == (contig["call"], contig["p_virus"], "assigned")
