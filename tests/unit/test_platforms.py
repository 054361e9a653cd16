"""What only POSIX has is not needed to start, to lock and to predict; Windows has the rest."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import mixed_records, read_tsv, write_fasta
from tiny_models import small_lite

from virnucpro.platforms import lock

AS_ON_WINDOWS = """
import ctypes, mmap, multiprocessing.util, os, signal, subprocess, sys, tempfile, types
import numba, numpy, psutil, torch, h5py  # libraries ask the system what it is, and it is no Windows
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

for name in ("fcntl", "grp", "pwd", "pysam", "resource", "termios"):
    sys.modules[name] = None
for name in ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGSTOP", "setitimer", "pthread_sigmask"):
    delattr(signal, name)
for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "getuid", "sched_getaffinity", "fork", "killpg"):
    delattr(os, name)

class Locks:
    LK_NBLCK, LK_UNLCK, held = 2, 0, {}

    def locking(self, descriptor, mode, num_bytes):
        file = os.fstat(descriptor).st_ino
        if mode == self.LK_UNLCK:
            del self.held[file]
        elif self.held.get(file) != descriptor and self.is_open(self.held.get(file), file):
            raise PermissionError(13, "Permission denied")
        else:
            self.held[file] = descriptor

    def is_open(self, descriptor, file):
        try:
            return descriptor is not None and os.fstat(descriptor).st_ino == file
        except OSError:
            return False

sys.modules["msvcrt"] = Locks()
"""


def run(code, *arguments):
    """A process in which POSIX is hidden."""
    return subprocess.run(
        [sys.executable, "-c", AS_ON_WINDOWS + code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_main_job_runs_without_what_only_posix_has(tmp_path):
    """Help, a run and the same again; the directory is locked by Windows' own means, against another run too."""
    write_fasta(tmp_path / "a.fasta", mixed_records(1))
    code = """
import virnucpro.embeddings
from virnucpro.cli import cli, main
from virnucpro.platforms import lock, peak_memory_bytes

assert all(cli.get_command(None, name).get_short_help_str() for name in cli.list_commands(None))
folder = sys.argv[2]
options = ["--device", "cpu", "--threads", "1", "--no-report", "-m", sys.argv[3]]
sys.argv = ["virnucpro", "predict", sys.argv[1], "-o", folder, *options]
codes = []
for turn in range(3):
    with open(next(iter(Path(folder).rglob("lock*"))) if turn == 2 else os.devnull, "r+") as stream:
        if turn == 2:
            lock(stream)
        try:
            main()
        except SystemExit as ended:
            codes.append(ended.code)
print(codes)
"""
    ended = run(code, tmp_path / "a.fasta", tmp_path / "out", small_lite())
    assert (ended.returncode, ended.stdout) == (0, "[0, 0, 4]\n"), ended.stderr[-2000:]
    assert len(read_tsv(tmp_path / "out" / "a.sequences.tsv")) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_a_locked_file_is_refused_at_once(tmp_path, shared):
    """To who wants it alone and to who would share it; it is free again when it is closed."""
    path = tmp_path / "lock"
    with path.open("a+") as one, path.open("a+") as other:
        lock(one)
        with pytest.raises(BlockingIOError):
            lock(other, shared=shared)
    with path.open("a+") as one, path.open("a+") as other:
        lock(one, shared=True)
        lock(other, shared=True)
