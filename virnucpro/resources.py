"""CPUs, memory and disk space that can be had, and memory that processes hold.

Containers and batch systems set limits of control groups (Linux), which ``psutil`` does not read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import psutil

from virnucpro.errors import ResourceError

_UNLIMITED_BYTES = 1 << 60


def available_cpus(system: Path = Path("/")) -> int:
    """CPUs this process may keep busy: its affinity, and the quotas of its control groups.

    Args:
        system: where ``sys`` and ``proc`` are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = _limits(system, "cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return max(1, min([allowed, *(ceil(quota / period) for quota, period in quotas)]))


def free_memory_bytes(system: Path = Path("/")) -> int:
    """Memory that can be had without swapping: of the machine, and of the process's control groups.

    Args:
        system: where ``sys`` and ``proc`` are.
    """
    groups = _limits(
        system, "memory", ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    left = (limit - used for limit, used in groups if limit < _UNLIMITED_BYTES)
    return max(0, min([psutil.virtual_memory().available, *left]))


def check_room(folder: Path, num_bytes: float, remedy: str) -> None:
    """Refuse before the first byte what the disk of ``folder`` cannot hold; the folder may be missing.

    Raises:
        ResourceError: it cannot; the text ends with ``remedy``.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free_bytes = shutil.disk_usage(there).free
    if num_bytes > free_bytes:
        raise ResourceError(
            f"{folder}: {num_bytes / 1e6:,.0f} MB are to come, {free_bytes / 1e6:,.0f} MB are free. {remedy}"
        )


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


def _limits(system: Path, controller: str, *files: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """The two numbers of each control group of this process that sets a limit.

    Args:
        system: where ``sys`` and ``proc`` are.
        controller: folder of the group in version 1.
        files: that hold the numbers, in either version.
    """
    mount = system / "sys/fs/cgroup"
    own = next((line[3:] for line in _text(system / "proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    here = mount / own.lstrip("/") if ".." not in own else mount
    above = (folder for folder in here.parents if folder.is_relative_to(mount))
    for folder in (here, *above, mount / controller):
        for names in files:
            words = " ".join(_text(folder / name) for name in names).split()
            if len(words) == 2 and all(word.isdigit() for word in words):  # unlimited is "max" or -1
                yield int(words[0]), int(words[1])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
