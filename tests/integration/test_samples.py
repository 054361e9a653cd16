"""Samples are what the command line or the sheet says, or the sheet is refused with its line."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import mixed_records, write_fasta

from virnucpro import stored_json
from virnucpro.bundles import load_bundle
from virnucpro.errors import InputError, InputsError, RunMismatchError, UsageError
from virnucpro.progress import Reporter
from virnucpro.results.counts import Counts, sample_cells
from virnucpro.results.formats import lines
from virnucpro.run_dir import RunDir
from virnucpro.samples import Sample, read_samplesheet, samples_of
from virnucpro.stages import extract
from virnucpro.stages.base import Index, Run


@pytest.fixture
def sheet(tmp_path):
    """Write a sheet beside four files of reads."""
    (tmp_path / "reads").mkdir()
    for name in ("a_1.fq", "a_2.fq", "b.fa", "c d.bam"):
        (tmp_path / "reads" / name).write_bytes(b"")

    def write(content):
        path = tmp_path / "samples.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_inputs_are_samples_named_like_their_files():
    """The usual endings go, any number of them, in any case; stdin is stdin."""
    names = ["x/reads.fastq.gz", "contigs.FNA", "-", "y.bam", "z.sorted.cram", "a.b.txt"]
    assert [sample.name for sample in samples_of(names)] == [
        "reads", "contigs", "stdin", "y", "z.sorted", "a.b.txt",
    ]  # fmt: skip
    assert samples_of(["x/reads.fastq.gz"]) == (Sample("reads", ("x/reads.fastq.gz",)),)
    with pytest.raises(UsageError, match=r"a/x\.fa and b/x\.bam would both write x\.sequences\.tsv"):
        samples_of(["a/x.fa", "b/x.bam"])
    pair = Sample("x", ("x_1.fq", "x_2.fq"))
    assert samples_of([pair, "y.fa"]) == (pair, Sample("y", ("y.fa",)))
    with pytest.raises(UsageError, match=r"x_1\.fq and x\.fa would both write"):
        samples_of([pair, "x.fa"])


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_sheet_as_programs_write_it(sheet, tmp_path, delimiter, line_end, mark):
    """Comma or tab, either line end, with or without a byte order mark, comments, empty lines, quotes, blanks."""
    lines = [
        "# my samples",
        "sample, path,path2",
        "",
        "first,reads/a_1.fq,reads/a_2.fq",
        '"second", "reads/b.fa",',
        "  # left out: reads/none.fa",
        "third one,reads/c d.bam,",
    ]
    path = sheet((mark + line_end.join(lines)).replace(",", delimiter))
    reads = tmp_path / "reads"
    found = read_samplesheet(path)
    assert [sample.name for sample in found] == ["first", "second", "third one"]
    assert found[0].paths == (str(reads / "a_1.fq"), str(reads / "a_2.fq"))
    assert found[2].paths == (str(reads / "c d.bam"),)


def test_a_sheet_of_nf_core_is_read(sheet, tmp_path):
    """Its columns have other names; a sample without a second file is single-end."""
    path = sheet("sample,fastq_1,fastq_2\ns,reads/a_1.fq,reads/a_2.fq\nt,reads/b.fa,\n")
    reads = tmp_path / "reads"
    assert read_samplesheet(path) == (
        Sample("s", (str(reads / "a_1.fq"), str(reads / "a_2.fq"))),
        Sample("t", (str(reads / "b.fa"),)),
    )


def test_columns_come_in_any_order_and_paths_may_be_absolute(sheet, tmp_path):
    """The header says which column is which."""
    path = sheet(f"path,sample\n{tmp_path}/reads/b.fa,s\n")
    assert read_samplesheet(path) == (Sample("s", (f"{tmp_path}/reads/b.fa",)),)


@pytest.mark.parametrize(
    ("content", "line", "advice"),
    [
        ("", None, "is empty"),
        ("# nothing\n\n", None, "is empty"),
        ("sample,path\n", 1, "names no samples"),
        ("sample,path,fastq_3\ns,reads/b.fa,x\n", 1, "unknown column 'fastq_3'"),
        ("sample;path\ns;reads/b.fa\n", 1, "separated by commas or tabs"),
        ("sample,path2\ns,reads/b.fa\n", 1, "no column path"),
        ("path\nreads/b.fa\n", 1, "no column sample"),
        ("sample,path,path\ns,reads/b.fa,reads/b.fa\n", 1, "twice"),
        ("sample,path,fastq_1\ns,reads/b.fa,reads/b.fa\n", 1, "twice"),
        ("sample,path\n\ns,reads/b.fa,more\n", 3, "3 cells under 2 columns"),
        ("sample,path\ns\n", 2, "1 cells under 2 columns"),
        ('sample,path\n"s,reads/b.fa\n', 2, "Check its quotes"),
        ("sample,path\ns,reads/b.fa\n# x\ns,reads/a_1.fq\n", 4, "sample s stands in line 2 too"),
        ("sample,path\ns,reads/b.fa\nS,reads/a_1.fq\n", 3, "stands in line 2 too"),
        ("sample,path\ns,reads/none.fa\n", 2, "no such file"),
        ("sample,path\ns,reads\n", 2, "is a directory"),
        ("sample,path\ns,\n", 2, "has no path"),
        ("sample,path,path2\ns,,reads/b.fa\n", 2, "has no path"),
        ("sample,path,path2\ns,reads/b.fa,./reads/b.fa\n", 2, "the same file"),
        ("sample,path\n,reads/b.fa\n", 2, "is empty"),
        ("sample,path\n-s,reads/b.fa\n", 2, "begins with '-'"),
        ("sample,path\n.s,reads/b.fa\n", 2, "begins with '.'"),
        ("sample,path\n..,reads/b.fa\n", 2, "begins with '.'"),
        ("sample,path\na/b,reads/b.fa\n", 2, "slash"),
        ("sample,path\na\\b,reads/b.fa\n", 2, "slash"),
        ("sample,path\na\x1bb,reads/b.fa\n", 2, "control character"),
        (f"sample,path\n{'x' * 201},reads/b.fa\n", 2, "more than 200"),
        (b"sample,path\n\xff\xfe,reads/b.fa\n", None, "UTF-8"),
    ],
)
def test_a_sheet_that_cannot_be_followed_is_refused_with_its_line(sheet, content, line, advice):
    """Nothing is guessed."""
    path = sheet(content)
    with pytest.raises(InputError) as caught:
        read_samplesheet(path)
    assert (caught.value.source, caught.value.line) == (str(path), line)
    assert advice in str(caught.value)


def test_all_files_that_a_sheet_names_in_vain_are_told_at_once(sheet):
    """Each with its line."""
    with pytest.raises(InputsError) as caught:
        read_samplesheet(sheet("sample,path\na,none.fa\nb,reads/b.fa\nc,none_2.fa\n"))
    assert [error.line for error in caught.value.errors] == [2, 4]


def test_a_sheet_of_a_pipeline_may_have_more_columns(sheet):
    """Where it names both files as pipelines do; a column that is misspelt is then not taken for another."""
    content = "Sample,run,FASTQ_1,fastq_2,platform\na,1,reads/a_1.fq,reads/a_2.fq,ILLUMINA\n"
    (sample,) = read_samplesheet(sheet(content))
    assert (sample.name, [Path(path).name for path in sample.paths]) == ("a", ["a_1.fq", "a_2.fq"])
    with pytest.raises(InputError, match="unknown column 'path_2'"):
        read_samplesheet(sheet("sample,path,path_2\na,reads/a_1.fq,reads/a_2.fq\n"))


def test_a_sheet_without_end_or_writer_is_refused(tmp_path, monkeypatch):
    """People hand sheets to each other: none may hang the program or eat the memory."""
    monkeypatch.setattr(stored_json, "_PIPE_SECONDS", 0.05)
    os.mkfifo(tmp_path / "fifo")
    for path, problem in ((tmp_path / "fifo", "nobody writes to"), (Path("/dev/zero"), "neither a file nor a pipe")):
        with pytest.raises(InputError, match=problem):
            read_samplesheet(path)
    huge = tmp_path / "huge.csv"
    with huge.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(InputError, match="has more than"):
        read_samplesheet(huge)


def test_a_missing_sheet_is_refused(tmp_path):
    """By its name."""
    with pytest.raises(InputError, match=r"nowhere\.csv: cannot be read \(No such file"):
        read_samplesheet(tmp_path / "nowhere.csv")


def test_the_summary_has_a_line_for_each_sample():
    """Counts add up; nothing is a percentage of nothing."""
    calls = {"virus": 1, "uncertain": 2, "not_virus": 4, "no_call": 1}
    bases = {"virus": 300, "uncertain": 0, "not_virus": 600, "no_call": 0}
    counted = {"a": Counts(calls=calls, bases=bases), "empty": Counts()}
    assert lines(sample_cells(counted)) == b"a\t8\t900\t1\t2\t4\t1\t12.5000\t33.3333\nempty\t0\t0\t0\t0\t0\t0\tNA\tNA\n"


@pytest.fixture
def make_run(tmp_path, tiny_bundle):
    """A run over inputs, with units so small that a sample spans many."""

    def make(inputs, name="out"):
        run_dir = RunDir(tmp_path / name)
        run_dir.prepare(force=True)
        bundle = load_bundle(str(tiny_bundle))
        return Run(
            dir=run_dir, inputs=tuple(map(str, inputs)), bundle=bundle, fragment_length=bundle.fragment_length,
            unit_rows=7, dtype="float32", reporter=Reporter(bars=False),
        )  # fmt: skip

    return make


@pytest.fixture
def samples(tmp_path):
    """A pair and a single file."""
    reads = {name: bases[:300] for name, bases in mixed_records(12).items()}
    paths = [tmp_path / name for name in ("a_1.fastq.gz", "a_2.fastq")]
    for path in paths:
        text = "".join(f"@{name}\n{bases}\n+\n{'I' * len(bases)}\n" for name, bases in reads.items()).encode()
        path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    single = write_fasta(tmp_path / "b.fasta", mixed_records(5, 9))
    return Sample("pair", (str(paths[0]), str(paths[1]))), Sample("single", (str(single),))


def test_a_run_takes_samples_of_one_and_of_two_files(make_run, samples):
    """The index has a sample's name and the digests of its files, and so knows it again."""
    run = make_run([])
    index = extract.run(run, samples)
    pair, single = index.inputs
    assert (pair.stem, pair.num_sequences, single.stem, single.num_sequences) == ("pair", 24, "single", 5)
    assert single.first_sequence == 24
    for found, path in zip((pair.sha256, pair.mate_sha256), samples[0].paths, strict=True):
        assert found == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert single.mate_sha256 == ""
    assert Index.read(run.dir) == index == extract.run(run, samples)
    renamed = extract.run(run, (replace(samples[0], name="other"), samples[1]))
    assert [item.stem for item in renamed.inputs] == ["other", "single"]


def test_units_of_single_files_do_not_depend_on_how_they_are_named(make_run, samples):
    """A sample of one file is cut like the file named on the command line."""
    path = samples[1].paths[0]
    runs = make_run([path], "one"), make_run([], "two")
    extract.run(runs[0])
    extract.run(runs[1], samples[1:])
    units = [sorted((run.dir.work / "units").iterdir()) for run in runs]
    assert len(units[0]) > 1
    assert [unit.read_bytes() for unit in units[0]] == [unit.read_bytes() for unit in units[1]]


def test_a_changed_mate_is_other_input(make_run, samples):
    """The second file counts as much as the first."""
    run = make_run([])
    extract.run(run, samples)
    mate = Path(samples[0].paths[1])
    mate.write_bytes(mate.read_bytes() + b"\n")
    with pytest.raises(RunMismatchError, match=r"content of .*a_2\.fastq"):
        extract.run(run, samples)
    with pytest.raises(RunMismatchError, match="number of files of pair  then 2  now 1"):
        extract.run(run, (Sample("pair", samples[0].paths[:1]), samples[1]))
    with pytest.raises(RunMismatchError, match="number of inputs  then 2  now 1"):
        extract.run(run, samples[:1])
    assert json.loads(run.dir.index.read_text())["inputs"][0]["mate_source"] == samples[0].paths[1]
