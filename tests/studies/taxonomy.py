"""Lineages of dev viruses: fits the weights of ``taxonomy.naming`` and measures them by rank and length.

Pieces of viruses of families that the table has (``dev_seen``) and of families that it lacks (``dev_novel``), drawn as
dev sequences are, are looked up in the table of a bundle that left dev out. Figures are of weights that were fitted on
other families (five folds); those printed at the end are fitted on all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles import load_bundle
from virnucpro.nearest.evidence import search_fragments
from virnucpro.nearest.genes import SHORTEST_RECORD_NT, find_genes
from virnucpro.nearest.search import VIRUS, search_codes
from virnucpro.nearest.table import Table, load_table
from virnucpro.sequence.fragments import windows
from virnucpro.sequence.ragged import Ragged
from virnucpro.taxonomy.lineages import Lineage, ictv
from virnucpro.taxonomy.naming import Votes, Weights, all_votes, familiarity, name, steps
from virnucpro.text import aligned
from virnucpro.training.calibration import fit_logistic
from virnucpro.training.dev import NOVEL, SEEN
from virnucpro.training.genomes import LETTERS, Genomes, load_genomes
from virnucpro.training.sampling import sample_fragments, virus_pool

LENGTHS = {300: 1500, 500: 1500, 1000: 1500, 3000: 1200, 10_000: 800}
"""Bases of a piece to how many of seen and of novel families each."""
RANKS = ("realm", "class", "order", "family")
_NUM_FOLDS = 5
_RIDGE = 1e-3


@dataclass(frozen=True)
class Piece:
    """A piece of a dev virus.

    Attributes:
        length: nt.
        is_seen: whether its family is in the table.
        family: as the data call it.
        truth: its lineage, as far as it is known.
        votes: what is nearest to it.
    """

    length: int
    is_seen: bool
    family: str
    truth: Lineage
    votes: Votes

    def judge(self, taxon: tuple[str, str]) -> bool | None:
        """Whether a taxon is right; None if the truth does not reach so deep."""
        ranks = [rank for rank, _ in self.truth]
        if not self.truth or ("family" not in ranks and taxon[0] not in ranks):
            return None
        return taxon in self.truth


def draw(genomes: Genomes, table: Table, share: float = 1.0, seed: int = 7) -> list[Piece]:
    """All pieces, with their votes."""
    groups = [ictv().lineage_of_group(group) for group in table.group_names]
    of_protein = [groups[group] for group in table.group_of_protein.tolist()]
    pieces = []
    for length, count in LENGTHS.items():
        generator = np.random.default_rng([seed, length])
        for split in (SEEN, NOVEL):
            codes, records = sample_fragments(
                genomes, virus_pool(genomes, split), length, int(count * share), generator
            )
            queries = [*_looked_up(LETTERS[codes], table)]
            for record, (nearest, bits) in zip(records.tolist(), queries, strict=True):
                family = str(genomes.groups[record])
                taxa = [of_protein[protein] if protein >= 0 else () for protein in nearest.tolist()]
                truth = ictv().lineage_of_group(family)
                pieces.append(Piece(length, split == SEEN, family, truth, Votes(taxa, bits, length)))
    return pieces


def _looked_up(letters: NDArray[np.uint8], table: Table) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """For each sequence the nearest viral protein of its genes or fragments, and the bits of both sides."""
    length = letters.shape[1]
    if length >= SHORTEST_RECORD_NT:
        found = [find_genes(sequence).proteins for sequence in letters]
        hits, counts = search_codes(table, Ragged.concatenate(found)), [len(proteins) for proteins in found]
    else:
        bounds = windows(length, 500)
        strings = Ragged.from_bytes(row[start:stop].tobytes() for row in letters for start, stop in bounds.tolist())
        hits, counts = search_fragments(table, strings)[1], [len(bounds)] * len(letters)
    ends = np.cumsum(counts)[:-1]
    yield from zip(np.split(hits.proteins[:, VIRUS], ends), np.split(hits.bits, ends), strict=True)


def fit(pieces: list[Piece]) -> Weights:
    """Weights for each rank, and of what is familiar."""
    lines: dict[str, list[tuple[NDArray[np.float64], bool]]] = {rank: [] for rank in (*RANKS, "familiar")}
    for piece in pieces:
        for step in steps(piece.votes):
            if step.rank in RANKS and (is_right := piece.judge(step.lineage[-1])) is not None:
                lines[step.rank].append((step.features, is_right))
        if (features := all_votes(piece.votes)) is not None:
            lines["familiar"].append((features, piece.is_seen))
    return {rank: _regression(*map(np.array, zip(*found, strict=True))) for rank, found in lines.items()}


def _regression(features: NDArray[np.float64], is_right: NDArray[np.bool_]) -> tuple[float, ...]:
    found = fit_logistic(features, is_right, np.ones(len(features)), ridge=_RIDGE)
    return tuple(np.round(found, 2).tolist())


def measure(pieces: list[Piece]) -> list[Mapping[str, object]]:
    """A line for each length and rank, each piece named by weights of other families."""
    families = sorted({piece.family for piece in pieces})
    lots = np.random.default_rng(0).permutation(len(families)) % _NUM_FOLDS
    folds = dict(zip(families, lots.tolist(), strict=True))
    named = []
    for fold in range(_NUM_FOLDS):
        weights = fit([piece for piece in pieces if folds[piece.family] != fold])
        named += [
            (piece, name(piece.votes, weights), familiarity(piece.votes, weights))
            for piece in pieces
            if folds[piece.family] == fold
        ]
    lines: list[Mapping[str, object]] = []
    for length in LENGTHS:
        mine = [each for each in named if each[0].length == length]
        lines += [{"length": length, "rank": rank} | _figures(rank, mine) for rank in RANKS]
        for is_seen in (True, False):
            some = [found.is_novel for piece, found, _ in mine if piece.is_seen == is_seen]
            lines.append(
                {"length": length, "rank": f"novel of {'known' if is_seen else 'novel'}"} | {"named": _p(some)}
            )
    return lines


def _figures(rank: str, mine: list) -> dict[str, object]:
    figures: dict[str, object] = {}
    right_of_all: list[bool] = []
    for title, is_seen in (("known", True), ("novel", False)):
        known, right = [], []
        for piece, found, _ in mine:
            if piece.is_seen != is_seen:
                continue
            taxon = next((taxon for taxon in found.lineage if taxon[0] == rank), None)
            is_right = piece.judge(taxon or (rank, ""))
            if is_right is None:
                continue
            known.append(taxon is not None)
            if taxon is not None:
                right.append(is_right)
        figures |= {f"{title} named": _p(known), f"{title} right": _p(right)}
        right_of_all += right
    return figures | {"wrong of named": _p([not right for right in right_of_all])}


def _p(values: list[bool]) -> str:
    return f"{100 * np.mean(values):.1f} %" if values else "-"


def main(arguments: list[str]) -> int:
    """Print the figures, then the weights."""
    parser = argparse.ArgumentParser("python -m studies taxonomy", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with dev/ and manifest.tsv.gz")
    parser.add_argument("--model", required=True, help="a bundle whose table of proteins left dev out")
    parser.add_argument("--share", type=float, default=1.0, help="share of the pieces to draw")
    options = parser.parse_args(arguments)
    bundle = load_bundle(options.model)
    if bundle.nearest is None:
        parser.error(f"{options.model} has no table of proteins")
    pieces = draw(load_genomes(options.data, "dev"), load_table(bundle.nearest), options.share)
    lines = measure(pieces)
    columns = list(dict.fromkeys(name for line in lines for name in line))
    print(aligned([columns, *([str(line.get(name, "")) for name in columns] for line in lines)]))  # noqa: T201
    for rank, weights in fit(pieces).items():
        print(f"{rank}: {weights}")  # noqa: T201
    return 0
