"""The schema of the tables: real files in every format hold it, and the documentation tells the same."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import mixed_records
from tiny_models import small_lite

from virnucpro.results.calls import CALLS
from virnucpro.results.schema import (
    CASCADE,
    FRAGMENTS,
    READS,
    REGIONS,
    ROWS,
    SAMPLES,
    SEQUENCES,
    TABLES,
    TAXA,
    TAXONOMY,
)

DOCS = Path(__file__).parents[2] / "docs" / "results.md"
ODD_NAMES = [b"plain", b"caf\xc3\xa9|x:y;z", b"bytes\xff\xfe", b'"quoted"\\', b"NA"]
OF_RUN = (SEQUENCES, FRAGMENTS, ROWS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, virnucpro_once):
    """The same input in every format; its ids are odd."""
    folder = tmp_path_factory.mktemp("runs")
    bases = [*mixed_records(len(ODD_NAMES) - 1, seed=5).values(), "ACGT"]
    records = b"".join(b">%b\n%b\n" % (name, s.encode()) for name, s in zip(ODD_NAMES, bases, strict=True))
    (folder / "in.fasta").write_bytes(records)
    first = folder / "tsv"
    asked = ("-o", first, "-q", "-t", 1, "--unit-rows", 5, "--keep-intermediate", "--legacy-output", "--taxonomy")
    assert virnucpro_once("predict", folder / "in.fasta", "-m", small_lite(), *asked).code == 0
    for file_format in ("jsonl", "parquet"):
        if file_format == "parquet":
            pytest.importorskip("pyarrow")
        asked = ("-o", folder / file_format, "-q", "--keep-intermediate", "--format", file_format)
        assert virnucpro_once("call", first, *asked).code == 0
    return folder


def lines_of(runs, table, file_format):
    """A table as (header, lines of values) with what JSON and Parquet have for values."""
    path = runs / file_format / table.files[file_format].replace("<stem>", "in")
    if file_format == "parquet":
        read = pytest.importorskip("pyarrow.parquet").read_table(path)
        return read.column_names, [tuple(line.values()) for line in read.to_pylist()]
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if file_format == "jsonl":
        lines = [json.loads(line) for line in content.decode().splitlines()]
        return list(lines[0]), [tuple(line.values()) for line in lines]
    header, *rows = [line.split(b"\t") for line in content.splitlines()]
    return [name.decode() for name in header], [
        tuple(typed(column, cell) for column, cell in zip(table.columns, row, strict=True)) for row in rows
    ]


def typed(column, cell):
    """A TSV cell as its column says."""
    if column.is_nullable and cell == b"NA":
        return None
    text = cell.decode(errors="backslashreplace")
    return {"string": str, "integer": int, "number": float}[column.type](text)


@pytest.mark.parametrize("file_format", ["tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("table", OF_RUN, ids=lambda table: table.name)
def test_real_tables_hold_the_schema(runs, table, file_format):
    """Columns in order; each value of its type, among those allowed, and missing only where it may be."""
    header, lines = lines_of(runs, table, file_format)
    assert tuple(header) == table.header
    assert lines
    types = {"string": str, "integer": int, "number": float}
    for line in lines:
        for column, value in zip(table.columns, line, strict=True):
            assert column.is_nullable if value is None else type(value) is types[column.type]
            assert not column.values or value is None or value in column.values


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
@pytest.mark.parametrize("table", OF_RUN, ids=lambda table: table.name)
def test_every_format_holds_the_same_values(runs, table, file_format):
    """To the last decimal, null for NA; a sequence that is called NA keeps its name."""
    assert lines_of(runs, table, file_format)[1] == lines_of(runs, table, "tsv")[1]


@pytest.mark.parametrize("table", [REGIONS, TAXONOMY, TAXA], ids=lambda table: table.name)
def test_tables_of_hits_hold_the_schema(runs, table):
    """Columns in order, and each value of its type."""
    header, lines = lines_of(runs, table, "tsv")
    assert tuple(header) == table.header
    assert all(
        not column.values or value is None or value in column.values
        for line in lines
        for column, value in zip(table.columns, line, strict=True)
    )


def test_other_commands_write_the_columns_of_the_schema():
    """The table of samples names its calls in the order they are counted; that of reads takes its header from here."""
    assert SAMPLES.header[3:7] == CALLS
    assert READS.header[:2] == ("read", "contig")


def test_names_are_bytes_in_tsv_and_escaped_where_a_format_needs_unicode(runs):
    """Byte for byte as read; elsewhere a byte that is no UTF-8 is written as its number."""
    table = (runs / "tsv" / "in.sequences.tsv").read_bytes().splitlines()[1:]
    assert [line.split(b"\t")[0] for line in table] == ODD_NAMES
    names = [line[0] for line in lines_of(runs, SEQUENCES, "jsonl")[1]]
    assert names == ["plain", "café|x:y;z", "bytes\\xff\\xfe", '"quoted"\\', "NA"]


def test_one_format_at_a_time(runs, virnucpro):
    """Tables of an earlier format go when the calls are made anew: two files never tell two stories."""
    out = runs / "jsonl"
    assert virnucpro("call", runs / "tsv", "-o", out, "-q").code == 0
    assert (out / "in.sequences.tsv").exists()
    assert not (out / "in.sequences.jsonl").exists()
    assert virnucpro("call", runs / "tsv", "-o", out, "-q", "--format", "jsonl", "--keep-intermediate").code == 0
    assert not (out / "in.sequences.tsv").exists()


def test_packed_tables_carry_no_time(runs):
    """The same run gives the same bytes."""
    assert (runs / "jsonl" / "in.fragments.jsonl.gz").read_bytes()[4:8] == b"\0" * 4


def test_legacy_tables_have_the_columns_of_the_schema(runs):
    """As published."""
    for name in ("prediction_results", "prediction_results_highestscore"):
        path = runs / "tsv" / TABLES[name].files["tsv"].replace("<stem>", "in")
        assert tuple(path.read_bytes().split(b"\n")[0].decode().split("\t")) == TABLES[name].header


def test_the_command_prints_every_table_or_one(virnucpro):
    """As JSON, with types, units, coordinates and allowed values."""
    everything = json.loads(virnucpro("schema").out)["tables"]
    assert everything.keys() == TABLES.keys()
    (one,) = json.loads(virnucpro("schema", "--table", "sequences").out)["tables"].values()
    assert one == everything["sequences"]
    columns = {column["name"]: column for column in one["columns"] if column["written"] == "always"}
    assert tuple(columns) == SEQUENCES.header
    assert [column["name"] for column in one["columns"]] == [*CASCADE.header]
    assert columns["call"]["values"] == ["virus", "uncertain", "not_virus", "no_call"]
    assert "1-based" in columns["top_region"]["coordinates"]
    assert columns["p_virus"]["nullable"]
    ended = virnucpro("schema", "--table", "sequence")
    assert (ended.code, "sequences" in ended.err) == (2, True)


@pytest.mark.parametrize("table", [*OF_RUN, TABLES["failed"]], ids=lambda table: table.name)
def test_the_documentation_tells_of_every_column(table):
    """In order, and names each allowed word."""
    text = DOCS.read_text()
    part = text[text.index(f"`{table.files['tsv']}`") :].split("\n## ")[0]
    found = re.findall(r"^\| ([a-z_]+) \|", part, flags=re.MULTILINE)
    columns = (*table.columns, *table.cascade_columns)
    assert [name for name in found if name != "column"] == [column.name for column in columns]
    for column in columns:
        for value in column.values:
            assert str(value) in part


def test_a_format_whose_library_is_missing_is_refused_with_the_extra_that_brings_it(runs):
    """Exit 2 before any work."""
    hidden = "import sys; sys.modules['pyarrow'] = None; from virnucpro.cli import main; main()"
    asked = ["call", runs / "tsv", "-o", runs / "none", "--format", "parquet"]
    ended = subprocess.run([sys.executable, "-c", hidden, *asked], capture_output=True, text=True, check=False)
    assert (ended.returncode, "virnucpro[parquet]" in ended.stderr) == (2, True)
    assert not (runs / "none").exists()
