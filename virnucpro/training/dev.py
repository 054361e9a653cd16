"""Sequences of the dev part, drawn by a fixed protocol, and a bundle's log-odds for them.

Protocol: at each length as many sequences of each host class (every base of the class alike), and as many of novel and
of seen viruses (families by the square root of their bases), each strand alike, by a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.bundles import Bundle
from virnucpro.encoders import load_encoder
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.device import default_dtype
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.loader import pack_unit
from virnucpro.engine.packing import GreedyPacker
from virnucpro.errors import InputError
from virnucpro.heads import MLPHead, load_head
from virnucpro.nearest.table import load_table
from virnucpro.sequence.fragments import windows
from virnucpro.sequence.frames import find_frames
from virnucpro.sequence.gaps import Records
from virnucpro.sequence.masks import Masking, mask_windows
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import Status
from virnucpro.stages.embed import usual_token_budget
from virnucpro.stages.nearest import evidence_of
from virnucpro.training.genomes import LETTERS, VIRUS, Genomes
from virnucpro.training.sampling import Pool, host_pool, sample_fragments, virus_pool

NOVEL, SEEN = "dev_novel", "dev_seen"
SMALLEST_SCORE = 1e-7
"""Scores below it count as this, as in ``stages.tabulate``."""
FRAGMENT_LENGTH = 500  # of lite
CALIBRATED_LENGTHS = (150, 300, 500)
CONTIG_LENGTHS = (1000, 3000)
CONTIG_SHARE = 0.25
"""Contigs have several fragments each, so fewer of them are drawn."""


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
    """Sequences of one length."""

    letters: NDArray[np.uint8]  # (n, length) uint8 ASCII
    origins: NDArray[np.str_]  # (n,) ``dev_novel``, ``dev_seen`` or the host class
    groups: NDArray[np.str_]  # (n,) family or genus

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


def find_repetitive(letters: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(n,) whether each of the (n, length) sequences repeats itself, in half of its fragments or more."""
    offsets = np.arange(len(letters) + 1) * letters.shape[1]
    records = Records.of(letters.reshape(-1), offsets)
    _, status = mask_windows(records, FRAGMENT_LENGTH, Masking(0, find_repetitive=True))
    return np.asarray(status == Status.REPETITIVE)


def draw_dev(genomes: Genomes, length: int, size: DevSize) -> DevSequences:
    """Draw sequences of ``length`` bases; a group that has no record of that length is left out.

    Raises:
        InputError: there is no virus or no host of that length.
    """
    generator = np.random.default_rng([size.seed, length])
    wanted: list[tuple[str, Pool, int]] = [
        (split, virus_pool(genomes, split), size.num_virus) for split in (NOVEL, SEEN)
    ]
    hosts = sorted(set(genomes.classes.tolist()) - {VIRUS})
    wanted += [(name, host_pool(genomes, name), size.num_host) for name in hosts]
    parts, origins, records = [], [], []
    for name, pool, count in wanted:
        if not len(pool.records) or genomes.lengths[pool.records].max() < length:
            continue
        codes, drawn = sample_fragments(genomes, pool, length, count, generator)
        parts.append(LETTERS[codes])
        records.append(drawn)
        origins += [name] * count
    if not ({NOVEL, SEEN} & set(origins) and set(hosts) & set(origins)):
        raise InputError(
            "dev part", f"has no virus or no host of {length:,} bases; add longer records, or change the splits."
        )
    return DevSequences(np.concatenate(parts), np.array(origins), genomes.groups[np.concatenate(records)])


@dataclass(frozen=True)
class Rows:
    """Rows of fragments."""

    nucleotides: Ragged  # n strings
    proteins: Ragged  # n proteins, empty for a fragment without an open frame
    fragments: NDArray[np.int64]  # (n,) number of the fragment of each row, ascending
    sequences: NDArray[np.int64]  # (f,) number of the sequence of each fragment
    lengths: NDArray[np.int64]  # (f,) bases of each fragment


def cut_rows(letters: NDArray[np.uint8], fragment_length: int, *, scores_frameless: bool = True) -> Rows:
    """Cut (n, length) sequences into fragments and those into rows, as the pipeline does.

    Args:
        letters: of the sequences.
        fragment_length: nt.
        scores_frameless: a fragment without an open frame has one row without a protein, else it has none.
    """
    bounds = windows(letters.shape[1], fragment_length)
    first_bases = np.repeat(np.arange(len(letters)) * letters.shape[1], len(bounds))
    starts, stops = (np.tile(bounds[:, side], len(letters)) + first_bases for side in (0, 1))
    kept = find_frames(letters.reshape(-1), starts, stops, score_frameless=scores_frameless)
    return Rows(
        Ragged.from_bytes(kept.nucleotides),
        kept.proteins,
        np.repeat(np.arange(len(starts)), kept.counts),
        np.repeat(np.arange(len(letters)), len(bounds)),
        np.tile(bounds[:, 1] - bounds[:, 0], len(letters)),
    )


def embed_all(
    encoder: Encoder,
    strings: Ragged,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
) -> NDArray[np.float32]:
    """(n, width) embeddings; zero for empty strings, and a repeated string is computed once."""
    budget = usual_token_budget(encoder, device, "float32")  # a narrower type would let it be larger
    unit = pack_unit(0, strings, encoder.tokenizer, GreedyPacker(budget))
    (_, embeddings), *_ = AsyncInferenceRunner(encoder, device).embeddings([unit])
    return embeddings


@dataclass(frozen=True)
class Model:
    """The three parts of a bundle, in memory.

    Attributes:
        nucleotide: on ``device``.
        protein: on ``device``.
        head: on the CPU.
        device: of the encoders.
        nearest: gives (n,) log-odds of n fragments; None where the bundle has no table of proteins.
    """

    nucleotide: Encoder
    protein: Encoder
    head: MLPHead
    device: torch.device
    nearest: Callable[[Ragged], NDArray[np.float32]] | None = None

    def features(self, rows: Rows) -> NDArray[np.float32]:
        """(n, width) nucleotide and protein embeddings side by side."""
        parts = ((self.nucleotide, rows.nucleotides), (self.protein, rows.proteins))
        return np.concatenate([embed_all(encoder, strings, self.device) for encoder, strings in parts], axis=1)

    def log_odds(self, rows: Rows) -> NDArray[np.float64]:
        """(n,) log-odds of each row: of the head, and what is nearest to its fragment.

        The run adds the latter to the rows of a fragment once they are joined, which for their mean is the same.
        """
        scores = self.head.scores(torch.from_numpy(self.features(rows))).numpy().astype(np.float64)
        scores = np.maximum(scores, SMALLEST_SCORE)
        log_odds: NDArray[np.float64] = np.log(scores[:, 1]) - np.log(scores[:, 0])
        if self.nearest is not None:
            present, starts = np.unique(rows.fragments, return_index=True)
            of_fragments = np.zeros(len(rows.lengths), dtype=np.float32)
            of_fragments[present] = self.nearest(rows.nucleotides.take(starts))
            log_odds += of_fragments[rows.fragments]
        return log_odds


def load_model(bundle: Bundle, device: str = "cpu") -> Model:
    """Read the parts of a bundle; on a CPU in float32."""
    place = torch.device(device)
    nearest = None if bundle.nearest is None else partial(evidence_of, bundle, load_table(bundle.nearest))
    return Model(
        load_encoder(bundle.nucleotide, place, default_dtype(place)),
        load_encoder(bundle.protein, place, default_dtype(place)),
        load_head(bundle.head),
        place,
        nearest,
    )


def join_rows(rows: Rows, log_odds: NDArray[np.float64], rule: str) -> NDArray[np.float64]:
    """(f,) log-odds of fragments, by ``mean`` or ``max`` of their rows (the latter as in ``stages.tabulate``).

    NaN for a fragment without a row.
    """
    joined = np.full(len(rows.lengths), np.nan)
    present, starts, counts = np.unique(rows.fragments, return_index=True, return_counts=True)
    if not len(present):
        return joined
    if rule == "mean":
        joined[present] = np.add.reduceat(log_odds, starts) / counts
    else:
        virus = np.maximum.reduceat(-np.logaddexp(0, -log_odds), starts)
        joined[present] = virus - np.maximum.reduceat(-np.logaddexp(0, log_odds), starts)
    return joined


def mean_of_fragments(rows: Rows, fragments: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean over the fragments of each sequence that are not NaN, and how many those are."""
    known = ~np.isnan(fragments)
    num_sequences = int(rows.sequences.max(initial=-1)) + 1
    counts = np.bincount(rows.sequences[known], minlength=num_sequences)
    sums = np.bincount(rows.sequences[known], weights=fragments[known], minlength=num_sequences)
    return np.divide(sums, counts, out=np.full(num_sequences, np.nan), where=counts > 0), counts


@dataclass(frozen=True)
class ScoredDev:
    """Dev sequences of one length with the scores of a bundle."""

    sequences: DevSequences  # n of them
    rows: Rows  # of their fragments
    odds: NDArray[np.float64]  # log-odds of the rows
    is_doubted: NDArray[np.bool_]  # (n,) sequences that the bundle does not call virus, whatever their log-odds are

    def mean(self, rule: str) -> NDArray[np.float64]:
        """(n,) mean log-odds of the fragments of each sequence, before calibration; NaN without a row."""
        return mean_of_fragments(self.rows, join_rows(self.rows, self.odds, rule))[0]

    def mean_calibrated(self, bundle: Bundle) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(n,) mean calibrated log-odds of the fragments of each sequence, NaN without a row; how many those are."""
        joined = join_rows(self.rows, self.odds, bundle.row_rule)
        return mean_of_fragments(self.rows, bundle.calibration.fragment_log_odds(joined, self.rows.lengths))

    def log_odds(self, bundle: Bundle) -> NDArray[np.float64]:
        """(n,) calibrated log-odds of the sequences; NaN for one without a row."""
        return bundle.calibration.sequence_log_odds(*self.mean_calibrated(bundle))


def score_dev(genomes: Genomes, bundle: Bundle, size: DevSize, model: Model | None = None) -> dict[int, ScoredDev]:
    """Draw the dev sequences of each length and score their rows; ``model`` is the bundle's, where it is loaded."""
    model = model or load_model(bundle)
    scored = {}
    for length in CALIBRATED_LENGTHS + CONTIG_LENGTHS:
        dev = draw_dev(genomes, length, size.scaled(CONTIG_SHARE) if length > FRAGMENT_LENGTH else size)
        rows = cut_rows(dev.letters, bundle.fragment_length, scores_frameless=bundle.scores_frameless)
        is_doubted = find_repetitive(dev.letters) & bundle.doubts_repetitive
        scored[length] = ScoredDev(dev, rows, model.log_odds(rows), is_doubted)
    return scored
