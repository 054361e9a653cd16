"""The simulator of insertions: what it puts together can be taken apart again, and its counts are right."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.insertions import (
    Contig,
    Finding,
    Insertion,
    Plan,
    describe,
    false_regions,
    is_in_host,
    match_insertions,
    measure_insertions,
    simulate,
)
from virnucpro.bundles.bundle import find_bundle
from virnucpro.results.regions import Region
from virnucpro.sequence.ragged import offsets_of
from virnucpro.training.genomes import Genomes
from virnucpro.training.sampling import reverse_complement

PLAN = Plan(
    shortest_contig_nt=2000,
    longest_contig_nt=6000,
    shortest_insertion_nt=100,
    longest_insertion_nt=400,
    host_nt_an_insertion=800,
    margin_nt=150,
)


def tiny_genomes():
    """Hosts of A and C, viruses of G and T, so that every base tells what it is of."""
    generator = np.random.default_rng(3)
    rows = []
    for host, genus, count in (("bacteria", "Aus", 9), ("bacteria", "Bus", 9), ("fungi", "Cus", 4)):
        rows += [(host, genus, "dev", generator.choice([0, 1], 2000)) for _ in range(count)]
    for family, split in (
        ("Herelleviridae", "dev_novel"),
        ("Caudoviricetes", "dev_seen"),
        ("Adenoviridae", "dev_novel"),
    ):
        rows += [("virus", family, split, generator.choice([2, 3], 300 * i)) for i in range(1, 5)]
    classes, groups, splits, codes = zip(*rows, strict=True)
    ids = [f"{group}_{i}" for i, group in enumerate(groups)]
    lengths = np.array([len(item) for item in codes])
    columns = (np.array(column) for column in (classes, groups, splits, ids))
    return Genomes(np.concatenate(codes).astype(np.uint8), offsets_of(lengths), *columns)


GENOMES = tiny_genomes()


def record(name):
    number = GENOMES.ids.tolist().index(name)
    return GENOMES.codes[GENOMES.offsets[number] : GENOMES.offsets[number + 1]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 1]))
def test_insertions_are_where_they_are_said_to_be_and_the_rest_is_host(seed, fold):
    contigs = simulate(GENOMES, PLAN, seed, fold)
    assert sum(len(contig.insertions) for contig in contigs) > 0
    for contig in contigs:
        is_virus = np.zeros(len(contig.codes), dtype=bool)
        for item in contig.insertions:
            is_virus[item.start : item.stop] = True
            piece = contig.codes[item.start : item.stop]
            strands = bytes(piece), bytes(reverse_complement(piece[None])[0])
            assert any(strand in bytes(record(item.virus)) for strand in strands)
            assert PLAN.shortest_insertion_nt <= item.stop - item.start <= PLAN.longest_insertion_nt
        whole = np.concatenate([record(name) for name in GENOMES.ids.tolist() if name.startswith(contig.genus)])
        host = contig.without_insertions()
        assert bytes(contig.codes[~is_virus]) == bytes(host.codes)
        assert bytes(host.codes) in bytes(whole)
        assert contig.host_nt == len(host.codes)
        edges = [0, *(place for item in contig.insertions for place in (item.start, item.stop)), len(contig.codes)]
        assert min(np.diff(edges)[::2]) >= PLAN.margin_nt


def test_the_seed_decides_and_folds_share_neither_hosts_nor_viruses():
    one, again, other = (simulate(GENOMES, PLAN, seed, 0) for seed in (1, 1, 2))
    assert [(c.name, bytes(c.codes), c.insertions) for c in one] == [
        (c.name, bytes(c.codes), c.insertions) for c in again
    ]
    assert [bytes(c.codes) for c in one] != [bytes(c.codes) for c in other]
    folds = [simulate(GENOMES, PLAN, 1, fold) for fold in (0, 1)]
    genera = [{contig.genus for contig in fold} for fold in folds]
    viruses = [{item.virus for contig in fold for item in contig.insertions} for fold in folds]
    assert not genera[0] & genera[1]
    assert not viruses[0] & viruses[1]


def test_every_host_is_given_viruses_of_its_own():
    families = {"bacteria": set(), "fungi": set()}
    for contig in simulate(GENOMES, PLAN, 5, 0):
        families[contig.host] |= {item.family for item in contig.insertions}
    assert families == {"bacteria": {"Herelleviridae", "Caudoviricetes"}, "fungi": {"Adenoviridae"}}


def region(start, stop, score=5.0):
    return Region(start, stop, (stop - start) // 500, score, 2.0, 0.9)


@pytest.fixture
def finding():
    """Two insertions, one found with borders 400 and 900 off, one missed; two false regions, one of the host's own."""
    insertions = (
        Insertion(20_000, 30_000, "phage", "Herelleviridae", "dev_novel"),
        Insertion(70_000, 90_000, "other", "Caudoviricetes", "dev_seen"),
    )
    contig = Contig("bacteria_001", "bacteria", "Aus", np.zeros(200_000, dtype=np.uint8), insertions)
    regions = [region(20_400, 29_100), region(85_000, 99_000, 7.0), region(150_000, 160_000, 9.0)]
    return Finding(contig, regions, [region(119_000, 126_000)])


def test_an_insertion_is_found_by_the_region_that_covers_more_than_half_of_it(finding):
    first, second = match_insertions(finding)
    assert first.errors_nt == (400, -900)
    assert first.is_within(900)
    assert not first.is_within(899)
    assert second.region is None
    assert not second.is_within(10**9)


def test_a_region_is_false_when_less_than_half_of_it_is_inserted(finding):
    assert [item.start for item in false_regions(finding)] == [85_000, 150_000]
    # 150,000 lies 30,000 inserted bases behind its place on the host
    assert [is_in_host(finding, item) for item in false_regions(finding)] == [False, True]


def test_figures_count_found_missed_and_false(finding):
    figures = describe([finding])
    assert (figures["insertions"], figures["found"], figures["missed"]) == (2, 1, 1)
    assert figures["both_borders_within_1_kb"] == 1
    assert figures["by_split"]["dev_novel"]["share_within_1_kb"] == 1
    assert figures["by_split"]["dev_seen"]["share_within_1_kb"] == 0
    assert figures["border_error_nt"]["quantile_0.5"] == 650
    assert figures["host_nt"] == 170_000
    assert (figures["false"], figures["false_not_in_host"]) == (2, 1)
    assert figures["false_per_5_mb"] == round(2 * 5_000_000 / 170_000, 2)
    assert [item["score"] for item in figures["strongest_false"]] == [9.0, 7.0]
    assert figures["strongest_false"][0]["in_unmodified_host"]


def test_positions_of_a_contig_are_found_on_the_host(finding):
    contig = replace(finding.contig, codes=np.arange(200_000) % 251)
    host = contig.without_insertions()
    for position in (0, 19_999, 30_000, 69_999, 90_000, 199_999):
        assert host.codes[contig.host_position(position)] == contig.codes[position]
    assert contig.host_position(25_000) == 20_000


def test_one_command_measures_a_bundle(tmp_path):
    """Simulated, scored by the real model, found and written; the same seeds give the same bytes."""
    data = tmp_path / "data"
    (data / "dev").mkdir(parents=True)
    generator = np.random.default_rng(1)
    lines = ["id\tclass\tsplit\tfamily_or_genus"]
    for class_name, group, split, length in (
        ("bacteria", "Aus", "dev", 100_000),
        ("virus", "Herelleviridae", "dev_novel", 12_000),
    ):
        bases = "".join(generator.choice(list("ACGT"), length))
        (data / "dev" / f"{class_name}.fasta.gz").write_bytes(gzip.compress(f">{group}_1\n{bases}\n".encode()))
        lines.append(f"{group}_1\t{class_name}\t{split}\t{group}")
    (data / "manifest.tsv.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    figures = measure_insertions(data, find_bundle("lite"), tmp_path / "one", [1])
    assert figures["prokaryotes_fold_0"]["host_nt"] == 100_000
    assert figures["prokaryotes_fold_0"]["insertions"] >= 1
    assert figures["prokaryotes_fold_1"]["host_nt"] == figures["eukaryotes_fold_0"]["insertions"] == 0
    written = (tmp_path / "one" / "insertions.json").read_bytes()
    assert json.loads(written) == figures
    measure_insertions(data, find_bundle("lite"), tmp_path / "two", [1])
    assert (tmp_path / "two" / "insertions.json").read_bytes() == written
