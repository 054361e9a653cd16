"""What of a bundle turns stored scores into calls. No weights: results can be written anew without the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.atomic import read_json, write_json
from virnucpro.bundles.records import RecordWeights
from virnucpro.errors import StoreError
from virnucpro.settings import PRESETS
from virnucpro.stored_json import Count, convert

DEFAULT_PRESET = "balanced"

RowRule = Literal["mean", "max"]


class Thresholds(NamedTuple):
    """Probabilities that part the calls: below the first not virus, from the second on virus, between uncertain."""

    not_virus: float
    virus: float


class Bend(NamedTuple):
    """What is added to a line of the calibration: linear between points, constant beyond them."""

    log_odds: tuple[float, ...]  # of the head, ascending
    added: tuple[float, ...]  # at each of them


@dataclass(frozen=True)
class Calibration:
    """From a head's log-odds to a probability at equal prevalence."""

    lengths: tuple[float, ...]  # fragment lengths (nt) the line was fitted at, ascending
    slope: tuple[float, ...]  # one for each length
    intercept: tuple[float, ...]  # one for each length
    exponent: float  # how the evidence of ``n`` fragments grows: ``n ** exponent`` times their mean
    bends: tuple[Bend, ...] = ()  # one for each length, or none

    def __post_init__(self) -> None:
        if not len(self.lengths) == len(self.slope) == len(self.intercept) > 0:
            raise ValueError("calibration: lengths, slope and intercept must be lists of one length")
        if list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError("calibration: lengths must ascend")
        if len(self.bends) not in (0, len(self.lengths)):
            raise ValueError("calibration: bends must be as many as lengths")
        for slope, bend in zip(self.slope, self.bends, strict=False):
            steps, rises = np.diff(bend.log_odds), np.diff(bend.added)
            if not len(steps) == len(rises) > 0 or (steps <= 0).any() or (slope * steps + rises <= 0).any():
                raise ValueError("calibration: a bend must have points whose log-odds, added ones too, ascend")

    def fragment_log_odds(self, log_odds: NDArray[np.float64], lengths_nt: NDArray[np.int64]) -> NDArray[np.float64]:
        """Calibrated log-odds of fragments; both arguments (n,)."""
        slope = np.interp(lengths_nt, self.lengths, self.slope)
        calibrated = slope * log_odds + np.interp(lengths_nt, self.lengths, self.intercept)
        for number, bend in enumerate(self.bends):
            nearness = np.interp(lengths_nt, self.lengths, np.arange(len(self.lengths)) == number)
            calibrated = calibrated + nearness * np.interp(log_odds, *bend)
        return calibrated

    def sequence_log_odds(self, mean: NDArray[np.float64], num_fragments: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-odds of sequences from the mean calibrated log-odds of their fragments."""
        return mean * np.power(np.maximum(num_fragments, 1), self.exponent)


@dataclass(frozen=True)
class Rules:
    """How a bundle's scores become calls."""

    name: str  # of the bundle
    fingerprint: str  # of the bundle
    fragment_length: Count  # nt, what the head was trained on
    min_length: Count  # nt; shorter sequences get no call
    scores_frameless: bool  # whether fragments without an open frame are scored from nucleotides alone
    row_rule: RowRule  # how rows make a fragment
    calibration: Calibration  # from log-odds to probability
    threshold: float  # probability from which a sequence is called virus where there are no presets
    presets: Mapping[str, Thresholds]  # name to thresholds at equal prevalence; empty for a bundle that has none
    # how fragments and genes make the call of a longer record; None where fragments alone do
    records: RecordWeights | None = None
    adds_nearest: bool = False  # whether what the nearest proteins say of a fragment is added to its log-odds
    schema: Literal[1] = 1  # of the file

    def thresholds(self, preset: str) -> Thresholds:
        """Those of a preset; where the bundle has none, its threshold parts virus from not virus."""
        return self.presets[preset] if self.presets else Thresholds(self.threshold, self.threshold)

    def __post_init__(self) -> None:
        if self.presets and set(self.presets) != set(PRESETS):
            raise ValueError(f"presets: expected {', '.join(PRESETS)}")
        for name, (not_virus, virus) in self.presets.items():
            if not 0 <= not_virus <= virus <= 1:
                raise ValueError(f"presets: {name} is not two ascending probabilities")

    def write(self, path: Path) -> None:
        """Write them as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Rules:
        """Read what ``write`` wrote.

        Raises:
            StoreError: the file is damaged, or of another schema.
        """
        try:
            return convert(read_json(path), Rules)
        except ValueError as error:
            raise StoreError(path, f"cannot be understood ({error})") from error
