"""Reading proteins from FASTA files, plain or gzip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from virnucpro.errors import InputError


def read_proteins(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Id (header up to the first blank) and letters of each record, as they stand.

    Raises:
        InputError: the file cannot be read, or is not FASTA.
    """
    import pysam  # noqa: PLC0415 - not on Windows

    try:
        with pysam.FastxFile(str(path), persist=False) as file:
            num_records = 0
            for record in file:
                num_records += 1
                yield (record.name or "").encode("utf-8", "surrogateescape"), (record.sequence or "").encode("latin-1")
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read as FASTA ({error}).") from error
    if not num_records and path.stat().st_size:
        raise InputError(str(path), "holds no FASTA records.")
