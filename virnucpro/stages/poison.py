"""Rows that make their unit fail: found by halving, listed in a file, left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from virnucpro.atomic import read_json, write_json
from virnucpro.errors import WorkerError
from virnucpro.executors.base import Outcome, UnitFailed

MAX_ROWS = 64
"""A unit with more of them has another trouble than single rows."""

Try = Callable[[tuple[range, ...]], Iterator[Outcome]]
"""Tries parts of a unit, numbered as given; a part that cannot be done comes back as ``UnitFailed``."""


def find(num_rows: int, attempt: Try) -> dict[int, str]:
    """Positions of the rows that fail even alone, each with its reason; empty where every part goes well.

    Raises:
        WorkerError: more than ``MAX_ROWS`` rows fail, so that leaving them out is no answer.
    """
    found: dict[int, str] = {}
    suspects = [range(num_rows)] if num_rows else []
    while suspects:
        parts = tuple(half for part in suspects for half in _halves(part))
        suspects = []
        for outcome in attempt(parts):
            if not isinstance(outcome, UnitFailed):
                continue
            part = parts[outcome.unit]
            if len(part) > 1:
                suspects.append(part)
            else:
                found[part.start] = outcome.reason
            if len(suspects) + len(found) > MAX_ROWS:
                raise WorkerError(f"more than {MAX_ROWS} rows of one unit fail; the last reason:\n{outcome.reason}")
        suspects.sort(key=lambda part: part.start)
    return found


def _halves(part: range) -> list[range]:
    middle = (part.start + part.stop) // 2
    return [half for half in (range(part.start, middle), range(middle, part.stop)) if len(half)]


def write(path: Path, found: Mapping[int, str]) -> None:
    """List rows by their position among the rows of a unit that are their own source; drop the list where none is."""
    if found:
        write_json(path, {str(position): found[position] for position in sorted(found)})
    else:
        path.unlink(missing_ok=True)


def read(path: Path) -> dict[int, str]:
    """Position to reason, as written; empty where there is no list."""
    return read_json(path, dict[int, str]) if path.exists() else {}
