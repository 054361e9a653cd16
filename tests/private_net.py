"""Networks of their own for tests of clusters: nothing that they start can be reached, or reaches, from outside."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def ray_cluster(folder: Path, num_cpus: int) -> Iterator[dict[str, str]]:
    """A Ray cluster of one node in this network; gives the environment that reaches it."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    address = "127.0.0.1:6399"
    place = tempfile.mkdtemp(prefix="rt-")  # Ray's sockets need a short path
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=6399"),
        *(f"--num-cpus={num_cpus}", "--include-dashboard=false", f"--temp-dir={place}"),
    ]
    with (folder / "ray.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
    try:
        for _ in range(600):
            if process.poll() is None and b"Ray runtime started" in (folder / "ray.log").read_bytes():
                break
            time.sleep(0.1)
        yield {**environment, "RAY_TESTS": address}
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(place, ignore_errors=True)


def run_inside(*arguments: object, seconds: float = 300) -> None:
    """Run tests in a network where the loopback is all there is; fails with what they print."""
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "unit", TESTS / "integration")))
    command = [
        "unshare",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        'ip link set lo up && exec "$0" "$@"',
        sys.executable,
        "-m",
        "pytest",
    ]
    ended = subprocess.run(
        [*command, "-q", "-p", "no:cacheprovider", "-x", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        cwd=TESTS.parent,
        env=os.environ | {"PATH": _PATH, "PYTHONPATH": path},
    )
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    assert " passed" in ended.stdout
    assert "skipped" not in ended.stdout, ended.stdout
