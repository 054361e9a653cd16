"""A table with a line for each item (``id``, ``title``, ``url`` ...), joined to embeddings by index."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro.errors import InputError

_INDEX = "index"


@dataclass(frozen=True)
class Metadata:
    """A joined table."""

    columns: dict[str, list[str]]  # name to one text for each item; empty where the table has no line for it
    num_joined: int  # items that have a line
    num_missing: int  # items that have none
    num_extra: int  # lines of no item


def join(path: Path, num_items: int) -> Metadata:
    """Join a table to items 0 to ``num_items``, by its column ``index``, else line by line.

    Args:
        path: ``.tsv``, ``.csv`` or ``.jsonl``, with a header or keys.
        num_items: of the embeddings.

    Raises:
        InputError: it cannot be read, or two lines are of one item.
    """
    columns: dict[str, list[str]] = {}
    seen, num_extra = bytearray(num_items), 0
    for number, line in enumerate(_lines(path)):
        index = _index(path, number, line)
        if not 0 <= index < num_items:
            num_extra += 1
            continue
        if seen[index]:
            raise InputError(str(path), f"has two lines for index {index}")
        seen[index] = 1
        for name, value in line.items():
            if name != _INDEX:
                columns.setdefault(name, [""] * num_items)[index] = "" if value is None else str(value)
    num_joined = sum(seen)
    return Metadata(columns, num_joined, num_items - num_joined, num_extra)


def _index(path: Path, number: int, line: Mapping[str, Any]) -> int:
    if _INDEX not in line:
        return number
    try:
        return int(line[_INDEX])
    except (TypeError, ValueError) as error:
        raise InputError(str(path), f"its index {line[_INDEX]!r} is not a number", number + 1) from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            if path.suffix == ".jsonl":
                for text in stream:
                    line = json.loads(text)
                    if not isinstance(line, dict):
                        raise InputError(str(path), "holds a line that is not a JSON object")
                    yield line
            elif path.suffix in (".tsv", ".csv"):
                for row in csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","):
                    if None in row or None in row.values():
                        raise InputError(str(path), "holds a line with another number of cells than its header")
                    yield dict(row)
            else:
                raise InputError(str(path), "is not a table: name a .tsv, .csv or .jsonl file")
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})") from error
    except (ValueError, csv.Error) as error:
        raise InputError(str(path), f"is not a table ({error})") from error
