"""Records of one extraction cut again, for a model with other fragments, and only those that it has to look at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from virnucpro.sequence.dedup import SequenceIndex
from virnucpro.sequence.extract import UnitBuilder, describe_records
from virnucpro.sequence.fasta import RecordBlock
from virnucpro.sequence.frames import normalise
from virnucpro.sequence.masks import Masking
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import DECIDED, UnitTable

Choose = Callable[[NDArray[np.void]], NDArray[np.bool_]]
"""Takes (n,) SEQUENCE_DTYPE, the status as the new extraction has it; returns which records to cut."""


def recut(
    tables: Iterable[UnitTable],
    choose: Choose,
    *,
    fragment_length: int,
    masking: Masking,
    unit_rows: int,
    score_frameless: bool,
    input_starts: Collection[int] = (),
    contents: SequenceIndex | None = None,
) -> Iterator[UnitTable]:
    """Units of the same records, with the same numbers, of which only the chosen ones are cut.

    The others keep their number and length and have status ``DECIDED``, no name, no bases and no fragment.

    Args:
        tables: all units of the earlier extraction, in order.
        choose: which records to cut.
        fragment_length: and the rest as of ``UnitBuilder``.
        masking: which fragments say nothing.
        unit_rows: see there.
        score_frameless: see there.
        input_starts: numbers of the records that an input begins with: no unit spans two inputs.
        contents: see there.
    """
    builder = UnitBuilder(fragment_length, unit_rows, score_frameless, contents)
    first_number = 0
    for block in whole_records(tables):
        if first_number in input_starts and not builder.is_empty:
            yield builder.close()
        letters = normalise(block.bases.values)
        sequences, masked = describe_records(block, letters, first_number, fragment_length, masking)
        first_number += len(block)
        chosen = choose(sequences)
        sequences["status"][~chosen] = DECIDED
        kept = RecordBlock(block.names.keep(chosen), block.bases.keep(chosen))
        kept_letters = letters[np.repeat(chosen, block.bases.lengths)]
        num_windows = -(-block.bases.lengths // fragment_length)
        yield from builder.units(kept, sequences, kept_letters, masked[np.repeat(chosen, num_windows)])
    if not builder.is_empty:
        yield builder.close()


def whole_records(tables: Iterable[UnitTable]) -> Iterator[RecordBlock]:
    """The records of all units, in order and as they were read; one that spans several units is joined."""
    name, parts = Ragged.from_bytes([]), list[NDArray[np.uint8]]()  # of the record that the next unit may go on with
    for table in tables:
        num_begun = len(table.sequences)
        goes_on = len(table.pieces) - num_begun
        parts += [table.pieces[piece] for piece in range(goes_on)]
        if not num_begun:
            continue
        last = len(table.pieces) - 1
        if len(name):  # by itself, as it may be the last of its input
            yield RecordBlock(name, *_joined(name, parts))
        if num_begun > 1:
            yield RecordBlock(table.names.slice(0, num_begun - 1), table.pieces.slice(goes_on, last))
        name, parts = table.names.slice(num_begun - 1, num_begun), [table.pieces[last]]
    if len(name):
        yield RecordBlock(name, *_joined(name, parts))


def _joined(name: Ragged, parts: list[NDArray[np.uint8]]) -> list[Ragged]:
    """The bases of the open record as one item, where there is one."""
    if not len(name):
        return []
    values = np.concatenate(parts)
    return [Ragged(values, np.array([0, len(values)]))]
