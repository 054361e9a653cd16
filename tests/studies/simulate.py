"""Draw an example metagenome from k-mer models of real groups of organisms.

No genome record is copied into the project, so its example is drawn from the models in ``kmer_models``.
Before anything is written the longest stretch shared with the fitted records is measured; a long one is
refused.

Run ``python -m studies simulate --data DIR --output examples --seed 1``.
"""

from __future__ import annotations

import argparse
import gzip
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from studies.kmer_models import SOURCES, Model, Source, fit
from studies.shared_stretch import longest_shared_nt
from virnucpro.encoders.codons import AMBIGUOUS_BASE
from virnucpro.errors import VirNucProError
from virnucpro.training.genomes import LETTERS, Genomes, base_codes, load_genomes
from virnucpro.training.sampling import reverse_complement

logger = logging.getLogger(__name__)

MOST_SHARED_NT = 39
"""Longest stretch that a drawn sequence may share with a fitted record."""


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
    drawn = [base_codes(np.frombuffer(contig.letters, dtype=np.uint8)) for contig in contigs]
    shared = longest_shared_nt([*drawn, *stretches], genomes)
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


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m studies simulate",
        description="Draw an example metagenome from k-mer models of real groups.",
        epilog="Example: python -m studies simulate --data data --output examples --seed 1",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>.fasta.gz and a manifest")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: 1)")
    options = parser.parse_args(arguments)
    write_example(load_genomes(options.data, "train"), SOURCES, Plan(), options.seed, options.output)
    return 0
