"""A table of proteins of a data set, and how much it counts beside a model."""

from __future__ import annotations

import gzip
import os
import sys

import numpy as np
import pytest
import yaml
from Bio.Seq import Seq
from click.testing import CliRunner
from test_training import write_data

from virnucpro.bundles import load_bundle
from virnucpro.cli.train import train as command
from virnucpro.errors import UsageError
from virnucpro.nearest.table import load_table
from virnucpro.training.genomes import is_random, load_genomes
from virnucpro.training.nearest import (
    MOST_OVERLAP,
    TABLE,
    THINNED,
    Protein,
    fit_table,
    fit_weights,
    longest_runs,
    proteins_of,
)

MMSEQS = f"""#!{sys.executable}
import sys
entries = open(sys.argv[2]).read().split(">")[1:]
first = {{}}
with open(sys.argv[3] + "_cluster.tsv", "w") as table:
    for entry in entries:
        name, _, letters = entry.partition("\\n")
        table.write(first.setdefault(letters, name) + "\\t" + name + "\\n")
"""


@pytest.fixture
def mmseqs(tmp_path, monkeypatch):
    """A program of that name whose clusters are equal proteins."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "mmseqs").write_text(MMSEQS)
    (folder / "mmseqs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def plain_runs(text: str, shortest: int) -> list[tuple[int, int, str]]:
    """Start, stop and protein of every stop-free run of both strands, on the forward strand."""
    found = []
    for strand in (1, -1):
        bases = text if strand == 1 else str(Seq(text).reverse_complement())
        for frame in range(3):
            codons = [bases[i : i + 3] for i in range(frame, len(bases) - 2, 3)]
            protein = "".join("*" if "N" in codon else str(Seq(codon).translate()) for codon in codons)
            at = frame
            for run in protein.split("*"):
                stop = at + 3 * len(run)
                if len(run) >= shortest:
                    found.append((at, stop, run) if strand == 1 else (len(text) - stop, len(text) - at, run))
                at = stop + 3
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_longest_runs_come_first_and_do_not_lie_upon_each_other(seed):
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 4, size=3000).astype(np.uint8)
    codes[generator.integers(0, 3000, size=3)] = 4
    text = "".join("ACGTN"[code] for code in codes)
    taken, expected = np.zeros(3000, dtype=bool), []
    for start, stop, run in sorted(plain_runs(text, 20), key=lambda run: (run[0] - run[1], run[0])):
        if taken[start:stop].sum() <= MOST_OVERLAP * (stop - start):
            taken[start:stop] = True
            expected.append(run.encode())
    found = longest_runs(codes, 20)
    assert sorted(found) == sorted(expected)
    assert list(map(len, found)) == sorted(map(len, found), reverse=True)


def test_proteins_of_cells_are_genes_and_those_of_others_runs(tmp_path):
    genomes = load_genomes(write_data(tmp_path / "data", 6000), "train")
    proteins = list(proteins_of(genomes, {str(genomes.ids[0]): "an organism"}))
    assert {protein.kind for protein in proteins} >= {"virus", "bacteria"}
    assert all(protein.group.startswith(protein.kind) for protein in proteins)
    assert "an organism" in {protein.organism for protein in proteins}


@pytest.mark.usefixtures("mmseqs")
def test_one_of_a_cluster_stays_and_of_the_lonely_ones_of_large_groups_a_share():
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    generator = np.random.default_rng(3)
    made = ["".join(letters[generator.integers(0, 20, size=60)]).encode() for _ in range(600)]
    alone = [Protein(text, "o", "Genus", "bacteria") for text in made[:400]]
    common = [Protein(text, "o", f"Genus {i}", "bacteria") for text in made[400:450] for i in range(3)]
    viral = [Protein(text, "o", "Somewhere", "virus") for text in made[450:]]
    table = fit_table([*alone, *common, *viral])
    assert table.is_viral.sum() == 150
    num_cells = int((~table.is_viral).sum())
    assert 50 < num_cells < 50 + 400 * (THINNED["bacteria"] + 0.12)
    assert len(fit_table([*alone, *common, *viral])) == len(table)


def test_without_the_program_that_clusters_the_error_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="MMseqs2"):
        fit_table([Protein(b"MKV", "", "g", "virus")])


def test_weights_are_those_that_made_the_labels():
    generator = np.random.default_rng(1)
    design = generator.normal(size=(60_000, 3))
    log_odds = generator.normal(size=60_000)
    truth = np.array([1.0, -0.5, 0.0])
    chance = 1 / (1 + np.exp(-2 * (log_odds + design @ truth) - 0.3))
    is_virus = generator.random(60_000) < chance
    found = fit_weights(log_odds, design, is_virus, np.ones(60_000))
    np.testing.assert_allclose(found, truth, atol=0.05)


@pytest.mark.usefixtures("mmseqs")
def test_one_command_makes_a_bundle_that_is_chosen_on_dev_and_made_of_everything(tmp_path):
    data, output = write_data(tmp_path / "data"), tmp_path / "bundle"
    arguments = ["--data", data, "-o", output, "--preset", "nearest", "--dev-share", "0.01", "--final", "--no-progress"]
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert "AUROC" in done.output
    bundle = load_bundle(str(output))
    settings = yaml.safe_load((output / "bundle.yaml").read_text())
    table = load_table(output / TABLE)
    assert settings["provenance"]["nearest"] == {
        "parts": ["train", "dev"],
        "proteins": len(table),
        "residues": table.num_residues,
    }
    assert any("virusNew" in name for name in table.group_names)  # the family that dev alone has
    assert bundle.evidence is not None
    assert bundle.rules.adds_nearest


def test_a_record_of_random_letters_is_named_and_a_genome_is_not(tmp_path, caplog):
    folder = write_data(tmp_path / "data", 6000)
    genomes = load_genomes(folder, "train")
    assert all(map(is_random, genomes))
    assert "as good as random letters" in caplog.text
    codons = np.array([[0, 0, 1], [2, 1, 3], [3, 3, 0], [0, 2, 2]], dtype=np.uint8)
    genomes.codes[:6000] = codons[np.random.default_rng(0).integers(0, 4, size=2000)].reshape(-1)
    assert [*map(is_random, genomes)] == [False] + [True] * (len(genomes) - 1)


def test_the_genomes_of_one_genus_are_on_one_side(tmp_path):
    folder = write_data(tmp_path / "data")
    text = gzip.decompress((folder / "manifest.tsv.gz").read_bytes()).decode()
    text = text.replace("bacteria_dev_0\tbacteria\tdev\tbacteria0", "bacteria_dev_0\tbacteria\tdev\tShigella")
    (folder / "manifest.tsv.gz").write_bytes(gzip.compress(text.encode()))
    dev = load_genomes(folder, "dev")
    assert "bacteria_dev_0" not in dev.ids
    assert "bacteria_dev_1" in dev.ids


def test_more_files_of_a_class_are_of_it_and_prophages_are_viral(tmp_path):
    folder = write_data(tmp_path / "data")
    train = folder / "train"
    (train / "fungi.fasta.gz").rename(train / "bacteria_more.fasta.gz")
    text = gzip.decompress((folder / "manifest.tsv.gz").read_bytes()).decode()
    text = text.replace("\tfungi\ttrain", "\tbacteria\ttrain").replace("\torganelle\ttrain", "\tprophage\ttrain")
    (folder / "manifest.tsv.gz").write_bytes(gzip.compress(text.encode()))
    (train / "organelle.fasta.gz").rename(train / "prophage.fasta.gz")
    genomes = load_genomes(folder, "train")
    assert (genomes.classes == "bacteria").sum() == 8
    assert set(genomes.groups[np.char.startswith(genomes.ids, "organelle")]) == {"prophage"}
    assert set(genomes.classes[np.char.startswith(genomes.ids, "organelle")]) == {"virus"}
