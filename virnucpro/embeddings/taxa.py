"""Lineages by a reference of one's own: embeddings of known sequences, and the taxonomy that their ids are names of.

A hit takes the lineage of its nearest neighbour, down to the rank at which at least 95 % of neighbours that are as near
are right: for the sequences of the reference themselves, each looked up among the others, with its taxon and without.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from virnucpro.embeddings.files import About, read_embeddings
from virnucpro.embeddings.neighbours import nearest, read_query
from virnucpro.errors import UsageError
from virnucpro.hierarchy.tables import read_taxdump
from virnucpro.progress import Reporter
from virnucpro.taxonomy import RANKS
from virnucpro.taxonomy.lineages import Lineage, Names
from virnucpro.taxonomy.naming import Named

LEAST_RIGHT = 0.95
_MOST_ASKED = 4000


@dataclass(frozen=True, eq=False)
class Reference:
    """Known sequences."""

    rows: NDArray[np.floating]  # (n, width) their embeddings
    about: About  # what made them
    ids: Sequence[str]  # n ids
    lineages: Sequence[Lineage]  # n lineages; empty where the taxonomy does not know the id
    # rank to the least similarity to a neighbour of which 95 % are right, and the share that is right
    limits: dict[str, tuple[float, float]]

    def name(self, neighbour: int, similarity: float) -> Named:
        """What a sequence with this nearest neighbour is; -1 if it has none."""
        lineage: Lineage = ()
        confidence = float("nan")
        for taxon in self.lineages[neighbour] if neighbour >= 0 else ():
            limit, share = self.limits.get(taxon[0], (np.inf, 0.0))
            if similarity < limit:
                break
            lineage, confidence = (*lineage, taxon), share
        return Named(lineage, confidence, is_novel=neighbour >= 0 and not lineage)


def read_reference(path: Path, taxdump: Path) -> Reference:
    """Read embeddings of ``virnucpro embed`` and NCBI's taxonomy.

    The id of a sequence, or a part of it between bars (``|``), is a name of the taxonomy; underscores count as blanks.

    Raises:
        UsageError: a row is not of a sequence, or no id is a name of the taxonomy.
        InputError, StoreError: a file cannot be read.
    """
    known, about = read_embeddings(path)
    if known.level != "sequence":
        raise UsageError(f"{path} has a row a {known.level}. Embed the reference with --level sequence.")
    names = Names(read_taxdump(taxdump))
    ids = [str(name) for name in known.columns()["id"]]
    lineages = [_lineage(names, name) for name in ids]
    if not any(lineages):
        raise UsageError(
            f"{path}: no id is a name of the taxonomy in {taxdump}, such as {ids[0] if ids else 'none'!r}."
        )
    rows = known.joined()
    return Reference(rows, about, ids, lineages, _limits(rows, lineages))


def _lineage(names: Names, sequence_id: str) -> Lineage:
    parts = (sequence_id, *reversed(sequence_id.split("|")))
    return next((found for part in parts if (found := names.lineage(part))), ())


def _limits(rows: NDArray[np.floating], lineages: Sequence[Lineage]) -> dict[str, tuple[float, float]]:
    """Rank to the least similarity that is enough, and the share of neighbours at least so near that are right.

    Each sequence asks twice: among all others, and among those of other taxa of this rank, as if its own were new,
    where every answer is wrong.
    """
    own = np.random.default_rng(0).permutation(len(rows))[:_MOST_ASKED]
    neighbours, similarities = _nearest_other(rows, own)
    limits = {}
    for rank in RANKS:
        taxa = np.array([dict(lineage).get(rank, "") for lineage in lineages])
        asked = (taxa[own] != "") & (neighbours >= 0)
        is_right = taxa[own[asked]] == taxa[neighbours[asked]]
        as_new = [
            nearest(rows[own[taxa[own] == taxon]], rows[taxa != taxon], 1)[1][:, 0]
            for taxon in np.unique(taxa[own[asked]])
            if (taxa != taxon).any()
        ]
        values = np.concatenate([similarities[asked], *as_new]).astype(np.float64)
        right = np.concatenate([is_right, np.zeros(len(values) - len(is_right), dtype=np.bool_)])[~np.isnan(values)]
        order = np.argsort(-values[~np.isnan(values)], kind="stable")
        shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
        enough = np.flatnonzero(shares >= LEAST_RIGHT)
        if len(enough):
            limits[rank] = float(values[~np.isnan(values)][order[enough[-1]]]), float(shares[enough[-1]])
    return limits


def _nearest_other(rows: NDArray[np.floating], own: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest row to each of some rows, but for itself, and how similar it is."""
    found, similarities = nearest(rows[own], rows, 2)
    column = (found[:, 0] == own).astype(np.int64)
    place = np.arange(len(own))
    return found[place, column], similarities[place, column]


def name_by_reference(
    sequences: Iterable[tuple[int, bytes]], reference: Reference, devices: tuple[str, ...], threads: int
) -> dict[int, tuple[Named, str]]:
    """Name sequences: number to what it is, and the id of its nearest neighbour."""
    with TemporaryDirectory(prefix="virnucpro-") as folder:
        path = Path(folder) / "hits.fasta"
        with path.open("wb") as stream:
            stream.writelines(b">%d\n%b\n" % item for item in sequences)
        if not path.stat().st_size:
            return {}
        queries = read_query(path, reference.about, devices, threads, Reporter(bars=False))
    found, similarities = nearest(queries.joined(), reference.rows, 1)
    return {
        int(number): (reference.name(neighbour, similarity), reference.ids[neighbour] if neighbour >= 0 else "")
        for number, neighbour, similarity in zip(
            queries.columns()["id"], found[:, 0].tolist(), similarities[:, 0].tolist(), strict=True
        )
    }
