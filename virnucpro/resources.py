"""Memory that can be had, and memory that processes hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil

_UNLIMITED_BYTES = 1 << 60


def free_memory_bytes(system: Path = Path("/")) -> int:
    """Memory that can be had without swapping: of the machine, and of the process's control groups (Linux).

    Containers and batch systems set limits of control groups, which ``psutil`` does not read.

    Args:
        system: where ``sys`` and ``proc`` are.
    """
    limits = [psutil.virtual_memory().available, _group_v2(system), _group_v1(system)]
    return max(0, min(limit for limit in limits if limit is not None))


def held_memory_bytes(pid: int) -> int:
    """Memory that a process and its descendants hold now; pages that they share count once where the system tells."""
    try:
        root = psutil.Process(pid)
        return sum(_own_bytes(process) for process in (root, *root.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def _own_bytes(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
        return int(getattr(full, "pss", 0) or full.rss)
    except psutil.Error:  # it ended a moment ago, or belongs to somebody else
        return 0


def _group_v2(system: Path) -> int | None:
    group = next((line[3:] for line in _text(system / "proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    mount = system / "sys/fs/cgroup"
    here = mount / group.lstrip("/") if ".." not in group else mount
    folders = (here, *(folder for folder in here.parents if folder.is_relative_to(mount)))
    return _least(_left(_text(folder / "memory.max"), _text(folder / "memory.current")) for folder in folders)


def _group_v1(system: Path) -> int | None:
    folder = system / "sys/fs/cgroup/memory"
    return _left(_text(folder / "memory.limit_in_bytes"), _text(folder / "memory.usage_in_bytes"))


def _least(limits: Iterable[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _left(limit: str, used: str) -> int | None:
    limit, used = limit.strip(), used.strip()
    if not limit.isdigit() or not used.isdigit() or int(limit) >= _UNLIMITED_BYTES:
        return None
    return int(limit) - int(used)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
