"""How the fragments and the genes of a longer record make its log-odds, as a bundle says it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GENE_CLASSES = ("unmatched", "cell", "clear_cell", "mostly_cell", "even", "mostly_virus", "virus")
"""What genes are told apart by: nothing is near; only a cellular protein is, below and above 100 bits; both are."""


@dataclass(frozen=True)
class RecordWeights:
    """A logistic regression over what is known of a record; two weights are linear in the logarithm of its length."""

    lengths: tuple[float, ...]  # nt, ascending; beyond them the first and the last weight hold
    intercept: tuple[float, ...]  # log-odds, one for each length
    fragments: tuple[float, ...]  # likewise, of the mean log-odds of fragments times the square root of their number
    genes: tuple[float, ...]  # of the share of each class among its genes times the square root of their number
    fragment_nt: int = 500  # windows overlap: a record counts as at most so many as it has stretches of this length
    most_fragments: int = 20  # more count as so many: neighbours say the same again
    most_genes: int = 30  # likewise
    largest_log_odds: float = 5.0  # of a fragment; what is beyond counts as this

    def __post_init__(self) -> None:
        if not len(self.lengths) == len(self.intercept) == len(self.fragments) > 0:
            raise ValueError("records: lengths, intercept and fragments must be lists of one length")
        if list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] <= 0:
            raise ValueError("records: lengths must be above zero and ascend")
        if len(self.genes) != len(GENE_CLASSES):
            raise ValueError(f"records: genes must be {len(GENE_CLASSES)} weights")

    def at(self, weights: tuple[float, ...], lengths_nt: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) one of the weights that depend on length, for records of these lengths."""
        return np.interp(np.log(np.maximum(lengths_nt, 1)), np.log(self.lengths), weights)
