"""``receipt.json``: what a model folder held when it was filled, file by file.

::

    {"schema": 1, "name": "DNABERT-S", "licence": "Apache-2.0", "date": "2026-01-31", "fingerprint": null,
     "files": [{"name": "config.json", "size_bytes": 123, "sha256": "...",
                "source": "https://...", "checked": "SHA-256 of the hub"}]}
"""

from __future__ import annotations

import hashlib
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
Text = Annotated[str, Limits(max_length=2000)]


@dataclass(frozen=True)
class FileRecord:
    """One file."""

    name: PlainName  # within its folder
    size_bytes: Count  # exact
    sha256: Digest  # of its content, hexadecimal
    source: Text  # where it came from
    checked: Text  # what its content was checked against when it came


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

    def check(self, path: Path) -> None:
        """Refuse what types and ranges do not exclude.

        Raises:
            StoreError: a file is named twice, or a text cannot be printed.
        """
        folded = [file.name.casefold() for file in self.files]
        if len(set(folded)) < len(folded):
            raise StoreError(path, "is damaged (files: one is named twice)")
        texts = [self.name, self.licence, self.fingerprint or "", self.date]
        if not all(text.isprintable() for text in (*texts, *(f.source + f.checked for f in self.files))):
            raise StoreError(path, "is damaged (it holds characters that cannot be printed)")


@dataclass(frozen=True)
class Problem:
    """A file that is not what it should be."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def read_receipt(folder: Path) -> Receipt | None:
    """The receipt of a folder; None if there is none.

    Raises:
        ModelError: it is damaged.
    """
    path = folder / RECEIPT
    if not folder.is_dir():
        return None
    try:
        receipt = stored_json.read(path, Receipt)
        receipt.check(path)
    except FileNotFoundError:
        return None
    except StoreError as error:
        raise ModelError(f"{path}: {error.problem}. Delete it and run: virnucpro models record {folder}") from error
    return receipt


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Write ``receipt.json``, dated today."""
    write_json(folder / RECEIPT, asdict(replace(receipt, date=datetime.now(UTC).date().isoformat())))


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
    """Check every recorded file against its record, reading all of it."""
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
