"""From what a sequence adds up to, to its call, status and reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles import Bundle
from virnucpro.sequence.table import Status


class Call(IntEnum):
    """The answer for a sequence."""

    VIRUS = 0
    NOT_VIRUS = 1
    NO_CALL = 2


NO_OPEN_FRAME = max(Status) + 1
"""Status of a sequence none of whose fragments has a score: this model needs an open frame."""

STATUS_NAMES = {**{int(status): status.name.lower() for status in Status}, NO_OPEN_FRAME: "no_open_frame"}
CALL_NAMES = {int(call): call.name.lower() for call in Call}


@dataclass(frozen=True)
class Answers:
    """Answers for ``n`` sequences.

    Attributes:
        p_virus: (n,) float64, NaN where there is no call.
        call: (n,) int, ``Call``.
        status: (n,) int, key of ``STATUS_NAMES``.
        has_open_frame: (n,) bool, whether any fragment has an open frame.
    """

    p_virus: NDArray[np.float64]
    call: NDArray[np.int64]
    status: NDArray[np.int64]
    has_open_frame: NDArray[np.bool_]


def answer(bundle: Bundle, threshold: float, sums: NDArray[np.void]) -> Answers:
    """Call sequences.

    Args:
        bundle: the model, for its calibration.
        threshold: p_virus from which a sequence is called virus.
        sums: (n,) what their fragments add up to, ``stages.consensus.SUM_DTYPE``.
    """
    status, scored = sums["status"], sums["num_scored"]
    final = np.where((status == Status.OK) & (scored == 0), NO_OPEN_FRAME, status).astype(np.int64)
    called = final == Status.OK
    p_virus = np.full(len(status), np.nan)
    mean = sums["log_odds"][called] / scored[called]
    with np.errstate(over="ignore"):  # a genome's log-odds may pass 709; its probability is then 0
        p_virus[called] = 1.0 / (1.0 + np.exp(-bundle.calibration.sequence_log_odds(mean, scored[called])))
    call = np.where(~called, Call.NO_CALL, np.where(p_virus >= threshold, Call.VIRUS, Call.NOT_VIRUS))
    return Answers(p_virus, call.astype(np.int64), final, sums["num_open"] > 0)


def reasons(bundle: Bundle) -> dict[int, bytes]:
    """Why a sequence of each status has no call; NA where it has one."""
    return {
        Status.OK: b"NA",
        Status.EMPTY: b"the record holds no bases",
        Status.TOO_SHORT: f"shorter than {bundle.min_length} bases".encode(),
        Status.AMBIGUOUS: f"fewer than {bundle.min_length} bases are A, C, G or T".encode(),
        NO_OPEN_FRAME: b"no fragment has an open reading frame, and this model needs one",
    }
