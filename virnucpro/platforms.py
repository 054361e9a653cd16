"""What Windows has not, or has by another name: locks, flags of files, limits, alarms.

No other module imports what only some systems have (``tests/unit/test_platforms.py``).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import psutil

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None  # type: ignore[assignment]

_BYTES_AS_THEY_ARE: int = getattr(os, "O_BINARY", 0)
PLAIN_FILE: int = _BYTES_AS_THEY_ARE | getattr(os, "O_NOFOLLOW", 0)
"""Flags of ``os.open`` for files that somebody else may have put there: no link is followed."""
NO_WAITING: int = _BYTES_AS_THEY_ARE | getattr(os, "O_NONBLOCK", 0)
"""Flags of ``os.open`` with which a FIFO is not waited for."""
_FAR_BYTES = 1 << 40


def lock(stream: IO[Any], *, shared: bool = False) -> None:
    """Lock an open file for this process until it is closed, or fail at once.

    Args:
        stream: the file.
        shared: others may hold it like this too; on Windows this only looks whether somebody has it alone.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return
    import msvcrt  # noqa: PLC0415 - Windows

    system: Any = msvcrt  # its names are unknown to type checkers elsewhere
    descriptor = stream.fileno()
    place = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, _FAR_BYTES, os.SEEK_SET)  # what is locked there cannot be read by others
    try:
        system.locking(descriptor, system.LK_NBLCK, 1)
        if shared:
            system.locking(descriptor, system.LK_UNLCK, 1)
    except PermissionError as error:
        raise BlockingIOError(*error.args) from error
    finally:
        os.lseek(descriptor, place, os.SEEK_SET)


def has_memory_limit() -> bool:
    """Whether this process may have only so much address space."""
    return resource is not None and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def peak_memory_bytes() -> int:
    """The most memory this process has had resident."""
    if resource is None:
        return int(psutil.Process().memory_info().peak_wset)
    # In KiB, except on macOS, where it is in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if psutil.MACOS else 1024)


def is_private(status: os.stat_result) -> bool:
    """Whether only its owner, who is this user or root, can read or change a file; of Windows it is not known."""
    return not hasattr(os, "getuid") or (status.st_mode & 0o077 == 0 and status.st_uid in (os.getuid(), 0))


@contextmanager
def ctrl_c_held_back() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, and for processes started in it until they let it through."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def ignore_ctrl_c() -> None:
    """Make this process deaf to Ctrl-C, also where its parent held it back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
