"""Log set-up: stderr for people, a file for the record."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

console = Console(stderr=True)


def start_logging(verbosity: int) -> None:
    """Log to stderr. ``verbosity`` -1 warnings only, 0 a line a stage, 1 everything."""
    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=verbosity > 0, log_time_format="%H:%M:%S")
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    handler.setLevel(level)
    logger = logging.getLogger("virnucpro")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG)
    logger.propagate = False


def add_log_file(path: Path) -> logging.Handler:
    """Also log to ``path``, appending; remove it with ``remove_log_file``."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.INFO)
    logging.getLogger("virnucpro").addHandler(handler)
    return handler


def remove_log_file(handler: logging.Handler) -> None:
    """Close a log file opened by ``add_log_file``."""
    logging.getLogger("virnucpro").removeHandler(handler)
    handler.close()
