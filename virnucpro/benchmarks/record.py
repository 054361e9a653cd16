"""The file of a benchmark: its figures and what they depend on, written, read and held against another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from virnucpro.benchmarks.measure import Figure, Goal, Point
from virnucpro.errors import UsageError
from virnucpro.run_dir import write_json

SCHEMA = 1
_NUMBERS = ("values", "peer_values")


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

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read what ``write`` wrote.

        Raises:
            UsageError: the file holds something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("schema") != SCHEMA:
                raise UsageError(f"{path} is of another version of the benchmark. Measure again with --output.")
            figures = tuple(_figure(stored) for stored in content.pop("figures"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path} holds no figures. Name a file that virnucpro benchmark --output wrote."
            ) from error
        return cls(content, figures)


def _figure(stored: Mapping[str, Any]) -> Figure:
    known = {field.name: stored[field.name] for field in fields(Figure) if field.name in stored}
    known |= {name: tuple(known[name]) for name in _NUMBERS}
    point = known.get("point")
    return Figure(**known | {"goal": Goal(**known["goal"]), "point": None if point is None else Point(**point)})
