"""One file of embeddings out of many that hold a range of items each.

The ranges must lie one after the other from 0, all files must be of one width and one model; else what is wrong is
named with file and range, and nothing is written. Numbers pass in blocks: memory does not grow with the data.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from virnucpro.atomic import atomic_write, file_digest
from virnucpro.clusters.checkpoints import SUFFIXES, Checkpoint, look_at
from virnucpro.errors import DiskFullError, InputError, UsageError
from virnucpro.progress import Advance, Reporter
from virnucpro.resources import check_room

_BLOCK_BYTES = 16 << 20
_INDEX = "index"


@dataclass(frozen=True)
class Range:
    """A file and the items that are taken of it."""

    file: Checkpoint  # where they are
    start: int  # index of the first
    stop: int  # index after the last


@dataclass(frozen=True)
class Plan:
    """Files in the order of their items, and what is wrong with them."""

    ranges: tuple[Range, ...]  # in order
    faults: tuple[str, ...]  # a line each, with file and range; empty where they can be merged

    @property
    def total(self) -> int:
        """Items in all."""
        return self.ranges[-1].stop if self.ranges else 0

    def check(self) -> None:
        """Refuse files that cannot be merged.

        Raises:
            InputError: something is wrong with them.
        """
        if self.faults:
            count = "one fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
            raise InputError("merge", f"{count}, nothing is merged:\n  " + "\n  ".join(self.faults))


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


@dataclass
class Quality:
    """Figures that tell at a glance whether embeddings are what they should be; rows may come in any blocks."""

    # num_rows, num_values (finite), their total and total_of_squares, num_nan, num_inf, num_zero_rows
    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(int))
    min_norm: float = math.inf  # smallest Euclidean norm of a row without NaN and Inf
    max_norm: float = 0.0  # largest one

    def add(self, rows: NDArray[np.floating[Any]]) -> None:
        """Count a block (n, D)."""
        values = rows.astype(np.float64)
        squares = np.einsum("ij,ij->i", values, values)
        is_finite = np.isfinite(squares)
        odd, values = values[~is_finite], values if is_finite.all() else values[is_finite]
        kept, norms = odd[np.isfinite(odd)], np.sqrt(squares[is_finite])
        sums = {
            "num_rows": len(rows),
            "num_values": values.size + kept.size,
            "total": float(values.sum() + kept.sum()),
            "total_of_squares": float(squares[is_finite].sum() + (kept**2).sum()),
            "num_nan": int(np.isnan(odd).sum()),
            "num_inf": int(np.isinf(odd).sum()),
            "num_zero_rows": int((norms == 0).sum()),
        }
        self.include(Quality(defaultdict(int, sums), norms.min(initial=math.inf), norms.max(initial=0.0)))

    def include(self, other: Quality) -> None:
        """Add the rows that another one has counted."""
        for name, value in other.sums.items():
            self.sums[name] += value
        self.min_norm = min(self.min_norm, float(other.min_norm))
        self.max_norm = max(self.max_norm, float(other.max_norm))

    def figures(self) -> dict[str, float | None]:
        """Mean, standard deviation and norms (None without a finite row), and counts of what should not be."""
        sums, number = self.sums, self.sums["num_values"]
        mean = sums["total"] / number if number else None
        variance = None if mean is None else max(sums["total_of_squares"] / number - mean**2, 0.0)
        has_norms = self.min_norm <= self.max_norm
        return {
            "num_rows": sums["num_rows"],
            "mean": mean,
            "sd": None if variance is None else math.sqrt(variance),
            "min_norm": self.min_norm if has_norms else None,
            "max_norm": self.max_norm if has_norms else None,
            **{name: sums[name] for name in ("num_nan", "num_inf", "num_zero_rows")},
        }


@dataclass(frozen=True)
class Merged:
    """What was merged."""

    path: Path | None  # the file; None where it was only checked
    sha256: str  # of the file; empty where it was only checked
    quality: tuple[Quality, ...]  # of each file of the plan, in order
    whole: Quality  # of all
    metadata: Metadata | None  # the joined table, if there is one


def files_in(places: Iterable[Path]) -> list[Path]:
    """The files that are named, and those in folders that are named, by their endings; hidden ones are none.

    Raises:
        UsageError: a place has none.
    """
    found: set[Path] = set()
    for place in places:
        if not place.exists():
            raise UsageError(f"{place}: there is no such file or folder.")
        inside = [path for path in place.rglob("*") if path.suffix in SUFFIXES] if place.is_dir() else [place]
        files = [path for path in inside if path.is_file() and not path.name.startswith(".")]
        if not files:
            raise UsageError(f"{place}: no file in it ends in {' '.join(SUFFIXES)}.")
        found.update(files)
    return sorted(found)


def plan(paths: Sequence[Path], *, take: int | None = None) -> Plan:
    """Sort files by start index and find what is wrong with them.

    Args:
        paths: files of embeddings.
        take: items that are taken of each file at most, from its beginning; files may hold more.
    """
    files, faults = [], []
    for path in paths:
        try:
            files.append(look_at(path))
        except InputError as error:
            faults.append(str(error))
    files.sort(key=lambda file: (file.start, file.num_rows, str(file.path)))
    ranges = tuple(_range_of(file, take, faults) for file in _half_open(files))
    faults += _between(ranges)
    for what in ("width", "model"):
        numbers = Counter(str(getattr(item.file, what)) for item in ranges)
        if len(numbers) > 1:
            usual = numbers.most_common(1)[0][0]
            faults += [
                f"{_named(item)} is of {what} {getattr(item.file, what) or 'unknown'}, others of {usual or 'unknown'}"
                for item in ranges
                if str(getattr(item.file, what)) != usual
            ]
    return Plan(ranges, tuple(faults))


def check(planned: Plan, reporter: Reporter) -> Merged:
    """Read every number of a plan and write nothing."""
    planned.check()
    with reporter.stage("check", planned.total, "items") as advance:
        qualities = [_read(item, None, advance) for item in planned.ranges]
    return Merged(None, "", tuple(qualities), _sum(qualities), None)


def merge(planned: Plan, output: Path, reporter: Reporter, *, metadata: Path | None = None) -> Merged:
    """Write one HDF5 file: dataset ``embeddings``, group ``metadata``, and what it is in attributes.

    Its attributes are ``total``, ``width``, ``shape``, ``model``, ``created`` (ISO 8601) and ``quality`` (JSON); the
    dataset ``chunks`` (JSON) has for each file its name, range, digest and figures. ``OUTPUT.sha256`` holds the SHA-256
    of the whole, as ``sha256sum`` writes it.

    Raises:
        InputError: something is wrong with the files; all faults are listed.
        DiskFullError: no space is left.
        ResourceError: there is too little space, seen beforehand.
    """
    planned.check()
    width, model = planned.ranges[0].file.width, planned.ranges[0].file.model
    dtype = np.result_type(*(item.file.dtype for item in planned.ranges))
    joined = None if metadata is None else join(metadata, planned.total)
    check_room(output.absolute().parent, planned.total * width * dtype.itemsize, "Make room, or name another --output.")
    with reporter.stage("merge", planned.total, "items") as advance, atomic_write(output) as temporary:
        try:
            with h5py.File(temporary, "w", libver="v110") as file:
                dataset = file.create_dataset("embeddings", (planned.total, width), dtype)
                qualities = [_read(item, dataset, advance) for item in planned.ranges]
                whole = _sum(qualities)
                _describe(file, planned, model, qualities, whole)
                if joined is not None:
                    for name, values in joined.columns.items():
                        file.create_dataset(
                            f"metadata/{name.replace('/', '_')}", data=values, dtype=h5py.string_dtype()
                        )
                    for name in ("num_joined", "num_missing", "num_extra"):
                        file["metadata"].attrs[name] = getattr(joined, name)
        except (OSError, RuntimeError) as error:  # HDF5 says so in words
            if "No space left" in str(error) or "errno = 28" in str(error):
                raise DiskFullError(output) from error
            raise
    digest = file_digest(output)
    with atomic_write(output.with_name(f"{output.name}.sha256")) as temporary:
        temporary.write_text(f"{digest}  {output.name}\n", encoding="utf-8")
    return Merged(output, digest, tuple(qualities), whole, joined)


def lines(planned: Plan, merged: Merged) -> Iterable[str]:
    """A table of the files and their figures, for people."""
    yield "start\tstop\tmean\tsd\tmin_norm\tmax_norm\tnan\tinf\tzero_rows\tfile"
    rows = [
        (item.start, item.stop, quality, item.file.path)
        for item, quality in zip(planned.ranges, merged.quality, strict=True)
    ]
    for start, stop, quality, path in [*rows, (0, planned.total, merged.whole, "all")]:
        figures = quality.figures()
        numbers = (
            "-" if figures[name] is None else f"{figures[name]:.6g}" for name in ("mean", "sd", "min_norm", "max_norm")
        )
        counts = (str(figures[name]) for name in ("num_nan", "num_inf", "num_zero_rows"))
        yield "\t".join([str(start), str(stop), *numbers, *counts, str(path)])
    table = merged.metadata
    if table is not None:
        yield (
            f"metadata: {table.num_joined:,} items joined, {table.num_missing:,} without a line, "
            f"{table.num_extra:,} lines of no item"
        )


def _half_open(files: Sequence[Checkpoint]) -> Sequence[Checkpoint]:
    """The files with ``end`` after the last item, also where all of them name the last item itself."""
    names_last = len(files) > 1 and all(
        file.end is not None and file.num_rows == file.end - file.start + 1 for file in files
    )
    if names_last and all(one.end is not None and two.start == one.end + 1 for one, two in pairwise(files)):
        return [replace(file, end=file.start + file.num_rows) for file in files]
    return files


def _range_of(file: Checkpoint, take: int | None, faults: list[str]) -> Range:
    """What is taken of a file."""
    number = file.num_rows if file.end is None else file.end - file.start
    if take is not None:
        number = min(number, take)
    found = Range(file, file.start, file.start + number)
    if number == 0:
        faults.append(f"{_named(found)} holds no item")
    if file.num_rows < number:
        faults.append(
            f"{_named(found)} holds {file.num_rows:,} items, {number:,} belong to its range: it is not finished"
        )
    elif file.num_rows > number and take is None:
        faults.append(f"{_named(found)} holds {file.num_rows:,} items, its range has {number:,}: --take {number}?")
    return found


def _between(ranges: Sequence[Range]) -> list[str]:
    """Gaps and overlaps."""
    found, reached, before = [], 0, None
    for item in ranges:
        if item.start > reached:
            after = "" if before is None else f" after {_named(before)}"
            found.append(f"items {reached:,} to {item.start:,} are missing{after}, before {_named(item)}")
        elif item.start < reached and before is not None:
            found.append(f"{_named(item)} overlaps {_named(before)}")
        if item.stop >= reached:
            reached, before = item.stop, item
    return found


def _named(item: Range) -> str:
    return f"{item.file.path} ({item.start:,} to {item.stop:,})"


def _read(item: Range, dataset: h5py.Dataset | None, advance: Advance) -> Quality:
    """Count the rows of one file, and write them to their place in a dataset."""
    quality, first = Quality(), item.start
    num_rows = max(1, _BLOCK_BYTES // max(1, item.file.width * item.file.dtype.itemsize))
    for rows in item.file.blocks(num_rows, item.stop - item.start):
        if dataset is not None:
            dataset[first : first + len(rows)] = rows
        quality.add(rows)
        first += len(rows)
        advance(len(rows))
    return quality


def _describe(file: h5py.File, planned: Plan, model: str, qualities: Sequence[Quality], whole: Quality) -> None:
    """Write what the file is into its attributes."""
    shape = file["embeddings"].shape
    chunks: list[dict[str, Any]] = [
        {"file": item.file.path.name, "start": item.start, "stop": item.stop, "sha256": file_digest(item.file.path)}
        | quality.figures()
        for item, quality in zip(planned.ranges, qualities, strict=True)
    ]
    file.attrs.update(
        {
            "total": planned.total,
            "width": shape[1],
            "shape": shape,
            "model": model,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "quality": json.dumps(whole.figures()),
        }
    )
    # A dataset: an attribute holds 64 KB at most.
    file.create_dataset("chunks", data=json.dumps(chunks), dtype=h5py.string_dtype())


def _sum(qualities: Iterable[Quality]) -> Quality:
    whole = Quality()
    for quality in qualities:
        whole.include(quality)
    return whole
