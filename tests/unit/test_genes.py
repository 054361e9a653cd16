"""Genes of a record: open frames that look coding, hardly overlapping, found on the record alone."""

from __future__ import annotations

import numpy as np
import pytest
from Bio.Seq import Seq
from hypothesis import given, settings
from hypothesis import strategies as st
from made_genomes import letters_of, proteins, record, reverse_complement

from virnucpro.nearest.genes import LARGEST_OVERLAP, SHORTEST_GENE_CODONS, SHORTEST_RECORD_NT, find_genes
from virnucpro.nearest.residues import BREAK, LETTERS, MASKED

_ASCII = np.frombuffer((LETTERS + "X*" + "?" * 10).encode(), dtype=np.uint8)


def made(seed: int = 3, num: int = 40) -> tuple[str, set[tuple[int, int, int]]]:
    gen = np.random.default_rng(seed)
    bases, genes = record(gen, proteins(gen, num))
    return bases, {(gene.start, gene.stop, gene.strand) for gene in genes}


def test_genes_of_a_made_record_are_found_on_both_strands() -> None:
    bases, genes = made()
    found = find_genes(letters_of(bases))
    ends = {(stop if strand > 0 else start, strand) for start, stop, strand in genes}
    mine = {
        (stop if strand > 0 else start, strand)
        for start, stop, strand in zip(found.starts, found.stops, found.strands, strict=True)
    }
    assert len(ends & mine) >= 0.95 * len(ends)
    assert len(mine) <= 1.1 * len(ends)


def test_the_other_strand_has_the_same_genes() -> None:
    bases, _ = made()
    there, back = find_genes(letters_of(bases)), find_genes(letters_of(reverse_complement(bases)))
    mirrored = {(len(bases) - stop, len(bases) - start) for start, stop in zip(back.starts, back.stops, strict=True)}
    same = set(zip(there.starts, there.stops, strict=True)) & mirrored
    assert len(same) >= 0.95 * len(there.starts)


@pytest.mark.parametrize(("codon", "residue"), [("TGA", "W"), ("TAG", "Q")])
def test_a_record_whose_genes_hold_a_stop_codon_is_read_so(codon: str, residue: str) -> None:
    bases, _ = made(num=30)
    before = find_genes(letters_of(bases))
    changed = list(bases)
    for start, stop, strand in zip(before.starts, before.stops, before.strands, strict=True):
        for at in range(start + 90, stop - 90, 90):  # a residue of 30 becomes it
            text = codon if strand > 0 else reverse_complement(codon)
            changed[at : at + 3] = text
    found = find_genes(letters_of("".join(changed)))
    same = set(zip(before.starts, before.stops, strict=True)) & set(zip(found.starts, found.stops, strict=True))
    assert len(same) >= 0.9 * len(before.starts)
    assert sum(found.proteins.values == LETTERS.index(residue)) > sum(before.proteins.values == LETTERS.index(residue))


def test_short_records_have_no_genes() -> None:
    bases, _ = made()
    assert len(find_genes(letters_of(bases[: SHORTEST_RECORD_NT - 1])).starts) == 0
    assert len(find_genes(letters_of("")).proteins) == 0


@pytest.mark.parametrize("word", ["TTAGGG", "TTTAGGG", "CA", "A", "ACGTACGA"])
def test_tandem_repeats_hold_no_gene_and_change_none(word: str) -> None:
    bases, _ = made()
    before, after = find_genes(letters_of(bases)), find_genes(letters_of(bases + word * (8_000 // len(word))))
    inside = after.stops <= len(bases)
    assert after.starts[inside].tolist() == before.starts[: inside.sum()].tolist()
    assert abs(int(inside.sum()) - len(before.starts)) <= 1
    assert (after.starts[~inside] < len(bases)).all(), "at most one goes on into the first block"


def test_case_does_not_matter_and_unknown_letters_end_a_gene() -> None:
    bases, _ = made()
    upper, lower = find_genes(letters_of(bases)), find_genes(letters_of(bases.lower()))
    assert upper.starts.tolist() == lower.starts.tolist()
    hidden = bases[:3000] + "N" * 200 + bases[3200:]
    found = find_genes(letters_of(hidden))
    assert not any(start < 3200 and stop > 3000 for start, stop in zip(found.starts, found.stops, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1500, max_size=5000), st.sampled_from(["ACGT", "ACGTN", "GC", "A", "ACG"]))
def test_genes_lie_on_the_record_and_translate_as_biopython_says(noise: bytes, letters: str) -> None:
    bases = "".join(letters[byte % len(letters)] for byte in noise)
    found = find_genes(letters_of(bases))
    assert (np.diff(found.starts) >= 0).all()
    for gene, (start, stop, strand) in enumerate(zip(found.starts, found.stops, found.strands, strict=True)):
        assert 0 <= start < stop <= len(bases)
        assert (stop - start) % 3 == 0
        assert stop - start >= 3 * SHORTEST_GENE_CODONS
        text = Seq(bases[start:stop]) if strand > 0 else Seq(bases[start:stop]).reverse_complement()
        assert _ASCII[found.proteins[gene]].tobytes().decode() == str(text.translate())


@pytest.mark.parametrize("seed", [1, 2])
def test_genes_hardly_overlap_and_hold_no_stop(seed: int) -> None:
    bases, _ = made(seed)
    found = find_genes(letters_of(bases))
    assert found.proteins.values.max() < min(MASKED, BREAK)
    taken = np.zeros(len(bases), dtype=np.int64)
    for start, stop in zip(found.starts, found.stops, strict=True):
        taken[start:stop] += 1
    assert (taken > 1).sum() <= LARGEST_OVERLAP * (taken > 0).sum()
