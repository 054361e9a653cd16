"""Fetch files from many machines: several at a time, on from where it stopped, each checked before it takes its place.

Files of machine NAME go to ``OUTPUT/NAME/``. What has come of a file lies next to its place as ``.part``; the journal
``OUTPUT/NAME/.sync.jsonl`` has a line for each file that was begun (size and time it had on the machine, so that a part
is never continued with another file) and one for each that is finished (its SHA-256 too, so that it can be told whether
what is here is intact).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from virnucpro.atomic import file_digest, machine_errors_at
from virnucpro.clusters.machines import Machine
from virnucpro.clusters.sftp import (
    ConnectionGoneError,
    Folder,
    Listing,
    MachineError,
    RemoteFile,
    RemoteFileError,
    connected,
)
from virnucpro.errors import ResourceError
from virnucpro.logs import printable
from virnucpro.platforms import lock
from virnucpro.progress import Advance, Reporter

_log = logging.getLogger(__name__)

_STAGE = "fetch"
_JOURNAL = ".sync.jsonl"
_REWRITTEN_BYTES = 1 << 20
"""The end of a part is fetched again: a machine that lost power may have left zeros there."""
_FIRST_WAIT_SECONDS = 1.0
"""After an attempt that brought nothing new; doubled each time."""


def sync(
    machines: Sequence[Machine], output: Path, reporter: Reporter, *, attempts: int, max_concurrent: int
) -> list[Visit]:
    """Fetch the files of all machines, which are asked at the same time.

    Args:
        machines: to fetch from.
        output: folder of their folders.
        reporter: progress.
        attempts: in a row that bring nothing new, before a machine is given up.
        max_concurrent: files at a time, per machine.

    Returns:
        what became of each machine, in their order. A machine that fails does not stop the others.

    Raises:
        DiskFullError: no space is left.
        ResourceError: the folder cannot be written to, or another process fetches into it.
    """
    with ExitStack() as stack:
        journals = [stack.enter_context(_Journal.opened(output / machine.name)) for machine in machines]
        advance = stack.enter_context(reporter.stage(_STAGE, None, "bytes"))
        visits = [
            Visit(machine, output / machine.name, journal, attempts, max_concurrent, reporter, advance)
            for machine, journal in zip(machines, journals, strict=True)
        ]
        asyncio.run(_together([visit.run() for visit in visits]))
        return visits


@dataclass
class Visit:
    """One machine from log-in to the last file, over as many connections as it takes, and what came of it."""

    machine: Machine
    folder: Path  # where its files go
    journal: _Journal = field(repr=False)  # of that folder
    attempts: int  # in a row that bring nothing new, before it is given up
    max_concurrent: int  # files at a time
    reporter: Reporter = field(repr=False)
    advance: Advance = field(repr=False)
    todo: deque[RemoteFile] | None = None  # files that are still to come, once it is known
    fetched: list[str] = field(default_factory=list)  # names of those that came now
    here: list[str] = field(default_factory=list)  # names of those that were here, intact
    unchecked: list[str] = field(default_factory=list)  # names of those that nothing on the machine gives a digest of
    failed: list[tuple[str, str]] = field(default_factory=list)  # name and reason of those that did not come
    problem: str | None = None  # why the machine was given up; None where it was not
    num_bytes: int = 0  # received now

    @property
    def is_complete(self) -> bool:
        """Whether all that matched is here."""
        return self.problem is None and not self.failed

    def lines(self) -> Iterator[str]:
        """What people want to know of it: a line for the machine and one for each failure."""
        unchecked = f", {len(self.unchecked)} without a digest to compare" if self.unchecked else ""
        yield (
            f"{self.machine.name}: {len(self.fetched)} fetched ({self.num_bytes:,} bytes), {len(self.here)} were here, "
            f"{len(self.failed)} failed{unchecked}"
        )
        if self.problem is not None:
            yield f"{self.machine.name}: {self.problem}"
        for name, reason in self.failed:
            yield f"{self.machine.name}: {printable(name)}: {reason}"

    async def run(self) -> None:
        """Fetch everything; what goes wrong with the machine stands in ``problem``."""
        failures = 0
        while True:
            before = self.num_bytes
            try:
                async with connected(self.machine) as remote:
                    if self.todo is None:
                        self.todo = self._plan(await remote.matching(self.machine.patterns))
                    await _together([self._take_files(remote) for _ in range(self.max_concurrent)])
            except MachineError as error:
                self.problem = str(error)
                return
            except ConnectionGoneError as error:
                failures = 1 if self.num_bytes > before else failures + 1
                if failures >= self.attempts:
                    self.problem = f"given up after {failures} attempts in a row: {error}"
                    return
                seconds = _FIRST_WAIT_SECONDS * 2 ** (failures - 1)
                _log.warning("%s: %s; trying again in %g s", self.machine.name, error, seconds)
                await asyncio.sleep(seconds)
            else:
                return

    def _plan(self, listing: Listing) -> deque[RemoteFile]:
        """What has to come; what is here and intact is left alone."""
        self.failed += listing.problems
        if not listing.files and not listing.problems:
            patterns = " ".join(self.machine.patterns)
            raise MachineError(f"no file in {self.machine.path} matches {patterns}")
        self.unchecked += [file.name for file in listing.files if file.sha256 is None]
        todo = deque[RemoteFile]()
        for file in listing.files:
            if self.journal.has(file, self.folder / file.name):
                self.here.append(file.name)
            else:
                todo.append(file)
        size = sum(file.size_bytes for file in todo)
        self.reporter.expect(_STAGE, size)
        _log.info(
            "%s: %d files to fetch, %s bytes; %d are here",
            self.machine.name,
            len(todo),
            f"{size:,}",
            len(self.here),
        )
        return todo

    async def _take_files(self, remote: Folder) -> None:
        """Fetch one file after the other until none is left."""
        while self.todo:
            file = self.todo.popleft()
            try:
                await self._fetch(remote, file)
            except RemoteFileError as error:
                self.failed.append((file.name, str(error)))
            except BaseException:
                self.todo.append(file)
                raise

    async def _fetch(self, remote: Folder, file: RemoteFile) -> None:
        """Bring one file to its place.

        Raises:
            RemoteFileError: it cannot be had, or is not what its digest says.
        """
        target = self.folder / file.name
        part = target.with_name(f".{target.name}.part")
        with _local_problems(part):
            if not target.parent.resolve().is_relative_to(self.folder.resolve()):
                raise RemoteFileError("its place here is a link that leads out of the folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(2):  # a part may hold wrong bytes: then once more from its beginning
                digest = await self._receive(remote, file, part)
                if file.sha256 in (None, digest):
                    part.replace(target)
                    self.journal.finish(file, digest)
                    self.fetched.append(file.name)
                    return
                part.unlink()
                _log.warning(
                    "%s: %s came with SHA-256 %s, expected %s", self.machine.name, file.name, digest, file.sha256
                )
        raise RemoteFileError("is damaged on the machine: its content does not have the SHA-256 that is given there")

    async def _receive(self, remote: Folder, file: RemoteFile, part: Path) -> str:
        """Complete a part and give its SHA-256."""
        with _opened_part(part, file.size_bytes if self.journal.begin(file) else 0) as (stream, digest):
            start = stream.tell()
            self.advance(start)
            async with aclosing(remote.blocks(file, start)) as blocks:
                async for block in blocks:
                    stream.write(block)
                    digest.update(block)
                    self.num_bytes += len(block)
                    self.advance(len(block))
        return str(digest.hexdigest())


class _Journal:
    """What was begun and finished in one folder; held by one process at a time.

    A line is a file as its machine listed it; without a SHA-256 it was begun, with one it is finished.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._last: dict[str, RemoteFile] = {}  # the last line of each file
        stream.seek(0)
        for text in stream:
            try:
                line = RemoteFile(**json.loads(text))
            except (ValueError, TypeError):
                continue  # the end of a process that was killed while it wrote
            self._last[line.name] = line

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator[_Journal]:
        """The journal of a folder.

        Raises:
            ResourceError: the folder cannot be written to, or another process fetches into it.
        """
        path = folder / _JOURNAL
        try:
            with machine_errors_at(path):
                folder.mkdir(parents=True, exist_ok=True)
                stream = path.open("a+", encoding="ascii")
        except OSError as error:
            raise ResourceError(f"{path}: cannot be written ({error.strerror}). Name another --output.") from error
        with stream:
            try:
                lock(stream)
            except OSError as error:
                raise ResourceError(
                    f"{folder}: another process fetches into this folder. Wait for it to end."
                ) from error
            yield cls(stream)

    def has(self, file: RemoteFile, target: Path) -> bool:
        """Whether ``target`` is ``file`` as it is on the machine now, byte for byte."""
        digest = self._last[file.name].sha256 if self._is_same(file) else None
        if digest is None or file.sha256 not in (None, digest) or not target.is_file():
            return False
        return target.stat().st_size == file.size_bytes and file_digest(target) == digest

    def begin(self, file: RemoteFile) -> bool:
        """Note that a file is begun; whether the part that is here is of that file as it is on the machine now."""
        if self._is_same(file) and self._last[file.name].sha256 is None:
            return True
        self._add(replace(file, sha256=None))
        return False

    def finish(self, file: RemoteFile, digest: str) -> None:
        """Note that a file is here, and its SHA-256."""
        self._add(replace(file, sha256=digest))

    def _is_same(self, file: RemoteFile) -> bool:
        last = self._last.get(file.name)
        return last is not None and (last.size_bytes, last.mtime) == (file.size_bytes, file.mtime)

    def _add(self, line: RemoteFile) -> None:
        self._last[line.name] = line
        self._stream.write(json.dumps(asdict(line)) + "\n")
        self._stream.flush()


@contextmanager
def _local_problems(part: Path) -> Iterator[None]:
    """Tell a full disk, which ends everything, from a name that this disk cannot take, which costs a file.

    Raises:
        DiskFullError: no space is left.
        RemoteFileError: the file cannot be written here.
    """
    try:
        with machine_errors_at(part):
            yield
    except OSError as error:
        raise RemoteFileError(f"cannot be written here ({error.strerror})") from error


@contextmanager
def _opened_part(part: Path, size_bytes: int) -> Iterator[tuple[IO[bytes], Any]]:
    """A part, open where the download continues, and the SHA-256 of what lies before; it is on the disk afterwards.

    Args:
        part: it may be missing.
        size_bytes: how much of it can be of the file at most.
    """
    digest = hashlib.sha256()
    with part.open("r+b" if part.exists() else "w+b") as stream:
        start = max(0, min(part.stat().st_size, size_bytes) - _REWRITTEN_BYTES)
        while stream.tell() < start:
            digest.update(stream.read(min(8 << 20, start - stream.tell())))
        stream.truncate(start)
        try:
            yield stream, digest
        except RemoteFileError:
            stream.truncate(0)  # it is not what it was: nothing of it can be used
            raise
        stream.flush()
        os.fsync(stream.fileno())


async def _together(visits: Sequence[Any]) -> None:
    """Run coroutines at the same time; the first that raises ends the others."""
    # A write to a connection that has just gone is told of by whoever waits for its answer, or by nobody after Ctrl-C.
    asyncio.get_running_loop().set_exception_handler(lambda _, context: _log.debug("%s", context["message"]))
    tasks = [asyncio.ensure_future(visit) for visit in visits]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
