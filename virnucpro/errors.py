"""The exception tree. Each class carries the exit code the command line ends with.

::

    VirNucProError               1  internal
    ├── UsageError               2  options or settings that cannot be followed
    │   └── RunMismatchError     2  a run directory made with other settings or input
    ├── InputError               3  an input file that cannot be read as sequences
    ├── ResourceError            4  memory, disk or a directory in use by another run
    │   └── DiskFullError        4
    ├── IncompleteRunError       5  finished, but some rows failed; all are listed
    ├── ModelError               6  a model is missing, damaged or does not fit
    ├── StoreError               1  a stored file is damaged or made from something else
    ├── CountError               1  rows in are not rows out: a defect, never ignored
    └── WorkerError              1  a worker process raised or died

An interrupted run ends with 130 (Ctrl-C) or 143 (SIGTERM) and goes on with the same command.
"""

from __future__ import annotations

from pathlib import Path


class VirNucProError(Exception):
    """Base of all errors raised on purpose; its text says what, where and what to do."""

    exit_code: int = 1


class UsageError(VirNucProError):
    """Options or settings that cannot be followed."""

    exit_code = 2


class RunMismatchError(UsageError):
    """A run directory holds a run made with other settings or other input.

    Args:
        path: the run directory.
        differences: (setting, then, now) for each that differs.
    """

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
            + "\nUse the same settings to go on, --fresh to start over, or another --output."
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


class ResourceError(VirNucProError):
    """Memory, disk or a run directory that cannot be had."""

    exit_code = 4


class DiskFullError(ResourceError):
    """No space is left where a file is being written.

    Args:
        path: the file that could not be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(path)

    def __str__(self) -> str:
        return (
            f"{self.path}: no space left on the disk. Free some space and run the same command "
            "again: finished work is kept."
        )


class IncompleteRunError(VirNucProError):
    """The run finished, but some rows have no score; the outputs list them."""

    exit_code = 5


class ModelError(VirNucProError):
    """A model is missing, damaged or does not fit the work asked of it."""

    exit_code = 6


class StoreError(VirNucProError):
    """A stored file is damaged, or was made from something else.

    Args:
        path: the file.
        problem: what is wrong with it.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(path, problem)

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}. Delete this file and run the same command again to compute it anew."


class CountError(VirNucProError):
    """Rows in are not rows out; this is a defect and the run stops."""


class WorkerError(VirNucProError):
    """A worker process raised or died."""
