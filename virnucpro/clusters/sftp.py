"""One machine over SFTP: log in, list, read. Host keys are verified, always.

What goes wrong is one of three: the machine cannot be used (``MachineError``), the connection is gone and may come back
(``ConnectionGoneError``), or one file cannot be had (``RemoteFileError``).
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

import asyncssh
from asyncssh.constants import FILEXFER_TYPE_DIRECTORY, FILEXFER_TYPE_REGULAR

from virnucpro.clusters.machines import Machine

Answer = TypeVar("Answer")

_CONNECT_SECONDS = 20.0
_ANSWER_SECONDS = 300.0
"""Without an answer for so long the connection counts as gone; one that is cut shows earlier, by its keep-alives."""
_BLOCK_BYTES = 4 << 20
_SUMS = "SHA256SUMS"
_MAX_SUMS_BYTES = 64 << 20
_SUM_LINE = re.compile(r"\\?([0-9a-fA-F]{64}) [ *](.+)")
_SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")


class MachineError(Exception):
    """The machine cannot be used, and trying again would not change that."""


class ConnectionGoneError(Exception):
    """The connection was not made or is lost; it may come back."""


class RemoteFileError(Exception):
    """One file cannot be had; others can."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a machine."""

    name: str  # its path relative to the machine's folder
    size_bytes: int  # as listed
    mtime: int  # seconds since 1970, as listed
    sha256: str | None = None  # None where nothing on the machine says it


@dataclass
class Listing:
    """What a machine's folder holds."""

    files: list[RemoteFile] = field(default_factory=list)  # those that match, in order of name
    # names that cannot be followed, each with what is wrong
    problems: list[tuple[str, str]] = field(default_factory=list)


@asynccontextmanager
async def connected(machine: Machine) -> AsyncIterator[Folder]:
    """Log in to a machine for as long as the block runs.

    Raises:
        MachineError: its host key is not trusted, it refuses the user, or the keys cannot be used.
        ConnectionGoneError: it does not answer.
    """
    trust = _Trust(_known_hosts_files(machine))
    options: dict[str, Any] = {
        "config": _configuration(),
        "known_hosts": trust.match,
        "connect_timeout": _CONNECT_SECONDS,
        "login_timeout": _CONNECT_SECONDS,
        "keepalive_interval": 15,
        "keepalive_count_max": 3,
    }
    given = {
        "port": machine.port,
        "username": machine.username,
        "password": machine.password,
        "client_keys": None if machine.key_file is None else [str(machine.key_file)],
        "passphrase": machine.passphrase,
    }
    options |= {name: value for name, value in given.items() if value is not None}
    try:
        connection = await asyncssh.connect(machine.address, **options)
    except asyncssh.HostKeyNotVerifiable as error:
        raise MachineError(trust.refusal(machine)) from error
    except asyncssh.PermissionDenied as error:
        user = machine.username or "the user"
        raise MachineError(f"{machine.address} refuses {user}: wrong password, or no key that it accepts.") from error
    except (asyncssh.KeyImportError, asyncssh.ConfigParseError, asyncssh.KeyExchangeFailed, ValueError) as error:
        raise MachineError(f"{machine.address}: {type(error).__name__}: {error}") from error
    except socket.gaierror as error:
        raise MachineError(f"{machine.address}: there is no machine of this name ({error.strerror})") from error
    except (asyncssh.Error, OSError) as error:
        raise ConnectionGoneError(f"{machine.address}: {_said(error)}") from error
    async with connection:
        client = await _asked(connection.start_sftp_client(path_errors="surrogateescape"))
        yield Folder(client, PurePosixPath(machine.path))


@dataclass(frozen=True)
class Folder:
    """A folder on a machine that is logged in to."""

    _client: asyncssh.SFTPClient
    _root: PurePosixPath

    async def matching(self, patterns: Sequence[str]) -> Listing:
        """Every file that matches one of ``patterns``, with the digests that lie next to them.

        Raises:
            MachineError: there is no such folder.
            ConnectionGoneError: the connection is gone.
        """
        try:
            attributes = await _asked(self._client.stat(str(self._root)))
        except RemoteFileError as error:
            raise MachineError(f"folder {self._root}: {error}") from error
        if attributes.type != FILEXFER_TYPE_DIRECTORY:
            raise MachineError(f"{self._root} is not a folder")
        listing, seen = Listing(), set[str]()
        for pattern in patterns:
            await self._walk(PurePosixPath(), PurePosixPath(pattern).parts, listing, seen)
        listing.files = await self._with_digests(sorted(listing.files, key=lambda file: file.name))
        return listing

    async def blocks(self, file: RemoteFile, start: int) -> AsyncGenerator[bytes, None]:
        """The content of a file from byte ``start`` to where it ended when it was listed.

        Raises:
            RemoteFileError: it cannot be read, or is another file than it was.
            ConnectionGoneError: the connection is gone.
        """
        path = str(self._root / file.name)
        async with await _asked(self._client.open(path, "rb")) as stream:
            while start < file.size_bytes:
                block = await _read(stream, min(_BLOCK_BYTES, file.size_bytes - start), start)
                if not block:
                    raise RemoteFileError(f"ends after {start:,} of {file.size_bytes:,} bytes: it became shorter")
                start += len(block)
                yield block
            now = await _asked(stream.stat())
            if (now.size, now.mtime) != (file.size_bytes, file.mtime):
                raise RemoteFileError("changed while it was read. Run the same command again when it is finished")

    async def _walk(self, folder: PurePosixPath, parts: tuple[str, ...], listing: Listing, seen: set[str]) -> None:
        """Add what matches ``parts`` below ``folder``."""
        try:
            entries = await _asked(self._client.readdir(str(self._root / folder)))
        except RemoteFileError as error:
            listing.problems.append((str(folder), f"cannot be listed: {error}"))
            return
        for name in sorted(str(entry.filename) for entry in entries):
            if "/" in name or "\0" in name:
                listing.problems.append((name, "is not a name that a file in a folder can have: left alone"))
                continue
            is_hidden = name.startswith(".") and not parts[0].startswith(".")
            if name in (".", "..") or is_hidden or not fnmatchcase(name, parts[0]):
                continue
            found = folder / name
            try:
                status = await _asked(self._client.stat(str(self._root / found)))  # of what a link leads to
            except RemoteFileError as error:
                listing.problems.append((str(found), str(error)))
                continue
            if len(parts) > 1:
                if status.type == FILEXFER_TYPE_DIRECTORY:
                    await self._walk(found, parts[1:], listing, seen)
            elif status.type == FILEXFER_TYPE_REGULAR and str(found) not in seen:
                seen.add(str(found))
                listing.files.append(RemoteFile(str(found), int(status.size or 0), int(status.mtime or 0)))

    async def _with_digests(self, files: Sequence[RemoteFile]) -> list[RemoteFile]:
        """Add what ``SHA256SUMS`` of each folder, or ``NAME.sha256`` next to a file, says."""
        sums: dict[str, str] = {}
        for folder in sorted({PurePosixPath(file.name).parent for file in files}):
            sums |= await self._sums(folder, str(folder / _SUMS))
        found = []
        for file in files:
            known = (
                sums if file.name in sums else await self._sums(PurePosixPath(file.name).parent, f"{file.name}.sha256")
            )
            found.append(replace(file, sha256=known.get(file.name)))
        return found

    async def _sums(self, folder: PurePosixPath, name: str) -> dict[str, str]:
        """File to SHA-256, from a file as ``sha256sum`` writes it; nothing where there is no such file."""
        try:
            status = await _asked(self._client.stat(str(self._root / name)))
            if status.type != FILEXFER_TYPE_REGULAR or (status.size or 0) > _MAX_SUMS_BYTES:
                return {}
            async with await _asked(self._client.open(str(self._root / name), "rb")) as stream:
                content = await _read(stream, _MAX_SUMS_BYTES, 0)
        except RemoteFileError:
            return {}
        lines = content.decode("utf-8", "surrogateescape").splitlines()
        matches = filter(None, map(_SUM_LINE.fullmatch, lines))
        return {str(folder / match[2].removeprefix("./")): match[1].lower() for match in matches}


@dataclass
class _Trust:
    """The host keys that are trusted, and whether any was known of the host that was asked."""

    files: list[Path]
    is_known: bool = False

    def match(self, host: str, address: str, port: int | None) -> Any:  # noqa: ANN401 - as asyncssh declares it
        """Called by asyncssh for the keys of a host."""
        known = asyncssh.read_known_hosts([str(path) for path in self.files])
        found = known.match(host, address, port)
        self.is_known = any(found)
        return found

    def refusal(self, machine: Machine) -> str:
        files = " or ".join(map(str, self.files)) or "~/.ssh/known_hosts"
        if self.is_known:
            return (
                f"{machine.address} shows another host key than {files} has of it: it was set up again, or somebody "
                "is in between. Ask who runs it, then replace the key (ssh-keygen -R)."
            )
        return (
            f"the host key of {machine.address} is not known ({files}). Log in once with ssh, compare the fingerprint "
            "that it shows with the one its owner gives, then run the same command again."
        )


def _configuration() -> list[str]:
    """The SSH configuration of this user, if there is one."""
    path = Path("~/.ssh/config").expanduser()
    return [str(path)] if path.is_file() else []


def _known_hosts_files(machine: Machine) -> list[Path]:
    """Where trusted host keys are: the machine's own file, or those that the SSH configuration names.

    Raises:
        MachineError: the configuration turns the check off.
    """
    if machine.known_hosts is not None:
        return [machine.known_hosts]
    try:
        options = asyncssh.SSHClientConnectionOptions(host=machine.address, config=_configuration())
    except (asyncssh.Error, ValueError, OSError) as error:
        raise MachineError(f"{machine.address}: the SSH configuration cannot be followed ({error})") from error
    configured = options.known_hosts
    if configured is None:
        raise MachineError(
            f"{machine.address}: the SSH configuration names no file of known hosts (UserKnownHostsFile none), so that "
            "anybody could answer in its place. Name one, or set known_hosts in clusters.toml."
        )
    paths = [Path(str(item)).expanduser() for item in configured] if isinstance(configured, list | tuple) else []
    paths = paths or [Path("~/.ssh/known_hosts").expanduser(), _SYSTEM_KNOWN_HOSTS]
    return [path for path in paths if path.is_file()]


async def _read(stream: asyncssh.SFTPClientFile, num_bytes: int, start: int) -> bytes:
    """Bytes of a file that was opened as binary, where asyncssh's types know of text alone."""
    return cast("bytes", await _asked(stream.read(num_bytes, start)))


async def _asked(answer: Awaitable[Answer]) -> Answer:
    """Wait for an answer, and say which of the three went wrong."""
    try:
        return await asyncio.wait_for(answer, _ANSWER_SECONDS)
    except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
        raise ConnectionGoneError(_said(error)) from error
    except asyncssh.SFTPError as error:
        raise RemoteFileError(_said(error)) from error
    except (asyncssh.Error, OSError) as error:
        raise ConnectionGoneError(_said(error)) from error


def _said(error: BaseException) -> str:
    """What an error says, or its name where it says nothing."""
    return str(error) or {"TimeoutError": "no answer in time"}.get(type(error).__name__, type(error).__name__)
