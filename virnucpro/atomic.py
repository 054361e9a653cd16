"""Files that are written whole or not at all, and the JSON among them: beside their place, fsynced and renamed."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

from virnucpro import stored_json
from virnucpro.errors import StoreError, of_machine

T = TypeVar("T")

TEMPORARY_MARK = "virnucpro-tmp-"
"""In the name of every file that is being written."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place when the block ends well.

    Nobody can guess the temporary name and lay a link there; a link in the place of ``path`` is replaced, not followed.

    Raises:
        PlaceError: the file cannot be written, for want of space, permission or the like.
    """
    temporary = path.with_name(f".{TEMPORARY_MARK}{secrets.token_hex(8)}")
    with machine_errors_at(path), _gone_afterwards(temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)


@contextmanager
def machine_errors_at(path: Path) -> Iterator[None]:
    """Let what the disk refuses be an error that says where.

    Raises:
        PlaceError: as the system says, about its own path where it names one.
    """
    try:
        yield
    except OSError as error:
        if TEMPORARY_MARK in str(error.filename):
            error.filename = str(path)
        known = of_machine(error, path)
        if known is None:
            raise
        raise known from error


@contextmanager
def _gone_afterwards(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@overload
def read_json(path: Path) -> dict[str, Any]: ...
@overload
def read_json(path: Path, kind: type[T]) -> T: ...
def read_json(path: Path, kind: Any = dict[str, Any]) -> Any:
    """Read a JSON file of the run; see ``stored_json.read``.

    Raises:
        StoreError: it is missing, damaged, or of other types than ``kind``.
    """
    try:
        return stored_json.read(path, kind)
    except FileNotFoundError as error:
        raise StoreError(path, "is missing") from error


def check_json(path: Path, kind: type[object]) -> dict[str, Any]:
    """A JSON object of the run whose known keys have the types of ``kind``; see ``stored_json.check``.

    Raises:
        StoreError: it is missing or damaged.
    """
    try:
        return stored_json.check(path, kind)
    except FileNotFoundError as error:
        raise StoreError(path, "is missing") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
