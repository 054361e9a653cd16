"""A run of a model with a table of proteins: what is nearest is added to fragments, however the run is cut."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import mixed_records, write_fasta

from virnucpro.nearest.evidence import TRAITS, look_at, read_evidence
from virnucpro.nearest.fragments import open_frames
from virnucpro.nearest.residues import LETTERS
from virnucpro.nearest.table import make_table
from virnucpro.sequence.ragged import Ragged

KNOTS = [0, 40, 200]
EVIDENCE = {
    "lengths": [150, 300],
    "knots": KNOTS,
    "virus": [[0.1, 0.5, 3.0], [0.0, 0.25, 2.0]],
    "cell": [[0.0, -0.5, -3.0], [0.2, -0.5, -2.5]],
    "traits": [[1.0, 0.5, -0.5, 0.3, 0.2], [0.5, 0.25, -0.25, 0.1, -0.4]],
}


@pytest.fixture
def with_table(tiny_bundle: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The tiny bundle with a table of proteins that some of the input codes for, and the input."""
    records = mixed_records(12, 5)
    fasta = write_fasta(tmp_path / "in.fa", records)
    text = Ragged.from_bytes(record.encode() for record in records.values())
    frames = open_frames(text).queries
    letters = np.frombuffer((LETTERS + "X*").encode(), dtype=np.uint8)
    proteins = Ragged(letters[frames.values], frames.offsets)
    kinds = [("organism", "group", "virus" if i % 2 else "bacteria") for i in range(len(proteins))]
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    make_table(proteins, kinds).save(folder / "nearest.npz.zst")
    settings = yaml.safe_load((folder / "bundle.yaml").read_text())
    settings |= {"nearest": "nearest.npz.zst", "evidence": EVIDENCE, "rows": "mean"}
    (folder / "bundle.yaml").write_text(yaml.safe_dump(settings))
    return folder, fasta


def fragments_of(run: Path) -> np.ndarray:
    return np.load(run / "run" / "table" / "fragments.npy")


def without_table(folder: Path) -> Path:
    plain = folder.parent / "plain"
    shutil.copytree(folder, plain)
    settings = yaml.safe_load((plain / "bundle.yaml").read_text())
    del settings["nearest"], settings["evidence"]
    (plain / "bundle.yaml").write_text(yaml.safe_dump(settings))
    return plain


def test_what_is_nearest_is_added_to_each_fragment_however_the_run_is_cut(virnucpro, with_table, tmp_path):
    folder, fasta = with_table
    assert virnucpro("predict", fasta, "-o", tmp_path / "plain-run", "--model", without_table(folder)).code == 0
    assert virnucpro("predict", fasta, "-o", tmp_path / "run", "--model", folder).code == 0
    plain, found = fragments_of(tmp_path / "plain-run"), fragments_of(tmp_path / "run")
    difference = found["log_odds"] - plain["log_odds"]
    assert (np.isnan(found["log_odds"]) == np.isnan(plain["log_odds"])).all()
    assert (np.abs(difference[~np.isnan(difference)]) > 0.1).any()
    cut = tmp_path / "cut"
    assert virnucpro("predict", fasta, "-o", cut, "--model", folder, "--unit-rows", 7, "-t", 2).code == 0
    np.testing.assert_array_equal(fragments_of(cut)["log_odds"], found["log_odds"])
    assert (cut / "in.sequences.tsv").read_bytes() == (tmp_path / "run" / "in.sequences.tsv").read_bytes()


def test_a_lost_or_damaged_file_is_found_and_mended(virnucpro, with_table, tmp_path):
    folder, fasta = with_table
    run = tmp_path / "run"
    assert virnucpro("predict", fasta, "-o", run, "--model", folder).code == 0
    first = (run / "in.sequences.tsv").read_bytes()
    (path,) = (run / "run" / "nearest").glob("*.h5")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert virnucpro("verify", run).code != 0
    assert virnucpro("verify", run, "--repair").code == 0
    path.unlink()
    assert virnucpro("verify", run).code != 0
    assert virnucpro("verify", run, "--repair").code == 0
    assert (run / "in.sequences.tsv").read_bytes() == first


def test_evidence_is_linear_between_knots_and_lengths():
    evidence = read_evidence(EVIDENCE)
    table = make_table(Ragged.from_bytes([b"M" * 3]), [("o", "g", "virus")])
    found = look_at(table, Ragged.from_bytes([b"ACGT" * 57 + b"G"]))  # 229 bases
    assert found.traits.shape == (1, len(TRAITS))
    share = (300 - 229) / 150
    traits = [share * a + (1 - share) * b for a, b in zip(*EVIDENCE["traits"], strict=True)]
    expected = found.traits[0].astype(float) @ np.array(traits) + share * 0.1 + (1 - share) * 0.2
    assert evidence.log_odds(found)[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("harm", [{"knots": [3, 2, 1]}, {"virus": [[0, 1, 2]]}, {"lengths": []}])
def test_evidence_that_makes_no_sense_is_refused(harm):
    with pytest.raises(ValueError, match="evidence"):
        read_evidence(EVIDENCE | harm)
