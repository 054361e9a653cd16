"""When a model need not look at a sequence: what a bundle says of the one that looks first.

::

    cascade:                  # in bundle.yaml, optional
      first: lite             # the model that looks first
      first_fingerprint: ...  # of the very one that the limits were found with
      low: 0.01               # surely not viral below, surely viral above, as the first model sees it: its p_virus at
      high: 0.99              #   equal prevalence
      agreement: 0.99         # share of sequences with the same call as of this model alone, at the worst length
      share: 0.4              # of sequences that this model still has to look at
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

DEFAULT_FIRST = "lite"


class Limits(NamedTuple):
    """Calibrated probabilities at equal prevalence; from ``low`` to ``high``, both included, a sequence goes on."""

    low: float
    high: float


DEFAULT_LIMITS = Limits(0.1, 0.98)
"""Where a bundle names none: the bundled model puts at most 1.4 % of the viruses of its dev part below the lower one
and at most 0.3 % of the hosts above the upper one, at any length from 150 to 3,000 bases."""


@dataclass(frozen=True)
class Cascade:
    """What a bundle says of the model that looks first."""

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
