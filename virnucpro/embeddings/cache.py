"""Embeddings that were computed before, kept in one SQLite file and found by what they were computed from.

A row is found by the encoder's fingerprint, the type it was computed in and a digest of the sequence (xxh3, 128 bits),
so runs, samples and processes share it. Values are float32. Each row carries a digest of its own: one that is damaged
counts as not there, and is computed again. A write is a transaction; a process that is killed leaves nothing half
written.

Format, version 1: ``PRAGMA user_version`` is the version; table ``encoders`` (number, fingerprint, dtype, width, name);
table ``embeddings`` (encoder, sequence: 16 bytes, value: width float32 little-endian, then 8 bytes xxh3_64 of digest
and values, used: day it was last asked for, since 1970).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_digest, xxh3_128_digest

from virnucpro.errors import ResourceError, StoreError, UsageError

_LOG = logging.getLogger(__name__)

FILE_NAME = "embeddings.sqlite"
DEFAULT_MAX_BYTES = 20 << 30
_VERSION = 1
_WAIT_SECONDS = 120.0
"""For another process that writes."""
_KEYS_A_QUERY = 500
_SECONDS_A_DAY = 86_400
_PRUNED_TO = 0.9
"""Share of the bound that is left when it was exceeded, so that not every write prunes."""
_PAGE_BYTES = 16_384
"""A row of 3,328 values fits one page."""


@dataclass(frozen=True)
class EncoderUse:
    """What a cache holds of one encoder."""

    name: str  # as it was asked for when it was first used
    fingerprint: str  # identity of its weights
    dtype: str  # type it was computed in
    width: int  # of an embedding
    num_rows: int  # how many


def sequence_digest(sequence: bytes) -> bytes:
    """What a sequence is known by: 16 bytes."""
    digest: bytes = xxh3_128_digest(sequence)
    return digest


class EmbeddingCache:
    """A cache in a folder; threads may share it, and processes may share the folder.

    Args:
        folder: made if it is not there. On a local disk: SQLite's log needs shared memory.
        max_bytes: when the file grows beyond it, rows that were not asked for longest go.

    Raises:
        StoreError: the file is damaged or of another version.
        ResourceError: it cannot be opened.
    """

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if max_bytes < 1:
            raise UsageError("the size of a cache is at least 1 byte.")
        self.path = folder / FILE_NAME
        self.max_bytes = max_bytes
        self.num_hits = self.num_misses = 0
        self._lock = threading.RLock()
        self._is_writable = True
        self._encoders: dict[tuple[str, str, int], int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                self.path, check_same_thread=False, isolation_level=None, timeout=_WAIT_SECONDS
            )
            version = self._begin()
        except sqlite3.OperationalError as error:
            raise ResourceError(f"{self.path}: the cache cannot be opened ({error}).") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(self.path, f"is damaged ({error})") from error
        except OSError as error:
            raise ResourceError(f"{folder}: the cache cannot be made ({error.strerror}).") from error
        if version != _VERSION:
            self._database.close()
            raise StoreError(self.path, f"is a cache of version {version}, this program reads {_VERSION}")

    def _begin(self) -> int:
        run = self._database.execute
        run(f"PRAGMA page_size={_PAGE_BYTES}")
        run("PRAGMA auto_vacuum=INCREMENTAL")
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=NORMAL")
        if not run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            run("BEGIN IMMEDIATE")
            run(
                "CREATE TABLE IF NOT EXISTS encoders (number INTEGER PRIMARY KEY, fingerprint TEXT, dtype TEXT,"
                " width INTEGER, name TEXT, UNIQUE (fingerprint, dtype, width))"
            )
            run(
                "CREATE TABLE IF NOT EXISTS embeddings (id INTEGER PRIMARY KEY, encoder INTEGER, sequence BLOB,"
                " value BLOB, used INTEGER, UNIQUE (encoder, sequence))"
            )
            run(f"PRAGMA user_version={_VERSION}")
            run("COMMIT")
        return int(run("PRAGMA user_version").fetchone()[0])

    def get(
        self, fingerprint: str, dtype: str, width: int, digests: Sequence[bytes]
    ) -> dict[bytes, NDArray[np.float32]]:
        """Embeddings of those sequences that are here, by their digest."""
        found: dict[bytes, NDArray[np.float32]] = {}
        with self._lock, self._forgiving("cannot be read"):
            encoder = self._encoder(fingerprint, dtype, width)
            stale: list[tuple[int, int]] = []
            damaged: list[tuple[int]] = []
            today = int(time.time() // _SECONDS_A_DAY)
            for start in range(0, len(digests) if encoder is not None else 0, _KEYS_A_QUERY):
                keys = digests[start : start + _KEYS_A_QUERY]
                marks = ",".join("?" * len(keys))
                rows = self._database.execute(
                    f"SELECT id, sequence, value, used FROM embeddings WHERE encoder=? AND sequence IN ({marks})",  # noqa: S608 - question marks
                    (encoder, *keys),
                )
                for number, digest, value, used in rows:
                    row = _unpacked(digest, value, width)
                    if row is None:
                        damaged.append((number,))
                    else:
                        found[digest] = row
                        if used != today:
                            stale.append((today, number))
            self._write([("UPDATE embeddings SET used=? WHERE id=?", stale)])
            if damaged:
                _LOG.warning("%s: %d embeddings are damaged and are computed again", self.path, len(damaged))
                self._write([("DELETE FROM embeddings WHERE id=?", damaged)])
        self.num_hits += len(found)
        self.num_misses += len(digests) - len(found)
        return found

    def put(
        self, fingerprint: str, dtype: str, name: str, digests: Sequence[bytes], embeddings: NDArray[np.float32]
    ) -> None:
        """Keep (n, width) embeddings of n sequences; those that are here already stay."""
        with self._lock, self._forgiving("cannot be written"):
            if not (self._is_writable and len(digests)):
                return
            width = embeddings.shape[1]
            encoder = self._encoder(fingerprint, dtype, width, name)
            today = int(time.time() // _SECONDS_A_DAY)
            rows = [
                (encoder, digest, _packed(digest, row), today) for digest, row in zip(digests, embeddings, strict=True)
            ]
            self._write(
                [("INSERT OR IGNORE INTO embeddings (encoder, sequence, value, used) VALUES (?, ?, ?, ?)", rows)]
            )
            if self.num_bytes() > self.max_bytes:
                self.prune(int(self.max_bytes * _PRUNED_TO))

    def prune(self, max_bytes: int | None = None, unused_days: int | None = None) -> int:
        """Let rows go; returns how many.

        Args:
            max_bytes: until the file holds at most this, those not asked for longest first.
            unused_days: those not asked for in so many days.
        """
        with self._lock:
            before = self._num_rows()
            if unused_days is not None:
                limit = int(time.time() // _SECONDS_A_DAY) - unused_days
                self._write([("DELETE FROM embeddings WHERE used<?", [(limit,)])])
            while max_bytes is not None and (surplus := self.num_bytes() - max_bytes) > 0 and self._num_rows():
                num_gone = max(1, self._num_rows() * surplus // max(self.num_bytes(), 1))
                oldest = "SELECT id FROM embeddings ORDER BY used, id LIMIT ?"
                self._write([(f"DELETE FROM embeddings WHERE id IN ({oldest})", [(num_gone,)])])  # noqa: S608 - of ours
            self._database.execute("PRAGMA incremental_vacuum").fetchall()
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return before - self._num_rows()

    def clear(self) -> None:
        """Let all rows go."""
        with self._lock:
            self._write([("DELETE FROM embeddings", [()]), ("DELETE FROM encoders", [()])])
            self._encoders.clear()
            self.prune()

    def num_bytes(self) -> int:
        """What the rows take in the file."""
        with self._lock:
            pages, free = (
                self._database.execute(f"PRAGMA {n}").fetchone()[0] for n in ("page_count", "freelist_count")
            )
            return int(pages - free) * _PAGE_BYTES

    def encoders(self) -> list[EncoderUse]:
        """What it holds of each encoder."""
        with self._lock:
            rows = self._database.execute(
                "SELECT name, fingerprint, dtype, width, (SELECT count(*) FROM embeddings WHERE encoder=number)"
                " FROM encoders ORDER BY number"
            )
            return [EncoderUse(*row) for row in rows]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _num_rows(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM embeddings").fetchone()[0])

    def _encoder(self, fingerprint: str, dtype: str, width: int, name: str | None = None) -> int | None:
        """Number of an encoder; with a name it is made if it is not there."""
        key = (fingerprint, dtype, width)
        if key not in self._encoders:
            if name is not None:
                insert = "INSERT OR IGNORE INTO encoders (fingerprint, dtype, width, name) VALUES (?, ?, ?, ?)"
                self._write([(insert, [(*key, name)])])
            found = self._database.execute(
                "SELECT number FROM encoders WHERE fingerprint=? AND dtype=? AND width=?", key
            ).fetchone()
            if found is None:
                return None
            self._encoders[key] = int(found[0])
        return self._encoders[key]

    def _write(self, statements: Sequence[tuple[str, Sequence[tuple[object, ...]]]]) -> None:
        """Run statements in one transaction; none of them if there is nothing to write."""
        todo = [(statement, rows) for statement, rows in statements if len(rows)]
        if not todo:
            return
        self._database.execute("BEGIN IMMEDIATE")
        try:
            for statement, rows in todo:
                self._database.executemany(statement, rows)
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    @contextmanager
    def _forgiving(self, what: str) -> Iterator[None]:
        """A cache that fails (a full disk, damage) costs time, never a run."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if self._is_writable:
                _LOG.warning("%s: %s (%s); embeddings are computed and not kept", self.path, what, error)
            self._is_writable = False


def _packed(digest: bytes, row: NDArray[np.float32]) -> bytes:
    value = row.astype("<f4", copy=False).tobytes()
    return value + xxh3_64_digest(digest + value)


def _unpacked(digest: bytes, value: object, width: int) -> NDArray[np.float32] | None:
    """The embedding; None if it is not what was written."""
    if not isinstance(value, bytes) or len(value) != 4 * width + 8:
        return None
    if xxh3_64_digest(digest + value[:-8]) != value[-8:]:
        return None
    return np.frombuffer(value, dtype="<f4", count=width)


def remove_cache(folder: Path) -> None:
    """Remove a cache's file whatever is in it, of another version or damaged too.

    Raises:
        ResourceError: it cannot be removed.
    """
    for suffix in ("", "-wal", "-shm"):
        try:
            (folder / (FILE_NAME + suffix)).unlink(missing_ok=True)
        except OSError as error:
            raise ResourceError(f"{folder}: the cache cannot be removed ({error.strerror}).") from error
