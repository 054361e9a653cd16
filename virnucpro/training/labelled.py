"""A record with what is known of its origin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelledRecord:
    """A record of a data set."""

    name: str  # its id
    codes: NDArray[np.uint8]  # (length,) uint8 base codes 0..4
    label: str  # ``virus``, or the class of hosts
    group: str  # family of a virus, genus of a host
    cluster: str = ""  # what is alike in sequence; empty where unknown
    genome: str = ""  # what it is a part of; empty where unknown
    split: str = ""  # ``train``, ``dev``, ``dev_novel`` or ``dev_seen``; empty before it is assigned
    proteins: tuple[bytes, ...] = ()  # annotated proteins
