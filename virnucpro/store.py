"""The files of a run on disk, format version 5.

Every file is HDF5 and holds one unit of one kind.

- The root MUST carry the attributes ``format`` ("virnucpro"), ``version`` (5), ``kind``, and ``digest``: the XXH3
  (128 bits) of a line for each array in order of name: name, type, shape and the array's own digest.
- It MUST carry what it was made from: ``unit_digest`` (the digest of the unit file; all kinds but
  ``unit``) and ``fingerprint`` (of the encoder, or of the bundle; all other kinds).
- Text attributes MUST be of fixed length (UTF-8): they then lie in the object header, which has a checksum.
  Those of variable length lie in a heap that has none, where one flipped bit can make HDF5 read for ever.
- Arrays MUST be ranges of rows, in row order, and lie in the file in one piece, neither chunked nor filtered. They
  MAY be empty. Each carries the attribute ``xxh3_128``, the digest of its bytes, in hexadecimal digits. Whoever reads
  an array MUST hold it against that, so that a flipped bit is an error and not a number.
- A list of strings ``x`` is two arrays: ``x/values`` (uint8, end to end) and ``x/offsets`` (int64).

=========== ================================================================================
kind        arrays
=========== ================================================================================
unit        sequences, gaps, fragments, rows (tables of ``virnucpro.sequence.table``); names, descriptions,
            nucleotides, proteins, pieces (strings); piece_sequences; attribute ``first_row``
embedding   embedding (n, D) float32 or float16, a line for each row that is its own source
merged      feature (n, D_nucleotide + D_protein)
scores      scores (n, 2) float32: not virus, virus
nearest     log_odds (f,) float32: what the nearest proteins say of each fragment of the unit
selection   rows (n,) bool: whether a model computes each row of the unit
=========== ================================================================================

Nothing is compressed: embeddings do not shrink (ratio 1.00 to 1.06), only their type may be narrower.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from virnucpro.atomic import atomic_write
from virnucpro.errors import StoreError
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import UnitTable

VERSION = 5
_ARRAY_DIGEST = "xxh3_128"
STRINGS = ("names", "descriptions", "nucleotides", "proteins", "pieces")
"""The lists of strings of a unit."""
_ATTRIBUTES = ("format", "version", "kind", "digest", "unit_digest", "fingerprint", "first_row")
_TABLES = ("sequences", "gaps", "fragments", "rows", "piece_sequences")


def write_arrays(path: Path, kind: str, arrays: Mapping[str, NDArray[Any]], made_from: Mapping[str, str | int]) -> str:
    """Write one file, atomically, and return its digest.

    HDF5 lays the file out in memory without the arrays, which then go straight to the disk: a full disk is an
    ordinary error of ``write``, where HDF5 itself would leave a half-open file behind.

    Raises:
        DiskFullError: no space is left.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    digests = {name: xxh3_128(_bytes_of(array)).hexdigest() for name, array in arrays.items()}
    digest = _digest(arrays, digests)
    layout = _lay_out(arrays, digests, _all_attributes(kind, digest, made_from))
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        stream.write(layout.metadata)
        for name, offset in layout.offsets.items():
            stream.seek(offset)
            stream.write(_bytes_of(arrays[name]))
        stream.truncate(layout.num_bytes)
    return digest


def write_blocks(
    path: Path,
    kind: str,
    name: str,
    like: NDArray[Any],
    blocks: Iterable[NDArray[Any]],
    made_from: Mapping[str, str | int],
) -> str:
    """Write one array that is never in memory as a whole; the file is the one that ``write_arrays`` would write.

    Args:
        path: of the file.
        kind: of the file.
        name: of the array.
        like: of its type and shape, whatever it holds (``np.broadcast_to`` makes one of any size of nothing).
        blocks: its rows, some at a time; each is done with when the next one is asked for.
        made_from: what the file must carry.

    Returns:
        The digest of the file.

    Raises:
        DiskFullError: no space is left.
    """
    arrays, digest = {name: like}, xxh3_128()

    def lay_out() -> tuple[_Layout, str]:
        digests = {name: digest.hexdigest()}
        whole = _digest(arrays, digests)
        return _lay_out(arrays, digests, _all_attributes(kind, whole, made_from)), whole

    layout, whole = lay_out()  # digests have one length, so that the place of the array is known before its own
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        start = layout.offsets.get(name, layout.num_bytes)
        stream.seek(start)
        for block in blocks:
            digest.update(_bytes_of(block))
            stream.write(_bytes_of(block))
        layout, whole = lay_out()
        stream.seek(0)
        stream.write(layout.metadata[:start])
        stream.truncate(layout.num_bytes)
    return whole


def _all_attributes(kind: str, digest: str, made_from: Mapping[str, str | int]) -> dict[str, str | int]:
    return {"format": "virnucpro", "version": VERSION, "kind": kind, "digest": digest, **made_from}


@dataclass(frozen=True)
class _Layout:
    """A file without its arrays."""

    metadata: bytes  # its first bytes, zeros where arrays go
    offsets: dict[str, int]  # array that is not empty to where its first byte lies
    num_bytes: int  # length of the whole file


class _Image(io.BytesIO):
    """A file that HDF5 writes metadata to; it asks for the room of the arrays by setting the length."""

    num_bytes = 0

    def truncate(self, size: int | None = None) -> int:
        self.num_bytes = self.tell() if size is None else size
        return self.num_bytes


def _lay_out(
    arrays: Mapping[str, NDArray[Any]], digests: Mapping[str, str], attributes: Mapping[str, str | int]
) -> _Layout:
    creation, links = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5p.create(h5py.h5p.LINK_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)  # the same content is the same file
    links.set_create_intermediate_group(True)
    image, datasets = _Image(), {}
    with h5py.File(image, "w", libver="v110") as file:
        for name, value in attributes.items():
            file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
        for name, array in arrays.items():
            space, kind = h5py.h5s.create_simple(array.shape), h5py.h5t.py_create(array.dtype, logical=True)
            created = h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=creation, lcpl=links)
            datasets[name] = h5py.Dataset(created)
            datasets[name].attrs[_ARRAY_DIGEST] = np.bytes_(digests[name].encode())
        offsets = {}
        # With the largest last, and all else before the first, the image ends where that one begins.
        filled = [name for name, array in arrays.items() if array.size]
        for name in sorted(filled, key=lambda name: arrays[name].nbytes):
            datasets[name][:1] = arrays[name][:1]  # from now on HDF5 has a place for all of it
            offsets[name] = datasets[name].id.get_offset()
    return _Layout(image.getvalue(), offsets, image.num_bytes)


@dataclass(frozen=True)
class StoredArray:
    """An array in an open file, to be read piece by piece; see ``open_array``."""

    _path: Path
    _dataset: h5py.Dataset

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""
        return tuple(self._dataset.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its values."""
        dtype: np.dtype[Any] = self._dataset.dtype
        return dtype

    def blocks(self, num_rows: int, num_alive: int = 1) -> Iterator[NDArray[Any]]:
        """At most ``num_rows`` rows at a time, in order.

        Whether they are what was written shows after the last one: keep nothing before this ends.

        Args:
            num_rows: in a block.
            num_alive: each block is gone when so many more have been asked for.

        Raises:
            StoreError: they are damaged.
        """
        digest = xxh3_128()
        # A few buffers for all blocks: touching new memory takes as long as reading.
        shape = (min(num_rows, len(self._dataset)), *self.shape[1:])
        buffers = cycle([np.empty(shape, self.dtype) for _ in range(num_alive)])
        for start, buffer in zip(range(0, self.shape[0], num_rows), buffers, strict=False):
            block = buffer[: self.shape[0] - start]
            if block.size:
                with _named(self._path):
                    self._dataset.read_direct(block, np.s_[start : start + len(block)])
            digest.update(_bytes_of(block))
            yield block
        _check_content(self._path, self._dataset, digest.hexdigest())


@contextmanager
def open_array(path: Path, kind: str, made_from: Mapping[str, str], name: str) -> Iterator[StoredArray]:
    """Open one array of a file whose attributes must equal ``made_from``.

    Raises:
        StoreError: it is missing, damaged or made from something else.
    """
    with ExitStack() as stack:
        with _named(path):
            file = stack.enter_context(h5py.File(path, "r"))
            attributes = _attributes(file)
            _check_kind(path, attributes, kind)
            dataset = file[name]
        _check_made_from(path, attributes, made_from)
        yield StoredArray(path, dataset)


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


def verify(path: Path, kind: str, made_from: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Read everything a file holds, hold it against its digest and against what it must be made from.

    Raises:
        StoreError: it is missing, damaged, changed or made from something else.
    """
    with _named(path), h5py.File(path, "r") as file:
        attributes = _attributes(file)
        _check_kind(path, attributes, kind)
        arrays = {name: _array(path, file[name]) for name in _array_names(file)}
        digests = {name: _stored_digest(file[name]) for name in arrays}
    _check_made_from(path, attributes, made_from)
    if _digest(arrays, digests) != attributes["digest"]:
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
    for name in STRINGS:
        strings: Ragged = getattr(table, name)
        arrays[f"{name}/values"] = strings.values
        arrays[f"{name}/offsets"] = strings.offsets
    return write_arrays(path, "unit", arrays, {"first_row": table.first_row})


def read_unit(path: Path, strings: Collection[str] = STRINGS) -> UnitTable:
    """Read a unit file; of its lists of strings only those named, the others are then without items."""
    names = [*_TABLES, *(f"{name}/{part}" for name in strings for part in ("values", "offsets"))]
    attributes, arrays = _read(path, "unit", names)

    def list_of(name: str) -> Ragged:
        return Ragged(arrays[f"{name}/values"], arrays[f"{name}/offsets"]) if name in strings else Ragged.from_bytes([])

    return UnitTable(
        first_row=int(attributes["first_row"]),
        sequences=arrays["sequences"],
        names=list_of("names"),
        descriptions=list_of("descriptions"),
        gaps=arrays["gaps"],
        fragments=arrays["fragments"],
        rows=arrays["rows"],
        nucleotides=list_of("nucleotides"),
        proteins=list_of("proteins"),
        pieces=list_of("pieces"),
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
    with _named(path), h5py.File(path, "r") as file:
        attributes = _attributes(file)
        _check_kind(path, attributes, kind)
        return attributes, {name: _array(path, file[name]) for name in names}


def _array(path: Path, dataset: h5py.Dataset) -> NDArray[Any]:
    array: NDArray[Any] = dataset[...]
    _check_content(path, dataset, xxh3_128(_bytes_of(array)).hexdigest())
    return array


def _check_content(path: Path, dataset: h5py.Dataset, digest: str) -> None:
    with _named(path):
        expected = _stored_digest(dataset)
    if digest != expected:
        raise StoreError(path, f"is damaged ({dataset.name[1:]} is not what was written)")


def _stored_digest(dataset: h5py.Dataset) -> str:
    return bytes(dataset.attrs[_ARRAY_DIGEST]).decode(errors="replace")


def _digest(arrays: Mapping[str, NDArray[Any]], digests: Mapping[str, str]) -> str:
    """Of a whole file; ``digests`` are those of its arrays."""
    lines = (f"{name} {array.dtype.descr} {array.shape} {digests[name]}\n" for name, array in sorted(arrays.items()))
    return xxh3_128("".join(lines).encode()).hexdigest()


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array, which are not copied."""
    return array.reshape(-1).view(np.uint8).data


def _attributes(file: h5py.File) -> dict[str, Any]:
    # One by one: iterating calls back from C, where a Ctrl-C would be swallowed.
    attributes = file.attrs
    found = {name: attributes[name] for name in _ATTRIBUTES if name in attributes}
    return {
        name: value.decode(errors="replace") if isinstance(value, bytes) else value for name, value in found.items()
    }


def _check_kind(path: Path, attributes: Mapping[str, Any], kind: str) -> None:
    if attributes.get("format") != "virnucpro":
        raise StoreError(path, "is not a file of this program")
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


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what HDF5 raises into an error that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(path, "is missing") from error
    except (OSError, KeyError, RuntimeError) as error:
        raise StoreError(path, f"is damaged ({error})") from error
