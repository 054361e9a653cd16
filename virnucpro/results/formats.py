"""Result tables as files: TSV, JSON lines or Parquet, with the same columns and the same values.

Cells come as TSV writes them. JSON lines and Parquet read numbers back from that text, so that no format knows a
digit that another does not. They hold Unicode: a byte of a name that is none stands there as a backslash,
``x`` and its two hexadecimal digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol

from virnucpro.errors import UsageError
from virnucpro.results import text
from virnucpro.results.schema import Column, Table
from virnucpro.results.tables import Cells, open_output
from virnucpro.results.text import NOTHING
from virnucpro.run_dir import atomic_write
from virnucpro.sequence.ragged import Ragged
from virnucpro.settings import TableFormat

_GROUP_ROWS = 1 << 16
"""Lines in a row group of a Parquet file, however the run is cut."""


class TableWriter(Protocol):
    """An open table."""

    def write(self, cells: Cells) -> None:
        """Append lines."""


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


@contextmanager
def open_table(path: Path, table: Table, file_format: TableFormat) -> Iterator[TableWriter]:
    """A table at ``path``; in place when the block ends well.

    Raises:
        UsageError: the library of the format is not installed.
    """
    require(file_format)
    if file_format == "parquet":
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            writer = _ParquetWriter(stream, table)
            yield writer
            writer.close()
    elif file_format == "jsonl":
        with open_output(path) as stream:
            yield _JsonLinesWriter(stream, table)
    else:
        with open_output(path, table.header) as stream:
            yield _TsvWriter(stream)


class _TsvWriter:
    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, cells: Cells) -> None:
        self._stream.write(text.lines(cells))


class _JsonLinesWriter:
    def __init__(self, stream: IO[bytes], table: Table) -> None:
        self._stream = stream
        self._columns = table.columns

    def write(self, cells: Cells) -> None:
        names = [column.name for column in self._columns]
        encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        lines = zip(*(_values(*pair) for pair in zip(self._columns, cells, strict=True)), strict=True)
        self._stream.write("".join([encode(dict(zip(names, line, strict=True))) + "\n" for line in lines]).encode())


class _ParquetWriter:
    """Gathers lines into row groups of one size."""

    def __init__(self, stream: IO[bytes], table: Table) -> None:
        self._arrow = import_module("pyarrow")
        types = {"string": self._arrow.string(), "integer": self._arrow.int64(), "number": self._arrow.float64()}
        self._columns = table.columns
        self._schema = self._arrow.schema(
            [
                self._arrow.field(column.name, types[column.type], nullable=column.is_nullable)
                for column in table.columns
            ]
        )
        self._file = import_module("pyarrow.parquet").ParquetWriter(stream, self._schema, compression="zstd")
        self._waiting = self._schema.empty_table()

    def write(self, cells: Cells) -> None:
        pairs = zip(self._schema, self._columns, cells, strict=True)
        arrays = [self._arrow.array(_values(column, values), type=field.type) for field, column, values in pairs]
        lines = self._arrow.Table.from_arrays(arrays, schema=self._schema)
        self._waiting = self._arrow.concat_tables([self._waiting, lines])
        while len(self._waiting) >= _GROUP_ROWS:
            self._write_group(_GROUP_ROWS)

    def close(self) -> None:
        if len(self._waiting):
            self._write_group(len(self._waiting))
        self._file.close()

    def _write_group(self, num_rows: int) -> None:
        # Pages follow chunks: in one chunk the bytes do not depend on the cut into units.
        group = self._waiting.slice(0, num_rows).combine_chunks()
        self._file.write_table(group, row_group_size=_GROUP_ROWS)
        self._waiting = self._waiting.slice(num_rows)


def _values(column: Column, cells: Ragged) -> list[Any]:
    """Cells of a column as JSON and Parquet have them."""
    if column.type == "integer":
        return [int(cell) for cell in cells.to_bytes()]
    if column.type == "number":
        return [None if cell == NOTHING else float(cell) for cell in cells.to_bytes()]
    texts = [cell.decode(errors="backslashreplace") for cell in cells.to_bytes()]
    return [None if text == "NA" else text for text in texts] if column.is_nullable else texts
