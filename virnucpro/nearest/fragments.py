"""Fragments as queries: their most open frames, and what else of them the evidence is weighed by."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernels import kernel
from virnucpro.nearest.codons import OPEN, read_codons, translate
from virnucpro.nearest.residues import BREAK
from virnucpro.nearest.search import MOST_POSITIONS
from virnucpro.sequence.ragged import Ragged, offsets_of

NUM_FRAMES = 2
"""Frames of a fragment that are searched with: those with the longest stop-free runs."""
BASES_AT_A_TIME = 3 * MOST_POSITIONS // NUM_FRAMES
"""Of fragments that are searched for together: each time the whole table is read."""

_KINDS = np.zeros(256, dtype=np.uint8)
"""1 for a letter that is one of A C G T (U), 3 for G and C, else 0."""
_KINDS[list(b"ATUatu")] = 1
_KINDS[list(b"CGcg")] = 3


@dataclass(frozen=True)
class Frames:
    """Frames of n fragments.

    Attributes:
        queries: n items of residue codes: the most open frames of a fragment, a break between them.
        open_runs: (n, 6) int32, residues in the longest stop-free run of each frame, the longest first.
        gc: (n,) float32, share of G and C among A, C, G and T.
    """

    queries: Ragged
    open_runs: NDArray[np.int32]
    gc: NDArray[np.float32]


def open_frames(fragments: Ragged, num_threads: int = 1) -> Frames:
    """Translate fragments (n strings of ASCII bases)."""
    bounds = np.linspace(0, len(fragments), num_threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(num_threads) as pool:
        parts = list(pool.map(lambda *some: _open_frames(fragments.slice(*some)), bounds, bounds[1:]))
    return Frames(
        Ragged.concatenate(part.queries for part in parts),
        np.concatenate([part.open_runs for part in parts]),
        np.concatenate([part.gc for part in parts]),
    )


def _open_frames(fragments: Ragged) -> Frames:
    letters, starts, stops = fragments.values, fragments.offsets[:-1], fragments.offsets[1:]
    codons, opposite = read_codons(letters)
    runs = np.zeros((len(starts), 6), dtype=np.int32)
    counts = np.zeros((len(starts), 2), dtype=np.int64)
    _measure(len(fragments), letters, codons, opposite, fragments.offsets, OPEN == BREAK, _KINDS, runs, counts)
    order = np.argsort(-runs, axis=1, kind="stable")
    chosen = order[:, :NUM_FRAMES]
    phases = chosen % 3
    strands = np.where(chosen < 3, 1, -1).astype(np.int8)
    firsts = np.where(chosen < 3, starts[:, None] + phases, stops[:, None] - 3 - phases)
    lengths = np.maximum(((stops - starts)[:, None] - phases) // 3, 0)
    offsets = offsets_of(np.maximum(NUM_FRAMES * ((stops - starts) // 3 + 1) - 1, 0))
    places = offsets[:-1, None] + np.cumsum(lengths + 1, axis=1) - lengths - 1
    codes = np.full(offsets[-1], BREAK, dtype=np.uint8)
    each = (firsts.ravel(), strands.ravel(), lengths.ravel())
    translate(len(each[0]), codons, opposite, *each, OPEN, places.ravel(), codes)
    gc = (counts[:, 1] / np.maximum(counts[:, 0], 1)).astype(np.float32)
    return Frames(Ragged(codes, offsets), np.take_along_axis(runs, order, axis=1), gc)


@kernel
def _measure(
    count: int,
    letters: NDArray[np.uint8],
    codons: NDArray[np.uint8],
    opposite: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    is_stop: NDArray[np.bool_],
    kinds: NDArray[np.uint8],
    runs: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> None:
    """Longest stop-free run of each frame, and how many letters are bases, and G or C."""
    for n in range(count):
        start, stop = offsets[n], offsets[n + 1]
        for i in range(start, stop):
            kind = kinds[letters[i]]
            counts[2 * n] += kind & 1
            counts[2 * n + 1] += kind >> 1
        for frame in range(6):
            run, most = 0, 0
            row = codons if frame < 3 else opposite
            for at in range(start + frame if frame < 3 else start + (stop - start - frame) % 3, stop - 2, 3):
                run = 0 if is_stop[row[at]] else run + 1
                most = max(most, run)
            runs[6 * n + frame] = most
