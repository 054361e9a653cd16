"""The example is drawn, not copied: genes are genes, the seed decides, and long copies are refused."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from Bio import SeqIO
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.__main__ import main
from studies.kmer_models import PROKARYOTE, SMALL_DNA, VERTEBRATE, Source, fit
from studies.shared_stretch import SEED_NT, longest_shared_nt
from studies.simulate import (
    MOST_SHARED_NT,
    SHORT_NT,
    Plan,
    draw_contigs,
    draw_reads,
    write_example,
)
from virnucpro.errors import InputError, VirNucProError
from virnucpro.training.genomes import Genomes
from virnucpro.training.sampling import reverse_complement

EXAMPLES = Path(__file__).parents[2] / "examples"
STOPS = {"TAA", "TAG", "TGA"}
CODONS = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT" if a + b + c not in STOPS]
SOURCES = (
    Source("Fictiviridae", "virus", SMALL_DNA, longest_nt=1500),
    Source("Fictibacter(genus)", "bacteria", PROKARYOTE),
)
PLAN = Plan(num_viral_contigs=4, num_host_contigs=6, num_reads=60, genome_nt=2000)
GENES, GENE_CODONS = 30, 150


def codes_of(text):
    return np.array(["ACGT".index(letter) if letter in "ACGT" else 4 for letter in text], dtype=np.uint8)


def text_of(codes):
    return "".join("ACGTN"[code] for code in codes)


def genomes_of(texts, classes, groups):
    offsets = np.cumsum([0, *map(len, texts)])
    names = np.array([f"r{i}" for i in range(len(texts))])
    splits = np.array(["train"] * len(texts))
    return Genomes(codes_of("".join(texts)), offsets, np.array(classes), np.array(groups), splits, names)


def make_genome(favourites, seed):
    """Genes of favourite codons between stretches that are closed in all six frames."""
    generator = np.random.default_rng(seed)
    closed = "TTAATTAATTAA"
    parts = []
    for i in range(GENES):
        gap = "".join(generator.choice(list("ACGT"), 40))
        gene = "ATG" + "".join(generator.choice(favourites, GENE_CODONS - 2)) + "TAA"
        if i % 2:
            gene = text_of(reverse_complement(codes_of(gene)[None])[0])
        parts += [closed, gap, closed, gene]
    return "".join(parts)


def invented_genomes():
    texts = [make_genome(CODONS[:30], 1), make_genome(CODONS[30:], 2)]
    return genomes_of(texts, ["virus", "bacteria"], [source.group for source in SOURCES])


@pytest.fixture(scope="module")
def genomes():
    return invented_genomes()


@pytest.fixture(scope="module")
def models(genomes):
    return [fit(genomes, source) for source in SOURCES]


def test_fitting_finds_each_gene_once_on_either_strand(models):
    assert [model.num_genes for model in models] == [GENES, GENES]


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 400), st.integers(0, 2**32), st.sampled_from([0, 1]))
def test_a_gene_runs_from_atg_to_its_only_stop_in_frame(models, num_codons, seed, which):
    text = text_of(models[which].draw_gene(num_codons, np.random.default_rng(seed)))
    codons = [text[i : i + 3] for i in range(0, len(text), 3)]
    assert len(text) == 3 * num_codons
    assert codons[0] == "ATG"
    assert [codon in STOPS for codon in codons] == [False] * (num_codons - 1) + [True]


def test_genes_use_the_codons_of_their_own_source(models):
    for model, favourites in zip(models, (CODONS[:30], CODONS[30:]), strict=True):
        text = text_of(model.draw_gene(3000, np.random.default_rng(1)))
        codons = [text[i : i + 3] for i in range(3, len(text) - 3, 3)]
        assert np.mean([codon in favourites for codon in codons]) > 0.95


def test_a_codon_depends_on_the_one_before():
    """A source in which GCC always follows TTA, and TTA always GCC, is drawn so."""
    text = "TTAATTAATTAA" + "ATG" + "TTAGCC" * 200 + "TAA"
    model = fit(genomes_of([text], ["virus"], ["F"]), Source("F", "virus", SMALL_DNA))
    drawn = text_of(model.draw_gene(1000, np.random.default_rng(1)))
    codons = [drawn[i : i + 3] for i in range(3, len(drawn) - 3, 3)]
    followers = [codons[i + 1] for i in range(len(codons) - 1) if codons[i] == "TTA"]
    assert len(followers) > 400
    assert np.mean([codon == "GCC" for codon in followers]) > 0.95


def test_between_genes_the_hexamers_are_those_of_the_source():
    between = "GCTAATTACG" * 200
    text = between + "TTAATTAATTAA" + "ATG" + "GCA" * 300 + "TAA"
    model = fit(genomes_of([text], ["virus"], ["F"]), Source("F", "virus", SMALL_DNA))
    drawn = text_of(model.draw_gap(5000, np.random.default_rng(1)))
    turned = text_of(reverse_complement(codes_of(between)[None])[0])
    hexamers = {strand[i : i + 6] for strand in (between, turned) for i in range(len(between) - 5)}
    assert np.mean([drawn[i : i + 6] in hexamers for i in range(len(drawn) - 5)]) > 0.8


@pytest.mark.parametrize("layout", [PROKARYOTE, SMALL_DNA, VERTEBRATE])
def test_genes_cover_the_share_that_the_layout_says(layout):
    assert layout.mean_gene_nt / (layout.mean_gene_nt + layout.mean_gap_nt) == pytest.approx(layout.coding)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**32))
def test_a_stretch_has_the_length_asked_for(models, length, seed):
    codes = models[0].draw_stretch(length, np.random.default_rng(seed))
    assert len(codes) == length
    assert codes.max() < 4


def test_contigs_are_as_planned(models):
    contigs = draw_contigs(models, PLAN, 1)
    viral = [contig for contig in contigs if contig.source.origin == "viral_like"]
    assert (len(viral), len(contigs)) == (4, 10)
    assert [contig.name for contig in contigs] == [f"contig_{i:03d}" for i in range(1, 11)]
    assert all(PLAN.shortest_nt <= len(contig.letters) <= 1500 for contig in viral)
    lengths = sorted(len(contig.letters) for contig in contigs)
    assert lengths[0] == SHORT_NT
    assert lengths[1] >= PLAN.shortest_nt
    assert lengths[-1] <= PLAN.longest_nt
    assert sum(b"N" in contig.letters for contig in contigs) == 1
    assert sum(contig.letters.islower() for contig in contigs) == 1


def test_reads_come_from_both_strands_of_their_source_with_few_errors(models):
    reads, stretches = draw_reads(models, PLAN, 1)
    assert sum(read.source.origin == "viral_like" for read in reads) == 20
    num_wrong = 0
    strands = set()
    for read in reads:
        assert len(read.letters) == len(read.qualities) == PLAN.read_nt
        stretch = stretches[SOURCES.index(read.source)]
        codes = codes_of(read.letters.decode())
        errors = []
        for strand in (codes, reverse_complement(codes[None])[0]):
            windows = np.lib.stride_tricks.sliding_window_view(stretch, PLAN.read_nt)
            errors.append(int((windows != strand).sum(axis=1).min()))
        strands.add(int(np.argmin(errors)))
        num_wrong += min(errors)
    assert strands == {0, 1}
    assert 0 < num_wrong < 0.01 * len(reads) * PLAN.read_nt


def slow_longest(drawn, records):
    def best(a, b):
        lengths = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                lengths[i + 1, j + 1] = lengths[i, j] + 1 if x == y != "N" else 0
        return lengths.max()

    def turned(text):
        return text[::-1].translate(str.maketrans("ACGT", "TGCA"))

    return max(best(strand, record) for text in drawn for strand in (text, turned(text)) for record in records)


DNA = st.text("ACGTN", max_size=40)


@settings(max_examples=60, deadline=None)
@given(st.text("ACGT", min_size=SEED_NT, max_size=45), st.tuples(DNA, DNA, DNA, DNA), st.booleans())
def test_the_longest_shared_stretch_agrees_with_a_slow_search(planted, around, is_turned):
    """Planted on either strand, at either end, next to ambiguous bases."""
    left, right, before, after = around
    drawn = [left + planted + right, after]
    records = [before, before + planted + after]
    if is_turned:
        records[1] = records[1][::-1].translate(str.maketrans("ACGT", "TGCA"))
    codes = [codes_of(text) for text in drawn]
    found = longest_shared_nt(codes, genomes_of(records, ["virus"] * 2, ["F"] * 2))
    assert found == max(SEED_NT - 1, slow_longest(drawn, records))


def test_stretches_do_not_run_on_into_the_next_record():
    text = "".join(np.random.default_rng(1).choice(list("ACGT"), 60))
    assert longest_shared_nt([codes_of(text)], genomes_of([text[:25], text[25:]], ["virus"] * 2, ["F"] * 2)) == 35


def test_the_seed_decides_every_byte(genomes, tmp_path):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_example(genomes, SOURCES, PLAN, seed, tmp_path / folder)
    for name in ("metagenome.fasta", "reads.fastq.gz", "truth.tsv"):
        first, again, other = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert first == again
        assert first != other


def test_a_source_that_would_be_copied_is_refused_and_nothing_is_written(tmp_path):
    text = "TTAATTAATTAA" + "ATG" + "GCA" * 3000 + "TAA"
    genomes = genomes_of([text, text], ["virus", "bacteria"], [source.group for source in SOURCES])
    with pytest.raises(VirNucProError, match=f"more than {MOST_SHARED_NT}"):
        write_example(genomes, SOURCES, PLAN, 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_without_records_is_named(genomes):
    with pytest.raises(InputError, match="Absentiviridae"):
        fit(genomes, Source("Absentiviridae", "virus", SMALL_DNA))


def test_the_command_says_what_is_missing(tmp_path, capsys):
    assert main(["simulate", "--data", str(tmp_path), "--output", str(tmp_path / "out")]) == InputError.exit_code
    assert "manifest.tsv.gz" in capsys.readouterr().err


def check_example(folder, num_contigs, num_reads):
    """Every header says that the sequence is simulated, and the truth names each once, in order."""
    contigs = list(SeqIO.parse(folder / "metagenome.fasta", "fasta"))
    with gzip.open(folder / "reads.fastq.gz", "rt") as lines:
        reads = list(SeqIO.parse(lines, "fastq"))
    rows = [line.split("\t") for line in (folder / "truth.tsv").read_text().splitlines()]
    assert (len(contigs), len(reads)) == (num_contigs, num_reads)
    assert rows[0] == ["name", "origin", "group"]
    for record, (name, origin, group) in zip([*contigs, *reads], rows[1:], strict=True):
        assert record.description == f"{name} simulated: k-mer model of {group}, not a real sequence"
        assert origin in {"viral_like", "host_like"}


def test_the_files_written_agree_with_each_other(genomes, tmp_path):
    write_example(genomes, SOURCES, PLAN, 1, tmp_path)
    check_example(tmp_path, 10, 60)
    assert "Fictibacter\n" in (tmp_path / "truth.tsv").read_text()


def test_the_example_in_the_repository_is_whole_and_small():
    check_example(EXAMPLES, 60, 2000)
    assert sum(path.stat().st_size for path in EXAMPLES.iterdir()) < 500_000
