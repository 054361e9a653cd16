"""What the result tables hold, column by column.

Names are bytes and are written back as they were read. Coordinates are 1-based and closed. A value
that is not there is ``NA``. Probabilities have four decimals.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles.rules import Rules
from virnucpro.results import schema, text
from virnucpro.results.calls import CALL_NAMES, EVIDENCE_NAMES, FAILED, STATUS_NAMES, Answers, failure, reasons
from virnucpro.results.text import NOTHING
from virnucpro.run_dir import atomic_write
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import FRAME_NAMES

SEQUENCE_COLUMNS = schema.SEQUENCES.header
FRAGMENT_COLUMNS = schema.FRAGMENTS.header
ROW_COLUMNS = schema.ROWS.header

Cells = Sequence[Ragged]
"""The columns of some lines, in the order of the table's schema, as they stand in TSV."""

_GZIP_LEVEL = 1
"""Of ISA-L, which packs as tightly as level 4 of zlib and takes a seventh of the time."""
_GZIP_FORMAT = 16 + zlib.MAX_WBITS
_BLOCK_BYTES = 1 << 20


class Writer(Protocol):
    """What writes into files that it was given a stack to open on."""

    def finish(self) -> None:
        """Write what is still to be written; all has been given."""


AnyWriter = TypeVar("AnyWriter", bound=Writer)


@contextmanager
def opened(make: Callable[[ExitStack], AnyWriter]) -> Iterator[AnyWriter]:
    """A writer whose files take their places when the block ends well; ``make`` opens them on the stack it is given."""
    with ExitStack() as files:
        writer = make(files)
        yield writer
        writer.finish()


@contextmanager
def open_output(path: Path, columns: Sequence[str] = ()) -> Iterator[IO[bytes]]:
    """A file at ``path``, gzip where its name says so, with a header line; in place when the block ends well."""
    with atomic_write(path) as temporary, ExitStack() as stack:
        stream: IO[bytes] = stack.enter_context(temporary.open("wb"))
        if path.suffix == ".gz":
            stream = cast("IO[bytes]", stack.enter_context(closing(_PackedFile(stream))))
        if columns:
            stream.write("\t".join(columns).encode() + b"\n")
        yield stream


class _PackedFile:
    """Gzip in blocks of one size: what ISA-L makes of the same bytes depends on how they come."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        # Its header has no name and no time: the same run gives the same bytes.
        from isal import isal_zlib  # noqa: PLC0415 - only compressed tables need it

        self._compressor = isal_zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_FORMAT)
        self._waiting = bytearray()

    def write(self, content: bytes | memoryview) -> int:
        self._waiting += content
        stop = len(self._waiting) - len(self._waiting) % _BLOCK_BYTES
        with memoryview(self._waiting) as waiting:
            for first in range(0, stop, _BLOCK_BYTES):
                self._stream.write(self._compressor.compress(waiting[first : first + _BLOCK_BYTES]))
        del self._waiting[:stop]
        return len(content)

    def close(self) -> None:
        self._stream.write(self._compressor.compress(self._waiting))
        self._stream.write(self._compressor.flush())


def sequence_cells(
    rules: Rules, names: Ragged, lengths: NDArray[np.int64], sums: NDArray[np.void], answers: Answers
) -> Cells:
    """A line for each sequence, ``schema.SEQUENCES``."""
    is_scored = ~np.isnan(answers.p_virus)
    return (
        names,
        text.integers(lengths),
        text.integers(sums["num_fragments"]),
        text.integers(sums["num_rows"]),
        _words(CALL_NAMES, answers.call),
        text.decimals(answers.p_virus),
        text.decimals(answers.fdr),
        _evidence(is_scored, answers.has_open_frame),
        _top_regions(sums, is_scored),
        _words(STATUS_NAMES, answers.status),
        _reasons(rules, answers.status, sums),
    )


def fragment_cells(
    names: Ragged, fragments: NDArray[np.void], p_virus: NDArray[np.float64], num_open: NDArray[np.int64]
) -> Cells:
    """A line for each fragment, ``schema.FRAGMENTS``; ``names`` are those of their sequences, all arrays (n,)."""
    return (
        names,
        text.integers(fragments["index"] + 1),
        text.integers(fragments["start"] + 1),
        text.integers(fragments["stop"]),
        text.integers(num_open),
        text.decimals(p_virus),
        _evidence(~np.isnan(p_virus), num_open > 0),
    )


def row_names(names: Ragged, rows: NDArray[np.void]) -> Ragged:
    """The published name of each row, ``<id>_chunk_<n><frame>``; ``names`` are those of their sequences."""
    return text.joined(names, b"_chunk_", text.integers(rows["fragment"] + 1), _words(FRAME_NAMES, rows["frame"]))


def row_cells(
    names: Ragged,
    rows: NDArray[np.void],
    nucleotides: Ragged,
    proteins: Ragged,
    scores: NDArray[np.float32],
) -> Cells:
    """A line for each row, ``schema.ROWS``; ``names`` are the published ones."""
    return (
        names,
        _frames(rows),
        text.integers(rows["start"] + 1),
        text.integers(rows["stop"]),
        nucleotides,
        proteins,
        text.decimals(scores[:, 0]),
        text.decimals(scores[:, 1]),
    )


def failed_cells(names: Ragged, rows: NDArray[np.void]) -> Cells:
    """A line for each row, ``schema.FAILED_ROWS``; ``names`` are those of their sequences."""
    return (names, _frames(rows), text.integers(rows["start"] + 1), text.integers(rows["stop"]))


def _words(choices: Mapping[int, str], numbers: NDArray[np.integer]) -> Ragged:
    """The word of each number, which may be negative."""
    lowest = min(choices)
    places = np.zeros(max(choices) - lowest + 1, dtype=np.int64)
    places[np.array(list(choices)) - lowest] = np.arange(len(choices))
    return text.words([word.encode() for word in choices.values()], places[numbers - lowest])


def _frames(rows: NDArray[np.void]) -> Ragged:
    return _words({frame: f"{frame:+d}" if frame else "0" for frame in FRAME_NAMES}, rows["frame"])


def _evidence(scored: NDArray[np.bool_], has_open_frame: NDArray[np.bool_]) -> Ragged:
    choices = [NOTHING, *(name.encode() for name in EVIDENCE_NAMES)]
    return text.words(choices, np.where(scored, 1 + has_open_frame.astype(np.int64), 0))


def _top_regions(sums: NDArray[np.void], scored: NDArray[np.bool_]) -> Ragged:
    """Where the best fragment lies; of a sequence that is one fragment there is nothing to point at."""
    has_choice = scored & (sums["num_fragments"] > 1)
    regions = text.joined(text.integers(sums["top_start"] + 1), b"-", text.integers(sums["top_stop"]))
    return text.joined(text.words([NOTHING, b""], has_choice), regions.keep(has_choice))


def _reasons(rules: Rules, status: NDArray[np.int64], sums: NDArray[np.void]) -> Ragged:
    """Of a status that says it all its own; each sequence with failed rows has one by itself."""
    known = reasons(rules)
    choices = [NOTHING, *known.values()]
    places = np.zeros(len(status), dtype=np.int64)
    for place, number in enumerate(known, 1):
        places[status == number] = place
    for place in np.flatnonzero(status == FAILED).tolist():
        num_failed, num_rows, num_frameless = (
            int(sums[name][place]) for name in ("num_failed", "num_rows", "num_frameless")
        )
        places[place] = len(choices)
        choices.append(failure(num_failed, num_rows + num_frameless))
    return text.words(choices, places)
