"""The lines of the result tables.

Names are bytes and are written back as they were read. Coordinates are 1-based and closed. A value
that is not there is ``NA``. Probabilities have four decimals.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles import Bundle
from virnucpro.report.calls import CALL_NAMES, STATUS_NAMES, Answers, reasons
from virnucpro.run_dir import atomic_write
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import FRAME_NAMES

SEQUENCE_COLUMNS = (
    "name", "length", "num_fragments", "num_rows", "call", "p_virus", "evidence", "status", "reason",
)  # fmt: skip
FRAGMENT_COLUMNS = ("name", "fragment", "start", "stop", "num_rows", "p_virus", "evidence")
ROW_COLUMNS = ("name", "frame", "start", "stop", "nucleotide", "protein", "score_other", "score_virus")

_GZIP_LEVEL = 4  # level 6 takes twice the time for 4 % less


@contextmanager
def open_output(path: Path, columns: Sequence[str] = ()) -> Iterator[IO[bytes]]:
    """A file at ``path``, gzip where its name says so, with a header line; in place when the block ends well."""
    with atomic_write(path) as temporary, ExitStack() as stack:
        stream: IO[bytes] = stack.enter_context(temporary.open("wb"))
        if path.suffix == ".gz":
            # No name and no time in the header: the same run gives the same bytes.
            packed = gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=_GZIP_LEVEL, mtime=0)
            stack.callback(packed.close)
            buffered = io.BufferedWriter(packed, 1 << 20)
            stack.callback(buffered.flush)
            stream = buffered
        if columns:
            stream.write("\t".join(columns).encode() + b"\n")
        yield stream


def sequence_lines(
    bundle: Bundle, names: list[bytes], lengths: NDArray[np.int64], sums: NDArray[np.void], answers: Answers
) -> bytes:
    """A line for each sequence."""
    why = reasons(bundle)
    calls = {call: name.encode() for call, name in CALL_NAMES.items()}
    statuses = {status: name.encode() for status, name in STATUS_NAMES.items()}
    columns = zip(
        names,
        lengths.tolist(),
        sums["num_fragments"].tolist(),
        sums["num_rows"].tolist(),
        answers.call.tolist(),
        _probabilities(answers.p_virus),
        _evidence(~np.isnan(answers.p_virus), answers.has_open_frame),
        answers.status.tolist(),
        strict=True,
    )
    return b"".join(
        b"%b\t%d\t%d\t%d\t%b\t%b\t%b\t%b\t%b\n"
        % (name, length, fragments, rows, calls[call], p_virus, evidence, statuses[status], why[status])
        for name, length, fragments, rows, call, p_virus, evidence, status in columns
    )


def fragment_lines(
    names: list[bytes], fragments: NDArray[np.void], p_virus: NDArray[np.float64], num_open: NDArray[np.int64]
) -> bytes:
    """A line for each fragment; ``names`` are those of their sequences, all arrays (n,)."""
    columns = zip(
        names,
        (fragments["index"] + 1).tolist(),
        (fragments["start"] + 1).tolist(),
        fragments["stop"].tolist(),
        num_open.tolist(),
        _probabilities(p_virus),
        _evidence(~np.isnan(p_virus), num_open > 0),
        strict=True,
    )
    return b"".join(b"%b\t%d\t%d\t%d\t%d\t%b\t%b\n" % line for line in columns)


def row_names(names: list[bytes], rows: NDArray[np.void]) -> list[bytes]:
    """The published name of each row, ``<id>_chunk_<n><frame>``; ``names`` are those of their sequences."""
    suffixes = {frame: suffix.encode() for frame, suffix in FRAME_NAMES.items()}
    columns = zip(names, (rows["fragment"] + 1).tolist(), rows["frame"].tolist(), strict=True)
    return [b"%b_chunk_%d%b" % (name, fragment, suffixes[frame]) for name, fragment, frame in columns]


def row_lines(
    names: list[bytes],
    rows: NDArray[np.void],
    nucleotides: Ragged,
    proteins: Ragged,
    scores: NDArray[np.float32],
) -> bytes:
    """A line for each row; ``names`` are the published ones."""
    columns = zip(
        names,
        rows["frame"].tolist(),
        (rows["start"] + 1).tolist(),
        rows["stop"].tolist(),
        nucleotides.to_bytes(),
        proteins.to_bytes(),
        scores[:, 0].tolist(),
        scores[:, 1].tolist(),
        strict=True,
    )
    return b"".join(b"%b\t%+d\t%d\t%d\t%b\t%b\t%.4f\t%.4f\n" % line for line in columns)


def _probabilities(values: NDArray[np.float64]) -> list[bytes]:
    return [b"NA" if value != value else b"%.4f" % value for value in values.tolist()]  # noqa: PLR0124 - NaN


def _evidence(scored: NDArray[np.bool_], has_open_frame: NDArray[np.bool_]) -> list[bytes]:
    choices: NDArray[Any] = np.array([b"NA", b"nucleotide", b"protein+nucleotide"])
    return list(choices[np.where(scored, 1 + has_open_frame.astype(np.int64), 0)].tolist())
