"""Virus regions: what is found, and that every coordinate in every file cuts out the right bases."""

from __future__ import annotations

import gzip
import io
import random
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from Bio import SeqIO
from conftest import random_dna, read_tsv, write_fasta
from made_tables import RULES, table_of, with_genes
from made_tables import line as made_line

from virnucpro.errors import InputError
from virnucpro.nearest.repeats import terminal_repeat, topology
from virnucpro.request import Options
from virnucpro.results.called import InputResults, Source
from virnucpro.results.calls import Call, Calling, call_sequences
from virnucpro.results.counts import Counts
from virnucpro.results.fragments import Fragments
from virnucpro.results.outputs import OUTPUTS
from virnucpro.results.prevalence import Prevalence
from virnucpro.results.regions import proviruses
from virnucpro.results.stored_table import FRAGMENT_DTYPE, SEQUENCE_DTYPE
from virnucpro.run_dir import RESULT_SUFFIXES, RunDir
from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.fragments import windows
from virnucpro.sequence.ragged import Ragged

FRAGMENT = 500
HOST, VIRUS = -3.0, 3.0

SUFFIXES = ("regions.tsv", "regions.gff3", "regions.bed", "windows.bedgraph.gz", "proviruses.fna.gz")


def dna(length, seed):
    """Bases in mixed case."""
    return "".join(random.Random(seed).choices("ACGTacgt", k=length))


NAMES = ("plain", "a|b;c=d%20,e&f~g:h", "caf\u00e9>#\u00e9", "plain", "short", "noisy", "empty", "last")
LENGTHS = (60_000, 45_000, 30_000, 52_000, 1_300, 25_000, 0, 33_333)
BLOCKS = (((20_000, 35_000),), ((0, 12_500), (30_000, 40_000)), ((0, 30_000),), (), (), (), (), ((20_000, 33_333),))
VIRAL = (False, False, True, False, True, True, False, False)


def write_input(path: Path) -> list[bytes]:
    """A wrapped FASTA of the sequences above; their bases."""
    sequences = [dna(length, seed) for seed, length in enumerate(LENGTHS)]
    with path.open("w", encoding="utf-8", newline="") as stream:
        for name, bases in zip(NAMES, sequences, strict=True):
            stream.write(f">{name} some words\n")
            stream.writelines(f"{bases[i : i + 70]}\n" for i in range(0, len(bases), 70))
    return [bases.encode() for bases in sequences]


class FileUnits(Source):
    """The bases of a file, in units as extraction makes them."""

    def __init__(self, fasta, unit_rows, block_bytes=1 << 20):
        self.tables = list(Extraction([str(fasta)], FRAGMENT, 100, unit_rows, True, block_bytes=block_bytes).units())

    def bases(self):
        for table in self.tables:
            yield table.pieces, table.piece_sequences, table.piece_descriptions


def write_regions(fasta: Path, output: Path, unit_rows: int, block_bytes: int = 1 << 20) -> InputResults:
    """Extract as the program does, give fragments within the blocks the score of a virus, and write."""
    output.mkdir(exist_ok=True)
    source = FileUnits(fasta, unit_rows, block_bytes)
    cut = np.concatenate([table.fragments for table in source.tables])
    fragments = np.zeros(len(cut), dtype=FRAGMENT_DTYPE)
    for name in ("sequence", "start", "stop"):
        fragments[name] = cut[name]
    fragments["log_odds"] = HOST
    for i, fragment in enumerate(fragments):
        middle = (fragment["start"] + fragment["stop"]) / 2
        if any(start <= middle < stop for start, stop in BLOCKS[fragment["sequence"]]):
            fragments["log_odds"][i] = VIRUS
        if NAMES[fragment["sequence"]] == "noisy":
            fragments["log_odds"][i] = np.nan
    sequences = np.zeros(len(NAMES), dtype=SEQUENCE_DTYPE)
    sequences["length"] = LENGTHS
    table = Fragments.of((RULES,), sequences, Ragged.from_bytes([name.encode() for name in NAMES]), fragments)
    table = with_genes(table)
    calls = call_sequences(table, Calling())[0]
    calls["call"] = np.where(VIRAL, Call.VIRUS, Call.NOT_VIRUS)
    calls["p_virus"] = np.where(VIRAL, 0.9375, 0.0625)
    results = InputResults(table, calls, proviruses(table), Calling(), Prevalence.fixed(0.5), source)
    write_all(results, output)
    return results


def write_all(results, folder):
    """The files of regions."""
    for output in OUTPUTS:
        if output.file.removeprefix("<stem>.") in SUFFIXES:
            output.write(results, folder, "in", Options())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of the files, the bases of each sequence, and the results."""
    folder = tmp_path_factory.mktemp("regions")
    sequences = write_input(folder / "in.fasta")
    return folder, sequences, write_regions(folder / "in.fasta", folder, 1000)


def rows_of(folder):
    return read_tsv(folder / "in.regions.tsv")


def test_the_table_names_parts_and_wholes(written):
    """Provirus where a part is virus, the sequence itself where it is called virus and has no host part."""
    folder, _, results = written
    rows = rows_of(folder)
    first_of_last = windows(LENGTHS[-1], FRAGMENT)[40, 0] + 1  # the first window with its middle behind 20,000
    assert [(row["region"], row["kind"]) for row in rows] == [
        ("plain|provirus_20001_35000", "provirus"),
        (f"{NAMES[1]}|provirus_1_12500", "provirus"),
        (f"{NAMES[1]}|provirus_30001_40000", "provirus"),
        (NAMES[2], "whole"),
        ("short", "whole"),
        ("noisy", "whole"),
        (f"last|provirus_{first_of_last}_33333", "provirus"),
    ]
    assert {row["p_virus"] for row in rows if row["kind"] == "whole"} == {"0.9375"}
    assert {row["topology"] for row in rows} == {"NA"}
    assert all(int(row["length"]) == int(row["stop"]) - int(row["start"]) + 1 for row in rows)
    assert Counts.of(results, {}).regions == {"whole": 3, "provirus": 4}


def test_coordinates_of_every_file_cut_the_same_bases_from_the_input(written):
    """TSV and GFF3 are 1-based closed, BED is 0-based half-open, and the FASTA holds just these bases, case and all."""
    folder, _, _ = written
    by_name = {record.id: str(record.seq) for record in reversed(list(SeqIO.parse(folder / "in.fasta", "fasta")))}
    fasta = gzip.decompress((folder / "in.proviruses.fna.gz").read_bytes()).decode()
    cut = {record.id: str(record.seq) for record in SeqIO.parse(io.StringIO(fasta), "fasta")}
    rows = [row for row in rows_of(folder) if row["kind"] == "provirus"]
    assert list(cut) == [row["region"] for row in rows]
    assert all(line.endswith(" some words") for line in fasta.splitlines() if line.startswith(">"))
    for row in rows:
        assert cut[row["region"]] == by_name[row["sequence"]][int(row["start"]) - 1 : int(row["stop"])]
    for line in (folder / "in.regions.bed").read_text().splitlines():
        sequence, start, stop, name, score, strand = line.split("\t")
        assert name in cut or name == sequence
        assert cut.get(name, by_name[sequence]) == by_name[sequence][int(start) : int(stop)]
        assert 0 <= int(score) <= 1000
        assert strand == "."
    for line in (folder / "in.regions.gff3").read_bytes().splitlines():
        if not line.startswith(b"##"):
            fields = line.split(b"\t")
            attributes = dict(field.split(b"=") for field in fields[8].split(b";"))
            sequence, name = (unquote_to_bytes(field).decode() for field in (fields[0], attributes[b"Name"]))
            assert cut.get(name, by_name[sequence]) == by_name[sequence][int(fields[3]) - 1 : int(fields[4])]


def test_the_three_files_of_regions_agree(written):
    folder, _, _ = written
    rows = [(row["sequence"], int(row["start"]), int(row["stop"]), row["region"]) for row in rows_of(folder)]
    bed = [line.split("\t") for line in (folder / "in.regions.bed").read_text().splitlines()]
    assert [(b[0], int(b[1]) + 1, int(b[2]), b[3]) for b in bed] == rows
    gff3 = [line.split("\t") for line in (folder / "in.regions.gff3").read_text().splitlines() if line[0] != "#"]
    named = [unquote_to_bytes(g[8].split("Name=")[1].split(";")[0]).decode() for g in gff3]
    places = [(unquote_to_bytes(g[0]).decode(), int(g[3]), int(g[4])) for g in gff3]
    assert [(*place, name) for place, name in zip(places, named, strict=True)] == rows


def test_gff3_keeps_to_its_specification(written):
    """Version first, a sequence-region before the features of a sequence, unique IDs, nothing unescaped."""
    folder, sequences, _ = written
    lines = (folder / "in.regions.gff3").read_bytes().splitlines()
    assert lines[0] == b"##gff-version 3"
    known, ids = set(), []
    for line in lines[1:]:
        assert line.isascii()
        if line.startswith(b"##sequence-region "):
            _, name, first, last = line.split(b" ")
            number = NAMES.index(unquote_to_bytes(name).decode())
            assert (int(first), int(last)) == (1, len(sequences[number]))
            known.add(name)
            continue
        sequence, source, kind, _, _, score, strand, phase, attributes = line.split(b"\t")
        assert sequence in known
        assert not set(sequence) - set(b".:^*$@!+_?-|%") - set(b"0123456789") - set(range(65, 91)) - set(range(97, 123))
        assert (source, strand, phase) == (b"virnucpro", b".", b".")
        assert kind in (b"viral_sequence", b"proviral_region")
        float(score)
        fields = [field.split(b"=") for field in attributes.split(b";")]
        assert [key for key, _ in fields] == [b"ID", b"Name", b"kind", b"p_virus", b"num_fragments"]
        ids.append(fields[0][1])
    assert len(set(ids)) == len(ids) == 7


def test_other_programs_read_the_files(written, tmp_path):
    """The files can be indexed as genome browsers do, and fetched from by place, whatever the names are."""
    pysam = pytest.importorskip("pysam")
    folder, _, _ = written
    rows = [(row["sequence"], int(row["start"]) - 1, int(row["stop"])) for row in rows_of(folder)]
    for suffix, preset, parser in (("gff3", "gff", pysam.asGFF3()), ("bed", "bed", pysam.asBed())):
        copy = tmp_path / f"in.{suffix}"
        copy.write_bytes((folder / f"in.regions.{suffix}").read_bytes())
        with pysam.TabixFile(pysam.tabix_index(str(copy), preset=preset), encoding="utf-8") as indexed:
            names = {name: unquote_to_bytes(name).decode() if suffix == "gff3" else name for name in indexed.contigs}
            for name, plain in names.items():
                expected = [row[1:] for row in rows if row[0] == plain]
                assert [(item.start, item.end) for item in indexed.fetch(name, parser=parser)] == expected
                start, stop = expected[0]
                assert next(indexed.fetch(name, stop - 1, stop, parser=parser)).start == start
        assert set(names.values()) == {row[0] for row in rows}


def test_the_bedgraph_holds_each_scored_window_once_without_overlap(written):
    """Windows without a score are left out; of two that overlap the first ends where the second begins."""
    folder, sequences, _ = written
    packed = (folder / "in.windows.bedgraph.gz").read_bytes()
    assert packed[4:8] == bytes(4)  # no time in the header, and no name is in the bytes of BGZF
    lines = [line.split("\t") for line in gzip.decompress(packed).decode().splitlines()]
    runs = []
    for name, start, stop, p_virus in lines:
        if int(start) == 0:
            runs.append([name, 0])
        assert runs[-1] == [name, int(start)]
        assert int(stop) > int(start)
        assert p_virus in ("0.0474", "0.9526")
        runs[-1][1] = int(stop)
    expected = [[name, len(bases)] for name, bases in zip(NAMES, sequences, strict=True) if bases and name != "noisy"]
    assert runs == expected


def test_names_come_back_byte_for_byte(written):
    folder, _, _ = written
    for suffix in ("regions.tsv", "regions.bed"):
        content = (folder / f"in.{suffix}").read_bytes()
        assert b"\t%b|provirus_1_12500" % NAMES[1].encode() in b"\t" + content.replace(b"\n", b"\t")
        assert b"\t%b\t" % NAMES[2].encode() in b"\t" + content.replace(b"\n", b"\t")


@pytest.mark.parametrize("unit_rows", [7, 64, 333, 100_000])
def test_files_do_not_depend_on_how_sequences_are_cut_into_units(written, tmp_path, unit_rows):
    """A sequence that spans many units, one that ends with its unit, many in one: the same bytes."""
    folder, _, _ = written
    write_regions(folder / "in.fasta", tmp_path / "again", unit_rows, block_bytes=10_000)
    for suffix in SUFFIXES:
        assert (tmp_path / "again" / f"in.{suffix}").read_bytes() == (folder / f"in.{suffix}").read_bytes(), suffix


def test_an_input_without_records_gives_headers(tmp_path):
    write_all(InputResults.of(table_of([]), Calling()), tmp_path)
    content = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert content["in.regions.tsv"].startswith(b"region\tsequence\tstart\tstop\t")
    assert content["in.regions.tsv"].count(b"\n") == 1
    assert content["in.regions.gff3"] == b"##gff-version 3\n"
    assert content["in.regions.bed"] == b""
    assert gzip.decompress(content["in.proviruses.fna.gz"]) == gzip.decompress(content["in.windows.bedgraph.gz"]) == b""
    assert len(content) == len(SUFFIXES)


def test_a_failure_leaves_no_file(tmp_path):
    """A file takes its place when all of it is written."""

    class Broken(FileUnits):
        def bases(self):
            yield from list(super().bases())[:1]
            raise InputError("in", "a test ends here.")

    write_input(tmp_path / "in.fasta")
    lines = [made_line(name, length, 0.99) for name, length in zip(NAMES, LENGTHS, strict=True)]
    results = InputResults.of(table_of(lines), Calling(), Broken(tmp_path / "in.fasta", 64))
    (output,) = (output for output in OUTPUTS if output.file == "<stem>.virus.fna.gz")
    with pytest.raises(InputError):
        output.write(results, tmp_path, "in", Options())
    assert [path.name for path in tmp_path.iterdir()] == ["in.fasta"]


def test_every_output_is_among_the_files_of_a_run():
    """What is counted as a result and what is written are the same."""
    run_dir = RunDir(Path("out"))
    known = {f"in.{suffix}" for suffix in RESULT_SUFFIXES} - {"in.summary.json"}
    formats = ("tsv", "jsonl", "parquet")
    written = {output.path(run_dir.root, "in", each).relative_to("out") for output in OUTPUTS for each in formats}
    assert {str(path) for path in written if path.parts[0] != "in_merged"} <= known
    assert {path.name for path in written if path.parts[0] == "in_merged"} == {
        "prediction_results.txt", "prediction_results_highestscore.csv",
    }  # fmt: skip


def test_whole_sequences_say_what_repeats_at_their_ends(tmp_path):
    """Direct or inverted, from 20 bases on, however the sequence is cut into pieces."""
    one, other = random_dna(3000, 5), random_dna(25, 6)
    turned = other.translate(str.maketrans("ACGT", "TGCA"))[::-1]
    made = {
        "circular": other + one + other.lower(),
        "inverted": other + one + turned,
        "short": other[:19] + one + other[:19],
        "plain": one,
        "low": "A" * 30 + one + "A" * 30,
    }
    write_fasta(tmp_path / "in.fasta", made)
    for unit_rows in (3, 1000):
        source = FileUnits(tmp_path / "in.fasta", unit_rows)
        table = table_of([made_line(name, len(bases), 0.99) for name, bases in made.items()])
        write_all(InputResults.of(table, Calling(), source), tmp_path)
        found = {row["sequence"]: row["topology"] for row in rows_of(tmp_path)}
        assert found == {"circular": "DTR", "inverted": "ITR", "short": "NA", "plain": "NA", "low": "polyA"}


def test_headers_and_tails_say_what_they_say_of_completeness():
    """After the repeats, which are seen; a header is believed only in the words of assemblers."""
    plain, tail = random_dna(900, 5).encode(), b"a" * 20
    assert topology(plain, b"length=900 depth=1.00x circular=true") == b"circular"
    assert topology(plain, b"circular=no [topology=linear] not circular") == b""
    assert topology(plain + tail, b"[topology=circular]") == b"circular"
    assert topology(plain + tail, b"") == topology(b"T" * 20 + plain, b"") == b"polyA"
    assert topology(plain[:70] + plain + plain[:70], b"circular=yes") == b"DTR"
    assert topology(tail[:19], b"") == b""


def test_a_name_that_would_be_a_comment_stays_in_bed(tmp_path):
    """A line of BED or bedGraph that begins with # is none."""
    write_fasta(tmp_path / "in.fasta", {"#a": random_dna(600, 5)})
    results = InputResults.of(table_of([made_line("#a", 600, 0.99)]), Calling(), FileUnits(tmp_path / "in.fasta", 9))
    write_all(results, tmp_path)
    assert (tmp_path / "in.regions.bed").read_text().startswith("%23a\t0\t600\t#a\t")


def test_a_long_repeat_is_found_and_an_overlap_is_none():
    """Up to 20 kb; of a tandem repeat half of the sequence at most."""
    repeat = random_dna(15_000, 7).encode()
    assert terminal_repeat(repeat + random_dna(9000, 8).encode() + repeat) == b"DTR"
    assert terminal_repeat(repeat[:30]) == b""
    assert terminal_repeat(b"N" * 30 + repeat + b"N" * 30) == b""
