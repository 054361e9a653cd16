"""Which viruses the hits of an input are, and what is written of it: a table, counts, a tree and Krona's text.

The hits are the virus regions: whole sequences that are called virus, and proviruses. The genes in a region vote
(``taxonomy/naming.py``); for one without genes, which is mostly a shorter sequence, its fragments are looked up again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from virnucpro.hierarchy.tree import Node, Tree
from virnucpro.nearest.evidence import search_fragments
from virnucpro.nearest.fragments import BASES_AT_A_TIME
from virnucpro.nearest.search import VIRUS
from virnucpro.nearest.table import Table
from virnucpro.results.formats import NOTHING, Cells
from virnucpro.sequence.gaps import without_gaps
from virnucpro.sequence.ragged import Ragged
from virnucpro.taxonomy import RANKS
from virnucpro.taxonomy.lineages import Lineage, ictv
from virnucpro.taxonomy.naming import FLOOR_BITS, Named, Votes, name

if TYPE_CHECKING:
    from virnucpro.results.called import InputResults

NOVEL, UNKNOWN = "novel", "unknown"
"""What hits without a name are counted as; a novel one below a named taxon as ``novel in`` that."""
_NO_NAME = Named(is_novel=False)


@dataclass(frozen=True)
class Hit:
    """A virus region with its name."""

    named: Named = _NO_NAME  # what it is
    num_matches: int = 0  # genes or fragments with a viral protein near them
    nearest: str = ""  # the virus with the best of these; empty without a name

    @property
    def path(self) -> tuple[tuple[str, str], ...]:
        """(rank, name) from the top down; what it is counted as."""
        lineage = self.named.lineage
        if not self.named.is_novel:
            return lineage or (("", UNKNOWN),)
        return (*lineage, ("", f"{NOVEL} in {lineage[-1][1]}" if lineage else NOVEL))


@dataclass(frozen=True)
class TaxonCount:
    """Hits of a taxon, those of the taxa below it among them."""

    lineage: tuple[str, ...]  # names from the top down
    rank: str  # of the taxon; empty for what is no taxon
    num_hits: int = 0  # how many
    num_bases: int = 0  # of these
    num_here: int = 0  # hits that are named no deeper


@dataclass(frozen=True, eq=False)
class Lineages:
    """The hits of an input."""

    regions: NDArray[np.void]  # (r,) REGION_DTYPE
    hits: Sequence[Hit]  # r of them

    @cached_property
    def counts(self) -> list[TaxonCount]:
        """Of all taxa, from the top down, those with most hits first."""
        found: dict[tuple[str, ...], TaxonCount] = {}
        lengths = (self.regions["stop"] - self.regions["start"]).tolist()
        for hit, num_bases in zip(self.hits, lengths, strict=True):
            names = tuple(name for _, name in hit.path)
            for level, (rank, _) in enumerate(hit.path, start=1):
                taxon = found.get(names[:level]) or TaxonCount(names[:level], rank)
                found[names[:level]] = replace(
                    taxon,
                    num_hits=taxon.num_hits + 1,
                    num_bases=taxon.num_bases + num_bases,
                    num_here=taxon.num_here + (level == len(names)),
                )
        return sorted(
            found.values(),
            key=lambda taxon: [
                (-found[taxon.lineage[:level]].num_hits, taxon.lineage[level - 1])
                for level in range(1, len(taxon.lineage) + 1)
            ],
        )

    def cells(self, region_names: Sequence[bytes], sequence_names: Sequence[bytes]) -> Cells:
        """A line for each hit, ``schema.TAXONOMY``."""
        lineages = [hit.named.lineage for hit in self.hits]
        of_rank = [dict(lineage) for lineage in lineages]
        return (
            region_names,
            sequence_names,
            self.regions["start"] + 1,
            self.regions["stop"],
            [lineage[-1][1].encode() if lineage else NOTHING for lineage in lineages],
            [lineage[-1][0].encode() if lineage else NOTHING for lineage in lineages],
            np.array([hit.named.confidence for hit in self.hits], dtype=np.float64),
            [b"yes" if hit.named.is_novel else b"no" for hit in self.hits],
            *([names[rank].encode() if rank in names else NOTHING for names in of_rank] for rank in RANKS),
            np.array([hit.num_matches for hit in self.hits], dtype=np.int64),
            [hit.nearest.encode() or NOTHING for hit in self.hits],
        )

    def count_cells(self) -> Cells:
        """A line for each taxon, ``schema.TAXA``."""
        return (
            [";".join(taxon.lineage).encode() for taxon in self.counts],
            [taxon.rank.encode() or NOTHING for taxon in self.counts],
            *(
                np.array([getattr(taxon, column) for taxon in self.counts], dtype=np.int64)
                for column in ("num_hits", "num_bases", "num_here")
            ),
        )

    def newick(self) -> bytes:
        """The taxa as a tree in Newick's format."""
        nodes = {
            taxon.lineage[-1]: Node(taxon.lineage[-1], taxon.lineage[-2] if len(taxon.lineage) > 1 else None)
            for taxon in self.counts
        }
        return Tree(dict(sorted(nodes.items()))).newick().encode()

    def krona(self) -> bytes:
        """What Krona's ``ktImportText`` reads: hits that are named no deeper, then the lineage."""
        lines = ("\t".join([str(taxon.num_here), *taxon.lineage]) + "\n" for taxon in self.counts if taxon.num_here)
        return "".join(lines).encode()


def find_lineages(results: InputResults, table: Table, num_threads: int = 1) -> Lineages:
    """Name the hits of an input by the proteins of a table.

    Args:
        results: of it; without its bases, hits that have no genes stay without a name.
        table: of proteins, for these.
        num_threads: that share the search.
    """
    regions, hits, sizes = results.regions, list[Hit | None](), list[int]()
    for part in results.parts():
        closed, genes = map(part.table.closed, (part.regions, part.table.genes))
        for region in closed:
            sizes.append(int(region["stop"] - region["start"]))
            hits.append(_hit(sizes[-1], *_genes_in(region, genes), results.table.organisms))
    without = np.array([place for place, hit in enumerate(hits) if hit is None], dtype=np.int64)
    for places, strings in _some_at_a_time(fragments_of(results, regions, without)):
        found = search_fragments(table, strings, num_threads)[1]
        organisms = _organisms(table, found.proteins[:, VIRUS])
        for place in np.unique(places).tolist():
            mine = places == place
            hits[place] = _hit(sizes[place], found.proteins[mine, VIRUS], found.bits[mine], organisms)
    return Lineages(regions, [hit or Hit() for hit in hits])


def fragments_of(
    results: InputResults, regions: NDArray[np.void], wanted: NDArray[np.int64]
) -> Iterator[tuple[int, bytes]]:
    """The fragments of some regions that are not masked: place of the region, and bases."""
    table, fragments = results.table, results.table.fragments
    for place, _, bases in results.bases_of(regions[wanted]):
        region = regions[wanted[place]]
        low, high = np.searchsorted(fragments["sequence"], (region["sequence"], region["sequence"] + 1)).tolist()
        for each in table.fragments[low:high]:
            if not each["masked"] and each["start"] >= region["start"] and each["stop"] <= region["stop"]:
                start, stop = (int(each[name] - region["start"]) for name in ("start", "stop"))
                yield wanted[place], without_gaps(bases[start:stop])


def _some_at_a_time(items: Iterator[tuple[int, bytes]]) -> Iterator[tuple[NDArray[np.int64], Ragged]]:
    """Places and strings, as many as are searched for together; all of a place in one go."""
    places: list[int] = []
    strings: list[bytes] = []
    num_bases = 0
    for place, string in items:
        if num_bases >= BASES_AT_A_TIME and place != places[-1]:
            yield np.array(places), Ragged.from_bytes(strings)
            places, strings, num_bases = [], [], 0
        places.append(place)
        strings.append(string)
        num_bases += len(string)
    if places:
        yield np.array(places), Ragged.from_bytes(strings)


def _genes_in(region: np.void, genes: NDArray[np.void]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Organism of the nearest viral protein and bits of the genes whose middle lies in a region."""
    low, high = np.searchsorted(genes["sequence"], (region["sequence"], region["sequence"] + 1)).tolist()
    mine = genes[low:high]
    middle = (mine["start"] + mine["stop"]) / 2
    mine = mine[(middle >= region["start"]) & (middle < region["stop"])]
    return mine["nearest"], np.column_stack([mine["bits_virus"], mine["bits_cell"]])


def _organisms(table: Table, proteins: NDArray[np.int32]) -> dict[int, tuple[str, str]]:
    """Name and group of the organism of each protein."""
    return {protein: table.describe(protein)[:2] for protein in np.unique(proteins[proteins >= 0]).tolist()}


def _hit(
    num_bases: int, nearest: NDArray[np.int32], bits: NDArray[np.float32], organisms: Mapping[int, tuple[str, str]]
) -> Hit | None:
    """The name of a region of so many bases by what is nearest to its genes or fragments; None without these."""
    if not len(nearest):
        return None
    names = [organisms.get(number, ("", "")) for number in nearest.tolist()]
    taxa: list[Lineage] = [ictv().lineage_of_group(group) for _, group in names]
    named = name(Votes(taxa, bits, num_bases))
    best, is_match = int(np.argmax(bits[:, VIRUS])), bits[:, VIRUS] > FLOOR_BITS
    return Hit(named, int(is_match.sum()), names[best][0] if is_match[best] else "")
