"""Proviruses are cut out of host records by a path over their genes, and whole viruses are left whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_genomes import SITE, is_ordered, letters_of, prophage
from numpy.typing import NDArray

from virnucpro.nearest.genes import find_genes
from virnucpro.nearest.path import (
    DEFAULT,
    best_path,
    classes_of,
    find_candidates,
    find_proviruses,
    gene_evidence,
    posterior_of,
)
from virnucpro.nearest.repeats import SHORTEST_NT, SITE_DTYPE, find_sites
from virnucpro.nearest.search import search_codes
from virnucpro.nearest.table import Table
from virnucpro.results.stored_table import FRAGMENT_DTYPE, GENE_DTYPE

NONE = np.zeros(0, dtype=FRAGMENT_DTYPE)
CELL, VIRUS, NOTHING = (0.0, 300.0), (300.0, 0.0), (0.0, 0.0)


def genes_of(
    bits: list[tuple[float, float]], length: int = 900, gap: int = 100, strand_run: int = 3
) -> NDArray[np.void]:
    genes = np.zeros(len(bits), dtype=GENE_DTYPE)
    genes["start"] = np.arange(len(bits)) * (length + gap)
    genes["stop"] = genes["start"] + length
    genes["strand"] = np.where(np.arange(len(bits)) // strand_run % 2, -1, 1)
    genes["bits_virus"], genes["bits_cell"] = np.array(bits).reshape(-1, 2).T
    return genes


def cut(bits: list[tuple[float, float]]) -> list[tuple[int, int]]:
    genes = genes_of(bits)
    return [(each.first_gene, each.last_gene) for each in find_proviruses(genes, NONE, len(bits) * 1000)]


def searched(bases: str, table: Table) -> NDArray[np.void]:
    found = find_genes(letters_of(bases))
    genes = np.zeros(len(found.starts), dtype=GENE_DTYPE)
    genes["start"], genes["stop"], genes["strand"] = found.starts, found.stops, found.strands
    genes["bits_virus"], genes["bits_cell"] = search_codes(table, found.proteins).bits.T
    return genes


def test_a_phage_in_a_chromosome_is_found_and_its_ends_are_its_integration_sites() -> None:
    made = prophage()
    genes = searched(made.bases, made.table)
    (rough,) = find_proviruses(genes, NONE, len(made.bases))
    assert abs(rough.start - made.start) < 2500
    assert abs(rough.stop - made.stop) < 2500
    assert rough.posterior > 0.9
    (start, stop), *_ = find_candidates(genes, len(made.bases))
    (region,) = find_proviruses(genes, NONE, len(made.bases), find_sites(letters_of(made.bases), start, stop))
    # Chance may add a base to a repeat.
    assert abs(region.start - made.start) <= 3
    assert abs(region.stop - made.stop) <= 3


def test_the_phage_alone_is_not_cut() -> None:
    made = prophage()
    assert find_proviruses(searched(made.phage, made.table), NONE, len(made.phage)) == []


def test_only_a_record_that_is_host_besides_is_cut() -> None:
    assert cut([CELL] * 20 + [VIRUS] * 15 + [CELL] * 20) == [(20, 35)]
    assert cut([VIRUS] * 40) == []
    assert cut([VIRUS] * 15 + [NOTHING] * 40) == []
    assert cut([CELL] * 2 + [VIRUS] * 30) == []


def test_long_stretches_without_a_match_are_no_provirus() -> None:
    assert cut([CELL] * 30 + [NOTHING] * 100 + [CELL] * 30) == []
    assert cut([CELL] * 30 + [VIRUS] * 2 + [NOTHING] * 150 + [CELL] * 30) == []


def test_genes_that_match_nothing_are_taken_along_between_viral_ones() -> None:
    assert cut([CELL] * 20 + [VIRUS, NOTHING, NOTHING, VIRUS, NOTHING, VIRUS, VIRUS] * 3 + [CELL] * 20) == [(20, 41)]


def test_fragments_decide_where_genes_match_nothing() -> None:
    genes = genes_of([CELL] * 20 + [NOTHING] * 20 + [CELL] * 20)
    fragments = np.zeros(60, dtype=FRAGMENT_DTYPE)
    fragments["start"], fragments["stop"] = genes["start"], genes["stop"]
    fragments["log_odds"] = -2.0
    low = gene_evidence(genes, fragments)[1][30]
    fragments["log_odds"][20:40] = 4.0
    assert gene_evidence(genes, fragments)[1][30] > low
    fragments["log_odds"] = np.nan
    assert np.isfinite(gene_evidence(genes, fragments)[1]).all()


@pytest.mark.parametrize(
    ("bits", "expected"),
    [((0, 0), 0), ((0, 60), 1), ((44, 300), 2), ((60, 300), 3), ((300, 300), 6), ((90, 30), 9), ((300, 0), 10)],
)
def test_classes_of_genes(bits: tuple[float, float], expected: int) -> None:
    assert classes_of(*(np.array([value]) for value in bits)).tolist() == [expected]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([CELL, VIRUS, NOTHING, (80.0, 90.0)]), max_size=120))
def test_regions_are_ordered_within_the_record_and_hold_viral_genes(bits: list[tuple[float, float]]) -> None:
    found = find_proviruses(genes_of(bits), NONE, len(bits) * 1000)
    bounds = [(each.start, each.stop) for each in found]
    assert is_ordered(bounds)
    for each in found:
        assert 0 <= each.start < each.stop <= len(bits) * 1000
        assert each.score >= DEFAULT.lowest_score
        num_viral = sum(item == VIRUS for item in bits[each.first_gene : each.last_gene])
        assert each.stop - each.start <= DEFAULT.viral_gene_nt * num_viral


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=1, max_size=9))
def test_path_and_posterior_are_those_of_all_paths(evidence: list[float]) -> None:
    begins, ends, first = 1 / 60, 1 / 25, 0.035
    moves = {(0, 0): 1 - begins, (0, 1): begins, (1, 0): ends, (1, 1): 1 - ends}
    paths = list(product((0, 1), repeat=len(evidence)))
    weights = []
    for states in paths:
        steps = [first if states[0] else 1 - first]
        steps += [moves[move] for move in pairwise(states)]
        weights.append(np.prod(steps) * np.exp(np.dot(states, evidence)))
    posterior = np.array(weights) @ np.array(paths) / sum(weights)
    assert posterior_of(np.array(evidence), begins, ends, first) == pytest.approx(posterior, rel=1e-9)
    best = best_path(np.array(evidence), begins, ends, first)
    assert weights[paths.index(tuple(best.tolist()))] == pytest.approx(max(weights), rel=1e-9)


def test_sites_are_repeats_at_both_ends() -> None:
    gen = np.random.default_rng(5)
    noise = ["".join(gen.choice(list("ACGT"), 20_000)) for _ in range(3)]
    bases = noise[0] + SITE + noise[1] + SITE + noise[2]
    start, stop = 20_000, 40_000 + 2 * len(SITE)
    sites = find_sites(letters_of(bases), start + 700, stop - 1500)
    assert (start, stop, len(SITE)) in sites[["start", "stop", "length"]].tolist()
    assert all(bases[s : s + n] == bases[e - n : e] for _, s, e, n in sites.tolist())
    assert sites["length"].min(initial=99) >= SHORTEST_NT
    assert find_sites(letters_of(bases.lower()), start + 700, stop - 1500).tolist() == sites.tolist()


def test_a_repeat_of_few_triplets_is_no_site() -> None:
    gen = np.random.default_rng(6)
    noise = ["".join(gen.choice(list("ACGT"), 20_000)) for _ in range(3)]
    bases = noise[0] + "AC" * 12 + noise[1] + "AC" * 12 + noise[2]
    assert not any(
        stop - start > 20_000 and length > 22
        for _, start, stop, length in find_sites(letters_of(bases), 20_000, 40_048).tolist()
    )


def test_a_region_moves_to_the_longest_near_site_only() -> None:
    bits = [CELL] * 20 + [VIRUS] * 15 + [CELL] * 20
    sites = np.array([(0, 19_500, 35_400, 20), (0, 19_900, 35_100, 17), (0, 3_000, 36_000, 90)], dtype=SITE_DTYPE)
    (region,) = find_proviruses(genes_of(bits), NONE, 55_000, sites, replace(DEFAULT))
    assert (region.start, region.stop) == (19_500, 35_400)
