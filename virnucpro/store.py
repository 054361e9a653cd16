"""The files of a run on disk, format version 1.

Every file is HDF5 and holds one unit of one kind.

- The root MUST carry the attributes ``format`` ("virnucpro"), ``version`` (1), ``kind``, and
  ``digest``: the SHA-256 of its arrays (name, type, shape and bytes, in order of name).
- It MUST carry what it was made from: ``unit_digest`` (the digest of the unit file; all kinds but
  ``unit``) and ``fingerprint`` (of the encoder, or of the bundle; embeddings, merged, scores).
- Text attributes MUST be of fixed length (UTF-8): they then lie in the object header, which has a checksum.
  Those of variable length lie in a heap that has none, where one flipped bit can make HDF5 read for ever.
- Arrays MUST be contiguous ranges of rows, in row order. They MAY be empty. Those with content
  carry Fletcher-32 checksums, so that a flipped bit is an error and not a number.
- A list of strings ``x`` is two arrays: ``x/values`` (uint8, end to end) and ``x/offsets`` (int64).

=========== ================================================================================
kind        arrays
=========== ================================================================================
unit        sequences, fragments, rows (tables of ``virnucpro.sequence.table``); names, nucleotides,
            proteins, pieces (strings); piece_sequences; attribute ``first_row``
embedding   embedding (n, D) float32 or float16, a line for each row that is its own source
merged      feature (n, D_nucleotide + D_protein)
scores      scores (n, 2) float32: not virus, virus
=========== ================================================================================

Nothing is compressed: embeddings do not shrink (ratio 1.00 to 1.06), only their type may be narrower.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import StoreError
from virnucpro.run_dir import atomic_write
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import UnitTable

VERSION = 1
_CHUNK_BYTES = 1 << 20
"""Larger chunks miss HDF5's own cache and are copied once more."""
_STRINGS = ("names", "nucleotides", "proteins", "pieces")
_ATTRIBUTES = ("format", "version", "kind", "digest", "unit_digest", "fingerprint", "first_row")
_TABLES = ("sequences", "fragments", "rows", "piece_sequences")


def write_arrays(path: Path, kind: str, arrays: Mapping[str, NDArray[Any]], made_from: Mapping[str, str | int]) -> str:
    """Write one file, atomically, and return its digest.

    The image is built in memory first: a full disk is then an ordinary error of one ``write``, where
    HDF5 itself would leave a half-open file behind.

    Raises:
        DiskFullError: no space is left.
    """
    digest = _digest(arrays)
    with h5py.File("image", "w", driver="core", backing_store=False, libver="v110") as file:
        attributes = {"format": "virnucpro", "version": VERSION, "kind": kind, "digest": digest, **made_from}
        for name, value in attributes.items():
            file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
        for name, array in arrays.items():
            if array.size:
                row_bytes = max(1, array.nbytes // len(array))
                chunks = (min(len(array), max(1, _CHUNK_BYTES // row_bytes)), *array.shape[1:])
                file.create_dataset(name, data=array, chunks=chunks, fletcher32=True)
            else:
                file.create_dataset(name, data=array)
        file.flush()
        image = file.id.get_file_image()
    with atomic_write(path) as temporary:
        temporary.write_bytes(image)
    return digest


def read_arrays(path: Path, kind: str, *names: str) -> dict[str, NDArray[Any]]:
    """Read the arrays called ``names``.

    Raises:
        StoreError: the file is missing, damaged, of another kind, or lacks one of them.
    """
    try:
        with h5py.File(path, "r") as file:
            _check_kind(path, file, kind)
            return {name: file[name][...] for name in names}
    except (OSError, KeyError, RuntimeError) as error:
        raise _store_error(path, error) from error


def read_attributes(path: Path, kind: str) -> dict[str, Any]:
    """Read what a file was made from, without its arrays.

    Raises:
        StoreError: the file is missing, damaged or of another kind.
    """
    try:
        with h5py.File(path, "r") as file:
            _check_kind(path, file, kind)
            return _attributes(file)
    except (OSError, KeyError, RuntimeError) as error:
        raise _store_error(path, error) from error


def is_made_from(path: Path, kind: str, made_from: Mapping[str, str]) -> bool:
    """Whether ``path`` is there; its attributes must then equal ``made_from``.

    Raises:
        StoreError: it is there, but damaged or made from something else.
    """
    if not path.exists():
        return False
    attributes = read_attributes(path, kind)
    for name, value in made_from.items():
        if attributes.get(name) != value:
            raise StoreError(path, f"was made from another {name.replace('_', ' ')}")
    return True


def write_unit(path: Path, table: UnitTable) -> str:
    """Write a unit file and return its digest."""
    arrays: dict[str, NDArray[Any]] = {name: getattr(table, name) for name in _TABLES}
    for name in _STRINGS:
        strings: Ragged = getattr(table, name)
        arrays[f"{name}/values"] = strings.values
        arrays[f"{name}/offsets"] = strings.offsets
    return write_arrays(path, "unit", arrays, {"first_row": table.first_row})


def read_unit(path: Path) -> UnitTable:
    """Read a whole unit file."""
    names = [*_TABLES, *(f"{name}/{part}" for name in _STRINGS for part in ("values", "offsets"))]
    arrays = read_arrays(path, "unit", *names)

    def strings(name: str) -> Ragged:
        return Ragged(arrays[f"{name}/values"], arrays[f"{name}/offsets"])

    return UnitTable(
        first_row=int(read_attributes(path, "unit")["first_row"]),
        sequences=arrays["sequences"],
        names=strings("names"),
        fragments=arrays["fragments"],
        rows=arrays["rows"],
        nucleotides=strings("nucleotides"),
        proteins=strings("proteins"),
        pieces=strings("pieces"),
        piece_sequences=arrays["piece_sequences"],
    )


def read_strings(path: Path, name: str) -> Ragged:
    """Read one list of strings of a unit file."""
    arrays = read_arrays(path, "unit", f"{name}/values", f"{name}/offsets")
    return Ragged(arrays[f"{name}/values"], arrays[f"{name}/offsets"])


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha256.update(f"{name} {array.dtype.descr} {array.shape}\n".encode())
        sha256.update(array.view(np.uint8).data if array.size else b"")
    return sha256.hexdigest()


def _attributes(file: h5py.File) -> dict[str, Any]:
    # One by one: iterating calls back from C, where a Ctrl-C would be swallowed.
    found = {name: file.attrs[name] for name in _ATTRIBUTES if name in file.attrs}
    return {
        name: value.decode(errors="replace") if isinstance(value, bytes) else value for name, value in found.items()
    }


def _check_kind(path: Path, file: h5py.File, kind: str) -> None:
    attributes = _attributes(file)
    if attributes.get("format") != "virnucpro":
        raise StoreError(path, "is no file of this program")
    if attributes["version"] != VERSION:
        raise StoreError(path, f"has format version {attributes['version']}, this program reads {VERSION}")
    if attributes["kind"] != kind:
        raise StoreError(path, f"is of kind {attributes['kind']}, expected {kind}")


def _store_error(path: Path, error: Exception) -> StoreError:
    problem = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
    return StoreError(path, problem)
