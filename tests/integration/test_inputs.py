"""Inputs are looked at before anything is computed, are never replaced, and are named as files can be."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import mixed_records, open_dna, random_dna, read_tsv, write_fasta

from virnucpro.errors import InputError, InputsError, UsageError
from virnucpro.inputs import look_at, refuse_overwriting, results_of
from virnucpro.samples import Sample, pairs_of, probable_pairs, samples_of


def fastq(path: Path, names: list[str], seed: int = 0) -> Path:
    path.write_text("".join(f"@{name}\n{open_dna(150, seed + i)}\n+\n{'I' * 150}\n" for i, name in enumerate(names)))
    return path


@pytest.fixture
def fasta(tmp_path):
    """A small input."""
    return write_fasta(tmp_path / "in.fasta", mixed_records(2))


def test_all_inputs_that_cannot_be_read_are_named_in_one_error(tmp_path, fasta):
    """Missing, not sequences, cut off, protein, packed with a stranger: each with its remedy, the good one not."""
    bad = {"text.fa": b"hello\n", "protein.fa": b">p\nMKLVEF\n", "zip.fa": b"PK\x03\x04", "cut.fq": b"@a\nAC\n+\nI"}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "cut.fa.gz").write_bytes(gzip.compress(random_dna(9000, 1).encode())[:900])
    paths = [fasta, tmp_path / "missing.fa", tmp_path, *(tmp_path / name for name in (*bad, "cut.fa.gz"))]
    with pytest.raises(InputsError) as caught:
        look_at([Sample(path.name, (str(path),)) for path in paths])
    assert [error.source for error in caught.value.errors] == [str(path) for path in paths[1:]]
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 inputs cannot be read:"
    for line, path in zip(lines[1:], paths[1:], strict=True):
        assert line.startswith(f"  {path}")
    with pytest.raises(InputError, match="no such file"):
        look_at([Sample("x", (str(tmp_path / "missing.fa"),))])
    look_at([Sample("x", (str(fasta),)), Sample("stdin", ("-",))])


def test_only_the_start_of_an_input_is_looked_at(tmp_path):
    """What is wrong a million bases later is found when it is read."""
    path = tmp_path / "long.fa"
    path.write_text(">a\n" + "ACGT" * 1_000_000 + "-\n")
    look_at([Sample("x", (str(path),))])


def test_a_pipe_is_not_used_up(tmp_path):
    """It can be read once only."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    look_at([Sample("x", (str(pipe),))])


def test_bad_inputs_are_refused_before_torch_is_loaded(tmp_path, fasta):
    """In a moment, and in one message."""
    program = (
        "import sys\nfrom virnucpro.cli import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    missing = [str(tmp_path / name) for name in ("a.fa", "b.fa")]
    command = [sys.executable, "-c", program, "predict", str(fasta), *missing, "-o", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert ended.stderr.splitlines()[-1] == "False"
    assert all(name in ended.stderr for name in missing)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
def test_an_input_is_never_replaced(virnucpro, tmp_path, link):
    """Under whatever name it lies where a result goes; nothing is read, nothing changed, --force or not."""
    out = tmp_path / "out"
    out.mkdir()
    source = write_fasta(tmp_path / "reads.fa", mixed_records(3))
    target = out / "x.virus.fna.gz"
    if link == "same":
        source = source.rename(target)
    elif link == "symbolic":
        target.symlink_to(source)
    else:
        target.hardlink_to(source)
    before = source.read_bytes()
    for more in ((), ("--force",)):
        ended = virnucpro("predict", source, "--name", "x", "-o", out, *more)
        assert ended.code == 2
        assert "would replace it" in ended.err
    assert source.read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == [target.name]


def test_nothing_that_a_command_reads_is_replaced(virnucpro, tmp_path, fasta):
    """Also by report, call and assign, and by a run into its own input's folder."""
    out = tmp_path / "out"
    assert virnucpro("predict", fasta, "-o", out, "-t", 1).code == 0
    paf = tmp_path / "r.paf"
    paf.write_text("")
    twin, link, tree = (tmp_path / name for name in ("twin.json", "link.h5", "tree.json"))
    twin.write_text("")
    link.symlink_to(fasta)
    tree.hardlink_to(fasta)
    paf.write_text("a\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "in.sequences.tsv").hardlink_to(fasta)
    before = fasta.read_bytes(), (out / "in.sequences.tsv").read_bytes()
    for command in (
        ("report", out, "-o", fasta),
        ("report", out, "-o", out / "in.sequences.tsv"),
        ("call", out, "-o", other),
        ("assign", out, "--reads", paf, "-o", paf),
        ("assign", out, "--reads", paf, "-o", fasta),
        ("assign", out, "--reads", twin, "-o", tmp_path / "twin"),
        ("embed", fasta, "-o", link),
        ("hierarchy", paf, "--table", fasta, "-o", tree),
        ("nearest", fasta, "--against", link, "-o", link),
    ):
        ended = virnucpro(*command)
        assert ended.code == 2, command
        assert "would replace it" in ended.err
    assert (fasta.read_bytes(), (out / "in.sequences.tsv").read_bytes()) == before
    second = shutil.copytree(out, tmp_path / "second")
    ended = virnucpro("call", out, "-o", second)
    assert (ended.code, "holds another run" in ended.err) == (2, True)
    with pytest.raises(UsageError, match="the run's own"):
        refuse_overwriting([out / "run/index.json"], results_of(out, ["x"]), out)


def test_places_that_are_no_places_are_said_in_one_line(virnucpro, tmp_path, fasta):
    """An empty name, as of a variable that is not set; a link that leads to itself; a folder where a result belongs."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "out/in.sequences.tsv").mkdir(parents=True)
    for output, code in (("", 2), (tmp_path / "loop", 4), (fasta / "out", 4), (tmp_path / "out", 2)):
        ended = virnucpro("predict", fasta, "-o", output, "--force")
        assert ended.code == code, output
        assert "internal" not in ended.err
        assert "Mend it" not in ended.err


def test_a_pair_on_the_command_line_is_one_sample(virnucpro, tmp_path):
    """Named by what the files have in common; several pairs, and files by themselves, go together."""
    files = [
        fastq(tmp_path / f"{stem}_{i}.fq", [f"r.{n}.{i}" for n in range(3)], 9 * i) for stem in "st" for i in (1, 2)
    ]
    more = fastq(tmp_path / "alone.fq", ["a"])
    pairs = ("-1", files[0], "-2", files[1], "--reads1", files[2], "--reads2", files[3])
    assert virnucpro("predict", more, *pairs, "-o", tmp_path / "out", "-t", 1).code == 0
    names = {
        stem: [row["name"] for row in read_tsv(tmp_path / f"out/{stem}.sequences.tsv")] for stem in ("alone", "s", "t")
    }
    assert names["alone"] == ["a"]
    assert names["s"] == names["t"] == [f"r.{n}.{i}/{i}" for i in (1, 2) for n in range(3)]
    assert virnucpro("predict", more, "-1", files[0], "-o", tmp_path / "out2").code == 2
    assert virnucpro("predict", "-1", files[0], "-2", files[0], "-o", tmp_path / "out2").code == 2


def test_files_named_like_mates_get_a_hint(virnucpro, tmp_path):
    """With what to type; they are read as they were given all the same."""
    one, two = (fastq(tmp_path / f"s_R{i}_001.fq", ["a"], i) for i in (1, 2))
    ended = virnucpro("predict", one, two, "-o", tmp_path / "out", "-t", 1)
    assert ended.code == 0
    assert f"-1 {one} -2 {two}" in ended.err
    assert probable_pairs(["a/x_1.fq", "b/x_2.fq", "a/x_3.fq", "a/y.fq", "y_1.fa"]) == []
    assert probable_pairs(["a/x.1.fq.gz", "a/y_R2.fq", "a/x.2.fq.gz", "a/y_R1.fq"]) == [
        ("a/x.1.fq.gz", "a/x.2.fq.gz"),
        ("a/y_R1.fq", "a/y_R2.fq"),
    ]


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("d/s_1.fq.gz", "d/s_2.fq.gz", "s"),
        ("s_R1.fastq", "s_R2.fastq", "s"),
        ("s_S1_L001_R1_001.fastq.gz", "s_S1_L001_R2_001.fastq.gz", "s_S1_L001"),
        ("SRR1.1.fq", "SRR1.2.fq", "SRR1"),
        ("forward.fq", "backward.fq", "forward"),
    ],
)
def test_a_pair_is_named_by_what_its_files_share(first, second, name):
    """Or like the first where they share nothing."""
    assert pairs_of([first], [second]) == (Sample(name, (first, second)),)


def test_one_sample_can_be_named(virnucpro, tmp_path, fasta):
    """A file, a pair or standard input; several are named in a sheet."""
    assert virnucpro("predict", fasta, "--name", "gut 1", "-o", tmp_path / "out", "-t", 1, "--no-report").code == 0
    assert (tmp_path / "out/gut 1.sequences.tsv").exists()
    ended = virnucpro("predict", fasta, fasta, "--name", "x", "-o", tmp_path / "out2")
    assert (ended.code, "--samplesheet" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("s" * 226 + ".fa", "226 bytes"),
        ("ta\tb.fa", "control character"),
        ("new\nline.fa", "control character"),
        (b"caf\xe9.fa", "not UTF-8"),
        ("", "is empty"),
        (".fa", "begins with '.'"),
        ("..", "begins with '.'"),
    ],
)
def test_a_name_that_results_cannot_carry_is_refused_first(name, problem):
    """With what to do: --name."""
    with pytest.raises(UsageError, match=problem):
        samples_of([os.fsdecode(name)])
    with pytest.raises(UsageError, match="would both write"):
        samples_of(["a/Reads.fa", "b/reads.fa"])
    with pytest.raises(UsageError, match="would both write"):
        samples_of(["caf\u00e9.fa", "cafe\u0301.fa"])


def test_names_that_repeat_are_counted_within_a_sample(virnucpro, tmp_path):
    """Two samples may hold contigs of the same names."""
    paths = [write_fasta(tmp_path / f"{stem}.fa", mixed_records(2)) for stem in "ab"]
    ended = virnucpro("predict", *paths, "-o", tmp_path / "out", "-t", 1, "--no-report")
    assert ended.code == 0
    assert "came before" not in ended.err


def test_plan_takes_the_inputs_of_predict(virnucpro, tmp_path):
    """Pairs and sheets; the command that it prints has them."""
    one, two = (fastq(tmp_path / f"s_{i}.fq", [f"r/{i}"], i) for i in (1, 2))
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("sample,fastq_1,fastq_2\nx,s_1.fq,s_2.fq\n")
    ended = virnucpro("plan", "-1", one, "-2", two, "--samplesheet", sheet, "--seconds", 0.1)
    assert ended.code == 0
    assert f"-1 {one} -2 {two} --samplesheet {sheet}" in ended.out
