"""Answers of resolvers, kept: a second run asks nothing."""

from __future__ import annotations

import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

from virnucpro.hierarchy.resolvers import normalise_name
from virnucpro.sqlite_file import SqliteFile

_LOG = logging.getLogger(__name__)

FILE_NAME = "hierarchy.sqlite"
_TABLE = "answers (resolver, key, answer, PRIMARY KEY (resolver, key)) WITHOUT ROWID"


class AnswerCache(SqliteFile):
    """Keys such as ``parent:<name>`` and ``siblings:<name>``, with normalised names, to JSON; one space a resolver.

    Threads may share it, and processes may share its file. What cannot be read counts as not there. If nothing can be
    written any more (a full disk) it says so once, and answers are kept for this run alone.

    Args:
        path: a file, or a folder for ``hierarchy.sqlite`` in it; None keeps answers in memory.

    Raises:
        StoreError: the file is damaged, or of another version.
        ResourceError: it cannot be opened.
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is not None and (path.is_dir() or not path.suffix):
            path /= FILE_NAME
        super().__init__(path, [_TABLE])
        self._unwritten: dict[tuple[str, str], str] = {}

    def get(self, resolver: str, kind: str, name: str) -> Any:  # noqa: ANN401 - JSON has no narrower type
        """The answer to ``kind`` (``parent``, ``siblings``) about ``name``; None if there is none."""
        key = f"{kind}:{normalise_name(name)}"
        query = "SELECT answer FROM answers WHERE resolver=? AND key=?"
        with self._lock:
            try:
                found = (
                    self._unwritten.get((resolver, key)) or self._database.execute(query, (resolver, key)).fetchone()
                )
                return json.loads(found if isinstance(found, str) else found[0]) if found else None
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
