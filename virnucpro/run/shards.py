"""Units in pieces: which piece is whose, a receipt for each finished unit, and whether all of them fit together.

A receipt (``run/receipts/unit-00042.json``) says of which run a unit is, which rows it holds and what its files are, by
SHA-256. The run is named by a digest of its settings, its model, its inputs and its units, so that two machines that
prepared the same inputs with the same settings work on the same run, whatever their files are called.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from virnucpro import store
from virnucpro.atomic import atomic_write, file_digest, read_json, write_json
from virnucpro.errors import StoreError, UsageError
from virnucpro.run_dir import RunDir
from virnucpro.stages.base import ROLES, Index, fingerprint_of
from virnucpro.stored_json import Count, Digest

_SHARD = re.compile(r"(\d+)/(\d+)", re.ASCII)
_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


@dataclass(frozen=True)
class Receipt:
    """What is known of a finished unit."""

    run: Digest  # digest of the run that it is of
    unit: Count  # its number
    first_row: Count  # number of its first row
    num_rows: Count  # how many rows
    # kind of file (scores, failed, merged, nearest, nucleotide, protein) to SHA-256, of those that there are
    files: dict[str, Digest]


@dataclass(frozen=True)
class Fault:
    """Units one after the other that lack the same thing."""

    first: int  # number of the first
    last: int  # number of the last
    first_row: int  # number of the first row of the first
    stop_row: int  # one after the last row of the last
    problem: str  # what is wrong, with the file where it is one

    def __str__(self) -> str:
        units = f"unit {self.first}" if self.first == self.last else f"units {self.first}-{self.last}"
        return f"{units} (rows {self.first_row:,} to {self.stop_row:,}): {self.problem}"


def digest_of_run(run_dir: RunDir, index: Index) -> str:
    """What names a run: a digest of all that its numbers follow from."""
    inputs = [[item.sha256, item.mate_sha256, item.num_sequences, item.num_bases] for item in index.inputs]
    facts = [run_dir.read_manifest(), inputs, [asdict(unit) for unit in index.units]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def units_of_shard(text: str, num_units: int) -> range:
    """The units of shard ``i/n``: contiguous, every unit in one of them, of the same size but for one.

    Raises:
        UsageError: it is not such a text.
    """
    match = _SHARD.fullmatch(text)
    number, of = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= of:
        raise UsageError(f"--shard {text}: give i/n with i from 1 to n, such as 3/16.")
    return range((number - 1) * num_units // of, number * num_units // of)


def units_of_ranges(text: str, num_units: int) -> list[int]:
    """The units of ``0-99,120``, ends included.

    Raises:
        UsageError: it is not such a text, or names a unit that there is not.
    """
    units: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise UsageError(f"--units {text}: give ranges such as 0-99,120.")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < num_units:
            raise UsageError(f"--units {text}: the run has units 0-{num_units - 1}.")
        units.update(range(first, last + 1))
    return sorted(units)


def files_of(run_dir: RunDir, unit: int) -> dict[str, Path]:
    """Kind to path of all files that work on a unit may leave behind."""
    shards = {role: run_dir.embedding(role, unit) for role in ROLES}
    made = {"scores": run_dir.scores(unit), "nearest": run_dir.nearest(unit)}
    return {**made, "failed": run_dir.failed(unit), "merged": run_dir.merged(unit), **shards}


def write_receipt(run_dir: RunDir, index: Index, run: str, unit: int) -> None:
    """Write the receipt of a unit whose scores are there.

    Raises:
        StoreError: they are damaged, or were made from something else.
    """
    manifest = run_dir.read_manifest()
    made_from = {
        "unit_digest": str(store.read_attributes(run_dir.unit(unit), "unit")["digest"]),
        "fingerprint": fingerprint_of(manifest["science.model_fingerprint"], manifest["science.dtype"]),
    }
    store.verify(run_dir.scores(unit), "scores", made_from)
    files = {kind: file_digest(path) for kind, path in files_of(run_dir, unit).items() if path.exists()}
    indexed = index.units[unit]
    write_json(run_dir.receipt(unit), asdict(Receipt(run, unit, indexed.first_row, indexed.num_rows, files)))


def problem_of(run_dir: RunDir, index: Index, run: str, unit: int) -> str | None:
    """What is wrong with a unit, or None where its receipt and files are what they should be."""
    path = run_dir.receipt(unit)
    if not path.exists():
        return "not done"
    try:
        receipt = read_json(path, Receipt)
    except StoreError as error:
        return f"{path} {error.problem}"
    return _problem_of_range(path, receipt, index, run, unit) or _problem_of_files(path, receipt, run_dir)


def _problem_of_range(path: Path, receipt: Receipt, index: Index, run: str, unit: int) -> str | None:
    if receipt.run != run:
        return f"{path} is of another run ({receipt.run[:12]}..., this one is {run[:12]}...)"
    indexed = index.units[unit]
    if (receipt.unit, receipt.first_row, receipt.num_rows) != (unit, indexed.first_row, indexed.num_rows):
        stop = receipt.first_row + receipt.num_rows
        return f"{path} is of unit {receipt.unit}, rows {receipt.first_row:,} to {stop:,}"
    return None


def _problem_of_files(path: Path, receipt: Receipt, run_dir: RunDir) -> str | None:
    files = files_of(run_dir, receipt.unit)
    if not {"scores"} <= receipt.files.keys() <= files.keys():
        return f"{path} names other files than a unit has"
    for kind, digest in receipt.files.items():
        if not files[kind].is_file():
            return f"{files[kind]} is gone"
        if file_digest(files[kind]) != digest:
            return f"{files[kind]} is not what its receipt says (SHA-256)"
    return None


def faults(run_dir: RunDir, index: Index) -> list[Fault]:
    """What keeps a run from being finished, neighbours with the same problem together; empty where nothing does."""
    run = digest_of_run(run_dir, index)
    found: list[Fault] = []
    for unit in range(len(index.units)):
        problem = problem_of(run_dir, index, run, unit)
        if problem is None:
            continue
        indexed = index.units[unit]
        stop = indexed.first_row + indexed.num_rows
        last = found[-1] if found else None
        if last is not None and (last.last, last.problem) == (unit - 1, problem):
            found[-1] = Fault(last.first, unit, last.first_row, stop, problem)
        else:
            found.append(Fault(unit, unit, indexed.first_row, stop, problem))
    return found


def adopt(run_dir: RunDir, index: Index, folder: Path) -> tuple[int, list[str]]:
    """Copy the finished units of the same run out of another folder, each checked against its receipt.

    Returns:
        how many units came, and what is wrong with others, each with its file.
    """
    run, theirs, problems, num_adopted = digest_of_run(run_dir, index), RunDir(folder), [], 0
    receipts = sorted((theirs.work / "receipts").glob("unit-*.json"))
    if not receipts:
        problems.append(f"{theirs.work / 'receipts'}: there is no receipt of a unit")
    for path in receipts:
        unit = _unit_of(path)
        if unit is None or unit >= len(index.units) or path != theirs.receipt(unit):
            problems.append(f"{path}: the run has no such unit")
            continue
        if problem_of(run_dir, index, run, unit) is None:
            continue
        problem = problem_of(theirs, index, run, unit)
        if problem is not None:
            problems.append(problem if str(path.parent.parent) in problem else f"{path}: {problem}")
            continue
        names = read_json(path, Receipt).files
        here, there = files_of(run_dir, unit), files_of(theirs, unit)
        for source, target in [*((there[kind], here[kind]) for kind in names), (path, run_dir.receipt(unit))]:
            with atomic_write(target) as temporary:
                shutil.copyfile(source, temporary)
        num_adopted += 1
    return num_adopted, problems


def _unit_of(path: Path) -> int | None:
    digits = path.stem.removeprefix("unit-")
    return int(digits) if digits.isascii() and digits.isdigit() else None


def as_ranges(units: Sequence[int]) -> str:
    """Ascending units as ``--units`` takes them."""
    parts: list[list[int]] = []
    for unit in units:
        if parts and parts[-1][1] == unit - 1:
            parts[-1][1] = unit
        else:
            parts.append([unit, unit])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def split(units: Sequence[int], num_parts: int) -> Iterator[Sequence[int]]:
    """Ascending units in at most so many contiguous parts of nearly the same size, none of them empty."""
    num_parts = min(num_parts, len(units))
    for part in range(num_parts):
        yield units[part * len(units) // num_parts : (part + 1) * len(units) // num_parts]
