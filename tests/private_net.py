"""Networks of their own for tests of clusters: nothing that they start can be reached, or reaches, from outside."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def is_inside() -> bool:
    """Whether the loopback is the only interface."""
    return [name for _, name in socket.if_nameindex()] == ["lo"]


def need_root(*programs: str) -> None:
    """Skip the test where a network cannot be made, or a program is missing."""
    missing = [name for name in ("unshare", "ip", *programs) if shutil.which(name, path=_PATH) is None]
    if missing:
        pytest.skip(f"there is no {', '.join(missing)} here")
    if os.geteuid() != 0:
        pytest.skip("only root can make a network of its own")


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def run_inside(*arguments: object, seconds: float = 300) -> None:
    """Run tests in a network where the loopback is all there is; fails with what they print."""
    command = 'ip link set lo up && exec "$0" "$@"'
    ended = subprocess.run(
        ["unshare", "--net", "sh", "-c", command, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x",
         *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=seconds, cwd=TESTS.parent,
        env=os.environ | {"PATH": _PATH, "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "unit", TESTS / "integration")))},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    assert " passed" in ended.stdout
    assert "skipped" not in ended.stdout, ended.stdout
