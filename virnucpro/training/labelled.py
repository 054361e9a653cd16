"""A record with what is known of its origin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelledRecord:
    """A record of a data set.

    Attributes:
        name: its id.
        codes: (length,) uint8 base codes 0..4.
        label: ``virus``, or the class of hosts.
        group: family of a virus, genus of a host.
        cluster: what is alike in sequence; empty where unknown.
        genome: what it is a part of; empty where unknown.
        split: ``train``, ``dev``, ``dev_novel`` or ``dev_seen``; empty before it is assigned.
        proteins: annotated proteins.
    """

    name: str
    codes: NDArray[np.uint8]
    label: str
    group: str
    cluster: str = ""
    genome: str = ""
    split: str = ""
    proteins: tuple[bytes, ...] = ()
