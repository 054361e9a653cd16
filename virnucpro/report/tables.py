"""What the result tables hold, column by column.

Names are bytes and are written back as they were read. Coordinates are 1-based and closed. A value
that is not there is ``NA``. Probabilities have four decimals.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles.rules import Rules
from virnucpro.report import schema
from virnucpro.report.calls import CALL_NAMES, EVIDENCE_NAMES, FAILED, STATUS_NAMES, Answers, failure, reasons
from virnucpro.run_dir import atomic_write
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import FRAME_NAMES

SEQUENCE_COLUMNS = schema.SEQUENCES.header
FRAGMENT_COLUMNS = schema.FRAGMENTS.header
ROW_COLUMNS = schema.ROWS.header

Cells = Sequence[Sequence[bytes | int]]
"""The columns of some lines, in the order of the table's schema: text as it stands in TSV, or numbers."""

NOTHING = b"NA"

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


def sequence_cells(
    rules: Rules, names: list[bytes], lengths: NDArray[np.int64], sums: NDArray[np.void], answers: Answers
) -> Cells:
    """A line for each sequence, ``schema.SEQUENCES``."""
    return (
        names,
        lengths.tolist(),
        sums["num_fragments"].tolist(),
        sums["num_rows"].tolist(),
        _words(CALL_NAMES, answers.call),
        _decimals(answers.p_virus),
        _decimals(answers.fdr),
        _evidence(~np.isnan(answers.p_virus), answers.has_open_frame),
        _top_regions(sums, ~np.isnan(answers.p_virus)),
        _words(STATUS_NAMES, answers.status),
        _reasons(rules, answers.status, sums),
    )


def fragment_cells(
    names: list[bytes], fragments: NDArray[np.void], p_virus: NDArray[np.float64], num_open: NDArray[np.int64]
) -> Cells:
    """A line for each fragment, ``schema.FRAGMENTS``; ``names`` are those of their sequences, all arrays (n,)."""
    return (
        names,
        (fragments["index"] + 1).tolist(),
        (fragments["start"] + 1).tolist(),
        fragments["stop"].tolist(),
        num_open.tolist(),
        _decimals(p_virus),
        _evidence(~np.isnan(p_virus), num_open > 0),
    )


def row_names(names: list[bytes], rows: NDArray[np.void]) -> list[bytes]:
    """The published name of each row, ``<id>_chunk_<n><frame>``; ``names`` are those of their sequences."""
    suffixes = {frame: suffix.encode() for frame, suffix in FRAME_NAMES.items()}
    columns = zip(names, (rows["fragment"] + 1).tolist(), rows["frame"].tolist(), strict=True)
    return [b"%b_chunk_%d%b" % (name, fragment, suffixes[frame]) for name, fragment, frame in columns]


def row_cells(
    names: list[bytes],
    rows: NDArray[np.void],
    nucleotides: Ragged,
    proteins: Ragged,
    scores: NDArray[np.float32],
) -> Cells:
    """A line for each row, ``schema.ROWS``; ``names`` are the published ones."""
    return (
        names,
        _frames(rows),
        (rows["start"] + 1).tolist(),
        rows["stop"].tolist(),
        nucleotides.to_bytes(),
        proteins.to_bytes(),
        _decimals(scores[:, 0]),
        _decimals(scores[:, 1]),
    )


def failed_cells(names: list[bytes], rows: NDArray[np.void]) -> Cells:
    """A line for each row, ``schema.FAILED_ROWS``; ``names`` are those of their sequences."""
    return (names, _frames(rows), (rows["start"] + 1).tolist(), rows["stop"].tolist())


def _decimals(values: NDArray[np.floating]) -> list[bytes]:
    return [NOTHING if value != value else b"%.4f" % value for value in values.tolist()]  # noqa: PLR0124 - NaN


def _words(words: Mapping[int, str], numbers: NDArray[np.int64]) -> list[bytes]:
    choices = {number: word.encode() for number, word in words.items()}
    return [choices[number] for number in numbers.tolist()]


def _frames(rows: NDArray[np.void]) -> list[bytes]:
    texts = {frame: b"%+d" % frame if frame else b"0" for frame in FRAME_NAMES}
    return [texts[frame] for frame in rows["frame"].tolist()]


def _evidence(scored: NDArray[np.bool_], has_open_frame: NDArray[np.bool_]) -> list[bytes]:
    words = {0: NOTHING.decode(), **dict(enumerate(EVIDENCE_NAMES, 1))}
    return _words(words, np.where(scored, 1 + has_open_frame.astype(np.int64), 0))


def _top_regions(sums: NDArray[np.void], scored: NDArray[np.bool_]) -> list[bytes]:
    """Where the best fragment lies; of a sequence that is one fragment there is nothing to point at."""
    columns = zip(
        (scored & (sums["num_fragments"] > 1)).tolist(),
        (sums["top_start"] + 1).tolist(),
        sums["top_stop"].tolist(),
        strict=True,
    )
    return [b"%d-%d" % (start, stop) if has_choice else NOTHING for has_choice, start, stop in columns]


def _reasons(rules: Rules, status: NDArray[np.int64], sums: NDArray[np.void]) -> list[bytes]:
    why = reasons(rules)
    texts = [why.get(number, NOTHING) for number in status.tolist()]
    for place in np.flatnonzero(status == FAILED).tolist():
        num_failed, num_rows, num_frameless = (
            int(sums[name][place]) for name in ("num_failed", "num_rows", "num_frameless")
        )
        texts[place] = failure(num_failed, num_rows + num_frameless)
    return texts
