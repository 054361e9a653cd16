"""One file over HTTP: goes on where it stopped, and takes its place only when it is what it should be."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit, urlunsplit

import httpx2

from virnucpro.errors import DiskFullError, ModelError, ResourceError, UsageError
from virnucpro.progress import Advance
from virnucpro.registry.receipts import FileRecord, git_blob_name, record_file

_log = logging.getLogger(__name__)

_BUSY = (408, 425, 429, 500, 502, 503, 504)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class SourceError(ModelError):
    """One source did not give what was asked of it; another may."""


class _BusyError(Exception):
    """The server asks to come back later."""


@dataclass(frozen=True)
class Remote:
    """A file on a server, and what is known of its content."""

    url: str  # http or https
    size_bytes: int | None = None  # None where it is not known
    sha256: str | None = None  # None where it is not known
    git_blob: str | None = None  # name of its git object; None where it is not known


@dataclass(frozen=True)
class Patience:
    """How long to try."""

    attempts: int = 5  # in a row that bring nothing new, before a source is given up
    first_wait_seconds: float = 1.0  # after the first of them; doubled each time
    timeout_seconds: float = 30.0  # without a byte

    def wait(self, failures: int) -> None:
        """Sleep after this many failures in a row."""
        time.sleep(self.first_wait_seconds * 2 ** (failures - 1))


def mirrored(url: str, mirror: str | None) -> str:
    """``url`` with its scheme and host replaced by ``mirror``, which may end with a folder.

    Raises:
        UsageError: the mirror is no plain http or https address.
    """
    if mirror is None:
        return url
    place = urlsplit(mirror)
    if place.scheme not in ("http", "https") or not place.hostname or "@" in place.netloc or place.query:
        raise UsageError(f"--mirror {mirror}: give an address such as https://mirror.example.org, without a password.")
    return urlunsplit((place.scheme, place.netloc, place.path.rstrip("/") + urlsplit(url).path, "", ""))


def download(remote: Remote, target: Path, patience: Patience, advance: Advance) -> FileRecord:
    """Bring a file to ``target``.

    What has come lies beside it as ``.part`` until it is complete and checked; the next call goes on from there.

    Args:
        remote: what to bring.
        target: where to.
        patience: how long to try.
        advance: told the number of bytes of each block.

    Returns:
        what came, with its size and SHA-256.

    Raises:
        SourceError: the server does not give it, or gives something else.
        ResourceError: another process is fetching the same file, or the place cannot be written to.
        DiskFullError: no space is left.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _own(part) as stream:
            _Transfer(remote, part, stream, patience, advance).run()
            stream.flush()
            os.fsync(stream.fileno())
            record = _check(remote, part, target.name)
            part.replace(target)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFullError(part) from error
        raise ResourceError(f"{part}: cannot be written ({error.strerror}). Set VIRNUCPRO_CACHE.") from error
    return record


class _Transfer:
    """Attempts to complete one part file."""

    def __init__(self, remote: Remote, part: Path, stream: IO[bytes], patience: Patience, advance: Advance) -> None:
        self._remote = remote
        self._marker = _marker(part)
        self._stream = stream
        self._patience = patience
        self._advance = advance

    def run(self) -> None:
        """Try until the file is complete.

        Raises:
            SourceError: the source is given up.
        """
        failures = 0
        farthest = self._start()
        while True:
            try:
                self._receive()
            except (httpx2.TransportError, _BusyError) as error:
                have = self._stream.tell()
                failures = 1 if have > farthest else failures + 1
                farthest = max(farthest, have)
                reason = str(error) or type(error).__name__
                if failures >= self._patience.attempts or _is_hopeless(error):
                    kept = f"; {have:,} bytes are kept, repeat the command to resume" if have else ""
                    raise SourceError(f"{self._remote.url}: {reason}{kept}") from error
                _log.warning("%s: %s; trying again after %s bytes", self._remote.url, reason, f"{have:,}")
                self._patience.wait(failures)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise SourceError(f"{self._remote.url}: {error}") from error
            else:
                return

    def _start(self) -> int:
        """Keep what an earlier call left, if it can be told to be of the same file."""
        have = self._stream.seek(0, os.SEEK_END)
        known = self._remote.sha256 or self._remote.git_blob
        if have and not known and self._validator() is None:
            have = self._restart(0)
        self._advance(have)
        return have

    def _restart(self, counted: int) -> int:
        self._stream.seek(0)
        self._stream.truncate()
        self._advance(-counted)
        return 0

    def _validator(self) -> str | None:
        """What names the version of the file that the part was begun with."""
        try:
            content = json.loads(self._marker.read_text(encoding="utf-8"))
            return str(content["validator"]) if content["url"] == self._remote.url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _receive(self) -> None:
        have = self._stream.tell()
        if have and have == self._remote.size_bytes:
            return
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            validator = self._validator()
            if validator is not None:
                headers["If-Range"] = validator
        with (
            httpx2.Client(follow_redirects=True, timeout=self._patience.timeout_seconds) as client,
            client.stream("GET", self._remote.url, headers=headers) as response,
        ):
            if response.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE and have:
                if response.headers.get("Content-Range", "") != f"bytes */{have}":
                    self._restart(have)
                    raise _BusyError("the part kept here does not fit the file there; starting over")
                return
            self._accept(response, have)
            for block in response.iter_raw():  # as they come: a block size would lose what a cut leaves over
                self._stream.write(block)
                self._advance(len(block))
                limit = self._remote.size_bytes
                if limit is not None and self._stream.tell() > limit:
                    self._restart(self._stream.tell())
                    raise SourceError(f"{self._remote.url}: is larger than the {limit:,} bytes it should have")

    def _accept(self, response: httpx2.Response, have: int) -> None:
        """Hold the head of an answer against what was asked."""
        url, headers = self._remote.url, response.headers
        if response.status_code in _BUSY:
            raise _BusyError(f"the server answered {response.status_code} {response.reason_phrase}")
        schemes = {answer.url.scheme for answer in (*response.history, response)}
        refusals = [
            (not response.is_success, f"the server answered {response.status_code} {response.reason_phrase}"),
            (
                url.startswith("https:") and schemes != {"https"},
                "the server sends us on to an address without encryption",
            ),
            (headers.get("Content-Encoding", "identity") != "identity", "the server sends it packed, unasked"),
            (
                headers.get("Content-Type", "").startswith("text/html"),
                "the server answered with a web page instead of the file (a log-in page?)",
            ),
        ]
        for refused, reason in refusals:
            if refused:
                raise SourceError(f"{url}: {reason}")
        if have and response.status_code == httpx2.codes.PARTIAL_CONTENT:
            if not headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                self._restart(have)
                raise _BusyError("the server sent another range than asked; starting over")
            return
        if have:
            self._restart(have)
        self._mark(headers)

    def _mark(self, headers: httpx2.Headers) -> None:
        """Remember which version of the file the part is begun with."""
        validator = headers.get("ETag") or ""
        if not validator or validator.startswith("W/"):
            validator = headers.get("Last-Modified", "")
        if validator:
            self._marker.write_text(json.dumps({"url": self._remote.url, "validator": validator}), encoding="utf-8")
        else:
            self._marker.unlink(missing_ok=True)


@contextmanager
def _own(part: Path) -> Iterator[IO[bytes]]:
    """Open a part file for this process alone."""
    with part.open("a+b") as opened, part.open("r+b") as stream:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ResourceError(f"{part}: another process is fetching this file. Wait for it to end.") from error
        try:
            yield stream
        finally:
            stream.flush()
            if not part.exists() or not part.stat().st_size:
                part.unlink(missing_ok=True)
                _marker(part).unlink(missing_ok=True)


def _marker(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _check(remote: Remote, part: Path, name: str) -> FileRecord:
    """Compare what came with what is known; what is wrong is deleted, for no attempt could mend it."""
    record = record_file(part, remote.url, "nothing: recorded when it first came")
    wanted = [
        ("bytes", remote.size_bytes, record.size_bytes),
        ("SHA-256", remote.sha256, record.sha256),
        ("git object", remote.git_blob, git_blob_name(part) if remote.git_blob else None),
    ]
    for what, expected, found in wanted:
        if expected is not None and expected != found:
            part.unlink()
            raise SourceError(f"{remote.url}: {name} came with {what} {found}, expected {expected}; it was deleted")
    known = [what for what, expected, _ in wanted[1:] if expected is not None]
    checked = f"{' and '.join(known)} known before" if known else record.checked
    return FileRecord(name, record.size_bytes, record.sha256, remote.url, checked)


def _is_hopeless(error: Exception) -> bool:
    """Whether there is no server: no name, no route, or nobody listening."""
    return isinstance(error, httpx2.ConnectError | httpx2.UnsupportedProtocol)
