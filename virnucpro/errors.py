"""The exception tree. Each class carries the exit code the command line ends with.

::

    VirNucProError               1  internal
    ├── UsageError               2  options or settings that cannot be followed
    │   └── RunMismatchError     2  a run directory made with other settings or input
    ├── InputError               3  an input file that cannot be read as sequences
    ├── ResourceError            4  memory, disk or a directory in use by another run
    │   ├── PlaceError           4  a file or folder that cannot be read or written
    │   │   └── DiskFullError    4
    │   └── MemoryShortError     4
    ├── IncompleteRunError       5  finished, but some rows failed; all are listed
    ├── ModelError               6  a model is missing, damaged or does not fit
    ├── StoreError               1  a stored file is damaged or made from something else
    ├── CountError               1  rows in are not rows out: a defect, never ignored
    └── WorkerError              1  a worker process raised or died

An interrupted run ends with 130 (Ctrl-C) or 143 (SIGTERM) and goes on with the same command.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from virnucpro.platforms import has_memory_limit


class VirNucProError(Exception):
    """Base of all errors raised on purpose; its text says what, where and what to do."""

    exit_code: int = 1


class UsageError(VirNucProError):
    """Options or settings that cannot be followed."""

    exit_code = 2


class RunMismatchError(UsageError):
    """A run directory holds a run made with other settings or other input."""

    def __init__(self, path: Path, differences: list[tuple[str, object, object]]) -> None:
        self.path = path
        self.differences = differences
        super().__init__(path, differences)

    def __str__(self) -> str:
        width = max((len(name) for name, _, _ in self.differences), default=0)
        lines = [f"  {name:<{width}}  then {then}  now {now}" for name, then, now in self.differences]
        return (
            f"{self.path} holds a run made with other settings:\n"
            + "\n".join(lines)
            + "\nUse the same settings to resume, --fresh to start over, or another --output."
        )


class InputError(VirNucProError):
    """An input that cannot be read as nucleotide sequences.

    Args:
        source: file name, or ``<stdin>``.
        problem: what is wrong, and what to do, in one sentence.
        line: 1-based line number where it is known.
    """

    exit_code = 3

    def __init__(self, source: str, problem: str, line: int | None = None) -> None:
        self.source = source
        self.problem = problem
        self.line = line
        super().__init__(source, problem, line)

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}, line {self.line}"
        return f"{where}: {self.problem}"


class InputsError(InputError):
    """Several inputs that cannot be read.

    Args:
        errors: one for each.
    """

    def __init__(self, errors: Sequence[InputError]) -> None:
        self.errors = tuple(errors)
        super().__init__(errors[0].source, errors[0].problem, errors[0].line)

    def __reduce__(self) -> tuple[type[InputsError], tuple[tuple[InputError, ...]]]:
        return type(self), (self.errors,)

    def __str__(self) -> str:
        return f"{len(self.errors)} inputs cannot be read:\n" + "\n".join(f"  {error}" for error in self.errors)


class ResourceError(VirNucProError):
    """Memory, disk or a run directory that cannot be had."""

    exit_code = 4


_KEPT = "and run the same command again: finished work is kept"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REMEDIES = {
    errno.ENOSPC: ("no space left on the disk", f"Free some space {_KEPT}"),
    errno.EDQUOT: ("the disk quota is used up", f"Free some space {_KEPT}"),
    errno.EFBIG: ("the file would be larger than is allowed here", f"Raise the limit (`ulimit -f`) {_KEPT}"),
    errno.EROFS: ("the file system is read-only", "Name a place that can be written to"),
    errno.EACCES: ("permission denied", "Name a place that you may use, or ask its owner"),
    errno.EPERM: ("not permitted", "Name a place that you may use, or ask its owner"),
    errno.ENAMETOOLONG: ("the name is too long", "Use shorter names"),
    errno.EMFILE: ("too many open files", f"Raise the limit (`ulimit -n`) {_KEPT}"),
    errno.ENFILE: ("too many open files on this machine", f"Wait for other programs to end {_KEPT}"),
    errno.ESTALE: ("the network file system lost the file (stale handle)", f"Check the mount {_KEPT}"),
    errno.EIO: ("the disk cannot be read or written", f"Check the disk {_KEPT}"),
    errno.ENOENT: ("is gone", "It was moved or deleted while the program ran; run the same command again"),
    errno.ENOTDIR: ("is not in a folder: a part of its path is a file", "Name another place"),
    errno.EISDIR: ("is a folder, where a file belongs", "Move it away, or name another place"),
    errno.EEXIST: ("is there, and is not a folder", "Move it away, or name another place"),
    errno.ELOOP: ("is a symbolic link, which is not followed here", "Delete the link"),
}


class PlaceError(ResourceError):
    """A file or folder that cannot be read or written, and not for what it holds.

    Args:
        path: the file or folder; None where the system did not say.
        number: error number of the operating system (``errno``).
        text: what the system says, where the number is not one of those that have a remedy.
    """

    def __init__(self, path: Path | None, number: int, text: str = "") -> None:
        self.path = path
        self.number = number
        self.text = text
        super().__init__(path, number, text)

    def __str__(self) -> str:
        problem, remedy = _REMEDIES.get(self.number, (self.text or f"error {self.number}", f"Mend it {_KEPT}"))
        return f"{problem[0].upper() + problem[1:] if self.path is None else f'{self.path}: {problem}'}. {remedy}."


class DiskFullError(PlaceError):
    """No space is left where a file is being written."""

    def __init__(self, path: Path | None, number: int = errno.ENOSPC) -> None:
        super().__init__(path, number)
        self.args = (path, number)  # of these it is made again when it has crossed processes


class MemoryShortError(ResourceError):
    """The memory does not suffice."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        what = f" ({self.text})" if self.text else ""
        return (
            f"not enough memory{what}. Ask for more (the job's memory limit, `ulimit -v`), or use fewer --threads and "
            f"a smaller --token-budget, {_KEPT}."
        )


_HDF5_NUMBER = re.compile(r"errno = (\d+)")
_SAID = {
    os.strerror(number): number
    for number in (errno.EMFILE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
}
"""What libraries that are not written in Python put into the text of other exceptions."""
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|unable to allocate|cannot allocate memory", re.IGNORECASE
)
_MAYBE_NO_MEMORY = (SystemError, ImportError, RuntimeError)
"""What libraries raise where the address space ends: a file that cannot be mapped, a thread that cannot start."""


def of_machine(error: BaseException, path: Path | None = None) -> ResourceError | None:
    """What of this machine is behind an exception; None where it is something else.

    Args:
        error: any exception.
        path: the file concerned, where the exception does not name it.
    """
    if isinstance(error, OSError):
        return _of_system(error, path)
    if (
        isinstance(error, MemoryError)
        or _NO_MEMORY.search(str(error))
        or (has_memory_limit() and isinstance(error, _MAYBE_NO_MEMORY))
    ):
        return MemoryShortError(" ".join(str(error).split())[:200])
    said = next((number for text, number in _SAID.items() if isinstance(error, Exception) and text in str(error)), None)
    return PlaceError(path, said) if said is not None else None


def _of_system(error: OSError, path: Path | None) -> ResourceError | None:
    stated = _HDF5_NUMBER.search(str(error))  # h5py says it in the text alone
    number = error.errno or (int(stated[1]) if stated else 0)
    if number == errno.ENOMEM:
        return MemoryShortError()
    if not number or isinstance(error, (ConnectionError, BlockingIOError, InterruptedError, TimeoutError)):
        return None
    place = Path(error.filename) if isinstance(error.filename, str) else path
    return DiskFullError(place, number) if number in _FULL else PlaceError(place, number, error.strerror or "")


class IncompleteRunError(VirNucProError):
    """The run finished, but some rows have no score; the outputs list them."""

    exit_code = 5


class ModelError(VirNucProError):
    """A model is missing, damaged or does not fit the work asked of it."""

    exit_code = 6


class StoreError(VirNucProError):
    """A stored file is damaged, or was made from something else."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(path, problem)

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}. Delete this file and run the same command again to compute it again."


class CountError(VirNucProError):
    """Rows in are not rows out; this is a defect and the run stops."""


class WorkerError(VirNucProError):
    """A worker process raised or died."""
