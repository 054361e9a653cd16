"""One file over HTTP: resumes where it stopped, and takes its place only when it is what it should be."""

from __future__ import annotations

import hashlib
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

from virnucpro.atomic import file_digest
from virnucpro.bundles.catalogue import RemoteFile
from virnucpro.errors import ModelError, ResourceError, UsageError
from virnucpro.platforms import lock
from virnucpro.progress import Advance
from virnucpro.registry.inventory import cache_errors
from virnucpro.registry.receipts import FileRecord

_log = logging.getLogger(__name__)

MOST_BYTES = 1 << 37
"""Of a file of which nobody knows how large it should be; no checkpoint of this field comes near."""
_MOST_ATTEMPTS = 1000
"""Of a server that gives a few bytes at a time, for ever."""
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_HOPELESS = (httpx2.ConnectError, httpx2.UnsupportedProtocol)
"""No name, no route, nobody listening, or another scheme."""


class SourceError(ModelError):
    """One source did not give what was asked of it; another may."""


class _BusyError(Exception):
    """What came is not all, or the server asks to come back later."""


@dataclass(frozen=True)
class Patience:
    """How long to try."""

    attempts: int = 5  # in a row that bring nothing new, before a source is given up
    first_wait_seconds: float = 1.0  # after the first of them; doubled each time
    timeout_seconds: float = 30.0  # without a byte


def mirrored(url: str, mirror: str | None) -> str:
    """``url`` with its scheme and host replaced by ``mirror``, which may end with a folder.

    Raises:
        UsageError: the mirror is not a plain http or https address.
    """
    if mirror is None:
        return url
    place = urlsplit(mirror)
    if place.scheme not in ("http", "https") or not place.hostname or "@" in place.netloc or place.query:
        raise UsageError(f"--mirror {mirror}: give an address such as https://mirror.example.org, without a password.")
    return urlunsplit((place.scheme, place.netloc, place.path.rstrip("/") + urlsplit(url).path, "", ""))


def download(
    file: RemoteFile, target: Path, patience: Patience, advance: Advance, most_bytes: int = MOST_BYTES
) -> FileRecord:
    """Bring a file of at most ``most_bytes`` to ``target``, unless it is there and known to be the one.

    What has come lies next to it as ``.part`` until it is complete and checked; the next call picks up from there.

    Returns:
        what came, with its size and SHA-256.

    Raises:
        SourceError: the server does not give it, or gives something else.
        ResourceError: another process is fetching the same file, or the place cannot be written to.
    """
    part = target.with_name(f"{target.name}.part")
    with cache_errors(part):
        if (file.sha256 or file.git_blob) and target.is_file() and _problem(file, target) is None:
            return _record(file, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _own(part) as stream:
            _Transfer(file, part, stream, patience, advance, most_bytes).run()
            stream.flush()
            os.fsync(stream.fileno())
            if (problem := _problem(file, part)) is not None:
                part.unlink()  # no further attempt could mend it
                raise SourceError(f"{file.url}: came with {problem}; it was deleted")
            part.replace(target)
        return _record(file, target)


class _Transfer:
    """Attempts to complete one part file."""

    def __init__(
        self,
        file: RemoteFile,
        part: Path,
        stream: IO[bytes],
        patience: Patience,
        advance: Advance,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._file, self._marker, self._stream = file, _marker(part), stream
        self._patience, self._advance, self._most_bytes = patience, advance, most_bytes

    def run(self) -> None:
        """Try until the file is complete.

        Raises:
            SourceError: the source is given up.
        """
        farthest, failures, attempts = self._stream.seek(0, os.SEEK_END), 0, 0
        self._advance(farthest)
        if farthest and not (self._file.git_blob or self._file.sha256) and self._validator() is None:
            self._restart()  # it may be a part of any file
        while True:
            attempts += 1
            try:
                return self._receive()
            except (httpx2.TransportError, _BusyError) as error:
                have, reason = self._stream.tell(), str(error) or type(error).__name__
                failures = 1 if have > farthest else failures + 1
                farthest = max(farthest, have)
                if failures >= self._patience.attempts or attempts > _MOST_ATTEMPTS or isinstance(error, _HOPELESS):
                    kept = f"; {have:,} bytes are kept, repeat the command to resume" if have else ""
                    raise SourceError(f"{self._file.url}: {reason}{kept}") from error
                _log.warning("%s: %s; trying again after %s bytes", self._file.url, reason, f"{have:,}")
                time.sleep(self._patience.first_wait_seconds * 2 ** (failures - 1))
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise SourceError(f"{self._file.url}: {error}") from error

    def _restart(self) -> None:
        self._advance(-self._stream.tell())
        self._stream.seek(0)
        self._stream.truncate()

    def _validator(self) -> str | None:
        """What names the version of the file that the part was begun with."""
        try:
            content = json.loads(self._marker.read_text(encoding="utf-8"))
            return str(content["validator"]) if content["url"] == self._file.url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _receive(self) -> None:
        have = self._stream.tell()
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if (validator := self._validator()) is not None:
                headers["If-Range"] = validator
        with (
            httpx2.Client(follow_redirects=True, timeout=self._patience.timeout_seconds) as client,
            client.stream("GET", self._file.url, headers=headers) as response,
        ):
            code, answered = response.status_code, response.headers.get("Content-Range", "")
            if have and code == 416 and answered == f"bytes */{have}":
                return  # it is complete, or was said to be; who knows what it should be checks it
            if not (have and code == 416):
                self._refuse_wrong(response)
            if have and not (code == 206 and answered.startswith(f"bytes {have}-")):
                self._restart()
                if code != 200:
                    raise _BusyError("the part kept here does not fit the file there; starting over")
            if not self._stream.tell():
                self._mark(response.headers)
            self._take(response)

    def _take(self, response: httpx2.Response) -> None:
        """Write a body, of which neither more nor less comes than the server said."""
        ranged, whole = response.headers.get("Content-Range", ""), response.headers.get("Content-Length", "")
        said = ranged.rpartition("/")[2] or whole
        total = int(said) if said.isdecimal() and len(said) < 19 else None
        if (total or 0) > self._most_bytes:
            self._give_up(f"would have {total:,} bytes, where {self._most_bytes:,} would be many")
        most = self._most_bytes if total is None else total
        for block in response.iter_raw():  # as they come: a block size would lose what a cut leaves over
            if self._stream.tell() + len(block) > most:
                self._give_up(f"has more than {most:,} bytes")
            self._stream.write(block)
            self._advance(len(block))
        if total is not None and self._stream.tell() < total:
            raise _BusyError(f"the server sent {self._stream.tell():,} of {total:,} bytes")

    def _give_up(self, problem: str) -> None:
        """Raises SourceError; nothing of the file is kept."""
        self._restart()
        raise SourceError(f"{self._file.url}: the file {problem}; it was deleted")

    def _refuse_wrong(self, response: httpx2.Response) -> None:
        """Check the head of an answer."""
        headers, status = response.headers, f"{response.status_code} {response.reason_phrase}"
        if response.status_code in _BUSY:
            raise _BusyError(f"the server answered {status}")
        is_open = any(answer.url.scheme != "https" for answer in (*response.history, response))
        refusals = {
            f"the server answered {status}": not response.is_success,
            "the server redirects to an address without encryption": is_open and self._file.url.startswith("https:"),
            "the server sends it packed, unasked": headers.get("Content-Encoding", "identity") != "identity",
            "the server answered with a web page instead of the file (a log-in page?)": (
                headers.get("Content-Type", "").startswith("text/html")
            ),
        }
        for reason, is_refused in refusals.items():
            if is_refused:
                raise SourceError(f"{self._file.url}: {reason}")

    def _mark(self, headers: httpx2.Headers) -> None:
        """Remember which version of the file the part is begun with."""
        tag = headers.get("ETag", "")
        validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
        if validator:
            self._marker.write_text(json.dumps({"url": self._file.url, "validator": validator}), encoding="utf-8")
        else:
            self._marker.unlink(missing_ok=True)


def _problem(file: RemoteFile, path: Path) -> str | None:
    """How what came differs from what is known of it."""
    size = path.stat().st_size
    if file.size_bytes not in (None, size):
        return f"{size:,} bytes, expected {file.size_bytes:,}"
    if file.sha256 is not None:
        found = file_digest(path)
        return None if found == file.sha256 else f"SHA-256 {found}, expected {file.sha256}"
    if file.git_blob is None:
        return None
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    return None if found == file.git_blob else f"the content of git object {found}, expected {file.git_blob}"


def _record(file: RemoteFile, path: Path) -> FileRecord:
    """What came; a SHA-256 that was just compared is not computed again."""
    known = "SHA-256" if file.sha256 else "git object" if file.git_blob else None
    checked = f"{known} that its source names" if known else "nothing: recorded when it first came"
    return FileRecord(path.name, path.stat().st_size, file.sha256 or file_digest(path), file.url, checked)


@contextmanager
def _own(part: Path) -> Iterator[IO[bytes]]:
    """Open a part file for this process alone."""
    with part.open("a+b") as opened, part.open("r+b") as stream:
        try:
            lock(opened)
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
