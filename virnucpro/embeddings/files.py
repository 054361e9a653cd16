"""Files of embeddings, in four formats. Format ``virnucpro embeddings``, version 1.

- ``.h5``: ``ids/values`` and ``ids/offsets`` (UTF-8, end to end), the columns, ``embedding/<encoder>`` (k, width) and
  ``count/<encoder>``; each array with its digest (see :mod:`virnucpro.store`);
- ``.npz``: ``id``, and the same names;
- ``.parquet``: columns of the same names, ``embedding/<encoder>`` as lists of fixed size;
- ``.h5ad``: ``X`` has all encoders side by side, ``var`` says whose each column is, ``obs`` has the other columns.

All carry ``about``: JSON with format, version, level, precision, and name, fingerprint, dtype and width of each
encoder. Columns are ``length`` (of the sequence); at the level of fragments also ``fragment``, ``start`` and ``stop``
(0-based half-open); at that of frames also ``frame``. A row that has nothing to embed is NaN and its count 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.atomic import atomic_write
from virnucpro.embeddings.levels import COLUMNS, KEY_DTYPE, Embeddings, Level
from virnucpro.errors import StoreError, UsageError
from virnucpro.sequence.ragged import Ragged

FORMAT, VERSION = "virnucpro embeddings", 1
_ROWS_A_GROUP = 8192


@dataclass(frozen=True)
class EncoderFacts:
    """What a file says of an encoder."""

    name: str  # as it was asked for
    fingerprint: str  # identity of its weights
    dtype: str  # type it computed in
    width: int  # of an embedding


@dataclass(frozen=True)
class About:
    """What a file of embeddings is."""

    level: Level  # what a row is of
    precision: str  # ``single`` or ``half``
    encoders: tuple[EncoderFacts, ...]  # in order

    def to_json(self) -> str:
        """As it is written."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)})


def write_embeddings(path: Path, embeddings: Embeddings, about: About) -> None:
    """Write a file in the format that its name says.

    Raises:
        UsageError: the name ends with no known format, or its library is not installed.
        DiskFullError: no space is left.
    """
    writer_for(path)(path, embeddings, about)


def writer_for(path: Path) -> Callable[[Path, Embeddings, About], None]:
    """Who writes a file of this name.

    Raises:
        UsageError: nobody does.
    """
    if path.suffix not in _WRITERS:
        raise UsageError(f"{path}: the name of a file of embeddings ends with one of {', '.join(_WRITERS)}.")
    return _WRITERS[path.suffix]


def _arrays(embeddings: Embeddings) -> tuple[list[str], dict[str, NDArray[Any]]]:
    """The id of each row, and everything else by the names of the format."""
    arrays: dict[str, Any] = embeddings.index()
    ids = arrays.pop("id")
    for name, values in embeddings.values.items():
        arrays[f"embedding/{_safe(name)}"] = values
        arrays[f"count/{_safe(name)}"] = embeddings.counts[name]
    return ids, arrays


def _safe(name: str) -> str:
    """An encoder's name without what makes folders in a file."""
    return name.replace("/", "_")


def _write_h5(path: Path, embeddings: Embeddings, about: About) -> None:
    names, arrays = _arrays(embeddings)
    ids = Ragged.from_bytes(name.encode() for name in names)
    arrays |= {"ids/values": ids.values, "ids/offsets": ids.offsets}
    arrays["about"] = np.frombuffer(about.to_json().encode(), dtype=np.uint8)
    store.write_arrays(path, "embeddings", arrays, {})


def _write_npz(path: Path, embeddings: Embeddings, about: About) -> None:
    ids, arrays = _arrays(embeddings)
    arrays |= {"id": np.array(ids), "about": np.array(about.to_json())}
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **cast("dict[str, Any]", arrays))


def _write_parquet(path: Path, embeddings: Embeddings, about: About) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise UsageError(f"{path}: .parquet needs pyarrow ('pip install pyarrow').") from error
    ids, arrays = _arrays(embeddings)

    def column(values: NDArray[Any]) -> Any:  # noqa: ANN401 - pyarrow has no types of its own
        if values.ndim == 1:
            return pa.array(values)
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])

    def group(start: int) -> Any:  # noqa: ANN401 - pyarrow has no types of its own
        rows = slice(start, start + _ROWS_A_GROUP)
        columns = {name: column(values[rows]) for name, values in arrays.items()}
        return pa.table({"id": pa.array(ids[rows], pa.string()), **columns})

    first = group(0)
    schema = first.schema.with_metadata({"about": about.to_json()})
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        writer.write_table(first.cast(schema))
        for start in range(_ROWS_A_GROUP, len(ids), _ROWS_A_GROUP):
            writer.write_table(group(start).cast(schema))


def _write_h5ad(path: Path, embeddings: Embeddings, about: About) -> None:
    try:
        import anndata  # type: ignore[import-untyped]
        import pandas as pd  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise UsageError(f"{path}: .h5ad needs anndata ('pip install anndata').") from error
    ids, arrays = _arrays(embeddings)
    obs = {name.replace("/", "_"): column for name, column in arrays.items() if not name.startswith("embedding/")}
    names = ids if embeddings.level == "sequence" else [f"{name}_{row}" for row, name in enumerate(ids)]
    var = [(_safe(facts.name), number) for facts in about.encoders for number in range(facts.width)]
    made = anndata.AnnData(
        X=embeddings.joined(),
        obs=pd.DataFrame({"id": ids, **obs}, index=pd.Index(names, dtype=str)),
        var=pd.DataFrame(
            {"encoder": [name for name, _ in var], "position": [number for _, number in var]},
            index=pd.Index([f"{name}_{number}" for name, number in var], dtype=str),
        ),
        uns={"about": about.to_json()},
    )
    with atomic_write(path) as temporary:
        made.write_h5ad(temporary)


_WRITERS: dict[str, Callable[[Path, Embeddings, About], None]] = {
    ".h5": _write_h5,
    ".npz": _write_npz,
    ".parquet": _write_parquet,
    ".h5ad": _write_h5ad,
}
FORMATS = tuple(_WRITERS)


def read_embeddings(path: Path) -> tuple[Embeddings, About]:
    """Read a ``.h5`` or ``.npz`` file.

    Raises:
        StoreError: it is missing, damaged, or no such file.
        UsageError: its name ends otherwise.
    """
    if path.suffix == ".h5":
        arrays = store.verify(path, "embeddings", {})
        ids = Ragged(arrays.pop("ids/values"), arrays.pop("ids/offsets")).to_bytes()
        return _read(path, [name.decode() for name in ids], arrays, arrays.pop("about").tobytes())
    if path.suffix != ".npz":
        raise UsageError(f"{path}: embeddings are read from .h5 and .npz files.")
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        return _read(path, arrays.pop("id").tolist(), arrays, str(arrays.pop("about")).encode())
    except OSError as error:
        raise StoreError(path, f"cannot be read ({error})") from error
    except (ValueError, KeyError, EOFError) as error:
        raise StoreError(path, f"is damaged, or no file of embeddings ({error})") from error


def _read(path: Path, ids: list[str], arrays: dict[str, NDArray[Any]], about: bytes) -> tuple[Embeddings, About]:
    try:
        said = json.loads(about)
        if (said["format"], said["version"]) != (FORMAT, VERSION):
            raise StoreError(path, f"has version {said['version']} of {said['format']}; this program reads {VERSION}")
        facts = tuple(EncoderFacts(**each) for each in said["encoders"])
        keys = np.zeros(len(ids), dtype=KEY_DTYPE)
        keys["sequence"] = np.arange(len(ids))
        for name in COLUMNS[said["level"]]:
            keys[name] = arrays[name]
        counts = {each.name: arrays[f"count/{_safe(each.name)}"] for each in facts}
        values = {each.name: arrays[f"embedding/{_safe(each.name)}"] for each in facts}
        return Embeddings(ids, arrays["length"], said["level"], keys, counts, values), About(
            said["level"], said["precision"], facts
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(path, f"is damaged, or no file of embeddings ({error!r})") from error
