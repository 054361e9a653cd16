"""Bad and odd input, through the command line: one clear line and a documented exit code, or a true answer."""

from __future__ import annotations

import gzip
import os

import pytest
from conftest import mixed_records, open_dna, random_dna, read_tsv, write_fasta
from tiny_models import small_lite


def predict(virnucpro, path, out):
    return virnucpro("predict", path, "-o", out, "--threads", 1, "--no-progress", "-m", small_lite())


def sequences(out, stem="in"):
    return read_tsv(out / f"{stem}.sequences.tsv")


@pytest.mark.parametrize("content", [b"", b"\n\n", gzip.compress(b"", mtime=0)])
def test_empty_input_gives_tables_with_headers_only(virnucpro, tmp_path, content):
    """An empty file is no failure: exit 0, a warning, header-only tables."""
    path = tmp_path / "in.fasta"
    path.write_bytes(content)
    ended = predict(virnucpro, path, tmp_path / "out")
    assert ended.code == 0
    assert "no sequences" in ended.err
    assert sequences(tmp_path / "out") == []
    assert (tmp_path / "out" / "in.sequences.tsv").read_text().startswith("name\tlength\t")


def test_a_header_without_bases_is_a_row_of_status_empty(virnucpro, tmp_path):
    """An empty record, also the last and the only one, is reported and the run goes on."""
    path = tmp_path / "in.fasta"
    path.write_text(">only_header\n>second\n" + open_dna(300, 1) + "\n>last\n")
    assert predict(virnucpro, path, tmp_path / "out").code == 0
    assert [row["status"] for row in sequences(tmp_path / "out")] == ["empty", "ok", "empty"]
    path.write_text(">only_header\n")
    assert predict(virnucpro, path, tmp_path / "out2").code == 0
    assert [row["status"] for row in sequences(tmp_path / "out2")] == ["empty"]


def test_duplicate_and_odd_ids_keep_their_rows_byte_for_byte(virnucpro, tmp_path):
    """Ids are never parsed: equal ones keep a row each, and no letter of any is changed."""
    names = ["a", "a", "gi|1|x:2;3#4", "x_chunk_2", "x_chunk_2_chunk_1F1", 'n\'"quoted"', "é", "=1+1"]
    path = tmp_path / "in.fasta"
    path.write_text("".join(f">{name} some text\n{open_dna(330, i)}\n" for i, name in enumerate(names)))
    ended = predict(virnucpro, path, tmp_path / "out")
    assert ended.code == 0
    assert "came before (a" in ended.err
    assert [row["name"] for row in sequences(tmp_path / "out")] == names


def test_lower_case_rna_and_line_ends_change_nothing(virnucpro, tmp_path):
    """Case, U for T, CRLF, wrapped lines and a missing last newline do not change the answer."""
    bases = open_dna(700, 3)
    forms = {
        "plain": f">x\n{bases}\n",
        "lower": f">x\n{bases.lower()}\n",
        "rna": f">x\n{bases.replace('T', 'U')}\n",
        "crlf": f">x\r\n{bases[:350]}\r\n{bases[350:]}\r\n",
        "wrapped": ">x\n" + "\n".join(bases[i : i + 60] for i in range(0, 700, 60)),
    }
    answers = {}
    for name, text in forms.items():
        path = tmp_path / f"{name}.fasta"
        path.write_bytes(text.encode())
        assert predict(virnucpro, path, tmp_path / name).code == 0
        answers[name] = sequences(tmp_path / name, name)
    assert all(answer == answers["plain"] for answer in answers.values())


def test_ambiguity_codes_and_runs_of_n_are_scored_where_bases_are_left(virnucpro, tmp_path):
    """IUPAC codes and N are legal; a record of nothing else gets no call and a reason."""
    bases = open_dna(600, 4)
    records = {"iupac": bases[:100] + "RYSWKMBDHV" + bases[100:], "n_run": bases[:300] + "N" * 700 + bases[300:]}
    path = write_fasta(tmp_path / "in.fasta", records | {"all_n": "N" * 1000})
    assert predict(virnucpro, path, tmp_path / "out").code == 0
    rows = sequences(tmp_path / "out")
    assert [row["status"] for row in rows] == ["ok", "ok", "ambiguous"]
    assert rows[2]["call"] == "no_call"
    assert "A, C, G or T" in rows[2]["reason"]


def test_one_base_records_are_too_short(virnucpro, tmp_path):
    """A thousand records of one base are a thousand rows."""
    path = write_fasta(tmp_path / "in.fasta", {f"r{i}": "ACGTN"[i % 5] for i in range(1000)})
    assert predict(virnucpro, path, tmp_path / "out").code == 0
    rows = sequences(tmp_path / "out")
    assert len(rows) == 1000
    assert {row["status"] for row in rows} == {"too_short"}


BROKEN = {
    "protein": (b">p\nMKLVEFIPQLEEFLKDP\n", "protein"),
    "binary": (bytes(range(256)) * 20, "FASTA"),
    "text_first": (b"hello\n>x\nACGT\n", "FASTA"),
    "gaps": (b">x\nACGT--ACGT\n", "gap"),
    "fastq_length": (b"@r1\nACGT\n+\nIII\n", "3 qualities"),
    "fastq_cut": (b"@r1\nACGT\n+\nIIII\n@r2\nAC", "line 6"),
    "truncated_gzip": (gzip.compress(b">x\n" + random_dna(50_000, 1).encode())[:-400], "gzip"),
    "bam": (gzip.compress(b"BAM\1" + bytes(100)), "samtools"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_nucleotide_file_is_refused_in_one_line(virnucpro, tmp_path, name):
    """Exit 3, and one line that names the file and the trouble."""
    content, word = BROKEN[name]
    path = tmp_path / "in.fasta"
    path.write_bytes(content)
    ended = predict(virnucpro, path, tmp_path / "out")
    assert ended.code == 3
    errors = [line for line in ended.err.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1
    assert str(path) in errors[0]
    assert word.lower() in errors[0].lower()
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out" / "in.sequences.tsv").exists()


def test_missing_file_directory_and_unreadable_file_are_refused(virnucpro, tmp_path):
    """Exit 3 with the path; nothing else is touched."""
    assert predict(virnucpro, tmp_path / "nowhere.fasta", tmp_path / "out").code == 3
    assert predict(virnucpro, tmp_path, tmp_path / "out").code == 3
    secret = write_fasta(tmp_path / "secret.fasta", mixed_records(1))
    secret.chmod(0)
    user = os.geteuid()
    if user == 0:  # Root reads anything, so the user nobody asks; a first run loads what root alone may read.
        good = write_fasta(tmp_path / "good.fasta", mixed_records(1))
        assert predict(virnucpro, good, tmp_path / "first").code == 0
        for folder in (tmp_path, *tmp_path.parents[:3]):
            folder.chmod(0o777)
        os.seteuid(65534)
    try:
        ended = predict(virnucpro, secret, tmp_path / "second")
    finally:
        os.seteuid(user)
    assert ended.code == 3, ended.err
    assert "secret.fasta" in ended.err


def test_an_output_that_is_a_file_or_holds_files_of_our_names_is_refused(virnucpro, tmp_path):
    """Exit 2; other files in a directory are left alone, and replaced with --force where they have a result's name."""
    path = write_fasta(tmp_path / "in.fasta", mixed_records(2))
    file = tmp_path / "file"
    file.write_text("mine")
    assert predict(virnucpro, path, file).code == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "full" / "in.sequences.tsv").write_text("mine")
    ended = predict(virnucpro, path, tmp_path / "full")
    assert ended.code == 2
    assert "in.sequences.tsv" in ended.err
    assert "--force" in ended.err
    assert virnucpro("predict", path, "-o", tmp_path / "full", "--force", "-m", small_lite()).code == 0
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_two_inputs_with_one_stem_are_refused_before_anything_is_read(virnucpro, tmp_path):
    """Two inputs never write into one table."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_fasta(tmp_path / folder / "reads.fasta", mixed_records(1))
    ended = virnucpro("predict", tmp_path / "a/reads.fasta", tmp_path / "b/reads.fasta", "-o", tmp_path / "out")
    assert ended.code == 2
    assert "reads.sequences.tsv" in ended.err


def test_usage_errors_name_the_option(virnucpro, tmp_path):
    """Exit 2 and a line that says what to type."""
    path = write_fasta(tmp_path / "in.fasta", mixed_records(1))
    assert virnucpro("predict").code == 2
    assert virnucpro("predict", path).code == 2
    assert virnucpro("predict", path, "-o", tmp_path / "o", "--nonsense").code == 2
    assert virnucpro("predict", path, "-o", tmp_path / "o", "--model-type", "custom").code == 2
    assert virnucpro("predict", path, "-o", tmp_path / "o", "--dtype", "float16", "--device", "cpu").code == 2
    assert virnucpro("predict", path, "-o", tmp_path / "o", "--gpus", "7").code == 2
    assert virnucpro("predict", path, "-o", tmp_path / "o", "--model", tmp_path / "none").code == 6
    assert virnucpro("frobnicate").code == 2


@pytest.mark.slow
def test_a_record_of_60_mb_is_one_row(virnucpro, tmp_path):
    """One record of 60 million bases spans many units and is one line of the table."""
    path = tmp_path / "in.fasta"
    block = random_dna(100_000, 1)
    with path.open("w") as stream:
        stream.write(">chromosome\n")
        for shift in range(600):
            stream.write(block[shift:] + block[:shift] + "\n")
    ended = predict(virnucpro, path, tmp_path / "out")
    assert ended.code == 0
    (row,) = sequences(tmp_path / "out")
    assert (row["length"], row["num_fragments"]) == ("60000000", "120000")
