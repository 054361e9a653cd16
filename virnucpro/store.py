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
import itertools
from collections.abc import Mapping, Sequence
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
_image_numbers = itertools.count()
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
    # HDF5 takes two images of one name for one file, also where two threads write two shards at the same time.
    with h5py.File(f"image-{next(_image_numbers)}", "w", driver="core", backing_store=False, libver="v110") as file:
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
    return _read(path, kind, names)[1]


def read_attributes(path: Path, kind: str) -> dict[str, Any]:
    """Read what a file was made from, without its arrays.

    Raises:
        StoreError: the file is missing, damaged or of another kind.
    """
    return _read(path, kind, ())[0]


def read_checked(path: Path, kind: str, made_from: Mapping[str, str], name: str) -> NDArray[Any]:
    """Read one array of a file whose attributes must equal ``made_from``.

    Raises:
        StoreError: it is missing, damaged or made from something else.
    """
    attributes, arrays = _read(path, kind, (name,))
    _check_made_from(path, attributes, made_from)
    return arrays[name]


def verify(path: Path, kind: str, made_from: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Read everything a file holds, hold it against its digest and against what it must be made from.

    Raises:
        StoreError: it is missing, damaged, changed or made from something else.
    """
    try:
        with h5py.File(path, "r") as file:
            attributes = _attributes(file)
            _check_kind(path, attributes, kind)
            arrays = {name: file[name][...] for name in _array_names(file)}
    except (OSError, KeyError, RuntimeError) as error:
        raise _store_error(path, error) from error
    _check_made_from(path, attributes, made_from)
    if _digest(arrays) != attributes["digest"]:
        raise StoreError(path, "does not hold what was written (its digest differs)")
    return arrays


def is_made_from(path: Path, kind: str, made_from: Mapping[str, str]) -> bool:
    """Whether ``path`` is there; its attributes must then equal ``made_from``.

    Raises:
        StoreError: it is there, but damaged or made from something else.
    """
    if not path.exists():
        return False
    _check_made_from(path, read_attributes(path, kind), made_from)
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
    attributes, arrays = _read(path, "unit", names)

    def strings(name: str) -> Ragged:
        return Ragged(arrays[f"{name}/values"], arrays[f"{name}/offsets"])

    return UnitTable(
        first_row=int(attributes["first_row"]),
        sequences=arrays["sequences"],
        names=strings("names"),
        fragments=arrays["fragments"],
        rows=arrays["rows"],
        nucleotides=strings("nucleotides"),
        proteins=strings("proteins"),
        pieces=strings("pieces"),
        piece_sequences=arrays["piece_sequences"],
    )


def read_rows(path: Path, name: str) -> tuple[NDArray[np.void], int, Ragged]:
    """Read the row table of a unit file, the number of its first row, and one list of strings.

    Raises:
        StoreError: the file is missing or damaged.
    """
    attributes, arrays = _read(path, "unit", ("rows", f"{name}/values", f"{name}/offsets"))
    return arrays["rows"], int(attributes["first_row"]), Ragged(arrays[f"{name}/values"], arrays[f"{name}/offsets"])


def _read(path: Path, kind: str, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    try:
        with h5py.File(path, "r") as file:
            attributes = _attributes(file)
            _check_kind(path, attributes, kind)
            return attributes, {name: file[name][...] for name in names}
    except (OSError, KeyError, RuntimeError) as error:
        raise _store_error(path, error) from error


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


def _check_kind(path: Path, attributes: Mapping[str, Any], kind: str) -> None:
    if attributes.get("format") != "virnucpro":
        raise StoreError(path, "is no file of this program")
    if attributes["version"] != VERSION:
        raise StoreError(path, f"has format version {attributes['version']}, this program reads {VERSION}")
    if attributes["kind"] != kind:
        raise StoreError(path, f"is of kind {attributes['kind']}, expected {kind}")


def _array_names(group: h5py.Group, prefix: str = "") -> list[str]:
    names: list[str] = []
    for name in list(group):
        item = group[name]
        names += _array_names(item, f"{prefix}{name}/") if isinstance(item, h5py.Group) else [f"{prefix}{name}"]
    return names


def _check_made_from(path: Path, attributes: Mapping[str, Any], made_from: Mapping[str, str]) -> None:
    for name, value in made_from.items():
        if attributes.get(name) != value:
            raise StoreError(path, f"was made from another {name.replace('_', ' ')}")


def _store_error(path: Path, error: Exception) -> StoreError:
    problem = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
    return StoreError(path, problem)
