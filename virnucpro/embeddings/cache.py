"""Embeddings that were computed before, kept in one SQLite file and found by what they were computed from.

A row is found by the encoder's fingerprint, the type it was computed in and a digest of the sequence (xxh3, 128 bits),
so runs, samples and processes share it. Values are float32. Each row carries a digest of its own: one that is damaged
counts as not there, and is computed again.

Format, version 1: table ``encoders`` (number, fingerprint, dtype, width, name); table ``embeddings`` (encoder,
sequence: 16 bytes, value: width float32 little-endian, then 8 bytes xxh3_64 of digest and values, used: day it was
last asked for, since 1970).
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_digest, xxh3_128_digest

from virnucpro.atomic import machine_errors_at
from virnucpro.errors import UsageError
from virnucpro.sqlite_file import PAGE_BYTES, SqliteFile

_LOG = logging.getLogger(__name__)

FILE_NAME = "embeddings.sqlite"
DEFAULT_MAX_BYTES = 20 << 30
_KEYS_A_QUERY = 500
_SECONDS_A_DAY = 86_400
_PRUNED_TO = 0.9
"""Share of the bound that is left when it was exceeded, so that not every write prunes."""
_ENCODERS = (
    "encoders (number INTEGER PRIMARY KEY, fingerprint TEXT, dtype TEXT, width INTEGER, name TEXT, "
    "UNIQUE (fingerprint, dtype, width))"
)
_EMBEDDINGS = (
    "embeddings (id INTEGER PRIMARY KEY, encoder INTEGER, sequence BLOB, value BLOB, used INTEGER, "
    "UNIQUE (encoder, sequence))"
)


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


class EmbeddingCache(SqliteFile):
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
        super().__init__(folder / FILE_NAME, [_ENCODERS, _EMBEDDINGS])
        self.max_bytes = max_bytes
        self.num_hits = self.num_misses = 0
        self._is_writable = True

    def get(
        self, fingerprint: str, dtype: str, width: int, digests: Sequence[bytes]
    ) -> dict[bytes, NDArray[np.float32]]:
        """Embeddings of those sequences that are here, by their digest."""
        found: dict[bytes, NDArray[np.float32]] = {}
        with self._lock, self._forgiving("cannot be read"):
            encoder = self._encoder(fingerprint, dtype, width)
            stale: list[tuple[int, int]] = []
            damaged: list[tuple[int]] = []
            today = _today()
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
            self._write("UPDATE embeddings SET used=? WHERE id=?", stale)
            if damaged:
                _LOG.warning("%s: %d embeddings are damaged and are computed again", self.path, len(damaged))
                self._write("DELETE FROM embeddings WHERE id=?", damaged)
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
            key = (fingerprint, dtype, embeddings.shape[1])
            self._write(
                "INSERT OR IGNORE INTO encoders (fingerprint, dtype, width, name) VALUES (?, ?, ?, ?)", [(*key, name)]
            )
            encoder, today = self._encoder(*key), _today()
            self._write(
                "INSERT OR IGNORE INTO embeddings (encoder, sequence, value, used) VALUES (?, ?, ?, ?)",
                [(encoder, each, _packed(each, row), today) for each, row in zip(digests, embeddings, strict=True)],
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
                self._write("DELETE FROM embeddings WHERE used<?", [(_today() - unused_days,)])
            while max_bytes is not None and (surplus := self.num_bytes() - max_bytes) > 0 and self._num_rows():
                num_gone = max(1, self._num_rows() * surplus // max(self.num_bytes(), 1))
                oldest = "SELECT id FROM embeddings ORDER BY used, id LIMIT ?"
                self._write(f"DELETE FROM embeddings WHERE id IN ({oldest})", [(num_gone,)])  # noqa: S608 - of ours
            self._database.execute("PRAGMA incremental_vacuum").fetchall()
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return before - self._num_rows()

    def num_bytes(self) -> int:
        """What the rows take in the file."""
        with self._lock:
            pages, free = (
                self._database.execute(f"PRAGMA {n}").fetchone()[0] for n in ("page_count", "freelist_count")
            )
            return int(pages - free) * PAGE_BYTES

    def encoders(self) -> list[EncoderUse]:
        """What it holds of each encoder."""
        with self._lock:
            rows = self._database.execute(
                "SELECT name, fingerprint, dtype, width, (SELECT count(*) FROM embeddings WHERE encoder=number)"
                " FROM encoders ORDER BY number"
            )
            return [EncoderUse(*row) for row in rows]

    def _num_rows(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM embeddings").fetchone()[0])

    def _encoder(self, fingerprint: str, dtype: str, width: int) -> int | None:
        """Number of an encoder; None if there is nothing of it."""
        query = "SELECT number FROM encoders WHERE fingerprint=? AND dtype=? AND width=?"
        found = self._database.execute(query, (fingerprint, dtype, width)).fetchone()
        return found[0] if found else None

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Run a statement with each of some rows, in one transaction."""
        if not rows:
            return
        self._database.execute("BEGIN IMMEDIATE")
        try:
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


def _today() -> int:
    """The day, counted from 1970."""
    return int(time.time() // _SECONDS_A_DAY)


def remove_cache(folder: Path) -> None:
    """Remove a cache's file whatever is in it, of another version or damaged too.

    Raises:
        ResourceError: it cannot be removed.
    """
    with machine_errors_at(folder):
        for suffix in ("", "-wal", "-shm"):
            (folder / (FILE_NAME + suffix)).unlink(missing_ok=True)
