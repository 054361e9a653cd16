"""Result tables as files: TSV, JSON lines or Parquet, with the same columns and the same values.

JSON lines and Parquet read their numbers back from the text of the TSV, so that no format knows a digit that another
does not. They hold Unicode: a byte of a name that is not UTF-8 becomes a backslash, ``x`` and its two hexadecimal
digits.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from virnucpro.atomic import atomic_write
from virnucpro.errors import UsageError
from virnucpro.results.schema import Column, Table
from virnucpro.sequence.alignments import BGZF_END
from virnucpro.settings import TableFormat

NOTHING = b"NA"

Cells = Sequence[Sequence[bytes] | NDArray[Any]]
"""The columns of some lines in the order of the table's schema: bytes, whole numbers, or floats that are NaN if there
is no value."""

_GROUP_ROWS = 1 << 16
"""Lines in a row group of a Parquet file, however the run is cut."""
_GZIP_LEVEL = 1
"""Of ISA-L, which compresses as well as level 4 of zlib in a seventh of the time."""
_BLOCK_BYTES = 0xFF00
"""That bgzip packs into a member: it stays below 64 KiB even if nothing gets shorter."""
_BGZF_HEAD = bytes.fromhex("1f8b08040000000000ff060042430200")
_LONGEST_PACKED = (1 << 16) - len(_BGZF_HEAD) - 10
_SHARES = [b"%.4f" % (number / 10_000) for number in range(10_001)] + [NOTHING]
"""All texts of a probability, and of none."""


def require(file_format: TableFormat) -> None:
    """Say early that a format cannot be written.

    Raises:
        UsageError: its library is not installed.
    """
    if file_format == "parquet" and find_spec("pyarrow") is None:
        raise UsageError(
            "--format parquet needs pyarrow, which is not installed: pip install 'virnucpro[parquet]', or choose tsv "
            "or jsonl."
        )


def write_table(path: Path, table: Table, parts: Iterable[Cells], file_format: TableFormat = "tsv") -> None:
    """Write a table, some lines at a time; it is in place when all of them are written.

    Raises:
        UsageError: the library of the format is not installed.
    """
    require(file_format)
    if file_format == "parquet":
        _write_parquet(path, table, parts)
        return
    with open_output(path, table.header if file_format == "tsv" else ()) as stream:
        for cells in parts:
            stream.write((lines if file_format == "tsv" else _json_lines)(cells, table.columns))


def _write_parquet(path: Path, table: Table, parts: Iterable[Cells]) -> None:
    """In row groups of one size."""
    arrow, schema = import_module("pyarrow"), arrow_schema(table)
    open_file = partial(import_module("pyarrow.parquet").ParquetWriter, schema=schema, compression="zstd")
    waiting = schema.empty_table()
    with atomic_write(path) as temporary, temporary.open("wb") as stream, open_file(stream) as file:

        def write_group() -> None:
            # Pages follow chunks: in one chunk the bytes do not depend on the cut into units.
            file.write_table(waiting.slice(0, _GROUP_ROWS).combine_chunks(), row_group_size=_GROUP_ROWS)

        for cells in parts:
            waiting = arrow.concat_tables([waiting, arrow_table(table, cells)])
            while len(waiting) >= _GROUP_ROWS:
                write_group()
                waiting = waiting.slice(_GROUP_ROWS)
        if len(waiting):
            write_group()


@contextmanager
def open_output(path: Path, columns: Sequence[str] = ()) -> Iterator[IO[bytes]]:
    """A file at ``path``, bgzip if its name says so, with a header line; in place when the block ends well."""
    with atomic_write(path) as temporary, ExitStack() as stack:
        stream: IO[bytes] = stack.enter_context(temporary.open("wb"))
        if path.suffix == ".gz":
            stream = cast("IO[bytes]", stack.enter_context(closing(_BgzipFile(stream))))
        if columns:
            stream.write("\t".join(columns).encode() + b"\n")
        yield stream


def lines(cells: Cells, columns: Sequence[Column] = ()) -> bytes:
    """Cells as lines of a TSV.

    Args:
        cells: columns.
        columns: what they are; only needed for numbers with other than four decimals.
    """
    decimals = [column.decimals for column in columns] or [4] * len(cells)
    texts = [_texts(values, places) for values, places in zip(cells, decimals, strict=True)]
    form = b"\t".join(b"%d" if _is_whole(values) else b"%b" for values in cells) + b"\n"
    return b"".join([form % line for line in zip(*texts, strict=True)])


def _json_lines(cells: Cells, columns: Sequence[Column]) -> bytes:
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    names = [column.name for column in columns]
    rows = zip(*(values_of(*pair) for pair in zip(columns, cells, strict=True)), strict=True)
    return "".join([encode(dict(zip(names, row, strict=True))) + "\n" for row in rows]).encode()


def decimals(values: NDArray[np.floating], num_decimals: int = 4) -> list[bytes]:
    """Numbers as text with so many decimals; ``NA`` for NaN."""
    if (
        num_decimals == 4
        and values.dtype == np.float32
        and len(values)
        and 0 <= np.nanmin(values, initial=0) <= np.nanmax(values, initial=0) <= 1
    ):
        # A float32 times ten thousand is exact in 64 bits, so this rounds as printf does.
        places = np.where(np.isnan(values), 10_001, np.rint(np.nan_to_num(values).astype(np.float64) * 10_000))
        return [_SHARES[place] for place in places.astype(np.int64).tolist()]
    return [NOTHING if value != value else b"%.*f" % (num_decimals, value) for value in values.tolist()]  # noqa: PLR0124 - NaN


def _texts(values: Sequence[bytes] | NDArray[Any], num_decimals: int) -> Sequence[Any]:
    if not isinstance(values, np.ndarray):
        return values
    return values.tolist() if _is_whole(values) else decimals(values, num_decimals)


def _is_whole(values: Sequence[bytes] | NDArray[Any]) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind in "iu"


def values_of(column: Column, cells: Sequence[bytes] | NDArray[Any]) -> list[Any]:
    """Cells of a column as JSON, Parquet and pandas have them."""
    texts = _texts(cells, column.decimals)
    if column.type == "integer":
        return [int(cell) for cell in texts]
    if column.type == "number":
        return [None if cell == NOTHING else float(cell) for cell in texts]
    words = [cell.decode(errors="backslashreplace") for cell in texts]
    return [None if word == "NA" else word for word in words] if column.is_nullable else words


class _BgzipFile:
    """Gzip in members of one size that say how long they are, so that samtools and tabix can jump to any of them.

    The format is BGZF (SAM specification, section 4.1). Headers have no name and no time, and blocks do not depend on
    how the bytes come: the same run gives the same bytes.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        from isal import isal_zlib  # noqa: PLC0415 - only compressed tables need it

        self._stream = stream
        self._compress, self._checksum = isal_zlib.compress, isal_zlib.crc32
        self._waiting = bytearray()

    def write(self, content: bytes | memoryview) -> int:
        self._waiting += content
        stop = len(self._waiting) - len(self._waiting) % _BLOCK_BYTES
        with memoryview(self._waiting) as waiting:
            for first in range(0, stop, _BLOCK_BYTES):
                self._write_block(waiting[first : first + _BLOCK_BYTES])
        del self._waiting[:stop]
        return len(content)

    def close(self) -> None:
        if self._waiting:
            self._write_block(memoryview(self._waiting))
        self._stream.write(BGZF_END)

    def _write_block(self, block: memoryview) -> None:
        packed = self._compress(block, _GZIP_LEVEL, -zlib.MAX_WBITS)
        if len(packed) > _LONGEST_PACKED:
            packed = zlib.compress(block, 0, -zlib.MAX_WBITS)  # stored: random bytes only grow
        size = struct.pack("<H", len(_BGZF_HEAD) + len(packed) + 9)  # of the member, less one
        self._stream.write(_BGZF_HEAD + size + packed + struct.pack("<II", self._checksum(block), len(block)))


def arrow_schema(table: Table) -> Any:  # noqa: ANN401 - pyarrow has no types of its own
    """The columns of a table for Arrow."""
    arrow = import_module("pyarrow")
    types = {"string": arrow.string(), "integer": arrow.int64(), "number": arrow.float64()}
    return arrow.schema(
        [arrow.field(column.name, types[column.type], nullable=column.is_nullable) for column in table.columns]
    )


def arrow_table(table: Table, cells: Cells) -> Any:  # noqa: ANN401 - as above
    """Lines as an Arrow table."""
    arrow, schema = import_module("pyarrow"), arrow_schema(table)
    arrays = [
        arrow.array(values_of(column, values), type=item.type)
        for item, column, values in zip(schema, table.columns, cells, strict=True)
    ]
    return arrow.Table.from_arrays(arrays, schema=schema)
