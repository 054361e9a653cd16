"""Which sequences of a unit share a batch: plain arithmetic on their lengths, no torch."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

_BRAKE = "VIRNUCPRO_DISABLE_PACKING"
"""The published emergency brake: with ``true`` each sequence is a batch."""


class GreedyPacker:
    """Cuts a unit into batches of at most ``token_budget`` tokens.

    Batches of exactly one length come first, each as full as the budget allows: they are dense. What is left of every
    length is then filled up in order of length. Nothing is carried from one call to the next, so the lengths alone
    decide the batches.

    Args:
        token_budget: the most tokens a batch may hold; a longer sequence is a batch of its own.
    """

    def __init__(self, token_budget: int) -> None:
        if token_budget < 1:
            raise ValueError(f"a token budget must be positive, not {token_budget}")
        self.token_budget = token_budget

    def __call__(self, lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Group the sequences.

        Args:
            lengths: (n,) length of each, in tokens.

        Returns:
            Index arrays, each ordered by length, then index; every index is in exactly one.
        """
        if os.environ.get(_BRAKE, "").lower() == "true":
            return list(np.arange(len(lengths)).reshape(-1, 1))
        order = np.argsort(lengths, kind="stable").astype(np.int64)
        batches: list[NDArray[np.int64]] = []
        leftovers: list[NDArray[np.int64]] = []
        values, starts = np.unique(lengths[order], return_index=True)
        for length, group in zip(values.tolist(), np.split(order, starts[1:]), strict=False):
            a_batch = max(1, self.token_budget // max(1, length))
            num_full = len(group) // a_batch
            batches += np.split(group[: num_full * a_batch], num_full) if num_full else []
            leftovers.append(group[num_full * a_batch :])
        return batches + self._fill(np.concatenate(leftovers) if leftovers else order, lengths)

    def _fill(self, order: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Close a batch where the next sequence would not fit; ``order`` is by length."""
        ends = np.cumsum(lengths[order])
        batches = []
        start = 0
        while start < len(order):
            used = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, used + self.token_budget, side="right")))
            batches.append(order[start:stop])
            start = stop
        return batches
