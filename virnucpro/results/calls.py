"""From fragments to sequences: what they add up to, calls, false discovery rates, statuses and reasons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles.rules import DEFAULT_PRESET, RecordWeights, Rules
from virnucpro.mapped import chunks, let_go, new_table_apart
from virnucpro.nearest.path import classes_of
from virnucpro.results.fragments import Fragments
from virnucpro.results.prevalence import Prevalence, estimate
from virnucpro.results.regions import NO_REGIONS, outside
from virnucpro.sequence.table import Status
from virnucpro.settings import Science


class Call(IntEnum):
    """The answer for a sequence, in the order in which calls are shown."""

    VIRUS = 0
    UNCERTAIN = 1
    NOT_VIRUS = 2
    NO_CALL = 3


NO_OPEN_FRAME = max(Status) + 1
"""Status of a sequence none of whose fragments has a score: this model needs an open frame."""

FAILED = NO_OPEN_FRAME + 1
"""Status of a sequence some of whose rows could not be computed."""

STATUS_NAMES = {
    **{int(status): status.name.lower() for status in Status},
    NO_OPEN_FRAME: "no_open_frame",
    FAILED: "failed",
}
CALLS = tuple(call.name.lower() for call in Call)
EVIDENCE_NAMES = ("nucleotide", "protein+nucleotide")

_OF_PATH_CLASS = np.array([0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6])
"""Class of a gene on the path (``nearest/path.py``) to one of ``bundles.rules.GENE_CLASSES``."""
NUM_CLASSES = int(_OF_PATH_CLASS.max()) + 1

_EVEN = 0.5
_FIT = (Status.OK, Status.REPETITIVE)
"""Of extraction: records that can be called."""

Limit = float | NDArray[np.float64]
"""A probability at which the call changes: one for all sequences, or (n,) one for each."""


@dataclass(frozen=True)
class Calling:
    """What a user decides about calls; no score depends on it."""

    # of the bundle; its thresholds are error rates of the model and apply at equal prevalence
    preset: str = DEFAULT_PRESET
    # p_virus, at the prevalence given, that parts virus from not virus; instead of a preset
    threshold: float | None = None
    fdr: float | None = None  # highest false discovery rate of what is called virus; instead of a preset
    # expected share of viral sequences, between 0 and 1; None estimates it from the sample's own scores
    prevalence: float | None = None

    @classmethod
    def from_settings(cls, science: Science) -> Calling:
        """From the settings, where None stands for not given."""
        return cls(
            preset=science.preset or DEFAULT_PRESET,
            threshold=science.threshold,
            fdr=science.fdr,
            prevalence=None if science.prevalence == "auto" else science.prevalence,
        )

    def prevalence_of(self, log_odds: Iterable[NDArray[np.floating]]) -> Prevalence:
        """The share of viral sequences that calls are made at, from the log-odds of all sequences of an input."""
        return estimate(log_odds) if self.prevalence is None else Prevalence.fixed(self.prevalence)

    def described(self, rules: Rules) -> dict[str, Any]:
        """What calls were made by, for the summary; None where it played no part."""
        by_preset = self.threshold is None and self.fdr is None
        limits = rules.thresholds(self.preset) if by_preset else None
        return {
            "preset": self.preset if by_preset and rules.presets else None,
            "threshold_virus": limits.virus if limits else self.threshold,
            "threshold_not_virus": limits.not_virus if limits else self.threshold,
            "fdr": self.fdr,
            "prevalence": "auto" if self.prevalence is None else self.prevalence,
        }


def false_discovery_rates(
    p_virus: NDArray[np.float32], rates: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """(n,) estimated share of false calls among all sequences with a probability at least as high; NaN for NaN.

    The probabilities are calibrated, so ``1 - p`` is the expected number of false calls that a sequence adds: the share
    is its mean over them (Storey 2003; Käll et al. 2008). What is kept of each sequence is float32, which is off by
    less than 1e-7.

    Args:
        p_virus: (n,) of all sequences.
        rates: (n,) where they go; None for a new array.
    """
    ascending = np.empty_like(p_virus)
    for part in chunks(len(p_virus), p_virus):
        ascending[part] = p_virus[part]
    ascending.sort()  # NaN comes last
    ascending = ascending[: len(ascending) - np.count_nonzero(np.isnan(ascending))]
    shares = np.empty_like(ascending)
    num_false = 0.0
    for part in chunks(len(ascending)):  # from the highest down
        false = np.cumsum(1.0 - ascending[::-1][part], dtype=np.float64) + num_false
        shares[::-1][part] = false / np.arange(part.start + 1, part.start + len(false) + 1)
        num_false = false[-1]
    rates = np.empty_like(p_virus) if rates is None else rates
    for part in chunks(len(p_virus), p_virus, rates):
        known = ~np.isnan(p_virus[part])
        rates[part] = np.nan
        rates[part][known] = shares[np.searchsorted(ascending, p_virus[part][known])]
    return rates


CALL_DTYPE = np.dtype([("p_virus", "f4"), ("fdr", "f4"), ("call", "i1"), ("status", "i1"), ("has_open", "?")])
"""The answer for a sequence: probability at the prevalence given and false discovery rate (both NaN if nothing was
scored), ``Call``, key of ``STATUS_NAMES``, and whether a scored fragment has an open reading frame."""

SUM_DTYPE = np.dtype(
    [
        ("log_odds", "f8"),
        ("num_scored", "i4"),
        ("num_open", "i4"),
        ("num_rows", "i4"),
        ("num_frameless", "i4"),
        ("top", "i8"),
    ]
)
"""What the fragments of a sequence add up to: sum of their log-odds, how many have a score, how many of those an open
frame, all open frames, fragments that are one row of their own for lack of an open frame, and the position of the
fragment with the highest log-odds, the first of equal ones (-1 if none is scored)."""


def sums(table: Fragments) -> NDArray[np.void]:
    """(m,) SUM_DTYPE, what the fragments of each sequence add up to. Masked fragments count for nothing."""
    fragments, offsets = table.fragments, table.offsets
    log_odds = fragments["log_odds"].astype(np.float64)
    scored = ~np.isnan(log_odds) & (fragments["masked"] == 0)
    added = np.zeros(len(table), dtype=SUM_DTYPE)
    added["log_odds"] = _sum_by(np.where(scored, log_odds, 0.0), offsets)
    added["num_scored"] = _sum_by(scored.astype(np.int64), offsets)
    added["num_open"] = _sum_by((scored & (fragments["num_open"] > 0)).astype(np.int64), offsets)
    added["num_rows"] = _sum_by(fragments["num_open"].astype(np.int64), offsets)
    is_frameless = (fragments["num_open"] == 0) & (fragments["masked"] == 0)
    scores_frameless = np.array([rules.scores_frameless for rules in table.rules])[table.sequences["model"]]
    added["num_frameless"] = _sum_by(is_frameless.astype(np.int64), offsets) * scores_frameless
    added["top"] = -1
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        ranked = np.where(scored, log_odds, -np.inf)
        highest = np.repeat(np.maximum.reduceat(ranked, offsets[:-1][filled]), np.diff(offsets)[filled])
        best = np.flatnonzero(scored & (ranked == highest))[::-1]
        added["top"][table.positions[best]] = best  # of several the last assignment, the first of the sequence, stays
    return added


def _sum_by(values: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[Any]:
    """(m,) sums of ranges, which may be empty; each depends on its own values alone, to the last bit."""
    total = np.zeros(len(offsets) - 1, dtype=values.dtype)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        total[filled] = np.add.reduceat(values, offsets[:-1][filled])
    return total


def sequence_log_odds(
    table: Fragments, added: NDArray[np.void], parts: NDArray[np.void] = NO_REGIONS
) -> NDArray[np.float64]:
    """(m,) calibrated log-odds at equal prevalence; NaN if nothing was scored or the record is not fit for a call."""
    scored = added["num_scored"].astype(np.int64)
    is_fit = (scored > 0) & np.isin(table.sequences["status"], _FIT)
    mean = np.where(is_fit, added["log_odds"] / np.maximum(scored, 1), np.nan)
    log_odds = np.full(len(table), np.nan)
    for model, rules in enumerate(table.rules):
        mine = table.sequences["model"] == model
        log_odds[mine] = rules.calibration.sequence_log_odds(mean[mine], scored[mine])
        if rules.records is not None:
            of_records = record_log_odds(table, parts, rules.records)
            has_both = mine & is_fit & ~np.isnan(of_records)
            log_odds[has_both] = of_records[has_both]
    return log_odds


def record_features(
    table: Fragments, parts: NDArray[np.void], weights: RecordWeights
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the log-odds of each sequence is made of, without masked fragments and proviruses, which are not the host's.

    Means and shares are each times the square root of how many there are, up to a bound: neighbours say partly the
    same, and the windows of a record of 600 bases overlap.

    Returns:
        (m, 1 + NUM_CLASSES) of its fragments and genes, NaN where no fragment has a score; and (m,) bases that count,
        those of gaps never do.
    """
    features = np.full((len(table), 1 + NUM_CLASSES), np.nan)
    parts, fragments, genes = (table.closed(each) for each in (parts, table.fragments, table.genes))
    fragments, genes = (each[outside(parts, each)] for each in (fragments, genes))
    scored = fragments[~np.isnan(fragments["log_odds"]) & (fragments["masked"] == 0)]
    position = scored["sequence"] - table.first
    bound = weights.largest_log_odds
    sums = np.bincount(position, np.clip(scored["log_odds"].astype(np.float64), -bound, bound), len(table))
    counts = np.bincount(position, minlength=len(table))
    known = counts > 0
    lengths = table.closed_lengths * (counts / np.maximum(table.sequences["num_fragments"], 1))
    stretches = np.minimum(counts, lengths / weights.fragment_nt)[known]
    features[known, 0] = sums[known] / counts[known] * np.sqrt(np.clip(stretches, 1, weights.most_fragments))
    classes = _OF_PATH_CLASS[classes_of(genes["bits_virus"], genes["bits_cell"])]
    place = (genes["sequence"] - table.first) * NUM_CLASSES + classes
    of_class = np.bincount(place, minlength=len(table) * NUM_CLASSES).reshape(-1, NUM_CLASSES)
    total = of_class.sum(axis=1, keepdims=True)
    shares = of_class / np.maximum(total, 1) * np.sqrt(np.minimum(total, weights.most_genes))
    features[known, 1:] = shares[known]
    return features, lengths


def record_log_odds(table: Fragments, parts: NDArray[np.void], weights: RecordWeights) -> NDArray[np.float64]:
    """(m,) log-odds at equal prevalence of sequences of more than one fragment; NaN for shorter ones.

    A logistic regression over the mean log-odds of the fragments and the shares of genes by what is nearest to them.
    """
    features, lengths = record_features(table, parts, weights)
    log_odds = weights.at(weights.intercept, lengths) + weights.at(weights.fragments, lengths) * features[:, 0]
    # one after the other: no sum depends on the others' number
    for column, weight in enumerate(weights.genes, start=1):
        log_odds = log_odds + weight * features[:, column]
    return np.where(lengths > weights.fragment_nt, log_odds, np.nan)


def call_sequences(
    table: Fragments, calling: Calling, parts: NDArray[np.void] = NO_REGIONS
) -> tuple[NDArray[np.void], Prevalence]:
    """The answers for all sequences of an input, (m,) CALL_DTYPE, and the prevalence that they were made at.

    Args:
        table: the sequences.
        calling: what the user decided.
        parts: the proviruses in them.
    """
    calls = new_table_apart(CALL_DTYPE, len(table))
    for span, part, added, log_odds in _evidence(table, parts):
        mine, status, num_failed = calls[span], part.sequences["status"], part.sequences["num_failed"]
        mine["p_virus"], mine["has_open"] = log_odds, added["num_open"] > 0  # log-odds until the prevalence is known
        # A record that repeats itself may have nothing left to score: that is then its status.
        is_settled = ~np.isin(status, _FIT) | ((status != Status.OK) & (num_failed == 0))
        mine["status"] = np.select(
            [is_settled, num_failed > 0, added["num_scored"] == 0], [status, FAILED, NO_OPEN_FRAME], status
        )
        let_go(calls)
    prevalence = calling.prevalence_of(calls["p_virus"][span] for span in chunks(len(calls), calls))
    for part in table.parts():
        let_go(calls)
        mine = calls[part.first - table.first :][: len(part)]
        log_odds = mine["p_virus"].astype(np.float64)
        mine["p_virus"] = p_virus = probability(log_odds + prevalence.shift)
        if calling.fdr is None:
            virus, not_virus = _limits(part, calling)
            compared = p_virus if calling.threshold is not None else probability(log_odds)
            is_not_virus = compared < np.minimum(not_virus, _EVEN)
            mine["call"] = np.select([compared >= virus, is_not_virus], [Call.VIRUS, Call.NOT_VIRUS], Call.UNCERTAIN)
    false_discovery_rates(calls["p_virus"], calls["fdr"])
    for span in chunks(len(calls), calls):
        mine = calls[span]
        if calling.fdr is not None:
            # What is more likely viral than not but beyond the list would be a bad "not virus".
            is_virus, is_not_virus = mine["fdr"] <= calling.fdr, mine["p_virus"] < _EVEN
            mine["call"] = np.select([is_virus, is_not_virus], [Call.VIRUS, Call.NOT_VIRUS], Call.UNCERTAIN)
        is_doubtful = table.sequences["status"][span] == Status.REPETITIVE
        mine["call"][is_doubtful & (mine["call"] == Call.VIRUS)] = Call.UNCERTAIN
        mine["call"][np.isnan(mine["p_virus"])] = Call.NO_CALL
        table.release()
    return calls, prevalence


def evidence_of(table: Fragments, parts: NDArray[np.void] = NO_REGIONS) -> NDArray[np.float32]:
    """(m,) log-odds at equal prevalence of all sequences; ``parts`` are the proviruses in them."""
    return np.concatenate(
        [np.zeros(0, np.float32), *(log_odds.astype(np.float32) for *_, log_odds in _evidence(table, parts))]
    )


def _evidence(
    table: Fragments, parts: NDArray[np.void]
) -> Iterator[tuple[slice, Fragments, NDArray[np.void], NDArray[np.float64]]]:
    """Some sequences at a time: which of all they are, their part of the table, its ``sums`` and its log-odds."""
    for part in table.parts():
        span = slice(part.first - table.first, part.first - table.first + len(part))
        low, high = np.searchsorted(parts["sequence"], (part.first, part.first + len(part))).tolist()
        added = sums(part)
        yield span, part, added, sequence_log_odds(part, added, parts[low:high])


def _limits(table: Fragments, calling: Calling) -> tuple[Limit, Limit]:
    """Probabilities from which on a sequence is virus, and below which it is not."""
    if calling.threshold is not None:
        return calling.threshold, calling.threshold
    pairs = np.array([rules.thresholds(calling.preset) for rules in table.rules])[table.sequences["model"]]
    return pairs[:, 1], pairs[:, 0]


def probability(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logistic function."""
    with np.errstate(over="ignore"):  # a genome's log-odds may pass 709; its probability is then 0
        return np.asarray(1.0 / (1.0 + np.exp(-log_odds)), dtype=np.float64)


def reasons(rules: Rules) -> Mapping[int, bytes]:
    """The status of a sequence in words; NA if all went well. ``failed`` is told by ``failure``."""
    return {
        Status.OK: b"NA",
        Status.EMPTY: b"the record holds no bases",
        Status.TOO_SHORT: f"shorter than {rules.min_length} bases".encode(),
        Status.AMBIGUOUS: f"fewer than {rules.min_length} bases are A, C, G or T".encode(),
        Status.REPETITIVE: b"repeats itself: not called virus, however viral it looks",
        NO_OPEN_FRAME: b"no fragment has an open reading frame, and this model needs one",
    }


def failure(num_failed: int, num_rows: int) -> bytes:
    """Reason of status ``failed``."""
    return b"%d of %d row%b could not be computed" % (num_failed, num_rows, b"" if num_rows == 1 else b"s")
