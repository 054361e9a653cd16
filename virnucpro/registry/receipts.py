"""``receipt.json``: what a model folder held when it was filled, file by file.

::

    {"schema": 1, "name": "DNABERT-S", "licence": "Apache-2.0", "date": "2026-01-31", "fingerprint": null,
     "files": [{"name": "config.json", "size_bytes": 123, "sha256": "...",
                "source": "https://...", "checked": "SHA-256 that its source names"}]}
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from virnucpro import stored_json
from virnucpro.atomic import file_digest, write_json
from virnucpro.errors import ModelError, StoreError
from virnucpro.stored_json import Count, Digest, Limits

RECEIPT = "receipt.json"
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""A name that is one plain path component on every system."""

PlainName = Annotated[str, Limits(pattern=rf"^{FILE_NAME.pattern}\Z")]
Text = Annotated[str, Limits(max_length=2000, pattern="^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*\\Z")]
"""What a terminal prints as it stands: no control characters, none that turn the direction of writing."""


@dataclass(frozen=True)
class Problem:
    """A file that is not what it should be."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


@dataclass(frozen=True)
class FileRecord:
    """One file."""

    name: PlainName  # within its folder
    size_bytes: Count  # exact
    sha256: Digest  # of its content, hexadecimal
    source: Text  # where it came from
    checked: Text  # what its content was checked against when it came

    def problem(self, folder: Path, *, reads_content: bool = True) -> Problem | None:
        """How the file in ``folder`` differs from this record; without its content, by its size alone."""
        path, found = folder / self.name, None
        if not path.is_file():
            found = "is missing"
        elif (size := path.stat().st_size) != self.size_bytes:
            found = f"has {size:,} bytes, recorded are {self.size_bytes:,}"
        elif reads_content and (digest := file_digest(path)) != self.sha256:
            found = f"has SHA-256 {digest}, recorded is {self.sha256}"
        return Problem(path, found) if found else None


@dataclass(frozen=True)
class Receipt:
    """What a folder holds."""

    name: Text  # of the model or part
    licence: Text  # SPDX identifier, or ``unknown``
    fingerprint: Text | None  # of the bundle; None for a checkpoint
    files: tuple[FileRecord, ...]  # by name
    date: Text = ""  # when it was written, ISO
    schema: Literal[1] = 1  # of the file

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)

    def file(self, name: str) -> FileRecord | None:
        """The record of one file."""
        return next((file for file in self.files if file.name == name), None)

    def problems(self, folder: Path, *, reads_content: bool = True) -> list[Problem]:
        """How the files in ``folder`` differ from their records."""
        found = (file.problem(folder, reads_content=reads_content) for file in self.files)
        return [problem for problem in found if problem is not None]


def read_receipt(folder: Path) -> Receipt | None:
    """The receipt of a folder; None if there is none.

    Raises:
        ModelError: it is damaged.
    """
    path = folder / RECEIPT
    if not folder.is_dir():
        return None
    try:
        return stored_json.read(path, Receipt)
    except FileNotFoundError:
        return None
    except StoreError as error:
        raise ModelError(f"{path}: {error.problem}. Delete it and run: virnucpro models record {folder}") from error


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Write ``receipt.json``, dated today."""
    write_json(folder / RECEIPT, asdict(replace(receipt, date=datetime.now(UTC).date().isoformat())))


def record_file(path: Path, source: str, checked: str) -> FileRecord:
    """Read a file and describe it."""
    return FileRecord(path.name, path.stat().st_size, file_digest(path), source, checked)
