"""The call of a record of more than one fragment: what its fragments and its genes say together.

A logistic regression over the mean log-odds of the fragments and the shares of genes by what is nearest to them, each
times the square root of how many there are, up to a bound: neighbours say partly the same, and the windows of a record
of 600 bases overlap (``bundles/records.py``, decision 26). Of a record with proviruses only the rest counts: it is the
host's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles.records import RecordWeights
from virnucpro.nearest.path import classes_of
from virnucpro.results.fragments import Fragments
from virnucpro.results.regions import outside

_OF_PATH_CLASS = np.array([0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6])
"""Class of a gene on the path (``nearest/path.py``) to one of ``bundles.records.GENE_CLASSES``."""
NUM_CLASSES = int(_OF_PATH_CLASS.max()) + 1


def record_features(
    table: Fragments, parts: NDArray[np.void], weights: RecordWeights
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the log-odds of each sequence is made of, without proviruses and masked fragments.

    Returns:
        (m, 1 + NUM_CLASSES) of its fragments and genes, NaN where no fragment has a score; and (m,) bases that count.
    """
    features = np.full((len(table), 1 + NUM_CLASSES), np.nan)
    fragments = table.fragments[outside(parts, table.fragments)]
    scored = fragments[~np.isnan(fragments["log_odds"]) & (fragments["masked"] == 0)]
    position = scored["sequence"] - table.first
    bound = weights.largest_log_odds
    sums = np.bincount(position, np.clip(scored["log_odds"].astype(np.float64), -bound, bound), len(table))
    counts = np.bincount(position, minlength=len(table))
    known = counts > 0
    lengths = table.sequences["length"] * (counts / np.maximum(table.sequences["num_fragments"], 1))
    stretches = np.minimum(counts, lengths / weights.fragment_nt)[known]
    features[known, 0] = sums[known] / counts[known] * np.sqrt(np.clip(stretches, 1, weights.most_fragments))
    genes = table.genes[outside(parts, table.genes)]
    classes = _OF_PATH_CLASS[classes_of(genes["bits_virus"], genes["bits_cell"])]
    place = (genes["sequence"] - table.first) * NUM_CLASSES + classes
    of_class = np.bincount(place, minlength=len(table) * NUM_CLASSES).reshape(-1, NUM_CLASSES)
    total = of_class.sum(axis=1, keepdims=True)
    shares = of_class / np.maximum(total, 1) * np.sqrt(np.minimum(total, weights.most_genes))
    features[known, 1:] = shares[known]
    return features, lengths


def record_log_odds(table: Fragments, parts: NDArray[np.void], weights: RecordWeights) -> NDArray[np.float64]:
    """(m,) log-odds at equal prevalence of sequences of more than one fragment; NaN for shorter ones."""
    features, lengths = record_features(table, parts, weights)
    log_odds = weights.at(weights.intercept, lengths) + weights.at(weights.fragments, lengths) * features[:, 0]
    # one after the other: no sum depends on the others' number
    for column, weight in enumerate(weights.genes, start=1):
        log_odds = log_odds + weight * features[:, column]
    return np.where(lengths > weights.fragment_nt, log_odds, np.nan)
