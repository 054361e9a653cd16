"""Tables in memory-mapped files: as large as the run, of which no more is in memory than was looked at last."""

from __future__ import annotations

import errno
import mmap
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.atomic import machine_errors_at
from virnucpro.errors import PlaceError

_CHUNK = 1 << 18  # items at a time: some MB


def new_table(path: Path, dtype: np.dtype[Any] | type, shape: tuple[int, ...]) -> NDArray[Any]:
    """Zeros in a file; an array in memory where there are none, since nothing cannot be mapped.

    Raises:
        PlaceError: the file cannot be made.
    """
    with machine_errors_at(path):
        path.unlink(missing_ok=True)
        if not shape[0]:
            return np.zeros(shape, dtype)
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def new_scratch(path: Path, dtype: np.dtype[Any] | type, shape: tuple[int, ...]) -> tuple[Path, NDArray[Any]]:
    """As ``new_table``, and where it is: among temporary files if this user may not write at ``path``.

    Raises:
        PlaceError: the file cannot be made.
    """
    try:
        return path, new_table(path, dtype, shape)
    except PlaceError as error:
        if error.number not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    elsewhere = Path(tempfile.gettempdir()) / f"virnucpro-{secrets.token_hex(8)}.npy"
    return elsewhere, new_table(elsewhere, dtype, shape)


def new_table_apart(dtype: np.dtype[Any] | type, num_items: int) -> NDArray[Any]:
    """Zeros, in a temporary file without a name if they are many and such a file finds room; else in memory."""
    dtype = np.dtype(dtype)
    if num_items >= _CHUNK:
        with suppress(OSError), tempfile.TemporaryFile() as stream:
            for part in chunks(num_items):  # written, since a page of a hole that finds no room ends the process
                stream.write(bytes(len(range(*part.indices(num_items))) * dtype.itemsize))
            stream.flush()
            return np.memmap(stream, dtype, "r+", shape=(num_items,)).view(np.ndarray)
    return np.zeros(num_items, dtype)


def let_go(table: NDArray[Any]) -> None:
    """Take what was read and written of a table out of this process's memory: it is in its file, to be read again.

    Args:
        table: of ``new_table``, or a part of one; nothing happens to others.
    """
    base: Any = table
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)  # of a shared mapping of a file: nothing is lost


def chunks(num_items: int, *tables: NDArray[Any]) -> Iterator[slice]:
    """Ranges that make up ``num_items``, in order; the tables are let go after each."""
    for first in range(0, num_items, _CHUNK):
        yield slice(first, first + _CHUNK)
        for table in tables:
            let_go(table)
