"""How the fragments and the genes of a longer record make its log-odds, as a bundle says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GENE_CLASSES = ("unmatched", "cell", "clear_cell", "mostly_cell", "even", "mostly_virus", "virus")
"""What genes are told apart by: nothing is near; only a cellular protein is, below and above 100 bits; both are."""


@dataclass(frozen=True)
class RecordWeights:
    """A logistic regression over what is known of a record."""

    intercept: float  # log-odds
    fragments: float  # of the mean log-odds of its fragments times the square root of their number
    genes: tuple[float, ...]  # of the share of each class among its genes times the square root of their number
    shortest_nt: int = 1500  # shorter records are called by their fragments alone
    most_fragments: int = 20  # more count as so many: neighbours say the same again
    most_genes: int = 30  # likewise
    largest_log_odds: float = 4.0  # of a fragment; what is beyond counts as this


def read_record_weights(content: Mapping[str, Any] | None) -> RecordWeights | None:
    """The weights as ``bundle.yaml`` and ``rules.json`` hold them.

    Raises:
        TypeError, ValueError: they make no sense.
    """
    if content is None:
        return None
    genes = tuple(float(weight) for weight in content["genes"])
    if len(genes) != len(GENE_CLASSES):
        raise ValueError(f"records: genes must be {len(GENE_CLASSES)} weights")
    return RecordWeights(**{**content, "genes": genes})
