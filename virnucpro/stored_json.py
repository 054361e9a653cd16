"""JSON that a run, a model or a user left on disk, read through a schema.

Such files are handed from person to person, so nothing in them is taken on trust: neither the file (a FIFO, a link, a
gigabyte) nor its content (other types, missing keys, huge numbers, deep nesting). What does not fit is named by file
and key.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from virnucpro.errors import StoreError
from virnucpro.platforms import NO_WAITING, PLAIN_FILE

T = TypeVar("T")

MAX_BYTES = 256 << 20
"""An index of a billion reads takes a tenth of it."""

_PIPE_SECONDS = 10

Limits = msgspec.Meta
"""Range, length or pattern of an annotated type."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
"""A number of things, or the number of a thing."""

Few = msgspec.Meta(min_length=1, max_length=2)
"""A list of one or two: the files of a sample."""

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in hexadecimal digits."""


def read(path: Path, kind: type[T]) -> T:
    """Read a JSON file whose content has the types of ``kind`` (a dataclass, or any type that msgspec knows).

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: it is not a plain file, is too large, is not JSON, or does not fit; the error names the key.
    """
    return decode(read_bytes(path), kind, path)


def check(path: Path, kind: type[object]) -> dict[str, Any]:
    """All that a JSON object holds, once what is known of it has been checked against the types of ``kind``.

    Raises:
        FileNotFoundError, StoreError: as of ``read``.
    """
    content = read_bytes(path)
    decode(content, kind, path)
    return decode(content, dict[str, Any], path)


def convert(content: object, kind: type[T]) -> T:
    """What YAML or JSON gave, as the dataclass ``kind``.

    Raises:
        ValueError: a key is missing, unknown, or of another type; the error names it.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # any dataclass
    unknown = [key for key in content if key not in known] if isinstance(content, dict) else []
    if unknown:
        raise ValueError(f"{unknown[0]} is not known")
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        problem, _, key = str(error).partition(" - at ")
        raise ValueError(f"{key.strip('`$.')}: {problem}" if key else problem) from error


def read_bytes(path: Path) -> bytes:
    """The content of a small plain file; neither a link nor a FIFO is followed or waited for.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: it is something else than a plain file, or too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | PLAIN_FILE | NO_WAITING)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(path, f"is damaged (cannot be opened: {error.strerror})") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(path, "is damaged (not a plain file)")
        if status.st_size > MAX_BYTES:
            raise StoreError(path, f"is damaged ({status.st_size:,} bytes, where {MAX_BYTES:,} would be many)")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read(status.st_size)  # a larger number would be allocated
    finally:
        os.close(descriptor)


def read_given(path: Path, max_bytes: int) -> bytes:
    """The content of a small file that a user names: a plain one, or a pipe that somebody writes to.

    Raises:
        OSError: it cannot be read, is something else, has no end, or nothing comes.
    """
    descriptor = os.open(path, os.O_RDONLY | NO_WAITING)
    try:
        kind = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
            raise OSError(errno.EINVAL, "neither a file nor a pipe", str(path))
        content = b""
        while len(content) <= max_bytes:
            if stat.S_ISFIFO(kind) and not select.select([descriptor], [], [], _PIPE_SECONDS)[0]:
                raise OSError(errno.ETIMEDOUT, "a pipe that nobody writes to", str(path))
            if not (part := os.read(descriptor, 1 << 20)):
                return content
            content += part
        raise OSError(errno.EFBIG, f"has more than {max_bytes:,} bytes", str(path))
    finally:
        os.close(descriptor)


def decode(content: bytes, kind: type[T], path: Path) -> T:
    """``content`` as JSON of the types of ``kind``.

    Raises:
        StoreError: it is not; ``path`` says where it comes from.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        problem, _, key = str(error).partition(" - at ")
        raise StoreError(path, f"is damaged ({key.strip('`') or 'the whole file'}: {problem})") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(path, f"is damaged (not JSON: {error})") from error
    except RecursionError as error:
        raise StoreError(path, "is damaged (nested too deeply)") from error
