"""The file of a benchmark: its figures and what they depend on, as it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure
from virnucpro.atomic import write_json

SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """Figures and their circumstances.

    Attributes:
        context: program, version, commit, date, ``machine``, ``versions`` of libraries and ``settings``.
        figures: in the order of measuring.
    """

    context: Mapping[str, Any]
    figures: tuple[Figure, ...]

    def write(self, path: Path) -> None:
        """Write as JSON; beside what was measured it holds what follows from it, for other programs."""
        figures = [
            asdict(figure)
            | {
                "value": figure.value,
                "peer_value": figure.peer_value,
                "agrees": figure.agrees,
                "is_reached": figure.is_reached,
            }
            for figure in self.figures
        ]
        write_json(path, {"schema": SCHEMA, **self.context, "figures": figures})
