"""What the nearest proteins of a fragment say, as log-odds of virus against host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.nearest.fragments import Frames, open_frames
from virnucpro.nearest.search import CELL, VIRUS, Hits, search_codes
from virnucpro.nearest.table import Table
from virnucpro.sequence.ragged import Ragged

LARGEST = 12.0
"""Evidence is cut here."""
SHORT_NT = 400
"""Fragments of up to so many bases, which have the fewest seeds, are searched with more sensitive ones."""


TRAITS = ("longest", "second", "third", "gc", "gc_squared")
"""What else of a fragment is weighed: share of its codons in the longest stop-free run of each of the three most open
frames, and how far the share of G and C is from a half, also squared."""


@dataclass(frozen=True)
class Found:
    """What is known of n fragments.

    Attributes:
        scores: (n, 2) int32, as ``search.Hits`` holds them.
        traits: (n, 5) float32, ``TRAITS``.
        lengths_nt: (n,) int64.
    """

    scores: NDArray[np.int32]
    traits: NDArray[np.float32]
    lengths_nt: NDArray[np.int64]


def search_fragments(
    table: Table, fragments: Ragged, num_threads: int = 1, proteins: Ragged | None = None
) -> tuple[Frames, Hits]:
    """The most open frames of fragments (ASCII bases); what is nearest to them and then to proteins (residue codes)."""
    frames = open_frames(fragments, num_threads)
    queries = frames.queries if proteins is None else Ragged.concatenate([frames.queries, proteins])
    is_short = np.zeros(len(queries), dtype=np.bool_)
    is_short[: len(fragments)] = fragments.lengths <= SHORT_NT
    return frames, search_codes(table, queries, num_threads=num_threads, is_sensitive=is_short)


def look_at(table: Table, fragments: Ragged, num_threads: int = 1) -> Found:
    """Search fragments (ASCII bases)."""
    return found_of(fragments, *search_fragments(table, fragments, num_threads))


def found_of(fragments: Ragged, frames: Frames, hits: Hits) -> Found:
    """What is known of fragments by their frames, and by the first of some hits."""
    num_codons = np.maximum(fragments.lengths // 3, 1)[:, None]
    gc = (frames.gc - 0.5)[:, None]
    traits = np.concatenate([frames.open_runs[:, :3] / num_codons, gc, gc * gc], axis=1)
    return Found(hits.scores[: len(fragments)], traits.astype(np.float32), fragments.lengths)


@dataclass(frozen=True)
class Evidence:
    """How much the best score against viruses, that against cells, and traits count; linear between lengths.

    Attributes:
        lengths: fragment lengths (nt), ascending.
        knots: scores, ascending; linear between them, constant beyond the last one.
        virus: log-odds at each knot, a line for each length.
        cell: the same of the best score against cells.
        traits: weight of each of ``TRAITS``, a line for each length.
    """

    lengths: tuple[float, ...]
    knots: tuple[float, ...]
    virus: tuple[tuple[float, ...], ...]
    cell: tuple[tuple[float, ...], ...]
    traits: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for values in (self.lengths, self.knots):
            if not values or list(values) != sorted(set(values)):
                raise ValueError("evidence: lengths and knots must ascend")
        for lines, size in ((self.virus, len(self.knots)), (self.cell, len(self.knots)), (self.traits, len(TRAITS))):
            if len(lines) != len(self.lengths) or {len(line) for line in lines} != {size}:
                raise ValueError("evidence: a line for each length, a number for each knot and trait")

    def log_odds(self, found: Found) -> NDArray[np.float32]:
        """(n,) log-odds of virus against host, up to a constant."""
        total = np.zeros(len(found.scores))
        for number in range(len(self.lengths)):
            share = np.interp(found.lengths_nt, self.lengths, np.arange(len(self.lengths)) == number)
            said = found.traits.astype(np.float64) @ np.array(self.traits[number])
            for side, lines in ((VIRUS, self.virus), (CELL, self.cell)):
                said += np.interp(found.scores[:, side], self.knots, lines[number])
            total += share * said
        return np.clip(total, -LARGEST, LARGEST).astype(np.float32)


def read_evidence(content: Mapping[str, Any]) -> Evidence:
    """Evidence as ``bundle.yaml`` holds it.

    Raises:
        KeyError, TypeError, ValueError: it makes no sense.
    """
    lengths, knots = (tuple(map(float, content[name])) for name in ("lengths", "knots"))
    lines = (tuple(tuple(map(float, line)) for line in content[name]) for name in ("virus", "cell", "traits"))
    return Evidence(lengths, knots, *lines)
