"""Genes of a run: the same however it is cut, resumed or called again; calls and tables hold what they say."""

from __future__ import annotations

import gzip
import shutil
from functools import partial
from itertools import pairwise

import pytest
import yaml
from Bio.Seq import Seq
from conftest import random_dna, read_tsv
from made_genomes import letters_of, prophage

from virnucpro.errors import InputError
from virnucpro.nearest.genes import find_genes
from virnucpro.nearest.residues import LETTERS
from virnucpro.nearest.search import search
from virnucpro.nearest.table import load_table
from virnucpro.run.predict import score
from virnucpro.sequence.ragged import Ragged
from virnucpro.settings import make_settings
from virnucpro.training.records import measure_folder
from virnucpro.training.summary import records_text

WEIGHTS = {"lengths": [500], "intercept": [0], "fragments": [0], "genes": [0, -3, -3, -3, 0, 3, 3]}
"""Only genes count, since the tiny model's weights are random."""
KNOTS = [0, 40, 200]
EVIDENCE = {
    "lengths": [300],
    "knots": KNOTS,
    "virus": [[0.0] * len(KNOTS)],
    "cell": [[0.0] * len(KNOTS)],
    "traits": [[0.0] * 5],
}
"""That fragments say nothing."""


@pytest.fixture(scope="module")
def made():
    return prophage()


@pytest.fixture(scope="module")
def bundle(tiny_bundle, made, tmp_path_factory):
    """The tiny bundle with the table of the made chromosome."""
    folder = tmp_path_factory.mktemp("bundle") / "with-table"
    shutil.copytree(tiny_bundle, folder)
    made.table.save(folder / "nearest.npz.zst")
    settings = yaml.safe_load((folder / "bundle.yaml").read_text())
    settings |= {"nearest": "nearest.npz.zst", "evidence": EVIDENCE, "records": WEIGHTS, "min_length": 100}
    settings |= {"repetitive": "doubt"}
    (folder / "bundle.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def fasta(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "in.fasta"
    records = {
        "short": made.phage[:900],
        "chromosome": made.bases,
        "phage": made.phage.lower(),
        "noise": random_dna(3000, 4),
    }
    path.write_text("".join(f">{name}\n{bases}\n" for name, bases in records.items()))
    return path


def results_of(folder):
    """Every result file but those with times in them."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix not in (".log", ".html"))
    return {path.name: path.read_bytes() for path in files if "json" not in path.name and "_mqc" not in path.name}


@pytest.fixture(scope="module")
def finished(bundle, fasta, tmp_path_factory, virnucpro_once):
    folder = tmp_path_factory.mktemp("run") / "out"
    assert virnucpro_once("predict", fasta, "-m", bundle, "-o", folder, "-t", 1, "-q").code == 0
    return folder


def test_a_chromosome_is_host_with_a_provirus_and_the_phage_is_virus(made, finished):
    calls = {row["name"]: row["call"] for row in read_tsv(finished / "in.sequences.tsv")}
    assert (calls["chromosome"], calls["phage"]) == ("not_virus", "virus")
    rows = [row for row in read_tsv(finished / "in.regions.tsv") if row["kind"] == "provirus"]
    assert [row["sequence"] for row in rows] == ["chromosome"]
    assert abs(int(rows[0]["start"]) - 1 - made.start) <= 3
    assert abs(int(rows[0]["stop"]) - made.stop) <= 3
    inside = [row for row in read_tsv(finished / "in.genes.tsv") if row["region"] == "provirus"]
    assert len(inside) == int(rows[0]["num_genes"])
    with gzip.open(finished / "in.proviruses.fna.gz", "rt") as stream:
        assert stream.read().split("\n")[1] == made.bases[int(rows[0]["start"]) - 1 : int(rows[0]["stop"])]


def test_a_gap_changes_neither_genes_nor_regions(made, bundle):
    """Their bounds are on the record as given; one in a gene, at either end of the provirus, or around everything."""
    settings = make_settings(None, {"science.model": str(bundle), "runtime.threads": 1})
    places = sorted({0, 1234, made.start - 40, made.start + 3000, made.stop - 1, made.stop + 40, len(made.bases)})
    gapped = ("N" * 900).join(made.bases[at:to] for at, to in pairwise([0, *places, len(made.bases)]))
    plain, changed = (score([("a", made.phage), ("b", bases)], settings) for bases in (made.bases, gapped))
    assert [changed.closed(each).tolist() for each in (changed.genes, changed.sites)] == [
        plain.genes.tolist(),
        plain.sites.tolist(),
    ]
    then, now = plain.call(), changed.call()
    assert len(then.proviruses) == 1
    assert changed.closed(now.proviruses).tolist() == then.proviruses.tolist()
    assert now.calls.tobytes() == then.calls.tobytes()
    for gene, given in zip(plain.genes, changed.genes, strict=True):
        spanned = gapped[given["start"] : given["stop"]].replace("N", "")
        assert gene["sequence"] == 0 or spanned == made.bases[gene["start"] : gene["stop"]]


def test_the_table_of_genes_holds_those_of_each_record_by_itself(made, finished, bundle):
    table = load_table(bundle / "nearest.npz.zst")
    rows = [row for row in read_tsv(finished / "in.genes.tsv") if row["name"] == "chromosome"]
    found = find_genes(letters_of(made.bases))
    assert [(int(row["start"]) - 1, int(row["stop"])) for row in rows] == list(
        zip(found.starts.tolist(), found.stops.tolist(), strict=True)
    )
    assert [int(row["gene"]) for row in rows] == list(range(1, len(rows) + 1))
    texts = []
    for row in rows:
        bases = Seq(made.bases[int(row["start"]) - 1 : int(row["stop"])])
        texts.append(str((bases if row["strand"] == "+" else bases.reverse_complement()).translate()))
    assert set("".join(texts)) <= set(LETTERS)
    bits = search(table, Ragged.from_bytes([text.encode() for text in texts])).bits
    assert [row["bits_virus"] for row in rows] == [f"{bit:.1f}" if bit else "NA" for bit in bits[:, 0].tolist()]
    assert {row["family"] for row in rows if row["bits_virus"] != "NA"} == {"Madeviridae"}
    assert not any(row["name"] == "short" for row in read_tsv(finished / "in.genes.tsv"))


@pytest.mark.parametrize(("unit_rows", "threads"), [(7, 2), (64, 1)])
def test_neither_units_nor_threads_change_a_result(finished, bundle, fasta, tmp_path, virnucpro, unit_rows, threads):
    options = ("--unit-rows", unit_rows, "-t", threads, "-q")
    assert virnucpro("predict", fasta, "-m", bundle, "-o", tmp_path / "out", *options).code == 0
    assert results_of(tmp_path / "out") == results_of(finished)


def test_a_run_whose_genes_are_not_all_there_is_resumed(finished, bundle, fasta, tmp_path, virnucpro):
    out = tmp_path / "out"
    assert virnucpro("predict", fasta, "-m", bundle, "-o", out, "--unit-rows", 40, "-q").code == 0
    units = sorted((out / "run" / "genes").glob("unit-*.h5"))
    assert len(units) > 3
    kept = units[0].stat().st_mtime_ns
    for path in (*units[1::2], out / "run" / "genes" / "organisms.json"):
        path.unlink()
    assert virnucpro("predict", fasta, "-m", bundle, "-o", out, "--unit-rows", 40, "-q").code == 0
    assert units[0].stat().st_mtime_ns == kept
    assert results_of(out) == results_of(finished)


def test_short_records_have_no_stage_of_genes(bundle, made, tmp_path, virnucpro):
    (tmp_path / "in.fasta").write_text(f">one\n{made.phage[:900]}\n>other\n{made.phage[900:2000]}\n")
    assert virnucpro("predict", tmp_path / "in.fasta", "-m", bundle, "-o", tmp_path / "out", "-q").code == 0
    assert (tmp_path / "out" / "in.sequences.tsv").is_file()
    assert not (tmp_path / "out" / "run" / "genes").exists()


def test_calling_again_takes_the_genes_that_are_stored(finished, tmp_path, virnucpro):
    """With the model gone too."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    assert virnucpro("call", copy, "-o", tmp_path / "again", "-q").code == 0
    assert results_of(tmp_path / "again") == results_of(finished)


def test_a_page_shows_the_genes(finished):
    page = (finished / "in.report.html").read_text()
    assert "Genes of viruses and proviruses" in page
    assert "made phage (Madeviridae)" in page
    assert page.count("<figure") >= 2


def test_whole_records_are_measured(made, bundle, tmp_path):
    """Calls by truth, curated proviruses, and a record without a label is refused."""
    (tmp_path / "in.fasta").write_text(f">made|CHR.1\n{made.bases}\n>phage\n{made.phage}\n")
    (tmp_path / "labels.tsv").write_text("file\tname\ttruth\nin\tmade|CHR.1\tbacteria\nin\tphage\tvirus\n")
    (tmp_path / "prophages.tsv").write_text(f"accession\tstart\tstop\nCHR.2\t{made.start + 1}\t{made.stop}\n")
    settings = make_settings(None, {"science.model": str(bundle), "runtime.threads": 1})
    scored = partial(score, settings=settings)
    found = measure_folder(tmp_path, scored)
    assert found["records"]["by_class"]["bacteria"]["not_virus"] == 1
    assert found["records"]["by_family"]["in"]["virus"] == 1
    assert (found["curated"]["found"], found["curated"]["curated"], found["curated"]["elsewhere"]) == (1, 1, 0)
    assert min(found["curated"]["base_recall"], found["curated"]["base_precision"]) > 0.99
    for name in found:
        assert records_text(name, found[name])
    (tmp_path / "labels.tsv").write_text("name\ttruth\nphage\tvirus\n")
    with pytest.raises(InputError, match="CHR"):
        measure_folder(tmp_path, scored)
