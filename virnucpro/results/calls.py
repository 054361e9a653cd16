"""From what a sequence adds up to, to its call, its false discovery rate, status and reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles.rules import DEFAULT_PRESET, Rules
from virnucpro.mapped import chunks
from virnucpro.sequence.table import Status
from virnucpro.settings import Science


class Call(IntEnum):
    """The answer for a sequence."""

    VIRUS = 0
    NOT_VIRUS = 1
    UNCERTAIN = 2
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
CALL_NAMES = {int(call): call.name.lower() for call in Call}
EVIDENCE_NAMES = ("nucleotide", "protein+nucleotide")

_EVEN = 0.5

Limit = float | NDArray[np.float64]
"""A probability at which the call changes: one for all sequences, or (n,) one for each."""


@dataclass(frozen=True)
class Calling:
    """What a user decides about calls; no score depends on it.

    Attributes:
        preset: of the bundle; its thresholds are error rates of the model and apply at equal prevalence.
        threshold: p_virus, at the prevalence given, that parts virus from not virus; instead of a preset.
        fdr: highest false discovery rate of what is called virus; instead of a preset.
        prevalence: expected share of viral sequences, between 0 and 1.
    """

    preset: str = DEFAULT_PRESET
    threshold: float | None = None
    fdr: float | None = None
    prevalence: float = 0.5

    @classmethod
    def from_settings(cls, science: Science) -> Calling:
        """From the settings, where None stands for not given."""
        return cls(
            preset=science.preset or DEFAULT_PRESET,
            threshold=science.threshold,
            fdr=science.fdr,
            prevalence=science.prevalence,
        )

    @property
    def shift(self) -> float:
        """What the prevalence adds to log-odds at equal prevalence (Bayes' rule)."""
        return math.log(self.prevalence) - math.log1p(-self.prevalence)

    def described(self, rules: Rules) -> dict[str, Any]:
        """What calls were made by, for the summary; None where it played no part."""
        by_preset = self.threshold is None and self.fdr is None
        limits = rules.thresholds(self.preset) if by_preset else None
        return {
            "preset": self.preset if by_preset and rules.presets else None,
            "threshold_virus": limits.virus if limits else self.threshold,
            "threshold_not_virus": limits.not_virus if limits else self.threshold,
            "fdr": self.fdr,
            "prevalence": self.prevalence,
        }


@dataclass(frozen=True)
class Answers:
    """Answers for ``n`` sequences.

    Attributes:
        p_virus: (n,) float64, NaN where nothing was scored.
        fdr: (n,) float64, NaN where nothing was scored.
        call: (n,) int, ``Call``.
        status: (n,) int, key of ``STATUS_NAMES``.
        has_open_frame: (n,) bool, whether a scored fragment has an open frame.
    """

    p_virus: NDArray[np.float64]
    fdr: NDArray[np.float64]
    call: NDArray[np.int64]
    status: NDArray[np.int64]
    has_open_frame: NDArray[np.bool_]

    def __getitem__(self, part: slice) -> Answers:
        """Those for some of the sequences."""
        return Answers(
            self.p_virus[part], self.fdr[part], self.call[part], self.status[part], self.has_open_frame[part]
        )


class FalseDiscovery:
    """Estimated share of false calls among all sequences with a probability at least as high.

    The probabilities are calibrated, so ``1 - p`` is the expected number of false calls that a sequence adds: the share
    is its mean over them (Storey 2003; Käll et al. 2008). They are kept in float32, 8 bytes a sequence, which is off by
    less than 1e-7.

    Args:
        p_virus: (n,) of all sequences of an input, in any order; NaN where there is none. It is sorted where it is.
    """

    def __init__(self, p_virus: NDArray[np.float32]) -> None:
        p_virus.sort()  # NaN comes last
        self._ascending = p_virus[: len(p_virus) - np.count_nonzero(np.isnan(p_virus))]
        self._shares = np.empty_like(self._ascending)
        num_false = 0.0
        for part in chunks(len(self._ascending)):  # from the highest down
            false = np.cumsum(1.0 - self._ascending[::-1][part], dtype=np.float64) + num_false
            self._shares[::-1][part] = false / np.arange(part.start + 1, part.start + len(false) + 1)
            num_false = false[-1]

    def at(self, p_virus: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) rate of each of the probabilities it was made from; NaN for NaN."""
        rates = np.full(len(p_virus), np.nan)
        known = ~np.isnan(p_virus)
        if known.any():
            rates[known] = self._shares[np.searchsorted(self._ascending, p_virus[known].astype(np.float32))]
        return rates


class Judge:
    """Calls the sequences of one input.

    Args:
        rules: of the bundle.
        calling: what the user decided.
        sums: (n,) what all sequences of the input add up to, ``stages.consensus.SUM_DTYPE``.
    """

    def __init__(self, rules: Rules, calling: Calling, sums: NDArray[np.void]) -> None:
        self.rules = rules
        self._calling = calling
        p_virus = np.empty(len(sums), dtype=np.float32)
        for part in chunks(len(sums), sums):
            p_virus[part] = probability(self._log_odds(sums[part]) + calling.shift)
        self._false_discovery = FalseDiscovery(p_virus)

    def answer(self, sums: NDArray[np.void]) -> Answers:
        """Call some of its sequences; ``sums`` are theirs."""
        extracted, scored, failed = sums["status"], sums["num_scored"], sums["num_failed"]
        is_masked = (extracted != Status.OK) & (failed == 0)  # repetitive, where nothing may be left to score
        final = np.select(
            [~_are_fit(sums) | is_masked, failed > 0, scored == 0], [extracted, FAILED, NO_OPEN_FRAME], extracted
        )
        log_odds = self._log_odds(sums)
        p_virus = probability(log_odds + self._calling.shift)
        fdr = self._false_discovery.at(p_virus)
        call = np.where(np.isnan(p_virus), Call.NO_CALL, self._calls(sums, log_odds, p_virus, fdr))
        call[(call == Call.VIRUS) & (extracted == Status.REPETITIVE)] = Call.UNCERTAIN
        return Answers(p_virus, fdr, call.astype(np.int64), final.astype(np.int64), sums["num_open"] > 0)

    def _log_odds(self, sums: NDArray[np.void]) -> NDArray[np.float64]:
        """(n,) as of ``sequence_log_odds``."""
        return sequence_log_odds(self.rules, sums)

    def _limits(self, sums: NDArray[np.void]) -> tuple[Limit, Limit]:
        """Probabilities at equal prevalence: below the first not virus, from the second on virus."""
        del sums  # one model, one pair for all
        return self.rules.thresholds(self._calling.preset)

    def _calls(
        self,
        sums: NDArray[np.void],
        log_odds: NDArray[np.float64],
        p_virus: NDArray[np.float64],
        fdr: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        calling = self._calling
        if calling.fdr is not None:
            # What is more likely viral than not, and yet beyond the list, would be a bad "not virus".
            is_virus, is_not_virus = fdr <= calling.fdr, p_virus < _EVEN
        elif calling.threshold is not None:
            is_virus, is_not_virus = _parted(p_virus, (calling.threshold, calling.threshold))
        else:
            is_virus, is_not_virus = _parted(probability(log_odds), self._limits(sums))
        return np.select([is_virus, is_not_virus], [Call.VIRUS, Call.NOT_VIRUS], Call.UNCERTAIN)


def sequence_log_odds(rules: Rules, sums: NDArray[np.void]) -> NDArray[np.float64]:
    """(n,) calibrated log-odds at equal prevalence, NaN where nothing was scored or the record is not fit for a call.

    Args:
        rules: of the model whose fragments were added up.
        sums: (n,) ``stages.consensus.SUM_DTYPE``.
    """
    scored = sums["num_scored"].astype(np.int64)
    is_fit = (scored > 0) & _are_fit(sums)
    mean = np.where(is_fit, sums["log_odds"] / np.maximum(scored, 1), np.nan)
    return rules.calibration.sequence_log_odds(mean, scored)


def probability(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logistic function."""
    with np.errstate(over="ignore"):  # a genome's log-odds may pass 709; its probability is then 0
        return np.asarray(1.0 / (1.0 + np.exp(-log_odds)), dtype=np.float64)


def reasons(rules: Rules) -> Mapping[int, bytes]:
    """The status of a sequence in words; NA where all went well. ``failed`` is told by ``failure``."""
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


def _are_fit(sums: NDArray[np.void]) -> NDArray[np.bool_]:
    """(n,) whether the records can be called at all."""
    return np.isin(sums["status"], (Status.OK, Status.REPETITIVE))


def _parted(p_virus: NDArray[np.float64], limits: tuple[Limit, Limit]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    not_virus, virus = limits
    return p_virus >= virus, p_virus < not_virus
