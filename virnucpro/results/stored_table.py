"""The table of fragments on disk.

It is a folder of plain ``.npy`` files, in input order::

    sequences.npy     (m,) SEQUENCE_DTYPE
    fragments.npy     (f,) FRAGMENT_DTYPE, the fragments of a sequence next to each other
    genes.npy         (g,) GENE_DTYPE, ascending by sequence; empty if no genes were looked for
    sites.npy         (s,) SITE_DTYPE, ascending by sequence: repeats around what may be proviruses
    gaps.npy          (n,) GAP_DTYPE, ascending: where the sequences have gaps
    names.npy         (b,) uint8, the ids of the sequences end to end, byte for byte
    name_offsets.npy  (m + 1,) int64, where each id begins
    table.json        digest (XXH3, 128 bits) and length of each array; written last, so that its existence says that
                      the table is complete

The arrays are mapped, not read: a table may be larger than the memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NotRequired, Self, TypedDict

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from virnucpro.atomic import check_json, machine_errors_at, write_json
from virnucpro.errors import CountError, StoreError
from virnucpro.mapped import let_go
from virnucpro.nearest.repeats import SITE_DTYPE
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import GAP_DTYPE
from virnucpro.stored_json import Count

FRAGMENT_DTYPE = np.dtype(
    [("sequence", "i8"), ("start", "i8"), ("stop", "i8"), ("log_odds", "f4"), ("num_open", "i2"), ("masked", "u1")]
)
"""A fragment: number of its sequence in the run, 0-based half-open bounds on it, calibrated log-odds at equal
prevalence (NaN if not scored), open reading frames, and whether it is masked (too few of A, C, G and T, or of low
complexity: no rows, no score)."""

SEQUENCE_DTYPE = np.dtype(
    [
        ("length", "i8"),
        ("first_fragment", "i8"),
        ("num_fragments", "i4"),
        ("num_failed", "i4"),
        ("status", "i1"),
        ("model", "i1"),
    ]
)
"""A sequence: its bases, place of its first fragment in the table, how many it has, rows that could not be computed,
``sequence.table.Status``, and the position in ``Fragments.rules`` of the model that scored it."""

GENE_DTYPE = np.dtype(
    [
        ("sequence", "i8"),
        ("start", "i8"),
        ("stop", "i8"),
        ("strand", "i1"),
        ("bits_virus", "f4"),
        ("bits_cell", "f4"),
        ("nearest", "i4"),
    ]
)
"""A gene: number of its sequence in the run, 0-based half-open bounds, strand (1 or -1), bit scores of the nearest
viral and the nearest cellular protein, and the number of the organism of the viral one (-1 without one)."""

VERSION = 3
_DTYPES: dict[str, np.dtype[Any]] = {
    "sequences": SEQUENCE_DTYPE,
    "fragments": FRAGMENT_DTYPE,
    "genes": GENE_DTYPE,
    "sites": SITE_DTYPE,
    "gaps": GAP_DTYPE,
    "names": np.dtype("u1"),
    "name_offsets": np.dtype("i8"),
}
_HEADER_BYTES = 512
_CHECK_BYTES = 1 << 24


@dataclass
class _Column:
    """An array on its way to the disk."""

    stream: IO[bytes]  # its file, with room for the header
    dtype: np.dtype[Any]  # of its items
    num_items: int = 0  # written so far
    digest: xxh3_128 = field(default_factory=xxh3_128)

    def append(self, items: NDArray[Any]) -> None:
        content = np.ascontiguousarray(items, dtype=self.dtype).view(np.uint8).data
        self.stream.write(content)
        self.digest.update(content)
        self.num_items += len(items)

    def close(self) -> dict[str, Any]:
        """Write the header; returns what ``table.json`` holds of the array."""
        self.stream.seek(0)
        self.stream.write(_npy_header(self.dtype, self.num_items))
        self.stream.flush()
        os.fsync(self.stream.fileno())
        return {"length": self.num_items, "xxh3_128": self.digest.hexdigest()}


class TableWriter:
    """Writes a table, part by part in input order; a context manager.

    The table is there once ``finish`` returns.

    Args:
        folder: of the table; an earlier one is replaced.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._columns: dict[str, _Column] = {}
        self._open = np.zeros(0, dtype=SEQUENCE_DTYPE)  # the last sequence, which the next part may continue
        self._num_begun = 0
        self._num_fragments = 0
        self._name_bytes = 0

    def __enter__(self) -> Self:
        self._stack.enter_context(machine_errors_at(self._folder))
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "table.json").unlink(missing_ok=True)
        for name, dtype in _DTYPES.items():
            stream = self._stack.enter_context((self._folder / f"{name}.npy").open("wb"))
            stream.write(bytes(_HEADER_BYTES))
            self._columns[name] = _Column(stream, dtype)
        self._columns["name_offsets"].append(np.zeros(1, dtype=np.int64))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.__exit__(*exception)  # type: ignore[arg-type]

    def append(
        self,
        sequences: NDArray[np.void],
        names: Ragged,
        fragments: NDArray[np.void],
        num_failed: NDArray[np.int64],
    ) -> None:
        """Add what a unit holds.

        Args:
            sequences: (n,) SEQUENCE_DTYPE, those that begin in the unit; only length, status and model are read.
            names: n ids.
            fragments: (f,) FRAGMENT_DTYPE; the first may be of the last sequence added before.
            num_failed: (f,) rows of each fragment that could not be computed.
        """
        first = self._num_begun - len(self._open)
        self._num_begun += len(sequences)
        counted = np.concatenate([self._open, sequences])
        counted["num_fragments"][len(self._open) :] = counted["num_failed"][len(self._open) :] = 0
        position = fragments["sequence"] - first
        if len(position) and not 0 <= position[0] <= position[-1] < len(counted):
            raise CountError(f"{self._folder}: fragments of other sequences than the next ones")
        counted["num_fragments"] += np.bincount(position, minlength=len(counted)).astype(np.int32)
        counted["num_failed"] += np.bincount(position, num_failed, len(counted)).astype(np.int32)
        self._columns["fragments"].append(fragments)
        self._columns["names"].append(names.values)
        self._columns["name_offsets"].append(names.offsets[1:] - names.offsets[0] + self._name_bytes)
        self._name_bytes += len(names.values)
        self._write(counted[:-1])
        self._open = counted[-1:]

    def append_genes(self, genes: NDArray[np.void], sites: NDArray[np.void]) -> None:
        """Add genes, (g,) GENE_DTYPE, and sites, (s,) SITE_DTYPE; both come in the order of their sequences."""
        self._columns["genes"].append(genes)
        self._columns["sites"].append(sites)

    def append_gaps(self, gaps: NDArray[np.void]) -> None:
        """Add gaps, (n,) GAP_DTYPE, in the order of their sequences."""
        self._columns["gaps"].append(gaps)

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        """Complete the table; ``facts`` are kept with it, see ``read_facts``."""
        self._write(self._open)
        written = {name: column.close() for name, column in self._columns.items()}
        kept = {"organisms": {}, **(facts or {})}
        write_json(self._folder / "table.json", {"version": VERSION, "arrays": written, "facts": kept})

    def _write(self, sequences: NDArray[np.void]) -> None:
        """Write sequences all of whose fragments have come."""
        counts = sequences["num_fragments"].astype(np.int64)
        sequences["first_fragment"] = self._num_fragments + np.cumsum(counts) - counts
        self._num_fragments += int(counts.sum())
        self._columns["sequences"].append(sequences)


def read_facts(folder: Path) -> dict[str, Any]:
    """What is kept with a table.

    ``frames``: for each input the number of rows by frame. ``organisms``: number of an organism to its name and family.
    """
    facts: dict[str, Any] = _read_summary(folder)["facts"]
    return facts


def read_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a table, mapped, once they have been checked.

    Raises:
        StoreError: the table is missing, damaged or of another version.
    """
    written = _read_summary(folder)["arrays"]
    return {name: _read_array(folder / f"{name}.npy", dtype, written[name]) for name, dtype in _DTYPES.items()}


class _Written(TypedDict):
    length: Count
    xxh3_128: str


class _Arrays(TypedDict):
    sequences: _Written
    fragments: _Written
    genes: _Written
    sites: _Written
    gaps: _Written
    names: _Written
    name_offsets: _Written


class _Facts(TypedDict):
    frames: NotRequired[list[dict[str, Count]]]
    organisms: dict[int, tuple[str, str]]


class _Summary(TypedDict):
    version: int
    arrays: _Arrays
    facts: _Facts


def _read_summary(folder: Path) -> dict[str, Any]:
    path = folder / "table.json"
    if not path.is_file():
        raise StoreError(path, "is missing")
    content = check_json(path, _Summary)
    if content["version"] != VERSION:
        raise StoreError(path, f"is of another version than {VERSION}, which this program reads")
    return content


def _read_array(path: Path, dtype: np.dtype[Any], written: dict[str, Any]) -> NDArray[Any]:
    length = int(written["length"])
    try:
        with path.open("rb") as stream:
            header = stream.read(_HEADER_BYTES)
    except FileNotFoundError as error:
        raise StoreError(path, "is missing") from error
    is_whole = path.stat().st_size == _HEADER_BYTES + length * dtype.itemsize
    if not is_whole or header != _npy_header(dtype, length):
        raise StoreError(path, "is damaged (its header or its size is not what was written)")
    array: NDArray[Any] = np.load(path, mmap_mode="r").view(np.ndarray)  # np.memmap itself is slow to index
    digest, step = xxh3_128(), max(1, _CHECK_BYTES // dtype.itemsize)
    for start in range(0, length, step):
        digest.update(np.ascontiguousarray(array[start : start + step]).view(np.uint8).data)
        let_go(array)
    if digest.hexdigest() != written["xxh3_128"]:
        raise StoreError(path, "is damaged (it is not what was written)")
    return array


def _npy_header(dtype: np.dtype[Any], num_items: int) -> bytes:
    """The header of a ``.npy`` file (format 1.0), always of one length so that it can be written last."""
    content = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (num_items,)}
    text = f"{content!r}".ljust(_HEADER_BYTES - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", _HEADER_BYTES - 10) + text.encode("latin1")
