"""Training: what is drawn, what is measured, and the whole recipe at a tiny size."""

import csv
import gzip
import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from virnucpro.bundles import load_bundle
from virnucpro.cli.evaluate import evaluate
from virnucpro.cli.train import train
from virnucpro.encoders.codons import KMER, NUM_CLASSES, RESIDUE_CLASSES, STOP, canonical_kmers
from virnucpro.encoders.indices import index_bags
from virnucpro.encoders.ngram_bag import ngram_index
from virnucpro.encoders.profiles import SixFrameShape
from virnucpro.encoders.residue_conv import ResidueConvShape
from virnucpro.errors import InputError, ModelError
from virnucpro.sequence.ragged import offsets_of
from virnucpro.training.calibration import calibrate_bundle, fit_bend, fit_exponent, fit_line, threshold_at_fpr
from virnucpro.training.composition import first_vectors
from virnucpro.training.dev import DevSize, cut_rows, draw_dev, join_rows
from virnucpro.training.evaluation import auroc, average_precision, calibration_error, recall_at_fpr
from virnucpro.training.fit import Fit, Recipe, choose_open_frames, training_pools
from virnucpro.training.genomes import Genomes, load_genomes
from virnucpro.training.presets import write_lite
from virnucpro.training.profiles import ProfileFit
from virnucpro.training.sampling import mutate, reverse_complement, sample_fragments, virus_pool

HOSTS = ("bacteria", "fungi", "organelle")


def write_data(folder: Path, length: int = 3500) -> Path:
    """Random genomes: viruses are rich in A, hosts in C; one family and one genus are only in dev."""
    generator = np.random.default_rng(11)
    rows = []
    for part in ("train", "dev"):
        (folder / part).mkdir(parents=True)
        for kind in ("virus", *HOSTS):
            records = []
            splits = ["dev_novel", "dev_seen"] if kind == "virus" else ["dev"]
            for number in range(4):
                split = part if part == "train" else splits[number % len(splits)]
                name = f"{kind}_{part}_{number}"
                group = f"{kind}{'New' if split == 'dev_novel' else number % 2}"
                weights = [0.4, 0.2, 0.2, 0.2] if kind == "virus" else [0.2, 0.4, 0.2, 0.2]
                bases = "".join(generator.choice(list("ACGT"), size=length, p=weights))
                records.append(f">{name} some words\n{bases[:1000]}\n{bases[1000:]}\n")
                rows.append({"id": name, "class": kind, "split": split, "family_or_genus": group})
            (folder / part / f"{kind}.fasta.gz").write_bytes(gzip.compress("".join(records).encode()))
    with gzip.open(folder / "manifest.tsv.gz", "wt") as lines:
        writer = csv.DictWriter(lines, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def genomes_of(codes: list[list[int]], groups: list[str]) -> Genomes:
    count = len(codes)
    return Genomes(
        np.concatenate([np.array(item, dtype=np.uint8) for item in codes]),
        offsets_of(np.array([len(item) for item in codes])),
        np.array(["virus"] * count),
        np.array(groups),
        np.array(["train"] * count),
        np.array([f"r{i}" for i in range(count)]),
    )


def test_fragments_are_pieces_of_their_record_on_either_strand():
    generator = np.random.default_rng(1)
    genomes = genomes_of([generator.integers(0, 5, size=n).tolist() for n in (40, 90, 300)], ["a", "a", "b"])
    fragments, records = sample_fragments(genomes, virus_pool(genomes, "train"), 50, 200, generator)
    forward = 0
    for fragment, record in zip(fragments, records, strict=True):
        whole = bytes(genomes.codes[genomes.offsets[record] : genomes.offsets[record + 1]])
        is_forward = bytes(fragment) in whole
        assert is_forward or bytes(reverse_complement(fragment[None])[0]) in whole
        forward += is_forward
    assert set(records.tolist()) == {1, 2}  # the first record is shorter than a fragment
    assert 60 < forward < 140


def test_families_weigh_by_the_square_root_of_their_bases():
    genomes = genomes_of([[0] * 100, [0] * 100, [0] * 1800], ["small", "small", "large"])
    pool = virus_pool(genomes, "train")
    assert np.allclose(pool.weights, [0.75, 0.25])  # large before small


def test_mutation_is_bounded_and_mostly_bases():
    fragments = np.zeros((500, 400), dtype=np.uint8)
    mutate(fragments, np.random.default_rng(2), 0.2)
    assert 0.05 < (fragments > 0).mean() < 0.1  # mean rate 0.1, a quarter of the new bases is the old one
    assert 0 < (fragments == 4).mean() < 0.01


@pytest.mark.parametrize("length", [30, 31, 32, 200])
def test_compiled_bags_are_those_of_a_plain_count(length):
    codes = np.random.default_rng(3).integers(0, 4, size=(20, length)).astype(np.uint8)
    codes[np.random.default_rng(4).random(codes.shape) < 0.01] = 4
    bags, residues = index_bags(codes, 1.0, 5)
    residues = residues.flatten(0, 1).long()
    letters = ["".join("*" if code == STOP else "?" if code > STOP else "a" for code in row) for row in residues]
    longest = [max(map(len, re.split(r"[*?]", row))) for row in letters]
    openness = torch.tensor([[run, row.count("*")] for run, row in zip(longest, letters, strict=True)])
    expected = (
        ngram_index(residues, 4, 21),
        ngram_index(torch.from_numpy(RESIDUE_CLASSES)[residues], 6, NUM_CLASSES),
        torch.tensor([pairs_of(strand, offset) for row in codes for strand in strands(row) for offset in range(3)]),
        torch.from_numpy(canonical_kmers(KMER)[0])[ngram_index(torch.from_numpy(codes.astype(np.int64)), KMER, 4)],
        openness / residues.shape[1],
    )
    for found, wanted in zip(bags, expected, strict=True):
        assert torch.allclose(found.float(), wanted.float())


def strands(codes) -> list[list[int]]:
    """A sequence and its reverse complement, with ambiguous bases where frames end early."""
    reverse = [base if base == 4 else 3 - base for base in codes[::-1].tolist()]
    return [[*codes.tolist(), 4, 4], [*reverse, 4, 4]]


def pairs_of(strand: list[int], offset: int) -> list[int]:
    """Numbers of the codon pairs of a frame; 0 where a base is ambiguous."""
    places = [offset + 3 * i for i in range((len(strand) - 2) // 3)]
    codons = [16 * strand[i] + 4 * strand[i + 1] + strand[i + 2] if max(strand[i : i + 3]) < 4 else 64 for i in places]
    return [64 * a + b + 1 if max(a, b) < 64 else 0 for a, b in pairwise(codons)]


def test_dropped_ngrams_are_as_many_as_asked_for():
    codes = np.random.default_rng(3).integers(0, 4, size=(50, 500)).astype(np.uint8)
    for found, whole in zip(index_bags(codes, 0.7, 5)[0][:4], index_bags(codes, 1.0, 5)[0][:4], strict=True):
        assert abs((found > 0).sum() / (whole > 0).sum() - 0.7) < 0.02


def test_chosen_frames_are_open():
    residues = torch.full((3, 6, 4), 20)
    residues[0, 2] = 1
    residues[2, 1] = residues[2, 5] = 3
    fragments, frames = choose_open_frames(residues)
    assert fragments.tolist() == [0, 2]
    assert frames[0] == 2
    assert int(frames[1]) in (1, 5)


def test_first_vectors_tell_groups_apart():
    generator = np.random.default_rng(6)
    # without stop codons: no T
    genomes = genomes_of(
        [generator.choice([0, 1, 2], size=4000, p=p).tolist() for p in ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5])], ["a", "b"]
    )
    kmers = first_vectors(genomes, (4, 4, 4, 4))[3]
    bags = [index_bags(genomes.codes[i : i + 500][None], 1.0, 0)[0].kmers.numpy()[0] for i in (0, 2000, 4000, 6000)]
    means = [kmers[bag].mean(axis=0) for bag in bags]
    assert not kmers[0].any()
    assert abs(means[0] - means[1]).max() < 0.3 * abs(means[0] - means[2]).max()
    assert abs(means[2] - means[3]).max() < 0.3 * abs(means[0] - means[2]).max()


def brute_auroc(scores, is_virus):
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[is_virus] for b in scores[~is_virus]]
    return float(np.mean(pairs))


def test_auroc_is_the_share_of_rightly_ordered_pairs():
    generator = np.random.default_rng(7)
    scores, is_virus = generator.integers(0, 9, size=80) / 9, generator.random(80) < 0.4
    assert auroc(scores, is_virus) == pytest.approx(brute_auroc(scores, is_virus))
    weights = np.where(is_virus, 3.0, 1.0)
    assert auroc(scores, is_virus, weights) == pytest.approx(brute_auroc(scores, is_virus))


def test_weights_count_as_copies():
    scores = np.array([0.9, 0.8, 0.8, 0.3, 0.1])
    is_virus = np.array([True, False, True, True, False])
    copies = np.array([2, 1, 3, 1, 2])
    again = np.repeat(np.arange(5), copies)
    for measure in (auroc, average_precision, recall_at_fpr):
        plain = measure(scores[again], is_virus[again])
        assert measure(scores, is_virus, weights=copies.astype(float)) == pytest.approx(plain)


def test_average_precision_and_recall_of_a_known_ranking():
    scores, is_virus = np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False])
    assert average_precision(scores, is_virus) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert recall_at_fpr(scores, is_virus, 0.01) == pytest.approx(0.5)
    assert recall_at_fpr(scores, is_virus, 0.5) == pytest.approx(1.0)


def test_the_line_recovers_slope_and_intercept():
    generator = np.random.default_rng(8)
    log_odds = generator.normal(0, 3, size=50_000)
    is_virus = generator.random(50_000) < 1 / (1 + np.exp(-(0.5 * log_odds - 1)))
    slope, intercept = fit_line(log_odds, is_virus, np.ones(50_000))
    assert (slope, intercept) == (pytest.approx(0.5, abs=0.02), pytest.approx(-1, abs=0.05))


def test_the_line_is_found_from_far_away():
    """Log-odds may be of any size and place: a head that is off by much is set right too."""
    generator = np.random.default_rng(8)
    is_virus = generator.random(4000) < 0.5
    log_odds = 4 * generator.normal(size=4000) + np.where(is_virus, 6, -6)
    weights = np.full(4000, 1 / 4000)
    near = fit_line(log_odds, is_virus, weights)
    for scale, shift in ((1.0, -15.0), (0.1, 30.0), (5.0, 40.0)):
        slope, intercept = fit_line(scale * log_odds + shift, is_virus, weights)
        assert slope * scale == pytest.approx(near[0], rel=1e-3)
        assert slope * shift + intercept == pytest.approx(near[1], abs=1e-2)


def test_a_bend_mends_what_a_line_cannot():
    """Of a head that is never sure; the whole still ascends."""
    generator = np.random.default_rng(14)
    truth = generator.normal(0, 4, size=50_000)
    log_odds, is_virus = 3 * np.tanh(truth / 3), generator.random(50_000) < 1 / (1 + np.exp(-truth))
    weights = generator.random(50_000)
    line = fit_line(log_odds, is_virus, weights)
    bend = fit_bend(log_odds, line, is_virus, weights)
    straight = line[0] * log_odds + line[1]
    bent = straight + np.interp(log_odds, *bend)
    errors = [calibration_error(1 / (1 + np.exp(-odds)), is_virus, weights) for odds in (straight, bent)]
    assert errors[1] < errors[0] / 2
    assert (line[0] * np.diff(bend.log_odds) + np.diff(bend.added) > 0).all()


def test_the_bend_of_noise_is_flat_enough_to_ascend():
    """Labels that have nothing to do with the log-odds, or even fall with them in places."""
    log_odds = np.linspace(-3, 3, 2000)
    is_virus = (log_odds > 0) ^ (np.abs(log_odds) < 1)
    line = fit_line(log_odds, is_virus, np.ones(2000))
    bend = fit_bend(log_odds, line, is_virus, np.ones(2000))
    assert (line[0] * np.diff(bend.log_odds) + np.diff(bend.added) > 0).all()


def test_the_exponent_recovers_independent_evidence():
    generator = np.random.default_rng(9)
    is_virus = generator.random(20_000) < 0.5
    # fragments with log-odds N(+-2, 4): their sum is the log-odds of the sequence
    odds = generator.normal(np.where(is_virus, 2, -2)[:, None], 2, size=(20_000, 4))
    weights = np.ones(20_000)
    assert fit_exponent([odds.mean(axis=1)], [4], [is_virus], [weights]) == pytest.approx(1, abs=0.05)


def test_the_calibration_error_is_that_of_the_probabilities():
    """Right ones have next to none, and shifted ones are off by the shift."""
    generator = np.random.default_rng(12)
    p_virus = generator.random(200_000) * 0.8
    is_virus, weights = generator.random(200_000) < p_virus, np.ones(200_000)
    assert calibration_error(p_virus, is_virus, weights) < 0.01
    assert calibration_error(p_virus + 0.2, is_virus, weights) == pytest.approx(0.2, abs=0.01)


def test_the_threshold_of_a_rate_is_the_least_that_holds_it():
    """Of four decimals, whatever the weights; one ten-thousandth less lets too many through."""
    generator = np.random.default_rng(13)
    p_virus, is_virus, weights = generator.random(5000), generator.random(5000) < 0.3, generator.random(5000)
    for rate in (0.1, 0.01, 0.001, 0.0):
        threshold = threshold_at_fpr(p_virus, is_virus, weights, rate)

        def reached(least):
            return weights[~is_virus & (p_virus >= least)].sum() / weights[~is_virus].sum()

        assert reached(threshold) <= rate < reached(threshold - 1e-4)
    assert threshold_at_fpr(p_virus, is_virus, weights, 1.0) == 0.0


def test_rows_of_contigs_are_the_pipelines(data: Path):
    dev = draw_dev(load_genomes(data, "dev"), 1200, DevSize(5, 5))
    rows = cut_rows(dev.letters, 500)
    assert len(dev.origins) == 5 * len(HOSTS) + 2 * 5
    assert dev.weights.sum() == pytest.approx(1)
    assert dev.weights[dev.is_virus].sum() == pytest.approx(0.5)
    assert rows.sequences.tolist() == np.repeat(np.arange(25), 3).tolist()
    assert np.array_equal(np.unique(rows.fragments), np.arange(75))
    values = np.arange(len(rows.fragments), dtype=np.float64)
    mean = join_rows(rows, values, "mean")
    assert mean.tolist() == [values[rows.fragments == fragment].mean() for fragment in range(75)]


def test_max_rule_is_the_published_one(data: Path):
    rows = cut_rows(draw_dev(load_genomes(data, "dev"), 150, DevSize(20, 20)).letters, 500)
    odds = np.random.default_rng(10).normal(0, 2, size=len(rows.fragments))
    joined = join_rows(rows, odds, "max")
    virus = 1 / (1 + np.exp(-odds))
    for fragment in range(len(rows.lengths)):
        mine = rows.fragments == fragment
        assert (joined[fragment] >= 0) == (virus[mine].max() >= (1 - virus[mine]).max())


def test_a_record_without_a_manifest_row_is_an_input_error(data: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"manifest\.tsv\.gz"):
        load_genomes(tmp_path, "train")
    (tmp_path / "manifest.tsv.gz").write_bytes((data / "manifest.tsv.gz").read_bytes())
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "virus.fasta.gz").write_bytes(gzip.compress(b">unknown\nACGT\n"))
    with pytest.raises(InputError, match="unknown"):
        load_genomes(tmp_path, "train")


TINY = replace(
    Recipe(),
    fragments=192,
    batch=32,
    nucleotide=SixFrameShape(width=8, kmer_width=2, ngram_width=2, class_width=2, pair_width=2, frame_width=8),
    protein=ResidueConvShape(width=8, ngram_width=2, tower_channels=(4, 8), tower_kernels=(5,)),
)


def test_a_resumed_training_gives_the_same_weights(data: Path, tmp_path: Path):
    genomes = load_genomes(data, "train")
    whole = Fit(TINY, genomes).run().state_dict()
    checkpoint = tmp_path / "checkpoint.safetensors"
    first = Fit(TINY, genomes, checkpoint)
    for step in range(3):
        first.take_step(first.batches[step])
    first.save()
    resumed = Fit(TINY, genomes, checkpoint)
    assert resumed.step == 3
    for name, tensor in resumed.run().state_dict().items():
        assert torch.equal(tensor, whole[name]), name
    with pytest.raises(ModelError, match="another recipe"):
        Fit(replace(TINY, seed=2), genomes, checkpoint)


def test_a_training_can_start_from_the_weights_of_another(data: Path, tmp_path: Path):
    """Encoders and head are the bundle's, tables rounded to the 8 bits they are stored in."""
    genomes = load_genomes(data, "train")
    trained = Fit(TINY, genomes).run()
    fitted = ProfileFit(TINY.profiles, genomes, training_pools(genomes), 1, 1024)
    write_lite(trained, fitted, load_genomes(data, "dev"), tmp_path / "first", DevSize().scaled(0.01), {"seed": 1})
    first = load_bundle(str(tmp_path / "first"))
    recipe = replace(TINY, start=first.fingerprint, seed=2)
    begun = Fit(recipe, genomes, start=first).network
    for name, tensor in begun.head.state_dict().items():
        torch.testing.assert_close(tensor, trained.head.state_dict()[name], atol=1e-5, rtol=0)
    for name, tensor in begun.nucleotide.state_dict().items():
        torch.testing.assert_close(tensor, trained.nucleotide.state_dict()[name], atol=0.05, rtol=0.02)
    with pytest.raises(ModelError, match="not made of the parts"):
        Fit(replace(recipe, head_width=64), genomes, start=first)


def invoke(command: click.Command, *arguments: object) -> None:
    found = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output


SHARE = ("--dev-share", "0.01")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory) -> Path:
    """What one command makes, in a folder that is called as the bundled model is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        invoke(train, "--data", data, "--output", "lite", "--fragments", 1024, *SHARE)
        return Path("lite").absolute()


def test_one_command_trains_a_bundle_and_one_evaluates_it(data: Path, trained: Path, tmp_path: Path):
    figures = json.loads((trained / "training.json").read_text())["dev"]
    bundle = load_bundle(str(trained))
    assert bundle.digests != load_bundle("lite").digests
    assert bundle.scores_frameless
    assert bundle.calibration.lengths == (150, 300, 500)
    assert not (trained / "checkpoint.safetensors").exists()
    invoke(evaluate, "--data", data, "--model", trained, "--output", tmp_path, "--no-panel", *SHARE)
    again = json.loads((tmp_path / "evaluation.json").read_text())["lengths"]
    assert again["500"]["auroc"] == figures["500"]["auroc"] > 0.9
    assert set(again["500"]["auroc_by_class"]) == set(HOSTS)
    assert again["500"]["presets"] == figures["500"]["presets"]
    for limits, rate in (("sensitive", 0.05), ("balanced", 0.01), ("strict", 0.001)):
        assert all(again[length]["presets"][limits]["fpr"] <= rate for length in ("150", "300", "500"))
    assert all(0 <= of_length["calibration_error"] < 0.5 for of_length in again.values())


def test_a_stored_bundle_is_calibrated_again_and_given_its_profiles_again(data: Path, trained: Path, tmp_path: Path):
    """The same dev sequences give what training gave, and no weight moves; nor do the same profiles, made again."""
    folder = tmp_path / "bundle"
    shutil.copytree(trained, folder)
    before = (folder / "bundle.yaml").read_text()
    digests = load_bundle(str(folder)).digests
    changed = yaml.safe_load(before) | {"rows": "max", "presets": {}}
    changed["calibration"]["exponent"] = 0.1
    (folder / "bundle.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    calibrate_bundle(load_genomes(data, "dev"), folder, DevSize().scaled(0.01))
    assert yaml.safe_load((folder / "bundle.yaml").read_text()) == yaml.safe_load(before)
    assert load_bundle(str(folder)).digests == digests
    asked = ("--preset", "profiles", "--start", folder, "--fragments", 1024)
    invoke(train, "--data", data, "--output", tmp_path / "next", *asked, *SHARE)
    assert load_bundle(str(tmp_path / "next")).digests == digests
