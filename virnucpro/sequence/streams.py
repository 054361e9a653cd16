"""Bytes of an input, unpacked, with the SHA-256 of what was read.

Compression is told by content, never by name. gzip, bzip2, xz and zstd files may hold several
members, one after another.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol, cast

from virnucpro.errors import InputError

STDIN = "-"
STDIN_NAME = "<stdin>"
_READ_BYTES = 1 << 18
_PEEK_BYTES = 1 << 12
_FEED_BYTES = 1 << 10
"""Compressed bytes are unpacked in small bites, so that a very repetitive file stays small in memory: one of them gives
at most some 30 MB."""


class _Decompressor(Protocol):
    """One member of a compressed file, as the standard library's and zstandard's objects have it."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _zstd() -> _Decompressor:
    import zstandard  # noqa: PLC0415 - only zstd files need it

    return cast("_Decompressor", zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj())


def _gzip() -> _Decompressor:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


_MAGIC: list[tuple[bytes, str, Callable[[], _Decompressor]]] = [
    (b"\x1f\x8b", "gzip", _gzip),
    (b"BZh", "bzip2", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\x00", "xz", lzma.LZMADecompressor),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    *((bytes([0x50 + i]) + b"\x2a\x4d\x18", "zstd", _zstd) for i in range(16)),  # a skippable frame comes first
]
ZSTD_ERRORS: tuple[type[Exception], ...] = (
    (import_module("zstandard").ZstdError,) if find_spec("zstandard") is not None else ()
)
_DAMAGED: tuple[type[Exception], ...] = (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError, *ZSTD_ERRORS)


def shown(source: str) -> str:
    """How a source is called in messages and results."""
    return STDIN_NAME if source == STDIN else source


def compression_of(head: bytes) -> str:
    """``none``, ``gzip``, ``bzip2``, ``xz`` or ``zstd``, from the first bytes."""
    return next((name for magic, name, _ in _MAGIC if head.startswith(magic)), "none")


class InputStream:
    """The unpacked bytes of one source.

    Args:
        source: a path, or ``-`` for standard input.
        read_bytes: how much is read at once.

    Attributes:
        compression: known once the first bytes were read.
        sha256: hex digest of the raw bytes, known once :meth:`chunks` or :meth:`raw_chunks` is exhausted.
        num_raw_bytes: read so far.
    """

    def __init__(self, source: str, read_bytes: int = _READ_BYTES) -> None:
        self.source = source
        self.compression = "none"
        self.sha256 = ""
        self.num_raw_bytes = 0
        self._read_bytes = read_bytes
        self._head = b""
        self._rest = self._read()

    def peek(self) -> bytes:
        """The first raw bytes, some thousand unless the source is shorter; they are read again afterwards.

        Raises:
            InputError: the source cannot be read.
        """
        while len(self._head) < _PEEK_BYTES and (chunk := next(self._rest, b"")):
            self._head += chunk
        self.compression = compression_of(self._head)
        return self._head

    def chunks(self) -> Iterator[bytes]:
        """The unpacked bytes, in chunks that are never empty.

        Raises:
            InputError: the source cannot be read, is damaged or is cut off.
        """
        self.peek()
        yield from self.raw_chunks() if self.compression == "none" else _rechunked(self._members(self.raw_chunks()))

    def raw_chunks(self) -> Iterator[bytes]:
        """The bytes as they are, counted into the digest.

        Raises:
            InputError: the source cannot be read.
        """
        if self._head:
            yield self._head
        yield from self._rest

    def _read(self) -> Iterator[bytes]:
        digest = hashlib.sha256()
        stream = open_source(self.source)
        try:
            while chunk := stream.read(self._read_bytes):
                digest.update(chunk)
                self.num_raw_bytes += len(chunk)
                yield chunk
        except OSError as error:
            raise InputError(shown(self.source), f"cannot be read: {error.strerror or error}") from error
        finally:
            if self.source != STDIN:
                stream.close()
        self.sha256 = digest.hexdigest()

    def _members(self, raw: Iterator[bytes]) -> Iterator[bytes]:
        member: _Decompressor | None = None
        has_ended = is_begun = False
        for feed in _bites(raw):
            rest = feed
            while rest:
                if member is None:
                    rest = rest.lstrip(b"\x00")  # padding between and after members
                    if not rest:
                        break
                    member, is_begun = self._next_member(rest, has_ended=has_ended), False
                try:
                    unpacked = member.decompress(rest)
                except _DAMAGED as error:
                    raise self._damaged(error, is_inside=is_begun or not has_ended) from error
                if unpacked:
                    is_begun = True
                    yield unpacked
                rest = b""
                if member.eof:
                    rest = member.unused_data
                    member, has_ended = None, True
        if member is not None:
            raise InputError(
                shown(self.source),
                f"the {self.compression} data is cut off before its end. Copy or download the file again.",
            )

    def _next_member(self, text: bytes, *, has_ended: bool) -> _Decompressor:
        """For what follows the end of another one, the first byte tells: no more may be here yet."""
        starts = [(magic[:1], make) for magic, name, make in _MAGIC if name == self.compression]
        if has_ended and not text.startswith(tuple(magic for magic, _ in starts)):
            raise self._damaged(None, is_inside=False)
        return starts[0][1]()

    def _damaged(self, error: Exception | None, *, is_inside: bool) -> InputError:
        """Of a member, or of what follows the last one."""
        problem = (
            f"the {self.compression} data is damaged ({error}). Copy or download the file again."
            if is_inside
            else f"other bytes follow the end of the {self.compression} data. Something was appended to the file, or "
            "it was damaged: copy or download it again."
        )
        return InputError(shown(self.source), problem)


def _rechunked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in chunks of about one size."""
    held: list[bytes] = []
    num_held = 0
    for piece in pieces:
        held.append(piece)
        num_held += len(piece)
        if num_held >= _READ_BYTES:
            whole = b"".join(held)
            held, num_held = [], 0
            for start in range(0, len(whole), 2 * _READ_BYTES):
                yield whole[start : start + 2 * _READ_BYTES]
    if held:
        yield b"".join(held)


def _bites(raw: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in raw:
        for start in range(0, len(chunk), _FEED_BYTES):
            yield chunk[start : start + _FEED_BYTES]


def digest_of(source: str) -> str:
    """SHA-256 (hex) of a source's raw bytes, without unpacking or parsing it.

    Raises:
        InputError: the source cannot be read.
    """
    stream = InputStream(source)
    for _ in stream.raw_chunks():
        pass
    return stream.sha256


def open_source(source: str) -> IO[bytes]:
    """Open a path, or standard input for ``-``.

    Raises:
        InputError: it does not exist, is a directory or may not be read.
    """
    if source == STDIN:
        stdin: Any = sys.stdin
        if stdin is None:
            raise InputError(STDIN_NAME, "standard input is closed. Give a file name, or pipe sequences in.")
        return cast("IO[bytes]", stdin.buffer)
    try:
        return Path(source).open("rb", buffering=0)
    except FileNotFoundError as error:
        raise InputError(source, "no such file. Check the name and the directory.") from error
    except IsADirectoryError as error:
        raise InputError(
            source, "is a directory. Give the sequence files in it, one by one or as a pattern."
        ) from error
    except PermissionError as error:
        raise InputError(source, "may not be read by you. Ask its owner for access (chmod +r).") from error
    except OSError as error:
        raise InputError(source, f"cannot be opened: {error.strerror or error}") from error
