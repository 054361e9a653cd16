"""Answers of resolvers, kept: a second run asks nothing."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from pathlib import Path
from typing import Any, Self

from virnucpro.errors import ResourceError, StoreError
from virnucpro.hierarchy.resolvers import normalise_name

_LOG = logging.getLogger(__name__)

FILE_NAME = "hierarchy.sqlite"
_VERSION = 1
_WAIT_SECONDS = 60.0
"""For another process that writes."""


class AnswerCache:
    """Keys such as ``parent:<name>`` and ``siblings:<name>``, with normalised names, to JSON; one space a resolver.

    Threads may share it, and processes may share its file. What cannot be read counts as not there. Where nothing can
    be written any more (a full disk) it says so once, and answers are kept for this run alone.

    Args:
        path: a file, or a folder for ``hierarchy.sqlite`` in it; None keeps answers in memory.

    Raises:
        StoreError: the file is damaged, or of another version.
        ResourceError: it cannot be opened.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path / FILE_NAME if path is not None and (path.is_dir() or not path.suffix) else path
        self._lock = threading.Lock()
        self._unwritten: dict[tuple[str, str], str] = {}
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                ":memory:" if self.path is None else self.path,
                check_same_thread=False,
                isolation_level=None,
                timeout=_WAIT_SECONDS,
            )
            version = self._begin()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise ResourceError(f"{self.path}: the cache cannot be opened ({error}).") from error
            raise StoreError(self.path or Path(), f"is damaged ({error})") from error
        except OSError as error:
            raise ResourceError(f"{self.path}: the cache cannot be made ({error.strerror}).") from error
        if version != _VERSION:
            self._database.close()
            raise StoreError(self.path or Path(), f"is a cache of version {version}, this program reads {_VERSION}")

    def _begin(self) -> int:
        run = self._database.execute
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=NORMAL")
        if run("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            run("CREATE TABLE IF NOT EXISTS answers (resolver, key, answer, PRIMARY KEY (resolver, key)) WITHOUT ROWID")
            run(f"PRAGMA user_version={_VERSION}")
        return int(run("PRAGMA user_version").fetchone()[0])

    def get(self, resolver: str, kind: str, name: str) -> Any:  # noqa: ANN401 - JSON has no narrower type
        """The answer to ``kind`` (``parent``, ``siblings``) about ``name``; None where there is none."""
        key = f"{kind}:{normalise_name(name)}"
        with self._lock:
            text = self._unwritten.get((resolver, key))
            try:
                if text is None:
                    found = self._database.execute(
                        "SELECT answer FROM answers WHERE resolver=? AND key=?", (resolver, key)
                    ).fetchone()
                    text = found[0] if found else "null"
                return json.loads(text)
            except (sqlite3.DatabaseError, ValueError, TypeError) as error:
                _LOG.warning("%s: %s cannot be read (%s) and is asked again", self.path, key, error)
                return None

    def put(self, resolver: str, kind: str, name: str, answer: object) -> None:
        """Keep an answer; it replaces an older one."""
        key, text = f"{kind}:{normalise_name(name)}", json.dumps(answer, ensure_ascii=False)
        with self._lock:
            try:
                self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (resolver, key, text))
            except sqlite3.DatabaseError as error:
                if not self._unwritten:
                    _LOG.warning("%s: answers cannot be kept (%s); the run continues without", self.path, error)
                self._unwritten[resolver, key] = text

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._unwritten.clear()
            self._database.execute("DELETE FROM answers")

    def keys(self, resolver: str) -> list[str]:
        """Keys of one resolver, sorted."""
        with self._lock:
            rows = self._database.execute("SELECT key FROM answers WHERE resolver=? ORDER BY key", (resolver,))
            return [key for (key,) in rows]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
