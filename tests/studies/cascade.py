"""When a small model may answer for a large one: the limits between which the large one has to look itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles import Bundle, load_bundle
from virnucpro.bundles.rules import DEFAULT_PRESET, Cascade, Limits
from virnucpro.errors import UsageError
from virnucpro.results.calls import Call, probability
from virnucpro.training.calibration import read_settings, write_settings
from virnucpro.training.dev import DevSequences, DevSize, ScoredDev, load_model, score_dev
from virnucpro.training.evaluation import auroc, last_where_unscored
from virnucpro.training.genomes import Genomes

_GRID = np.arange(10_001) / 10_000
"""Limits that are tried: probabilities of four decimals, as tables have them."""
_TOLERANCE = 1e-9  # of sums of weights


@dataclass(frozen=True)
class Answered:
    """Dev sequences of one length and what two models say of them.

    Attributes:
        sequences: n of them.
        first: (n,) calibrated log-odds of the first model, NaN where it has no score.
        full: (n,) those of the full model.
        first_calls: (n,) ``Call``, by the preset ``balanced``, or by its threshold.
        full_calls: (n,) those of the full model.
        is_repetitive: (n,) sequences that either model doubts; these go on whatever their score is.
    """

    sequences: DevSequences
    first: NDArray[np.float64]
    full: NDArray[np.float64]
    first_calls: NDArray[np.int64]
    full_calls: NDArray[np.int64]
    is_repetitive: NDArray[np.bool_]

    @property
    def weights(self) -> NDArray[np.float64]:
        """(n,) those of the protocol, 1 in all: viruses as heavy as hosts, host classes alike."""
        weights = self.sequences.weights
        return np.asarray(weights / weights.sum())

    @property
    def counted(self) -> NDArray[np.float64]:
        """(n,) weights, 1 in all, of those with a score of the full model: with no others the first can agree."""
        weights = np.where(np.isnan(self.full), 0.0, self.weights)
        return np.asarray(weights / weights.sum())

    def decided(self, limits: Limits) -> NDArray[np.bool_]:
        """(n,) whether the first model decides."""
        p_virus = probability(self.first)
        return ((p_virus < limits.low) | (p_virus > limits.high)) & ~self.is_repetitive

    def described(self, limits: Limits) -> dict[str, float]:
        """Figures of merit of the cascade beside those of both models alone."""
        decided, is_virus = self.decided(limits), self.sequences.is_virus
        ranked = {
            "first": self.first,
            "full": self.full,
            "cascade": np.where(decided, self.first, self.full),
        }
        return {
            "agreement": 1 - float(self.counted[decided & (self.first_calls != self.full_calls)].sum()),
            "share": float(self.weights[~decided].sum()),
            **{
                f"auroc_{name}": auroc(last_where_unscored(log_odds), is_virus, self.weights)
                for name, log_odds in ranked.items()
            },
        }


def answer_dev(first: Bundle, full: Bundle, genomes: Genomes, size: DevSize, device: str) -> dict[int, Answered]:
    """Score the dev protocol by both models; length to answers."""
    of_first, of_full = (score_dev(genomes, bundle, size, load_model(bundle, device)) for bundle in (first, full))
    answered = {}
    for length, one in of_first.items():
        other = of_full[length]
        log_odds = one.log_odds(first), other.log_odds(full)
        calls = _calls(first, one, log_odds[0]), _calls(full, other, log_odds[1])
        answered[length] = Answered(one.sequences, *log_odds, *calls, one.is_doubted | other.is_doubted)
    return answered


def _calls(bundle: Bundle, scored: ScoredDev, log_odds: NDArray[np.float64]) -> NDArray[np.int64]:
    p_virus, limits = probability(log_odds), bundle.rules.thresholds(DEFAULT_PRESET)
    is_virus = (p_virus >= limits.virus) & ~scored.is_doubted
    cases = [np.isnan(p_virus), is_virus, p_virus < limits.not_virus]
    found = np.select(cases, [Call.NO_CALL, Call.VIRUS, Call.NOT_VIRUS], Call.UNCERTAIN)
    return np.asarray(found, dtype=np.int64)


def find_limits(answered: Mapping[int, Answered], agreement: float) -> Limits:
    """The limits with which least goes on, of those with which calls agree at every length.

    Args:
        answered: length to answers.
        agreement: least share of sequences that the cascade calls as the full model does.
    """
    below, above = (np.stack(parts) for parts in zip(*(_shares(item) for item in answered.values()), strict=True))
    lost_below, lost_above = (
        np.stack(parts) for parts in zip(*(_losses(item) for item in answered.values()), strict=True)
    )
    spare = 1 - agreement - lost_below + _TOLERANCE  # (lengths, low) what may still be lost above
    highs = np.zeros(len(_GRID), dtype=np.int64)
    for lost, left in zip(lost_above, spare, strict=True):  # the former falls with the limit
        highs = np.maximum(highs, np.searchsorted(-lost, -left))
    highs = np.maximum(highs, np.arange(len(_GRID)))
    is_kept = (spare >= 0).all(axis=0)
    share = 1 - below.mean(axis=0) - above.mean(axis=0)[np.minimum(highs, len(_GRID) - 1)]
    low = int(np.argmin(np.where(is_kept, share, np.inf)))
    return Limits(float(_GRID[low]), float(_GRID[highs[low]]))


def _shares(item: Answered) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(grid,) weight that the first model decides below, and above, each limit."""
    return _mass_beyond(item, np.where(item.is_repetitive, 0.0, item.weights))


def _losses(item: Answered) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(grid,) that of the ones which it calls otherwise than the full model."""
    is_other = ~item.is_repetitive & (item.first_calls != item.full_calls)
    return _mass_beyond(item, np.where(is_other, item.counted, 0.0))


def _mass_beyond(item: Answered, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p_virus = probability(item.first)
    known = ~np.isnan(p_virus)
    order = np.argsort(p_virus[known], kind="stable")
    ascending, mass = p_virus[known][order], np.append(0.0, np.cumsum(weights[known][order]))
    below = mass[np.searchsorted(ascending, _GRID, side="left")]
    above = mass[-1] - mass[np.searchsorted(ascending, _GRID, side="right")]
    return below, np.maximum(above, 0.0)


def measure(
    names: tuple[str, str], genomes: Genomes, size: DevSize, agreement: float, device: str = "cpu"
) -> tuple[Cascade, dict[str, dict[str, float]]]:
    """Find the limits for two models on the dev protocol; returns them, and figures by length.

    Args:
        names: of the first model and of the full one, as ``predict`` takes them.
        genomes: the dev part.
        size: how many sequences, and the seed.
        agreement: least share of sequences that the cascade calls as the full model does, at every length.
        device: torch device name of the encoders.

    Raises:
        UsageError: both are the same model.
    """
    first, full = (load_bundle(name) for name in names)
    if first.fingerprint == full.fingerprint:
        raise UsageError(f"{first.folder} and {full.folder} are the same model: name another with --first or --model.")
    answered = answer_dev(first, full, genomes, size, device)
    limits = find_limits(answered, agreement)
    figures = {str(length): item.described(limits) for length, item in answered.items()}
    lowest = min(item["agreement"] for item in figures.values())
    share = float(np.mean([item["share"] for item in figures.values()]))
    name = str(Path(names[0]).absolute()) if Path(names[0]).is_dir() else names[0]
    cascade = Cascade(name, first.fingerprint, *limits, agreement=round(lowest, 4), share=round(share, 4))
    return cascade, figures


def write_cascade(name: str, cascade: Cascade) -> Path:
    """Store the limits in the ``bundle.yaml`` of the full model, which is returned; its fingerprint does not change."""
    folder = load_bundle(name).folder
    write_settings(folder, read_settings(folder) | {"cascade": asdict(cascade)})
    return folder / "bundle.yaml"
