"""The main job, end to end, through the command line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys

import pytest
import torch
import zstandard
from conftest import GOLDEN, mixed_records, open_dna, random_dna, read_tsv, write_fasta
from tiny_models import small_lite

SMALL_UNITS = ("--unit-rows", 7, "--token-budget", 900, "--threads", 1)


def test_every_sequence_has_one_row_in_input_order(virnucpro, tmp_path):
    """Rows in are rows out, whatever becomes of a sequence."""
    records = mixed_records(40) | {"short": "ACGT", "empty": "", "ambiguous": "N" * 600, "one": "A"}
    fasta = write_fasta(tmp_path / "mix.fasta", records)
    ended = virnucpro("predict", fasta, "-o", tmp_path / "out", "-m", small_lite(), *SMALL_UNITS)
    assert ended.code == 0, ended.err
    rows = read_tsv(tmp_path / "out" / "mix.sequences.tsv")
    assert [row["name"] for row in rows] == list(records)
    assert [int(row["length"]) for row in rows] == [len(sequence) for sequence in records.values()]
    statuses = {row["name"]: row["status"] for row in rows}
    assert statuses["short"] == statuses["one"] == "too_short"
    assert statuses["empty"] == "empty"
    assert statuses["ambiguous"] == "ambiguous"
    for row in rows:
        assert (row["status"] == "ok") == (row["call"] != "no_call") == (row["p_virus"] != "NA")
        assert (row["reason"] == "NA") == (row["status"] == "ok")


def test_the_bundled_model_scores_150_300_and_500_bases_with_and_without_an_open_frame(virnucpro, tmp_path):
    """Every sequence of at least 100 bases gets a probability from ``lite``."""
    records = {
        f"{kind}_{length}": make(length, length)
        for kind, make in (("open", open_dna), ("closed", random_dna))
        for length in (100, 150, 300, 500)
    }
    fasta = write_fasta(tmp_path / "reads.fna", records)
    assert virnucpro("predict", fasta, "-o", tmp_path / "out").code == 0
    rows = {row["name"]: row for row in read_tsv(tmp_path / "out" / "reads.sequences.tsv")}
    assert all(0 <= float(row["p_virus"]) <= 1 for row in rows.values())
    assert {rows[f"open_{length}"]["evidence"] for length in (150, 300, 500)} == {"protein+nucleotide"}
    assert rows["closed_500"]["evidence"] == "nucleotide"


def test_every_compression_and_stdin_give_the_same_tables(virnucpro, tmp_path):
    """Formats are told by content, not by name."""
    fasta = write_fasta(tmp_path / "in.fasta", mixed_records(6))
    text = fasta.read_bytes()
    packed = {
        "gz": gzip.compress(text),
        "bz2": bz2.compress(text),
        "xz": lzma.compress(text),
        "zst": zstandard.compress(text),
        "txt": text,
    }
    paths = []
    for name, content in packed.items():
        paths.append(tmp_path / f"in_{name}.{name}")
        paths[-1].write_bytes(content)
    model = ("-m", small_lite(), "--no-report", "-q")
    assert virnucpro("predict", *paths, "-o", tmp_path / "out", *model).code == 0
    with fasta.open("rb") as stream:
        piped = subprocess.run(
            [sys.executable, "-m", "virnucpro", "predict", "-", "-o", tmp_path / "piped", *model],
            stdin=stream,
            capture_output=True,
            check=True,
        )
    assert piped.stdout == piped.stderr == b""
    expected = (tmp_path / "piped" / "stdin.sequences.tsv").read_bytes()
    assert expected.count(b"\n") == 7
    for name in ("in_gz", "in_bz2", "in_xz", "in_zst", "in_txt.txt"):
        assert (tmp_path / "out" / f"{name}.sequences.tsv").read_bytes() == expected


def test_fastq_reads_are_predicted(virnucpro, tmp_path):
    """FASTQ gives the same answers as FASTA of the same bases."""
    records = {name: sequence[:150] for name, sequence in mixed_records(10).items()}
    fasta = write_fasta(tmp_path / "a.fasta", records)
    fastq = tmp_path / "b.fastq"
    fastq.write_text("".join(f"@{name} 1:N:0\n{s}\n+\n{'I' * len(s)}\n" for name, s in records.items()))
    assert virnucpro("predict", fasta, fastq, "-o", tmp_path / "out", "-m", small_lite()).code == 0
    tables = [(tmp_path / "out" / f"{stem}.sequences.tsv").read_bytes() for stem in "ab"]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("length", [300, 500])
@pytest.mark.parametrize("model", ["lite", "tiny"])
def test_kept_rows_equal_the_golden_table(virnucpro, tmp_path, tiny_bundle, length, model):
    """``--keep-intermediate`` writes the rows of the reference scripts, byte for byte, with any model."""
    ended = virnucpro(
        "predict", GOLDEN / "golden_input.fasta", "-o", tmp_path, "--model", tiny_bundle if model == "tiny" else "lite",
        "--keep-intermediate", "--expected-length", length,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    rows = read_tsv(tmp_path / "golden_input.rows.tsv.gz")
    golden = read_tsv(GOLDEN / f"golden_frames_{length}.tsv.gz")
    ours = [(row["name"], row["nucleotide"], row["protein"]) for row in rows]
    expected = [(row["frame_id"], row["nucleotide"], row["protein"]) for row in golden if row["frame_id"]]
    if model == "lite":  # which masks the fragments of records that are too short for it: they have no rows
        cut = read_tsv(tmp_path / "golden_input.fragments.tsv.gz")
        windows = {f"{row['name']}_chunk_{row['fragment']}" for row in cut if row["num_rows"] != "0"}
        expected = [row for row in expected if row[0][:-2] in windows]
        assert len(expected) > 100
    assert ours == expected


def test_hits_are_the_called_sequences_base_for_base(virnucpro, tmp_path):
    """``.virus.fna.gz`` holds what was called virus, as it was read, case kept."""
    records = {name: s if i % 3 else s.lower() for i, (name, s) in enumerate(mixed_records(30).items())}
    records["n_run"] = records["seq_4"][:200] + "N" * 200 + records["seq_4"][200:]
    fasta = write_fasta(tmp_path / "in.fasta", records)
    ended = virnucpro("predict", fasta, "-o", tmp_path / "out", "--threshold", 0.15, "-m", small_lite(), *SMALL_UNITS)
    assert ended.code == 0
    rows = read_tsv(tmp_path / "out" / "in.sequences.tsv")
    called = {row["name"]: records[row["name"]] for row in rows if row["call"] == "virus"}
    hits = gzip.decompress((tmp_path / "out" / "in.virus.fna.gz").read_bytes()).decode()
    assert hits == "".join(f">{name}\n{sequence}\n" for name, sequence in called.items())
    assert called
    assert all(
        (float(row["p_virus"]) >= 0.14995) == (row["call"] == "virus") for row in rows if row["call"] != "no_call"
    )


def test_fragments_of_a_sequence_cover_it(virnucpro, tmp_path):
    """``.fragments.tsv.gz`` is 1-based closed and leaves no base out."""
    fasta = write_fasta(tmp_path / "in.fasta", {"long": open_dna(3111, 1), "short": open_dna(200, 2)})
    assert virnucpro("predict", fasta, "-o", tmp_path / "out", "-m", small_lite(), *SMALL_UNITS).code == 0
    rows = read_tsv(tmp_path / "out" / "in.fragments.tsv.gz")
    covered = {name: set() for name in ("long", "short")}
    for row in rows:
        covered[row["name"]].update(range(int(row["start"]), int(row["stop"]) + 1))
    assert covered == {"long": set(range(1, 3112)), "short": set(range(1, 201))}
    assert [int(row["fragment"]) for row in rows if row["name"] == "long"] == list(range(1, 8))


def test_duplicates_are_computed_once_and_reported_each(virnucpro, tmp_path):
    """The same sequence twice has the same answer twice and costs one."""
    records = mixed_records(12)
    doubled = records | {f"again_{name}": sequence for name, sequence in records.items()}
    fasta = write_fasta(tmp_path / "in.fasta", doubled)
    assert (
        virnucpro(
            "predict", fasta, "-o", tmp_path / "out", "--keep-intermediate", "-m", small_lite(), *SMALL_UNITS
        ).code
        == 0
    )
    rows = read_tsv(tmp_path / "out" / "in.sequences.tsv")
    first, second = rows[:12], rows[12:]
    assert [{**row, "name": f"again_{row['name']}"} for row in first] == second
    kept = read_tsv(tmp_path / "out" / "in.rows.tsv.gz")
    assert len(kept) == 2 * sum(not row["name"].startswith("again") for row in kept)
    counts = json.loads((tmp_path / "out" / "in.run.json").read_text())["counts"]
    assert counts["num_rows"] == 2 * counts["num_rows_computed"]


def test_summary_and_run_record_add_up(virnucpro, tmp_path):
    """Counts of calls, statuses and frames add up to what was read."""
    fasta = write_fasta(tmp_path / "in.fasta", mixed_records(20) | {"none": ""})
    assert virnucpro("predict", fasta, "-o", tmp_path / "out", "-m", small_lite()).code == 0
    summary = json.loads((tmp_path / "out" / "in.summary.json").read_text())
    assert summary["num_sequences"] == 21
    assert sum(summary["sequences_by_call"].values()) == sum(summary["sequences_by_status"].values()) == 21
    assert sum(summary["rows_by_frame"].values()) == summary["num_rows"]
    record = json.loads((tmp_path / "out" / "in.run.json").read_text())
    assert record["inputs"][0]["num_sequences"] == 21
    assert {"torch", "numpy", "python"} <= record["versions"].keys()
    assert record["model"]["name"] == "lite"
    assert set(record["seconds"]) >= {"total", "extract", "embed", "classify", "tabulate", "write"}
    assert (tmp_path / "out" / "in.log").read_text()


def test_the_published_options_are_accepted_together(virnucpro, tmp_path, tiny_bundle):
    """A command line of the published re-implementation runs as it stands."""
    fasta = write_fasta(tmp_path / "in.fasta", mixed_records(8))
    ended = virnucpro(
        "predict", fasta, "--model-type", "custom", "--model-path", tiny_bundle, "--expected-length", 300,
        "--output-dir", tmp_path / "out", "--device", "cpu", "--batch-size", 256, "--parallel", "--merge-threads", 2,
        "--resume", "--no-progress", "--keep-intermediate", "--threads", 1,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert len(read_tsv(tmp_path / "out" / "in.sequences.tsv")) == 8


def test_a_published_model_that_is_not_there_says_where_it_was_sought(virnucpro, tmp_path, monkeypatch):
    """Exit code 6 and the path that is missing."""
    monkeypatch.setenv("VIRNUCPRO_CACHE", str(tmp_path / "cache"))
    fasta = write_fasta(tmp_path / "in.fasta", mixed_records(1))
    ended = virnucpro("predict", fasta, "-o", tmp_path / "out", "--model-type", "500")
    assert ended.code == 6
    assert str(tmp_path / "cache") in ended.err


def test_the_python_call_gives_what_the_command_gives(virnucpro, tmp_path):
    """The command line is a skin over ``virnucpro.predict``."""
    import virnucpro as package

    fasta = write_fasta(tmp_path / "in.fasta", mixed_records(5))
    assert virnucpro("predict", fasta, "-o", tmp_path / "cli", "-m", small_lite()).code == 0
    results = package.predict(
        [fasta], tmp_path / "python", package.make_settings(None, {"science.model": str(small_lite())})
    )
    assert results.path("sequences.tsv").read_bytes() == (tmp_path / "cli" / "in.sequences.tsv").read_bytes()
    assert sum(results.counts[0].calls.values()) == 5


def test_a_dtype_that_the_cpu_only_imitates_is_warned_of(virnucpro, tmp_path, tiny_bundle):
    """In the run record and the log; where the CPU has bfloat16 of its own, and in float32, nothing is said."""
    fasta = write_fasta(tmp_path / "in.fasta", {"a": open_dna(300, 1)})
    for dtype in ("float32", "bfloat16"):
        ended = virnucpro("predict", fasta, "-o", tmp_path / dtype, "--model", tiny_bundle, "--dtype", dtype)
        assert ended.code == 0, ended.err
        warnings = json.loads((tmp_path / dtype / "in.run.json").read_text())["warnings"]
        is_slow = dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
        assert any("imitates bfloat16" in warning for warning in warnings) == is_slow
        assert ("imitates bfloat16" in (tmp_path / dtype / "in.log").read_text()) == is_slow


def test_the_bundled_model_computes_in_float32_and_is_not_warned_of(virnucpro, tmp_path):
    fasta = write_fasta(tmp_path / "in.fasta", {"a": open_dna(300, 1)})
    assert virnucpro("predict", fasta, "-o", tmp_path / "out", "--dtype", "bfloat16").code == 0
    assert json.loads((tmp_path / "out" / "in.run.json").read_text())["warnings"] == []
