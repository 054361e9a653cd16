"""What of a bundle turns stored scores into calls. No weights: results can be written again without the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.atomic import read_json, write_json
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


GENE_CLASSES = ("unmatched", "cell", "clear_cell", "mostly_cell", "even", "mostly_virus", "virus")
"""What genes are told apart by: nothing is near; only a cellular protein is, below and above 100 bits; both are."""


@dataclass(frozen=True)
class RecordWeights:
    """A logistic regression over what is known of a record; two weights are linear in the logarithm of its length."""

    lengths: tuple[float, ...]  # nt, ascending; beyond them the first and the last weight hold
    intercept: tuple[float, ...]  # log-odds, one for each length
    fragments: tuple[float, ...]  # likewise, of the mean log-odds of fragments times the square root of their number
    genes: tuple[float, ...]  # of the share of each class among its genes times the square root of their number
    fragment_nt: int = 500  # windows overlap: a record counts as at most so many as it has stretches of this length
    most_fragments: int = 20  # more count as so many: neighbours say the same again
    most_genes: int = 30  # likewise
    largest_log_odds: float = 5.0  # of a fragment; what is beyond counts as this

    def __post_init__(self) -> None:
        if not len(self.lengths) == len(self.intercept) == len(self.fragments) > 0:
            raise ValueError("records: lengths, intercept and fragments must be lists of one length")
        if list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] <= 0:
            raise ValueError("records: lengths must be above zero and ascend")
        if len(self.genes) != len(GENE_CLASSES):
            raise ValueError(f"records: genes must be {len(GENE_CLASSES)} weights")

    def at(self, weights: tuple[float, ...], lengths_nt: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) one of the weights that depend on length, for records of these lengths."""
        return np.interp(np.log(np.maximum(lengths_nt, 1)), np.log(self.lengths), weights)


DEFAULT_FIRST = "lite"
"""Model that looks first where a bundle names none."""


class Limits(NamedTuple):
    """Calibrated probabilities at equal prevalence; from ``low`` to ``high``, both included, a sequence goes on."""

    low: float
    high: float


DEFAULT_LIMITS = Limits(0.1, 0.98)
"""Where a bundle names none: the bundled model puts at most 1.4 % of the viruses of its dev part below the lower one
and at most 0.3 % of the hosts above the upper one, at any length from 150 to 3,000 bases."""


@dataclass(frozen=True)
class Cascade:
    """What a bundle says of the model that looks first: when the bundle's own need not look at a sequence."""

    first: str  # name of its bundle
    first_fingerprint: str  # of the one that the limits were found with
    low: float  # below it the first model is sure that a sequence is not viral
    high: float  # above it the first model is sure that a sequence is viral
    agreement: float  # share of sequences that both ways call alike, at the length where it is lowest
    share: float  # of sequences that go on

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError("cascade: low and high are not two ascending probabilities")

    @property
    def limits(self) -> Limits:
        """The two."""
        return Limits(self.low, self.high)


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
