"""A SQLite file that threads and processes share: the base of the caches."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

from virnucpro.atomic import machine_errors_at
from virnucpro.errors import ResourceError, StoreError
from virnucpro.lifeline import Closing

PAGE_BYTES = 16_384
"""A row of 3,328 float32 fits one page."""
_VERSION = 1
_WAIT_SECONDS = 120.0
"""For another process that writes."""


class SqliteFile(Closing):
    """Opens a file, or makes it with its tables; ``PRAGMA user_version`` is the version of what it holds.

    A process that is killed leaves nothing half written. The file belongs on a local disk: the write-ahead log needs
    shared memory.

    Args:
        path: the file; None keeps it in memory.
        tables: statements that make its tables.

    Raises:
        StoreError: the file is damaged or of another version.
        ResourceError: it cannot be opened.
    """

    def __init__(self, path: Path | None, tables: Sequence[str]) -> None:
        self.path = path or Path()
        self._lock = threading.RLock()
        if path is not None:
            with machine_errors_at(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(
                path or ":memory:", check_same_thread=False, isolation_level=None, timeout=_WAIT_SECONDS
            )
            version = self._begin(tables)
        except sqlite3.OperationalError as error:
            raise ResourceError(f"{path}: the cache cannot be opened ({error}).") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(self.path, f"is damaged ({error})") from error
        if version != _VERSION:
            self._database.close()
            raise StoreError(self.path, f"is a cache of version {version}, this program reads {_VERSION}")

    def _begin(self, tables: Sequence[str]) -> int:
        run = self._database.execute
        run(f"PRAGMA page_size={PAGE_BYTES}")
        run("PRAGMA auto_vacuum=INCREMENTAL")
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=NORMAL")
        if not run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            run("BEGIN IMMEDIATE")
            for table in tables:
                run(f"CREATE TABLE IF NOT EXISTS {table}")
            run(f"PRAGMA user_version={_VERSION}")
            run("COMMIT")
        return int(run("PRAGMA user_version").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()
