"""``receipt.json``: what a model folder held when it was filled, file by file.

::

    {"schema": 1, "name": "DNABERT-S", "licence": "Apache-2.0", "date": "2026-01-31", "fingerprint": null,
     "files": [{"name": "config.json", "size_bytes": 123, "sha256": "...",
                "source": "https://...", "checked": "SHA-256 of the hub"}]}
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from virnucpro.errors import ModelError
from virnucpro.run_dir import write_json

SCHEMA = 1
RECEIPT = "receipt.json"
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""A name that is one plain path component on every system."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileRecord:
    """One file.

    Attributes:
        name: within its folder.
        size_bytes: exact.
        sha256: of its content, hexadecimal.
        source: where it came from.
        checked: what its content was held against when it came.
    """

    name: str
    size_bytes: int
    sha256: str
    source: str
    checked: str


@dataclass(frozen=True)
class Receipt:
    """What a folder holds.

    Attributes:
        name: of the model or part.
        licence: SPDX identifier, or ``unknown``.
        fingerprint: of the bundle; None for a checkpoint.
        files: by name.
        date: when it was written, ISO.
    """

    name: str
    licence: str
    fingerprint: str | None
    files: tuple[FileRecord, ...]
    date: str = ""

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)

    def file(self, name: str) -> FileRecord | None:
        """The record of one file."""
        return next((file for file in self.files if file.name == name), None)


@dataclass(frozen=True)
class Problem:
    """A file that is not what it should be."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def read_receipt(folder: Path) -> Receipt | None:
    """The receipt of a folder; None where there is none.

    Raises:
        ModelError: it is damaged.
    """
    path = folder / RECEIPT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ModelError(f"{path}: schema {content['schema']}; this program reads {SCHEMA}.")
        return parse_receipt(content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ModelError(
            f"{path}: cannot be understood ({error}). Delete it and run: virnucpro models record {folder}"
        ) from error


def parse_receipt(content: dict[str, Any]) -> Receipt:
    """A receipt from JSON that may come from anybody.

    Raises:
        KeyError: an entry is missing.
        TypeError: an entry has another type.
        ValueError: an entry makes no sense.
    """
    files = tuple(FileRecord(**file) for file in content["files"])
    for file in files:
        texts = (file.name, file.sha256, file.source, file.checked)
        if type(file.size_bytes) is not int or not all(isinstance(text, str) for text in texts):
            raise TypeError("a file's entry has values of the wrong type")
        if not all(text.isprintable() for text in texts):
            raise ValueError("an entry holds characters that cannot be printed")
        if not FILE_NAME.fullmatch(file.name):
            raise ValueError(f"{file.name!r} is not a plain file name")
        if not _SHA256.fullmatch(file.sha256) or file.size_bytes < 0:
            raise ValueError(f"{file.name}: its size or SHA-256 makes no sense")
    folded = [file.name.casefold() for file in files]
    if len(set(folded)) < len(folded):
        raise ValueError("a file is named twice")
    fingerprint = content.get("fingerprint")
    name, licence = str(content["name"]), str(content["licence"])
    if not (name + licence + str(fingerprint)).isprintable():
        raise ValueError("an entry holds characters that cannot be printed")
    return Receipt(
        name=name,
        licence=licence,
        fingerprint=None if fingerprint is None else str(fingerprint),
        files=files,
        date=str(content.get("date", "")),
    )


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Write ``receipt.json``, dated today."""
    date = datetime.now(UTC).date().isoformat()
    write_json(folder / RECEIPT, {"schema": SCHEMA, **asdict(receipt), "date": date})


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def git_blob_name(path: Path) -> str:
    """The name git gives a file's content (SHA-1 of a header and the content)."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def record_file(path: Path, source: str, checked: str) -> FileRecord:
    """Read a file and describe it."""
    return FileRecord(path.name, path.stat().st_size, file_digest(path), source, checked)


def check_files(folder: Path, receipt: Receipt) -> list[Problem]:
    """Hold every recorded file against its record, reading all of it."""
    problems = []
    for file in receipt.files:
        path = folder / file.name
        if not path.is_file():
            problems.append(Problem(path, "is missing"))
        elif path.stat().st_size != file.size_bytes:
            problems.append(Problem(path, f"has {path.stat().st_size:,} bytes, recorded are {file.size_bytes:,}"))
        elif (found := file_digest(path)) != file.sha256:
            problems.append(Problem(path, f"has SHA-256 {found}, recorded is {file.sha256}"))
    return problems


def looks_complete(folder: Path, receipt: Receipt) -> bool:
    """Whether all recorded files are there with their sizes; their content is not read."""
    paths = [(folder / file.name, file.size_bytes) for file in receipt.files]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)
