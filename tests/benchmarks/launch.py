"""Runs the program once and prints its peak memory as JSON: ``python -m benchmarks.launch ARG...``.

A process of its own, and a small one: on Linux a child begins with the peak of the process that started it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

_PROC = Path("/proc")
_SECONDS_BETWEEN_LOOKS = 0.1


class Watch:
    """Looks at a process and all it started, again and again, until it is told to stop.

    Attributes:
        peak_bytes: most memory they held together at any look, pages that they share counted once. Stays 0 for a
            process that never had a child (the kernel knows its peak exactly), and where there is no ``/proc``.
    """

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._is_over.set()
        self._thread.join()

    def _look_on(self) -> None:
        while _PROC.joinpath("self/smaps_rollup").exists() and not self._is_over.wait(_SECONDS_BETWEEN_LOOKS):
            family = processes_of(self._pid)
            if len(family) > 1:
                self.peak_bytes = max(self.peak_bytes, sum(map(_proportional_bytes, family)))


def processes_of(pid: int) -> list[int]:
    """A process and its descendants, by number; without it where it is gone."""
    children: dict[int, list[int]] = defaultdict(list)
    numbers = [int(path.name) for path in _PROC.iterdir() if path.name.isdigit()]
    for number in numbers:
        try:
            stat = (_PROC / str(number) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # ended a moment ago
        parent = int(stat.rpartition(")")[2].split()[1])  # a name may hold blanks and brackets
        children[parent].append(number)
    family, to_visit = [], [pid] if pid in numbers else []
    while to_visit:
        family.append(to_visit.pop())
        to_visit += children[family[-1]]
    return family


def _proportional_bytes(pid: int) -> int:
    """Resident memory; of a page that n processes share, an n-th. 0 for a process that is gone."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def main() -> None:
    """Run ``virnucpro`` with this process's arguments; the last line of stdout is the record."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "virnucpro", *sys.argv[1:]], stdin=subprocess.DEVNULL)
    watch = Watch(process.pid)
    code = process.wait()
    seconds = time.perf_counter() - start
    watch.stop()
    # Of the largest process, in KiB but on macOS; there in bytes.
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    record = {"code": code, "seconds": seconds, "peak_rss_bytes": max(largest, watch.peak_bytes)}
    sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
