"""SQLite and LMDB as the store of the embedding cache: rows of 3,328 float32, written and read in batches.

    python tests/benchmarks/embedding_stores.py [--rows 20000]

Needs lmdb, which the program itself does not use. CPU seconds and wall seconds of this machine, in turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import lmdb
import numpy as np

WIDTH, BATCH = 3328, 1000
T = TypeVar("T")


def batches(num_rows: int, seed: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """Keys of 32 bytes, values of one row."""
    rng = np.random.default_rng(seed)
    for _ in range(0, num_rows, BATCH):
        values = rng.standard_normal((BATCH, WIDTH), dtype=np.float32)
        yield [(rng.bytes(32), row.tobytes()) for row in values]


class SqliteByKey:
    """One table in the order of the keys, a transaction a batch."""

    schema = "key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"

    def __init__(self, folder: Path) -> None:
        self.database = sqlite3.connect(folder / "cache.sqlite", isolation_level=None, timeout=60)
        for line in ("page_size=16384", "journal_mode=WAL", "synchronous=NORMAL"):
            self.database.execute(f"PRAGMA {line}")
        self.database.execute(f"CREATE TABLE IF NOT EXISTS e ({self.schema}")

    def put(self, batch: list[tuple[bytes, bytes]]) -> None:
        """Write a batch."""
        self.database.execute("BEGIN IMMEDIATE")
        self.database.executemany("INSERT OR IGNORE INTO e VALUES (?, ?)", batch)
        self.database.execute("COMMIT")

    def get(self, keys: list[bytes]) -> int:
        """Read a batch; returns the bytes found."""
        marks = ",".join("?" * len(keys))
        return sum(len(v) for (v,) in self.database.execute(f"SELECT value FROM e WHERE key IN ({marks})", keys))  # noqa: S608


class Sqlite(SqliteByKey):
    """One table in the order of writing, and an index of the keys."""

    schema = "key BLOB UNIQUE, value BLOB)"


class Lmdb:
    """One database, a transaction a batch."""

    def __init__(self, folder: Path) -> None:
        self.environment = lmdb.open(str(folder / "cache.lmdb"), map_size=64 << 30, metasync=False, sync=True)

    def put(self, batch: list[tuple[bytes, bytes]]) -> None:
        """Write a batch."""
        with self.environment.begin(write=True) as transaction:
            transaction.cursor().putmulti(batch, overwrite=False)

    def get(self, keys: list[bytes]) -> int:
        """Read a batch; returns the bytes found."""
        with self.environment.begin(buffers=True) as transaction:
            return sum(len(v) for _, v in transaction.cursor().getmulti(keys))


def write_in_process(kind: type, folder: Path, num_rows: int, seed: int) -> None:
    """What each of two writers does."""
    store = kind(folder)
    for batch in batches(num_rows, seed):
        store.put(batch)


def timed(name: str, work: Callable[[T], object], parts: list[T]) -> str:
    """Wall and CPU seconds of a call for each part."""
    wall, cpu = time.perf_counter(), time.process_time()
    for part in parts:
        work(part)
    return f"{name} {time.perf_counter() - wall:.2f} s ({time.process_time() - cpu:.2f} s CPU)"


def main() -> None:
    """Print a line a store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    num_rows = parser.parse_args().rows
    made = list(batches(num_rows, 1))
    keys = [key for batch in made for key, _ in batch]
    shuffled = [keys[i] for i in np.random.default_rng(2).permutation(len(keys))]
    for kind in (SqliteByKey, Sqlite, Lmdb) * 2:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            store = kind(folder)
            print(kind.__name__, timed("write", store.put, made), end="; ")
            parts = [shuffled[k : k + BATCH] for k in range(0, len(shuffled), BATCH)]
            print(timed("read", store.get, parts), end="; ")
            if store.get(shuffled[:BATCH]) != BATCH * WIDTH * 4:
                raise SystemExit("rows are missing")
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            print(f"{size / num_rows / WIDTH / 4:.2f} bytes a byte", end="; ")
            writers = [
                multiprocessing.get_context("spawn").Process(
                    target=write_in_process, args=(kind, folder, num_rows // 4, 10 + k)
                )
                for k in range(2)
            ]
            wall = time.perf_counter()
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()
            codes = [writer.exitcode for writer in writers]
            print(f"two writers of a quarter each {time.perf_counter() - wall:.2f} s, exit codes {codes}")


if __name__ == "__main__":
    print(os.cpu_count(), "CPUs, sqlite", sqlite3.sqlite_version)
    main()
