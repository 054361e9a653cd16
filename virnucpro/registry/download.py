"""One file over HTTP: resumes where it stopped, and takes its place only when it is what it should be."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit, urlunsplit

import httpx2

from virnucpro.errors import DiskFullError, ModelError, ResourceError, UsageError
from virnucpro.platforms import lock
from virnucpro.progress import Advance
from virnucpro.registry.catalogue import UrlSource
from virnucpro.registry.receipts import FileRecord, git_blob_name, record_file

_log = logging.getLogger(__name__)

_BUSY = (408, 425, 429, 500, 502, 503, 504)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class SourceError(ModelError):
    """One source did not give what was asked of it; another may."""


class _BusyError(Exception):
    """The server asks to come back later."""


MOST_BYTES = 1 << 37
"""Of a file of which nobody knows how large it should be; no checkpoint of this field comes near."""
_MOST_ATTEMPTS = 1000


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


def download(
    source: UrlSource, target: Path, patience: Patience, advance: Advance, most_bytes: int = MOST_BYTES
) -> FileRecord:
    """Bring a file of at most ``most_bytes`` to ``target``.

    What has come lies beside it as ``.part`` until it is complete and checked; the next call picks up from there.

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
            _Transfer(source, part, stream, patience, advance, most_bytes).run()
            stream.flush()
            os.fsync(stream.fileno())
            if source.git_blob is not None and (found := git_blob_name(part)) != source.git_blob:
                part.unlink()  # no further attempt could mend it
                raise SourceError(
                    f"{source.url}: came as git object {found}, expected {source.git_blob}; it was deleted"
                )
            checked = "git object known before" if source.git_blob else "nothing: recorded when it first came"
            record = replace(record_file(part, source.url, checked), name=target.name)
            part.replace(target)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(part) from error
        raise ResourceError(f"{part}: cannot be written ({error.strerror}). Set VIRNUCPRO_CACHE.") from error
    return record


class _Transfer:
    """Attempts to complete one part file."""

    def __init__(
        self,
        source: UrlSource,
        part: Path,
        stream: IO[bytes],
        patience: Patience,
        advance: Advance,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._most_bytes, self._num_attempts = most_bytes, 0
        self._source, self._stream = source, stream
        self._patience, self._advance = patience, advance
        self._marker = _marker(part)

    def run(self) -> None:
        """Try until the file is complete.

        Raises:
            SourceError: the source is given up.
        """
        farthest, failures = self._stream.seek(0, os.SEEK_END), 0
        self._advance(farthest)
        if farthest and not self._source.git_blob and self._validator() is None:
            self._restart()  # it may be a part of any file
        while True:
            try:
                return self._receive()
            except (httpx2.TransportError, _BusyError) as error:
                have = self._stream.tell()
                failures = 1 if have > farthest else failures + 1
                farthest = max(farthest, have)
                reason = str(error) or type(error).__name__
                # No name, no route, or nobody listening.
                is_hopeless = isinstance(error, httpx2.ConnectError | httpx2.UnsupportedProtocol)
                self._num_attempts += 1
                is_hopeless |= self._num_attempts > _MOST_ATTEMPTS  # a few bytes at a time, for ever
                if failures >= self._patience.attempts or is_hopeless:
                    kept = f"; {have:,} bytes are kept, repeat the command to resume" if have else ""
                    raise SourceError(f"{self._source.url}: {reason}{kept}") from error
                _log.warning("%s: %s; trying again after %s bytes", self._source.url, reason, f"{have:,}")
                self._patience.wait(failures)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise SourceError(f"{self._source.url}: {error}") from error

    def _restart(self) -> None:
        self._advance(-self._stream.tell())
        self._stream.seek(0)
        self._stream.truncate()

    def _validator(self) -> str | None:
        """What names the version of the file that the part was begun with."""
        try:
            content = json.loads(self._marker.read_text(encoding="utf-8"))
            return str(content["validator"]) if content["url"] == self._source.url else None
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
            client.stream("GET", self._source.url, headers=headers) as response,
        ):
            answered = response.headers.get("Content-Range", "")
            if response.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE and answered == f"bytes */{have}":
                return  # it is complete, or was said to be; who knows what it should be checks it
            self._refuse_wrong(response)
            if have and not (response.status_code == 206 and answered.startswith(f"bytes {have}-")):
                self._restart()
                if response.status_code != 200:
                    raise _BusyError("the part kept here does not fit the file there; starting over")
            if not self._stream.tell():
                self._mark(response.headers)
            self._take(response)

    def _take(self, response: httpx2.Response) -> None:
        """Write a body, of which neither more nor less comes than the server said."""
        said = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get(
            "Content-Length", ""
        )
        total = int(said) if said.isdecimal() and len(said) < 19 else None
        most = min(self._most_bytes, self._most_bytes if total is None else total)
        if (total or 0) > self._most_bytes:
            self._give_up(f"would have {total:,} bytes, where {self._most_bytes:,} would be many")
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
        raise SourceError(f"{self._source.url}: the file {problem}; it was deleted")

    def _refuse_wrong(self, response: httpx2.Response) -> None:
        """Check the head of an answer."""
        code, headers = response.status_code, response.headers
        is_complete = code == httpx2.codes.RANGE_NOT_SATISFIABLE and self._stream.tell() > 0
        if code in _BUSY:
            raise _BusyError(f"the server answered {code} {response.reason_phrase}")
        schemes = {answer.url.scheme for answer in (*response.history, response)}
        refusals = {
            f"the server answered {code} {response.reason_phrase}": not (response.is_success or is_complete),
            "the server redirects to an address without encryption": (
                self._source.url.startswith("https:") and schemes != {"https"}
            ),
            "the server sends it packed, unasked": headers.get("Content-Encoding", "identity") != "identity",
            "the server answered with a web page instead of the file (a log-in page?)": (
                headers.get("Content-Type", "").startswith("text/html")
            ),
        }
        for reason, is_refused in refusals.items():
            if is_refused:
                raise SourceError(f"{self._source.url}: {reason}")

    def _mark(self, headers: httpx2.Headers) -> None:
        """Remember which version of the file the part is begun with."""
        validator = headers.get("ETag") or ""
        if not validator or validator.startswith("W/"):
            validator = headers.get("Last-Modified", "")
        if validator:
            self._marker.write_text(json.dumps({"url": self._source.url, "validator": validator}), encoding="utf-8")
        else:
            self._marker.unlink(missing_ok=True)


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
