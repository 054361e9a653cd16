"""Sequences of the dev part, drawn by a fixed protocol, and a bundle's log-odds for them.

Protocol: at each length as many sequences of each host class (every base of the class alike), and as many of novel and
of seen viruses (families by the square root of their bases), each strand alike, by a fixed seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.batching.collator import VarlenCollator
from virnucpro.encoders.base import Encoder
from virnucpro.heads import MLPHead
from virnucpro.sequence.fragments import windows
from virnucpro.sequence.frames import keep_frames, row_buffers
from virnucpro.sequence.ragged import Ragged
from virnucpro.training.genomes import VIRUS, Genomes
from virnucpro.training.sampling import Pool, host_pool, sample_fragments, virus_pool

NOVEL, SEEN = "dev_novel", "dev_seen"
LETTERS = np.frombuffer(b"ACGTN", dtype=np.uint8)
SMALLEST_SCORE = 1e-7
"""Scores below it count as this, as in ``stages.consensus``."""
_BATCH_ROWS = 2048
_MAX_FRAMES = 6


@dataclass(frozen=True)
class DevSize:
    """How many sequences of one length: of each host class, of novel and of seen viruses each, and the seed."""

    num_host: int = 4000
    num_virus: int = 10_000
    seed: int = 7

    def scaled(self, share: float) -> DevSize:
        """The same with ``share`` of the sequences."""
        return DevSize(int(self.num_host * share), int(self.num_virus * share), self.seed)


@dataclass(frozen=True)
class DevSequences:
    """Sequences of one length.

    Attributes:
        letters: (n, length) uint8 ASCII.
        origins: (n,) ``dev_novel``, ``dev_seen`` or the host class.
    """

    letters: NDArray[np.uint8]
    origins: NDArray[np.str_]

    @property
    def is_virus(self) -> NDArray[np.bool_]:
        """(n,) whether each is viral."""
        return np.isin(self.origins, (NOVEL, SEEN))

    @property
    def hosts(self) -> list[str]:
        """Host classes present."""
        return sorted(set(self.origins[~self.is_virus].tolist()))

    @property
    def weights(self) -> NDArray[np.float64]:
        """(n,) weights: viruses as heavy as hosts, novel as seen, host classes alike."""
        names, members, counts = np.unique(self.origins, return_inverse=True, return_counts=True)
        is_virus = np.isin(names, (NOVEL, SEEN))
        share = np.where(is_virus, 0.5 / max(is_virus.sum(), 1), 0.5 / max((~is_virus).sum(), 1))
        weights: NDArray[np.float64] = (share / counts)[members]
        return weights


def draw_dev(genomes: Genomes, length: int, size: DevSize) -> DevSequences:
    """Draw sequences of ``length`` bases; a group that has no record of that length is left out."""
    generator = np.random.default_rng([size.seed, length])
    wanted: list[tuple[str, Pool, int]] = [
        (split, virus_pool(genomes, split), size.num_virus) for split in (NOVEL, SEEN)
    ]
    hosts = sorted(set(genomes.classes.tolist()) - {VIRUS})
    wanted += [(name, host_pool(genomes, name), size.num_host) for name in hosts]
    parts, origins = [], []
    for name, pool, count in wanted:
        if not len(pool.records) or genomes.lengths[pool.records].max() < length:
            continue
        parts.append(LETTERS[sample_fragments(genomes, pool, length, count, generator)[0]])
        origins += [name] * count
    return DevSequences(np.concatenate(parts), np.array(origins))


@dataclass(frozen=True)
class Rows:
    """Rows of fragments.

    Attributes:
        nucleotides: n strings.
        proteins: n proteins, empty for a fragment without an open frame.
        fragments: (n,) number of the fragment of each row; every fragment has a row.
        sequences: (f,) number of the sequence of each fragment.
        lengths: (f,) bases of each fragment.
    """

    nucleotides: Ragged
    proteins: Ragged
    fragments: NDArray[np.int64]
    sequences: NDArray[np.int64]
    lengths: NDArray[np.int64]


def cut_rows(letters: NDArray[np.uint8], fragment_length: int) -> Rows:
    """Cut (n, length) sequences into fragments and those into rows, as the pipeline does with ``frameless: score``."""
    bounds = windows(letters.shape[1], fragment_length)
    num_fragments = len(letters) * len(bounds)
    buffers = row_buffers(_MAX_FRAMES * num_fragments, fragment_length)
    counts = np.empty(num_fragments, dtype=np.int64)
    num_rows = 0
    fragment = 0
    for record in letters:
        for start, stop in bounds.tolist():
            counts[fragment] = keep_frames(record, start, stop, buffers, num_rows, True)
            num_rows += int(counts[fragment])
            fragment += 1
    return Rows(
        _ragged(buffers.nucleotides, buffers.nucleotide_offsets, num_rows),
        _ragged(buffers.proteins, buffers.protein_offsets, num_rows),
        np.repeat(np.arange(num_fragments), counts),
        np.repeat(np.arange(len(letters)), len(bounds)),
        np.tile(bounds[:, 1] - bounds[:, 0], len(letters)),
    )


def _ragged(values: NDArray[np.uint8], offsets: NDArray[np.int64], num_items: int) -> Ragged:
    return Ragged(values[: offsets[num_items]].copy(), offsets[: num_items + 1].copy())


def embed_all(encoder: Encoder, strings: Ragged) -> NDArray[np.float32]:
    """(n, width) embeddings; zero for empty strings."""
    tokens = encoder.tokenizer(strings)
    order = np.argsort(tokens.lengths, kind="stable")
    order = order[tokens.lengths[order] > 0]
    embeddings = np.zeros((len(strings), encoder.width), dtype=np.float32)
    collate = VarlenCollator()
    for first in range(0, len(order), _BATCH_ROWS):
        rows = order[first : first + _BATCH_ROWS]
        embeddings[rows] = encoder.embed(collate(tokens, rows)).numpy()
    return embeddings


def row_log_odds(rows: Rows, nucleotide: Encoder, protein: Encoder, head: MLPHead) -> NDArray[np.float64]:
    """(n,) log-odds of the head for each row."""
    features = np.concatenate([embed_all(nucleotide, rows.nucleotides), embed_all(protein, rows.proteins)], axis=1)
    scores = np.maximum(head.scores(torch.from_numpy(features)).numpy().astype(np.float64), SMALLEST_SCORE)
    log_odds: NDArray[np.float64] = np.log(scores[:, 1]) - np.log(scores[:, 0])
    return log_odds


def join_rows(rows: Rows, log_odds: NDArray[np.float64], rule: str) -> NDArray[np.float64]:
    """(f,) log-odds of fragments, by ``mean`` or ``max`` of their rows (the latter as in ``stages.consensus``)."""
    starts = np.flatnonzero(np.append(True, np.diff(rows.fragments) > 0))
    if rule == "mean":
        joined: NDArray[np.float64] = np.add.reduceat(log_odds, starts) / np.bincount(rows.fragments)
        return joined
    virus = np.maximum.reduceat(-np.logaddexp(0, -log_odds), starts)
    other = np.maximum.reduceat(-np.logaddexp(0, log_odds), starts)
    difference: NDArray[np.float64] = virus - other
    return difference
