"""Evidence counted over whole groups: what is counted, what is left out, and that the head adds it."""

import copy
from collections import defaultdict

import numpy as np
import pytest
import torch
from Bio.Seq import Seq

from virnucpro.encoders.codons import NUM_CLASSES
from virnucpro.encoders.indices import read_fragments, sum_stretches
from virnucpro.encoders.ngram_bag import ngram_index
from virnucpro.encoders.profiles import (
    LARGEST_EVIDENCE,
    LEVELS,
    NUM_STRETCH_GROUPS,
    NUM_STRETCHES,
    STRETCH,
    STRETCH_GROUPS,
    STRETCH_RESIDUES,
    STRETCHES_A_BYTE,
    ProfiledNetwork,
    ProfiledShape,
    SixFrameNetwork,
)
from virnucpro.heads import MLPHead
from virnucpro.sequence.ragged import offsets_of
from virnucpro.training.genomes import Genomes
from virnucpro.training.profiles import MIN_RUN, NUM_FOLDS, add_evidence, count_tables, drop_evidence, group_records

LETTERS = np.frombuffer(b"ACGTN", dtype=np.uint8)


def genomes_of(seed: int, names: list[tuple[str, str]], length: int = 2400) -> Genomes:
    """Records of few codons, so that stretches are shared and frames are often open."""
    generator = np.random.default_rng(seed)
    codons = generator.integers(0, 4, size=(12, 3)).astype(np.uint8)
    codes = [codons[generator.integers(0, 12, size=length // 3)].reshape(-1) for _ in names]
    codes[0][100:103] = 4
    kinds, groups = (np.array(column) for column in zip(*names, strict=True))
    splits = np.full(len(names), "train")
    ids = np.array([f"r{i}" for i in range(len(names))])
    return Genomes(np.concatenate(codes), offsets_of(np.full(len(names), length)), kinds, groups, splits, ids)


NAMES = [
    *(("virus", f"v{i % 5}") for i in range(7)),
    *(("bacteria", f"b{i % 6}") for i in range(8)),
    ("plasmid", "b1"),
    *(("fungi", f"f{i}") for i in range(4)),
]


@pytest.fixture(scope="module")
def genomes() -> Genomes:
    return genomes_of(3, NAMES)


@pytest.fixture(scope="module")
def counted(genomes):
    """Their groups, and all tables."""
    groups = group_records(genomes, 1)
    return groups, count_tables(genomes, groups)


def stretches_of(text: str) -> set[int]:
    """Plainly: stretches of the stop-free runs of both strands."""
    letters = {letter: i for i, group in enumerate(STRETCH_GROUPS) for letter in group}
    found = set()
    for strand in (Seq(text), Seq(text).reverse_complement()):
        for frame in range(3):
            codons = [str(strand[i : i + 3]) for i in range(frame, len(strand) - 2, 3)]
            protein = "".join("*" if "N" in codon else str(Seq(codon).translate()) for codon in codons)
            for run in protein.split("*"):
                if len(run) >= MIN_RUN:
                    for i in range(len(run) - STRETCH + 1):
                        digits = [letters[letter] for letter in run[i : i + STRETCH]]
                        found.add(int("".join(map(str, digits)), NUM_STRETCH_GROUPS))
    return found


def test_conservation_is_that_of_the_plain_rule(genomes, counted):
    groups, tables = counted
    families, genera = defaultdict(set), defaultdict(set)
    for record, (kind, _) in enumerate(NAMES):
        text = LETTERS[genomes.codes[genomes.offsets[record] : genomes.offsets[record + 1]]].tobytes().decode()
        for stretch in stretches_of(text):
            (families if kind == "virus" else genera)[stretch].add(int(groups.members[record]))
    packed = tables[-1].stretches
    levels = packed[:, None] >> np.array([0, 2, 4, 6], dtype=np.uint8) & 3
    expected = np.full(levels.size, 2)  # nowhere seen is neither
    for stretch in families.keys() | genera.keys():
        ratio = np.log((2 * min(len(families[stretch]), 12) + 1) / (min(len(genera[stretch]), 25) + 1))
        expected[stretch] = int(np.searchsorted([-1.2, -0.3, 0.3], ratio))
    assert len(families) > 100
    assert len(genera) > 100
    assert (levels.reshape(-1) == expected).all()


def test_tables_without_a_fold_are_those_of_the_other_groups_alone(genomes, counted):
    """A training fragment meets nothing that was counted in its own family or genus."""
    groups, tables = counted
    for fold in (0, NUM_FOLDS - 1):
        kept = np.flatnonzero(groups.folds[groups.members] != fold)
        codes = [genomes.codes[genomes.offsets[i] : genomes.offsets[i + 1]] for i in kept]
        columns = (column[kept] for column in (genomes.classes, genomes.groups, genomes.splits, genomes.ids))
        others = Genomes(np.concatenate(codes), offsets_of(np.array([len(item) for item in codes])), *columns)
        alone = count_tables(others, group_records(others, 1))[-1]
        assert (tables[fold].stretches == alone.stretches).all()
        for name, table in tables[fold].profiles.items():
            np.testing.assert_allclose(table, alone.profiles[name], atol=1e-5, err_msg=name)


def test_a_genus_and_its_plasmids_are_one_group_and_classes_are_spread_over_the_folds(genomes):
    groups = group_records(genomes, 1)
    of_genus = groups.members[(genomes.groups == "b1")]
    assert len(set(of_genus.tolist())) == 1
    assert groups.num_profiles == 3
    for profile in range(groups.num_profiles):
        folds = groups.folds[groups.classes == profile]
        assert len(set(folds.tolist())) == min(NUM_FOLDS, len(folds))


def test_a_profile_tells_its_class(counted):
    """What only viruses use has a log-ratio above 0 with them and below 0 with all others."""
    table = counted[1][-1].profiles["pairs"]
    assert table.shape == (64**2 + 1, 3)
    assert (table[0] == 0).all()
    only = (table[:, 2] > 0.5) & (table[:, :2] < 0).all(axis=1)
    assert table[only].size == 0 or (table[only, 2] > table[only, :2].max(axis=1)).all()


@pytest.fixture(scope="module")
def network(counted) -> ProfiledNetwork:
    torch.manual_seed(4)
    groups, tables = counted
    shape = ProfiledShape(width=17, hidden_width=24, frame_width=8, num_profiles=groups.num_profiles)
    network = ProfiledNetwork(shape).eval()
    tables[-1].give(network.profiles)
    network.profiles.weights.copy_(torch.tensor([0.5, 3.0]))
    return network


def test_the_embedding_is_that_of_six_frame_and_the_evidence(network, genomes):
    codes = torch.from_numpy(genomes.codes[:3000].reshape(10, 300).astype(np.int64))
    embedding = network(codes)
    assert embedding.shape == (10, 17)
    assert torch.equal(embedding[:, :16], network.six_frame.embed_bags(read_fragments(codes)[0]))
    bags, residues = read_fragments(codes)
    frames, kmers, conserved = network.profiles.measure(bags, residues)
    expected = 0.5 * network.profiles.weigh(frames, kmers, 300) + 3 * conserved
    torch.testing.assert_close(embedding[:, 16], expected.clamp(-LARGEST_EVIDENCE, LARGEST_EVIDENCE))
    assert conserved.std() > 0
    assert ((min(LEVELS) <= conserved) & (conserved <= max(LEVELS))).all()


def test_joined_tables_give_the_same_embedding(network, genomes):
    codes = torch.from_numpy(genomes.codes[:3000].reshape(10, 300).astype(np.int64))
    apart = network(codes)
    joined = copy.deepcopy(network)
    joined.join_tables()
    torch.testing.assert_close(joined(codes), apart)
    for name, tensor in joined.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name


def test_compiled_sums_over_stretches_are_those_of_tensors():
    generator = np.random.default_rng(6)
    residues = torch.from_numpy(generator.integers(0, 20, size=(300, 90)).astype(np.uint8))
    residues[torch.from_numpy(generator.random((300, 90)) < 0.05)] = 20
    residues[torch.from_numpy(generator.random((300, 90)) < 0.02)] = 21
    packed = generator.integers(0, 256, size=NUM_STRETCHES // STRETCHES_A_BYTE).astype(np.uint8)
    found = sum_stretches(residues.numpy(), STRETCH_RESIDUES, STRETCH, packed, LEVELS, -1.0)
    numbers = ngram_index(torch.from_numpy(STRETCH_RESIDUES)[residues.long()], STRETCH, NUM_STRETCH_GROUPS).numpy()
    places = np.maximum(numbers - 1, 0)
    bits = packed[places // STRETCHES_A_BYTE] >> (2 * (places % STRETCHES_A_BYTE)).astype(np.uint8) & 3
    scores, is_stretch = np.where(numbers > 0, LEVELS[bits], 0), numbers > 0
    expected = [scores.sum(axis=1), (scores > 0).sum(axis=1), (scores < -1).sum(axis=1), is_stretch.sum(axis=1)]
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=1e-5, atol=1e-5)
    assert is_stretch.any()


def test_the_head_adds_the_evidence_to_its_log_odds():
    torch.manual_seed(5)
    head = MLPHead(24, 12)
    head.train()
    head(torch.randn(64, 24))  # running statistics of its own
    head.eval()
    features = torch.randn(50, 24)
    evidence = torch.linspace(-LARGEST_EVIDENCE, LARGEST_EVIDENCE, 50)
    grown = add_evidence(head, 16, LARGEST_EVIDENCE)
    logits = head(features)
    found = grown(torch.cat([features[:, :16], evidence[:, None], features[:, 16:]], dim=1))
    expected = (logits[:, 1] - logits[:, 0]) + evidence
    torch.testing.assert_close(found[:, 1] - found[:, 0], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(drop_evidence(grown, 16)(features), logits, atol=1e-5, rtol=0)


def test_tables_are_as_long_as_the_bags_they_belong_to(network):
    own = network.six_frame
    for name in ("ngrams", "classes", "pairs", "kmers"):
        assert len(getattr(network.profiles, name).weight) == len(getattr(own, name).weight)
    assert isinstance(own, SixFrameNetwork)
    assert len(own.classes.weight) == NUM_CLASSES**6 + 1
