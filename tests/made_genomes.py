"""Made chromosomes with a phage in them, and the small table of proteins that knows both."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from virnucpro.nearest.table import Table, make_table
from virnucpro.sequence.ragged import Ragged

_RESIDUES = "ARNDCQEGHILKMFPSTWYV"
_SHARES = np.array([826, 553, 406, 546, 138, 393, 672, 707, 227, 591, 965, 580, 241, 386, 474, 665, 536, 110, 292, 686])
_CODONS = {
    "A": "GCT GCC GCA GCG", "R": "CGT CGC CGA AGA", "N": "AAT AAC", "D": "GAT GAC", "C": "TGT TGC", "Q": "CAA CAG",
    "E": "GAA GAG", "G": "GGT GGC GGA GGG", "H": "CAT CAC", "I": "ATT ATC ATA", "L": "TTA CTG CTT CTC", "K": "AAA AAG",
    "M": "ATG", "F": "TTT TTC", "P": "CCT CCC CCA CCG", "S": "TCT TCC AGC TCA", "T": "ACT ACC ACA ACG", "W": "TGG",
    "Y": "TAT TAC", "V": "GTT GTC GTA GTG",
}  # fmt: skip
_OPPOSITE = str.maketrans("ACGT", "TGCA")


@dataclass(frozen=True)
class MadeGene:
    """A gene of a made record: where it lies, its strand and its protein."""

    start: int
    stop: int
    strand: int
    protein: str


def reverse_complement(bases: str) -> str:
    return bases.translate(_OPPOSITE)[::-1]


def proteins(gen: np.random.Generator, num: int, shortest: int = 120, longest: int = 350) -> list[str]:
    letters = np.array(list(_RESIDUES))
    shares = _SHARES / _SHARES.sum()
    return ["M" + "".join(gen.choice(letters, gen.integers(shortest, longest), p=shares)) for _ in range(num)]


def relative(gen: np.random.Generator, protein: str, identity: float = 0.6) -> str:
    """The protein with some of its residues replaced."""
    letters = np.array(list(protein))
    changed = gen.random(len(letters)) > identity
    letters[changed] = gen.choice(list(_RESIDUES), changed.sum())
    return "M" + "".join(letters[1:])


def record(gen: np.random.Generator, coded: list[str], strand_run: int = 3) -> tuple[str, list[MadeGene]]:
    """Bases that code for some proteins, the strand changing after every ``strand_run`` of them; and the genes."""
    bases, genes = "", []
    for place, protein in enumerate(coded):
        bases += "".join(gen.choice(list("ACGT"), gen.integers(20, 90))) + "TAA"
        codons = "".join(gen.choice(_CODONS[residue].split()) for residue in protein)
        strand = 1 if (place // strand_run) % 2 == 0 else -1
        coding = codons + "TAA" if strand > 0 else reverse_complement(codons + "TAA")
        start = len(bases) + (0 if strand > 0 else 3)
        genes.append(MadeGene(start, start + 3 * len(protein), strand, protein))
        bases += coding
    return bases + "".join(gen.choice(list("ACGT"), 40)), genes


@dataclass(frozen=True)
class Prophage:
    """A chromosome with a phage in it, and the table that knows relatives of the proteins of both.

    Attributes:
        bases: of the chromosome.
        start: first base of the phage.
        stop: one after its last.
        phage: its bases.
        table: relatives at 60 % identity of two in three proteins of the phage, and of four in five of the host.
    """

    bases: str
    start: int
    stop: int
    phage: str
    table: Table


SITE = "ATGCCGTTAGCATCGGATTACGTC"


def prophage(seed: int = 1, num_host: int = 120, num_phage: int = 30) -> Prophage:
    gen = np.random.default_rng(seed)
    host, viral = proteins(gen, num_host), proteins(gen, num_phage, 60, 220)
    left, _ = record(gen, host[: num_host // 2])
    right, _ = record(gen, host[num_host // 2 :])
    phage, _ = record(gen, viral, strand_run=num_phage)
    known = [relative(gen, protein) for place, protein in enumerate(viral) if place % 3]
    cells = [relative(gen, protein) for place, protein in enumerate(host) if place % 5]
    named = [("made phage", "Madeviridae", "virus")] * len(known) + [("Madebacter", "Madebacter", "bacteria")] * len(
        cells
    )
    table = make_table(Ragged.from_bytes([protein.encode() for protein in known + cells]), named)
    bases = left + SITE + phage + SITE + right
    return Prophage(bases, len(left), len(left) + 2 * len(SITE) + len(phage), phage, table)


def letters_of(bases: str) -> NDArray[np.uint8]:
    return np.frombuffer(bases.encode(), dtype=np.uint8)


def is_ordered(bounds: list[tuple[int, int]]) -> bool:
    return all(first[1] <= second[0] for first, second in pairwise(bounds))
