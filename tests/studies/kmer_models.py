"""Models of groups of organisms that sequences can be drawn from.

Genes come from a codon chain (a codon given the one before it, an in-frame hexamer model), what lies between
them from a fifth-order chain of bases. Both are fitted group by group, since an average over a class washes
out what makes the class.

What the chains do not know is not there: no protein motif longer than two residues, no repeats, no introns
(a gene of a vertebrate or a plant stands for one exon).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from virnucpro.encoders.codons import AMBIGUOUS_BASE, CODON_RESIDUES, NUM_CODONS, STOP
from virnucpro.errors import InputError
from virnucpro.training.genomes import VIRUS, Genomes
from virnucpro.training.sampling import reverse_complement

START_CODON = 14
"""ATG, 16 * A + 4 * T + G."""
IS_STOP = CODON_RESIDUES[:NUM_CODONS] == STOP
"""(64,) whether a codon ends a gene (NCBI translation table 1)."""

ORDER = 5
"""Bases before a base between genes that decide it."""
PRIOR_WEIGHT = 8.0
"""Observations that the shorter context counts for."""

Origin = Literal["viral_like", "host_like"]


@dataclass(frozen=True)
class Layout:
    """How genes lie on a genome.

    Attributes:
        coding: share of the bases in genes, between 0 and 1, both exclusive.
        median_gene_nt: median of the log-normal gene length, start and stop codon included.
        strand_switch: probability that a gene is on another strand than the one before.
        least_open_nt: shortest open stretch taken for a gene in fitting.
        gene_spread: standard deviation of the logarithm of the gene length.
    """

    coding: float
    median_gene_nt: float
    strand_switch: float
    least_open_nt: int = 300
    gene_spread: float = 0.6

    @property
    def mean_gene_nt(self) -> float:
        """Mean of the log-normal gene length."""
        return float(self.median_gene_nt * np.exp(self.gene_spread**2 / 2))

    @property
    def mean_gap_nt(self) -> float:
        """Mean of the exponential distance of two genes, so that ``coding`` holds."""
        return self.mean_gene_nt * (1 - self.coding) / self.coding


TAILED_PHAGE = Layout(coding=0.93, median_gene_nt=450, strand_switch=0.05)
POLYPROTEIN = Layout(coding=0.94, median_gene_nt=6000, strand_switch=0.0, gene_spread=0.3)
RNA_GENES = Layout(coding=0.93, median_gene_nt=1500, strand_switch=0.0)
SMALL_DNA = Layout(coding=0.88, median_gene_nt=750, strand_switch=0.5)
HERPES = Layout(coding=0.9, median_gene_nt=1200, strand_switch=0.5)
PROKARYOTE = Layout(coding=0.87, median_gene_nt=850, strand_switch=0.3)
YEAST = Layout(coding=0.7, median_gene_nt=1200, strand_switch=0.5)
MOULD = Layout(coding=0.5, median_gene_nt=450, strand_switch=0.3)
INVERTEBRATE = Layout(coding=0.2, median_gene_nt=220, strand_switch=0.2, least_open_nt=600)
PLANT = Layout(coding=0.3, median_gene_nt=180, strand_switch=0.2, least_open_nt=600)
VERTEBRATE = Layout(coding=0.02, median_gene_nt=130, strand_switch=0.1, least_open_nt=600)


@dataclass(frozen=True)
class Source:
    """A group of records that one model is fitted on.

    Attributes:
        group: family or genus, as in the manifest.
        class_name: class of the records.
        layout: how its genes lie.
        longest_nt: length of its genomes or segments, which no contig exceeds.
    """

    group: str
    class_name: str
    layout: Layout
    longest_nt: int = 6000

    @property
    def origin(self) -> Origin:
        """What ``truth.tsv`` says of its sequences."""
        return "viral_like" if self.class_name == VIRUS else "host_like"

    @property
    def label(self) -> str:
        """The group without its rank."""
        return self.group.partition("(")[0]

    @property
    def description(self) -> str:
        """What a header says after the name."""
        return f"simulated: k-mer model of {self.label}, not a real sequence"


SOURCES = (
    Source("Straboviridae", VIRUS, TAILED_PHAGE),
    Source("Geminiviridae", VIRUS, SMALL_DNA, longest_nt=2700),
    Source("Coronaviridae", VIRUS, POLYPROTEIN),
    Source("Autotranscriptaviridae", VIRUS, TAILED_PHAGE),
    Source("Potyviridae", VIRUS, POLYPROTEIN),
    Source("Paramyxoviridae", VIRUS, RNA_GENES),
    Source("Kyanoviridae", VIRUS, TAILED_PHAGE),
    Source("Picornaviridae", VIRUS, POLYPROTEIN),
    Source("Orthoherpesviridae", VIRUS, HERPES),
    Source("Crassvirales(order)", VIRUS, TAILED_PHAGE),
    Source("Escherichia", "bacteria", PROKARYOTE),
    Source("Bacillus", "bacteria", PROKARYOTE),
    Source("Homo", "vertebrate", VERTEBRATE),
    Source("Bacteroides", "bacteria", PROKARYOTE),
    Source("Pseudomonas", "bacteria", PROKARYOTE),
    Source("Saccharomyces", "fungi", YEAST),
    Source("Methanobacterium", "archaea", PROKARYOTE),
    Source("Arabidopsis", "plant", PLANT),
    Source("Streptomyces", "bacteria", PROKARYOTE),
    Source("Bifidobacterium", "bacteria", PROKARYOTE),
    Source("Haloarcula", "archaea", PROKARYOTE),
    Source("Mus", "vertebrate", VERTEBRATE),
    Source("Lactobacillus", "bacteria", PROKARYOTE),
    Source("Aspergillus", "fungi", MOULD),
    Source("Synechocystis", "bacteria", PROKARYOTE),
    Source("Drosophila", "invertebrate", INVERTEBRATE),
)
"""The groups of the example; contigs and reads are dealt out to them in turn."""


@dataclass(frozen=True)
class Model:
    """Chains fitted on one source, as running sums of probabilities.

    Attributes:
        source: what it was fitted on.
        codons: (64, 64) next codon given a codon; stop codons have probability 0.
        stops: (64,) the codon that ends a gene.
        bases: (4**5, 4) next base given five.
        num_genes: open stretches the codon chain was fitted on.
    """

    source: Source
    codons: NDArray[np.float64]
    stops: NDArray[np.float64]
    bases: NDArray[np.float64]
    num_genes: int

    def draw_gene(self, num_codons: int, generator: np.random.Generator) -> NDArray[np.uint8]:
        """Base codes of a gene of ``num_codons`` codons, from ATG to a stop codon, with no other stop in frame."""
        codons = _walk(self.codons.tolist(), START_CODON, generator.random(num_codons - 2).tolist(), NUM_CODONS)
        last = bisect_right(self.stops.tolist(), generator.random())
        codes = np.array([START_CODON, *codons, last])
        return np.stack([codes // 16, codes // 4 % 4, codes % 4], axis=1).reshape(-1).astype(np.uint8)

    def draw_gap(self, length_nt: int, generator: np.random.Generator) -> NDArray[np.uint8]:
        """Base codes of a stretch between genes."""
        context = int(generator.integers(4**ORDER))
        bases = _walk(self.bases.tolist(), context, generator.random(length_nt).tolist(), 4**ORDER)
        return (np.array(bases, dtype=np.int64) % 4).astype(np.uint8)

    def draw_stretch(self, length_nt: int, generator: np.random.Generator) -> NDArray[np.uint8]:
        """Base codes of ``length_nt`` cut from an endless genome, so that it may begin and end inside a gene."""
        layout = self.source.layout
        lead = int(generator.integers(2 * round(layout.mean_gene_nt + layout.mean_gap_nt)))
        is_reverse = bool(generator.random() < 0.5)
        parts: list[NDArray[np.uint8]] = []
        num_drawn = 0
        while num_drawn < lead + length_nt:
            gap = self.draw_gap(int(generator.exponential(layout.mean_gap_nt)), generator)
            gene_nt = generator.lognormal(np.log(layout.median_gene_nt), layout.gene_spread)
            gene = self.draw_gene(max(10, round(gene_nt / 3)), generator)
            parts += [gap, _reverse(gene) if is_reverse else gene]
            num_drawn += len(gap) + len(gene)
            is_reverse ^= bool(generator.random() < layout.strand_switch)
        return np.concatenate(parts)[lead : lead + length_nt]


def _walk(sums: list[list[float]], state: int, lots: list[float], num_states: int) -> list[int]:
    """States of a chain, each drawn by one of ``lots`` in [0, 1); an outcome is appended to the state."""
    num_outcomes = len(sums[0])
    states = []
    for lot in lots:
        state = (state * num_outcomes + bisect_right(sums[state], lot)) % num_states
        states.append(state)
    return states


def _reverse(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    flipped: NDArray[np.uint8] = reverse_complement(codes[None])[0]
    return flipped


def fit(genomes: Genomes, source: Source) -> Model:
    """Fit both chains on the records of one source.

    The genes are the open stretches of either strand, those with an ATG first and the longest of them
    first, that overlap the ones before by at most a tenth; they begin at their first ATG where enough is left
    after it. All other bases, of both strands, make the chain between genes.

    Raises:
        InputError: there is no record of this source, or no open stretch in any.
    """
    records = np.flatnonzero((genomes.classes == source.class_name) & (genomes.groups == source.group))
    pairs = np.zeros((NUM_CODONS, NUM_CODONS))
    stops = np.zeros(NUM_CODONS)
    hexamers = np.zeros(4 ** (ORDER + 1))
    num_genes = 0
    for record in records.tolist():
        codes = genomes[record]
        strands = (codes, _reverse(codes))
        is_gene = np.zeros(len(codes), dtype=bool)
        for strand, start, stop in _find_genes(strands, source.layout.least_open_nt, is_gene):
            codons = _codons(strands[strand][start:stop])
            np.add.at(pairs, (codons[:-1], codons[1:]), 1)
            ending = _codons(strands[strand][stop : stop + 3])
            stops[ending[ending < NUM_CODONS]] += 1
            num_genes += 1
        for strand_codes, mask in zip(strands, (is_gene, is_gene[::-1]), strict=True):
            hexamers += _count_hexamers(np.where(mask, AMBIGUOUS_BASE, strand_codes))
    if not num_genes:
        raise InputError(source.class_name, f"no open stretch in any record of {source.group}. Choose another group.")
    return Model(source, _sum_up_codons(pairs), _sum_up_stops(stops), _sum_up_bases(hexamers), num_genes)


def _find_genes(
    strands: tuple[NDArray[np.uint8], NDArray[np.uint8]], least_nt: int, is_gene: NDArray[np.bool_]
) -> list[tuple[int, int, int]]:
    """(strand 0 or 1, start, stop) of genes, 0-based half-open on their own strand; ``is_gene`` is filled in."""
    found = [_open_stretches(codes, IS_STOP, least_nt) for codes in strands]
    rows = np.concatenate([np.insert(item, 0, strand, axis=1) for strand, item in enumerate(found)])
    order = np.lexsort((rows[:, 1] - rows[:, 2], -rows[:, 3]))
    genes = []
    for strand, start, stop, _has_start in rows[order].tolist():
        place = slice(len(is_gene) - stop, len(is_gene) - start) if strand else slice(start, stop)
        if is_gene[place].mean() <= 0.1:
            is_gene[place] = True
            genes.append((strand, start, stop))
    return genes


@njit
def _open_stretches(codes: NDArray[np.uint8], is_stop: NDArray[np.bool_], least_nt: int) -> NDArray[np.int64]:
    """(n, 3) start, stop and whether it begins with ATG, of each stretch without a stop codon or an ambiguous base."""
    found = np.empty((3 * (len(codes) // least_nt + 1), 3), dtype=np.int64)
    num_found = 0
    for frame in range(3):
        start = frame
        atg = -1
        for i in range(frame, len(codes) + 3, 3):
            codon = -1
            if i + 3 <= len(codes) and max(codes[i], codes[i + 1], codes[i + 2]) < AMBIGUOUS_BASE:
                codon = 16 * codes[i] + 4 * codes[i + 1] + codes[i + 2]
            if codon == START_CODON and atg < 0:
                atg = i
            if codon < 0 or is_stop[codon]:
                has_start = atg >= 0 and i - atg >= least_nt
                if has_start:
                    start = atg
                if i - start >= least_nt and i <= len(codes):
                    found[num_found] = start, i, int(has_start)
                    num_found += 1
                start = i + 3
                atg = -1
    return found[:num_found]


def _codons(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Codon codes of one frame; 64 and more where a base is ambiguous."""
    bases = codes[: len(codes) // 3 * 3].reshape(-1, 3).astype(np.int64)
    return np.where(bases.max(axis=1, initial=0) == AMBIGUOUS_BASE, NUM_CODONS, bases @ np.array([16, 4, 1]))


def _count_hexamers(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(4096,) times each 6-mer without an ambiguous base occurs."""
    if len(codes) <= ORDER:
        return np.zeros(4 ** (ORDER + 1))
    windows = np.lib.stride_tricks.sliding_window_view(codes, ORDER + 1)
    clear = windows[(windows < AMBIGUOUS_BASE).all(axis=1)].astype(np.int64)
    return np.bincount(clear @ 4 ** np.arange(ORDER, -1, -1), minlength=4 ** (ORDER + 1)).astype(np.float64)


def _sum_up_codons(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running sums of the next codon's probability; a rare codon borrows from the frequencies of all codons."""
    usage = np.where(IS_STOP, 0.0, pairs.sum(axis=0) + 0.5)
    usage /= usage.sum()
    smooth = np.where(IS_STOP, 0.0, pairs) + PRIOR_WEIGHT * usage
    return _running(smooth)


def _sum_up_stops(stops: NDArray[np.float64]) -> NDArray[np.float64]:
    return _running(np.where(IS_STOP, stops + 0.5, 0.0))


def _sum_up_bases(hexamers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running sums of the next base's probability, each context smoothed by the one a base shorter."""
    counts = hexamers.reshape((4,) * (ORDER + 1))
    chances = np.full(4, 0.25)
    for order in range(ORDER + 1):
        seen = counts.sum(axis=tuple(range(ORDER - order)))
        chances = (seen + PRIOR_WEIGHT * chances) / (seen.sum(axis=-1, keepdims=True) + PRIOR_WEIGHT)
    return _running(chances.reshape(-1, 4))


def _running(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running sums along the last axis that end at 1, from the last outcome that may occur on."""
    sums: NDArray[np.float64] = np.cumsum(weights, axis=-1)
    return sums / sums[..., -1:]
