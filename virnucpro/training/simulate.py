"""Draw an example metagenome from k-mer models of real groups of organisms.

No genome record is copied into the project, so its example is drawn: genes from a codon chain (a codon
given the one before it, an in-frame hexamer model), what lies between them from a fifth-order chain of
bases. Both are fitted group by group, since an average over a class washes out what makes the class.
Before anything is written the longest stretch shared with the fitted records is measured; a long one is
refused.

What the chains do not know is not there: no protein motif longer than two residues, no repeats, no
introns (a gene of a vertebrate or a plant stands for one exon).

Run ``python -m virnucpro.training.simulate --data DIR --output examples --seed 1``.
"""

from __future__ import annotations

import argparse
import gzip
import logging
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from virnucpro.encoders.six_frame import AMBIGUOUS_BASE, BASE_CODES, CODON_RESIDUES, NUM_CODONS, STOP
from virnucpro.errors import InputError, VirNucProError
from virnucpro.sequence.compiled import compiled
from virnucpro.training.genomes import VIRUS, Genomes, load_genomes, select
from virnucpro.training.sampling import reverse_complement

logger = logging.getLogger(__name__)

START_CODON = 14
"""ATG, 16 * A + 4 * T + G."""
IS_STOP = CODON_RESIDUES[:NUM_CODONS] == STOP
"""(64,) whether a codon ends a gene (NCBI translation table 1)."""

ORDER = 5
"""Bases before a base between genes that decide it."""
PRIOR_WEIGHT = 8.0
"""Observations that the shorter context counts for."""
MOST_SHARED_NT = 39
"""Longest stretch that a drawn sequence may share with a fitted record."""
SEED_NT = 16
"""Shorter shared stretches are not looked for: chance alone gives them."""

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
    records = select(genomes, lambda kind, group, _split: kind == source.class_name and group == source.group)
    pairs = np.zeros((NUM_CODONS, NUM_CODONS))
    stops = np.zeros(NUM_CODONS)
    hexamers = np.zeros(4 ** (ORDER + 1))
    num_genes = 0
    for record in records:
        codes = genomes.codes[genomes.offsets[record] : genomes.offsets[record + 1]]
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


@compiled
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


@dataclass(frozen=True)
class Drawn:
    """A drawn sequence.

    Attributes:
        name: first word of its header.
        source: the group whose model it was drawn from.
        letters: ASCII bases.
        qualities: Phred + 33 letters, of reads alone.
    """

    name: str
    source: Source
    letters: bytes
    qualities: bytes = b""


@dataclass(frozen=True)
class Plan:
    """What the example holds.

    Attributes:
        num_viral_contigs: contigs dealt out to the viral sources.
        num_host_contigs: contigs dealt out to all others.
        shortest_nt: length of the shortest contig; lengths are log-uniform up to
        longest_nt: the longest, and never longer than the source's own.
        num_reads: reads, of which
        viral_share: is viral-like.
        read_nt: length of a read.
        genome_nt: length of the stretch that the reads of one source are cut from.
    """

    num_viral_contigs: int = 20
    num_host_contigs: int = 40
    shortest_nt: int = 300
    longest_nt: int = 6000
    num_reads: int = 2000
    viral_share: float = 1 / 3
    read_nt: int = 150
    genome_nt: int = 12_000


LETTERS = np.frombuffer(b"ACGTN", dtype=np.uint8)
"""ASCII letter of each base code."""
PHRED = np.array([37, 25, 11])
"""Qualities that a read's bases have (binned, as recent sequencers report them), and"""
PHRED_SHARES = np.array([0.93, 0.05, 0.02])
"""how often; the letter is wrong with probability 10 ** (-quality / 10), 2 in 1,000 over all."""

SHORT_NT = 80
"""Length of the one contig that is shorter than any fragment."""
NUM_UNKNOWN_NT = 100
"""Length of the run of N in one contig, as a scaffolder writes for a gap."""


def draw_contigs(models: Sequence[Model], plan: Plan, seed: int) -> list[Drawn]:
    """Contigs of all models in random order.

    Three are odd but legal: the longest host contig has a run of N, the last host contig is ``SHORT_NT``
    long, the last viral one is in lower case.
    """
    shuffle = np.random.default_rng([seed, 0])
    dealt = [models[i] for i in shuffle.permutation(_deal(models, plan.num_viral_contigs, plan.num_host_contigs))]
    is_host = np.array([model.source.origin == "host_like" for model in dealt])
    longest = np.array([min(plan.longest_nt, model.source.longest_nt) for model in dealt])
    lengths = np.exp(shuffle.uniform(np.log(plan.shortest_nt), np.log(longest + 1))).astype(np.int64)
    lengths[np.flatnonzero(is_host)[-1:]] = SHORT_NT
    has_unknown = int(np.argmax(np.where(is_host, lengths, 0)))
    contigs = []
    for i, model in enumerate(dealt):
        codes = model.draw_stretch(int(lengths[i]), np.random.default_rng([seed, 1, i]))
        if i == has_unknown:
            middle = len(codes) // 2
            codes[middle : middle + NUM_UNKNOWN_NT] = AMBIGUOUS_BASE
        letters = LETTERS[codes].tobytes()
        is_lower = i in np.flatnonzero(~is_host)[-1:]
        contigs.append(Drawn(f"contig_{i + 1:03d}", model.source, letters.lower() if is_lower else letters))
    return contigs


def draw_reads(models: Sequence[Model], plan: Plan, seed: int) -> tuple[list[Drawn], list[NDArray[np.uint8]]]:
    """Reads of both strands with substitutions, and the stretch of each model that they are cut from."""
    genomes = [
        model.draw_stretch(plan.genome_nt, np.random.default_rng([seed, 2, i])) for i, model in enumerate(models)
    ]
    generator = np.random.default_rng([seed, 3])
    num_viral = round(plan.num_reads * plan.viral_share)
    dealt = generator.permutation(_deal(models, num_viral, plan.num_reads - num_viral))
    starts = generator.integers(plan.genome_nt - plan.read_nt + 1, size=len(dealt))
    codes = np.stack(genomes)[dealt[:, None], starts[:, None] + np.arange(plan.read_nt)]
    is_reverse = generator.random(len(codes)) < 0.5
    codes[is_reverse] = reverse_complement(codes[is_reverse])
    phred = PHRED[np.searchsorted(PHRED_SHARES.cumsum()[:-1], generator.random(codes.shape), side="right")]
    is_wrong = generator.random(codes.shape) < 10.0 ** (-phred / 10)
    codes[is_wrong] = (codes[is_wrong] + generator.integers(1, 4, size=int(is_wrong.sum()))) % 4
    letters, qualities = LETTERS[codes], (phred + 33).astype(np.uint8)
    reads = [
        Drawn(f"read_{i + 1:04d}", models[which].source, letters[i].tobytes(), qualities[i].tobytes())
        for i, which in enumerate(dealt.tolist())
    ]
    return reads, genomes


def _deal(models: Sequence[Model], num_viral: int, num_host: int) -> NDArray[np.int64]:
    """Numbers of the models that sequences are drawn from, viral ones in turn, then host ones in turn."""
    numbers: list[int] = []
    for origin, count in (("viral_like", num_viral), ("host_like", num_host)):
        members = [i for i, model in enumerate(models) if model.source.origin == origin]
        numbers += islice(cycle(members), count)
    return np.array(numbers, dtype=np.int64)


def longest_shared_nt(drawn: Iterable[NDArray[np.uint8]], genomes: Genomes) -> int:
    """Bases in the longest stretch of ``drawn``, on either strand, that occurs in any record as well.

    Stretches are exact and end at ambiguous bases; ``SEED_NT - 1`` stands for anything shorter than a seed.
    """
    gap = np.array([AMBIGUOUS_BASE], dtype=np.uint8)
    both = np.concatenate([part for codes in drawn for part in (codes, gap, _reverse(codes), gap)])
    return int(_longest_shared(both, *_index_seeds(both), genomes.codes, genomes.offsets))


_TABLE_BITS = 22


@compiled
def _index_seeds(drawn: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Chains of places: ``first`` by the seed's slot, then ``following`` by the place; -1 ends a chain."""
    first = np.full(1 << _TABLE_BITS, -1, dtype=np.int32)
    following = np.full(len(drawn), -1, dtype=np.int32)
    seed = 0
    num_clear = 0
    for i in range(len(drawn)):
        seed = (seed << 2 | (drawn[i] & 3)) & ((1 << 2 * SEED_NT) - 1)
        num_clear = num_clear + 1 if drawn[i] < AMBIGUOUS_BASE else 0
        if num_clear >= SEED_NT:
            slot = _slot(seed)
            following[i] = first[slot]
            first[slot] = i
    return first, following


@compiled
def _slot(seed: int) -> int:
    """Fibonacci hashing of a seed (Knuth, The Art of Computer Programming 3, 6.4)."""
    return ((seed * 2654435769) & 0xFFFFFFFF) >> (32 - _TABLE_BITS)


@compiled
def _longest_shared(
    drawn: NDArray[np.uint8],
    first: NDArray[np.int32],
    following: NDArray[np.int32],
    codes: NDArray[np.uint8],
    offsets: NDArray[np.int64],
) -> int:
    longest = SEED_NT - 1
    for record in range(len(offsets) - 1):
        seed = 0
        num_clear = 0
        for i in range(offsets[record], offsets[record + 1]):
            seed = (seed << 2 | (codes[i] & 3)) & ((1 << 2 * SEED_NT) - 1)
            num_clear = num_clear + 1 if codes[i] < AMBIGUOUS_BASE else 0
            if num_clear < SEED_NT:
                continue
            place = first[_slot(seed)]
            while place >= 0:
                back = 0
                # A stretch is measured where it ends, so that a repeat is not walked through at each of its bases.
                ends = i + 1 == offsets[record + 1] or codes[i + 1] != drawn[place + 1] or codes[i + 1] > 3
                while ends and back < num_clear and place >= back and codes[i - back] == drawn[place - back]:
                    back += 1
                longest = max(longest, back)
                place = following[place]
    return longest


def write_fasta(path: Path, sequences: Iterable[Drawn]) -> None:
    """Write ``>name description`` and lines of 80 bases."""
    lines = []
    for item in sequences:
        lines.append(f">{item.name} {item.source.description}")
        text = item.letters.decode()
        lines += [text[i : i + 80] for i in range(0, len(text), 80)]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def write_fastq(path: Path, reads: Iterable[Drawn]) -> None:
    """Write gzip-packed FASTQ; the same reads give the same bytes."""
    records = [
        f"@{read.name} {read.source.description}\n{read.letters.decode()}\n+\n{read.qualities.decode()}\n"
        for read in reads
    ]
    path.write_bytes(gzip.compress("".join(records).encode(), compresslevel=9, mtime=0))


def write_truth(path: Path, sequences: Iterable[Drawn]) -> None:
    """Write the columns name, origin and group."""
    rows = [f"{item.name}\t{item.source.origin}\t{item.source.label}\n" for item in sequences]
    path.write_text("".join(["name\torigin\tgroup\n", *rows]), encoding="ascii")


def write_example(genomes: Genomes, sources: Iterable[Source], plan: Plan, seed: int, folder: Path) -> int:
    """Fit, draw and write ``metagenome.fasta``, ``reads.fastq.gz`` and ``truth.tsv``.

    Returns:
        Bases in the longest stretch shared with a record of ``genomes``.

    Raises:
        InputError: a source has no record to fit on.
        VirNucProError: a drawn sequence shares a stretch of more than ``MOST_SHARED_NT`` with a record.
    """
    models = []
    for source in sources:
        models.append(fit(genomes, source))
        logger.info("%s: fitted on %d open stretches", source.label, models[-1].num_genes)
    contigs = draw_contigs(models, plan, seed)
    reads, stretches = draw_reads(models, plan, seed)
    shared = longest_shared_nt([*(_codes(contig.letters) for contig in contigs), *stretches], genomes)
    logger.info("the longest stretch shared with a record has %d bases", shared)
    if shared > MOST_SHARED_NT:
        raise VirNucProError(
            f"a drawn sequence shares {shared} bases with a real record, more than {MOST_SHARED_NT}; nothing was "
            "written. Take another --seed."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_fasta(folder / "metagenome.fasta", contigs)
    write_fastq(folder / "reads.fastq.gz", reads)
    write_truth(folder / "truth.tsv", [*contigs, *reads])
    return shared


def _codes(letters: bytes) -> NDArray[np.uint8]:
    return BASE_CODES[np.frombuffer(letters, dtype=np.uint8)].astype(np.uint8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m virnucpro.training.simulate",
        description="Draw an example metagenome from k-mer models of real groups.",
        epilog="Example: python -m virnucpro.training.simulate --data data --output examples --seed 1",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>.fasta.gz and a manifest")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: 1)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        write_example(load_genomes(options.data, "train"), SOURCES, Plan(), options.seed, options.output)
    except VirNucProError as error:
        parser.exit(error.exit_code, f"Error: {error}\n")


if __name__ == "__main__":
    main()
