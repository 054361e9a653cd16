"""From the nearest viral proteins of a hit to its lineage, as deep as can be told.

Each gene or fragment votes for the taxon of its nearest viral protein with its bits above ``FLOOR_BITS``. From the top,
the child with most votes is taken as long as its probability to be right reaches ``LEAST_CONFIDENCE``: a logistic
regression for each rank over four features (``WEIGHTS``), fitted on dev viruses, of families that the table has and of
families that it lacks in equal parts (``python -m studies taxonomy``; docs/taxonomy.md has the figures). Whether
anything in the table is as near as members of one family are is told by one more regression, over all votes whatever
their taxon.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro.taxonomy.lineages import Lineage

FLOOR_BITS = 28.0
"""What any protein reaches by chance."""
FEATURES = ("constant", "log bits a kb", "log top bits", "share of votes", "cellular bits a viral bit")
LEAST_CONFIDENCE = {"realm": 0.85, "class": 0.7, "order": 0.65, "family": 0.85}
"""Rank to the least confidence that a taxon is named with, for one in twenty names to be wrong."""
LEAST_SHARE = 2 / 3
"""Of the votes for any taxon below one that the next must have: what is torn between two families is of neither."""
MOST_FAMILIAR = 0.4
"""A hit that is less familiar than this is novel."""
_RANK_OF = {"kingdom": "realm", "phylum": "class"}
"""Ranks that are decided as others are."""
_LARGEST_RATIO = 2.0

Weights = dict[str, tuple[float, ...]]
WEIGHTS: Weights = {
    "realm": (1.14, 0.29, 0.36, 2.26, -6.41),
    "class": (-2.41, 0.46, 0.78, 1.6, -4.45),
    "order": (0.0, 0.32, 0.35, 1.67, -5.49),
    "family": (-0.16, 0.38, 0.33, 1.19, -6.04),
    "familiar": (-1.28, 0.52, 0.22, -1.28, -1.17),
}
"""Rank to a weight for each of ``FEATURES``; ``familiar`` is whether the family is in the table at all."""


@dataclass(frozen=True)
class Votes:
    """What is nearest to the genes or fragments of a hit."""

    taxa: Sequence[Lineage]  # the lineage of the nearest viral protein of each; empty where it is of no known taxon
    # (v, 2) float, to the nearest viral and the nearest cellular protein; 0 where there is none
    bits: NDArray[np.floating]
    length_nt: int  # of the hit


@dataclass(frozen=True)
class Step:
    """One taxon on the way down."""

    lineage: Lineage  # from the top to the taxon
    share: float  # of the votes for any taxon right below the one above it
    features: NDArray[np.float64]  # (5,) see ``FEATURES``

    @property
    def rank(self) -> str:
        """Of the taxon."""
        return self.lineage[-1][0]

    def confidence(self, weights: Weights = WEIGHTS) -> float:
        """Probability that it is right."""
        return _probability(weights[_RANK_OF.get(self.rank, self.rank)], self.features)


@dataclass(frozen=True)
class Named:
    """What a hit is called."""

    lineage: Lineage = ()  # from the top down; empty where nothing is sure enough
    confidence: float = float("nan")  # of the last taxon named, and with it of all above; NaN without one
    is_novel: bool = True  # whether nothing in the table is as near as members of one family are


def steps(votes: Votes) -> Iterator[Step]:
    """The taxa with most votes, from the top down; of equal ones the first by name."""
    weights = np.maximum(votes.bits[:, 0].astype(np.float64) - FLOOR_BITS, 0).tolist()
    voters = [number for number, weight in enumerate(weights) if weight > 0]
    total, path = sum(weights), ()  # type: tuple[float, Lineage]
    while True:
        level = len(path)
        of_child: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number in voters:
            taxon = votes.taxa[number]
            if len(taxon) > level and taxon[:level] == path:
                of_child[taxon[level]].append(number)
        if not of_child:
            return
        sums = {child: sum(weights[number] for number in numbers) for child, numbers in of_child.items()}
        best = min(sums, key=lambda child: (-sums[child], child))
        path, voters = (*path, best), of_child[best]
        top = max(weights[number] for number in voters) + FLOOR_BITS
        yield Step(path, sums[best] / sum(sums.values()), _features(votes, sums[best], top, sums[best] / total))


def familiarity(votes: Votes, weights: Weights = WEIGHTS) -> float:
    """Probability that the hit's family is in the table; 0 if nothing is near."""
    features = all_votes(votes)
    return 0.0 if features is None else _probability(weights["familiar"], features)


def all_votes(votes: Votes) -> NDArray[np.float64] | None:
    """(5,) the features of all votes, whatever their taxon; None without any."""
    above = np.maximum(votes.bits[:, 0].astype(np.float64) - FLOOR_BITS, 0)
    if not above.any():
        return None
    return _features(votes, float(above.sum()), float(above.max()) + FLOOR_BITS, 1.0)


def name(votes: Votes, weights: Weights = WEIGHTS) -> Named:
    """Name a hit as deep as its confidence allows."""
    lineage: Lineage = ()
    confidence = 1.0
    for step in steps(votes):
        probability = min(confidence, step.confidence(weights))
        if step.share < LEAST_SHARE or probability < LEAST_CONFIDENCE[_RANK_OF.get(step.rank, step.rank)]:
            break
        lineage, confidence = step.lineage, probability
    has_family = bool(lineage) and lineage[-1][0] == "family"
    is_novel = not has_family and familiarity(votes, weights) < MOST_FAMILIAR
    return Named(lineage, confidence if lineage else float("nan"), is_novel)


def _features(votes: Votes, bits: float, top_bits: float, share: float) -> NDArray[np.float64]:
    viral, cellular = votes.bits.sum(axis=0).tolist()
    ratio = min(cellular / max(viral, 1.0), _LARGEST_RATIO)
    return np.array([1.0, np.log(1000 * bits / votes.length_nt), np.log(top_bits), share, ratio])


def _probability(weights: Sequence[float], features: NDArray[np.float64]) -> float:
    return float(1 / (1 + np.exp(-np.dot(weights, features))))
