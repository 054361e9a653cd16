"""Log set-up: stderr for people, a file for the record."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from numbers import Number
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.logging import RichHandler

from virnucpro.errors import of_machine
from virnucpro.platforms import PLAIN_FILE

console = Console(stderr=True)

_Exception = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def printable(text: str, keep: str = "") -> str:
    """``text`` with every character that a terminal or a shell could take for a command written as an escape.

    Names of inputs, models and records come from other people: a line break in one must not begin a line of a log, and
    an escape sequence must not move the cursor.

    Args:
        text: anything, also names that are not UTF-8 (as the system gives them, with surrogates).
        keep: characters that stay although they are not printable.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text
    )


class _Escaped(logging.Filter):
    """Escapes what a message is filled with; its own text stays."""

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args
        if isinstance(args, Mapping):
            record.args = {name: _escaped(value) for name, value in args.items()}
        elif args:
            record.args = tuple(map(_escaped, args))
        return True


def _escaped(value: object) -> object:
    return value if isinstance(value, Number) else printable(str(value))


class _Formatter(logging.Formatter):
    """The lines of a traceback begin with a mark, so that none can be taken for a command."""

    def formatException(self, ei: _Exception) -> str:  # noqa: N802 - the name logging has
        return "\n".join(f"# {printable(line)}" for line in super().formatException(ei).splitlines())


def start_logging(verbosity: int) -> None:
    """Log to stderr. ``verbosity`` -1 warnings only, 0 a line a stage, 1 everything."""
    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=verbosity > 0, log_time_format="%H:%M:%S")
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    handler.setLevel(level)
    handler.addFilter(_Escaped())
    logger = logging.getLogger("virnucpro")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG)
    logger.propagate = False


class _LogFile(logging.StreamHandler[TextIO]):
    """Writes to a file and closes it; a disk that fills loses the rest of the log, not the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name logging has
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written is tried once more by closing
            self.stream.close()
        super().close()


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Also log to ``path``, appending, while the block runs. A link in its place is not followed.

    Raises:
        PlaceError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | PLAIN_FILE, 0o666)
    except OSError as error:
        raise of_machine(error, path) or error from error
    handler = _LogFile(os.fdopen(descriptor, "a", encoding="utf-8"))
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.INFO)
    handler.addFilter(_Escaped())
    logger = logging.getLogger("virnucpro")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
