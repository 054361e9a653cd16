"""Virus regions: whole sequences that are called virus, and proviruses, viral parts of host sequences.

Proviruses are found by a path over the genes of a sequence (``nearest/path.py``), with its fragments where genes match
nothing. A sequence without genes has none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.nearest.path import find_proviruses
from virnucpro.results.fragments import Fragments

REGION_DTYPE = np.dtype(
    [
        ("sequence", "i8"),
        ("start", "i8"),
        ("stop", "i8"),
        ("is_provirus", "?"),
        ("p_virus", "f8"),
        ("score", "f8"),
        ("num_fragments", "i8"),
        ("num_genes", "i8"),
    ]
)
"""A virus region: number of its sequence in the run, 0-based half-open bounds, whether it is a part of a longer
sequence, its probability (of a part the mean over its genes), score, and numbers of fragments and genes."""

NO_REGIONS = np.zeros(0, dtype=REGION_DTYPE)
_LARGEST_SCORE = 99.0


def proviruses(table: Fragments) -> NDArray[np.void]:
    """(r,) REGION_DTYPE, the viral parts of longer sequences, in order."""
    return np.concatenate([NO_REGIONS, *(part.opened(_proviruses(part)) for part in table.parts())])


def _proviruses(table: Fragments) -> NDArray[np.void]:
    """Those of some sequences, as they lie where gaps are closed."""
    found = []
    offsets, lengths = table.offsets, table.closed_lengths
    all_fragments, all_genes, all_sites = map(table.closed, (table.fragments, table.genes, table.sites))
    numbers, starts = np.unique(all_genes["sequence"], return_index=True)
    stops = np.append(starts, len(all_genes))[1:]
    for number, start, stop in zip(numbers.tolist(), starts.tolist(), stops.tolist(), strict=True):
        position, genes = number - table.first, all_genes[start:stop]
        fragments = all_fragments[offsets[position] : offsets[position + 1]]
        low, high = np.searchsorted(all_sites["sequence"], (number, number + 1)).tolist()
        for each in find_proviruses(genes, fragments, int(lengths[position]), all_sites[low:high]):
            within = (fragments["start"] >= each.start) & (fragments["start"] < each.stop)
            middles = (genes["start"] + genes["stop"]) / 2
            num_genes = int(((middles >= each.start) & (middles < each.stop)).sum())
            bounds = (each.start, each.stop, True, each.posterior, each.score)
            found.append((number, *bounds, int(within.sum()), num_genes))
    return np.array(found, dtype=REGION_DTYPE)


def regions(
    table: Fragments, is_virus: NDArray[np.bool_], p_virus: NDArray[np.floating], parts: NDArray[np.void]
) -> NDArray[np.void]:
    """(r,) REGION_DTYPE by sequence: its proviruses; the whole of one that is called virus and has none.

    Args:
        table: some sequences.
        is_virus: (m,) whether each is called virus.
        p_virus: (m,) of each.
        parts: the proviruses in them, of ``proviruses``.
    """
    is_whole = is_virus.copy()
    is_whole[parts["sequence"] - table.first] = False
    positions = np.flatnonzero(is_whole)
    whole = np.zeros(len(positions), dtype=REGION_DTYPE)
    whole["sequence"] = table.first + positions
    whole["stop"] = table.sequences["length"][positions]
    whole["p_virus"] = p_virus[positions]
    with np.errstate(divide="ignore"):
        log_odds = np.log(whole["p_virus"]) - np.log1p(-whole["p_virus"])
    whole["score"] = np.clip(log_odds, -_LARGEST_SCORE, _LARGEST_SCORE)
    whole["num_fragments"] = table.sequences["num_fragments"][positions]
    whole["num_genes"] = np.bincount(table.genes["sequence"] - table.first, minlength=len(table))[positions]
    found = np.concatenate([parts, whole])
    return found[np.argsort(found["sequence"], kind="stable")]


def outside(parts: NDArray[np.void], items: NDArray[np.void]) -> NDArray[np.bool_]:
    """(n,) which fragments or genes lie outside proviruses, by their middles; both ascending by sequence."""
    is_outside = np.ones(len(items), dtype=np.bool_)
    for part in parts:
        low, high = np.searchsorted(items["sequence"], (part["sequence"], part["sequence"] + 1)).tolist()
        middle = (items["start"][low:high] + items["stop"][low:high]) / 2
        is_outside[low:high] &= (middle < part["start"]) | (middle >= part["stop"])
    return is_outside
