"""Runs the program once and prints its peak memory as JSON: ``python -m virnucpro.benchmarks.launch ARG...``.

A process of its own, and a small one: on Linux a child begins with the peak of the process that started it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time


def main() -> None:
    """Run ``virnucpro`` with this process's arguments; the last line of stdout is the record."""
    start = time.perf_counter()
    ended = subprocess.run(  # noqa: S603 - this program, by the interpreter it runs in
        [sys.executable, "-m", "virnucpro", *sys.argv[1:]], check=False, stdin=subprocess.DEVNULL
    )
    seconds = time.perf_counter() - start
    # Of the largest process, in KiB but on macOS; there in bytes.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    sys.stdout.write(json.dumps({"code": ended.returncode, "seconds": seconds, "peak_rss_bytes": peak}) + "\n")


if __name__ == "__main__":
    main()
