"""The two files of paired reads: all records of the first, then all of the second, checked to be mates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import InputError
from virnucpro.sequence.dedup import hash_strings
from virnucpro.sequence.fasta import RecordBlock, SequenceFile
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.streams import shown

_ADVICE = "Both must hold the same reads in the same order (`seqkit pair` makes them so)."
_MATE_ENDINGS = {number: re.compile(rb"[/._:#-][Rr]?%d$" % number) for number in (1, 2)}
"""What tells mates apart: ``/1``, ``.1`` (SRA), ``_1``, ``.R1`` and the like."""


def pair_blocks(first: SequenceFile, second: SequenceFile) -> Iterator[RecordBlock]:
    """All records of the first file, then all of the second; their names end in ``/1`` and ``/2``.

    Raises:
        InputError: the files do not hold mates, one for one, in the same order.
    """
    digests: list[NDArray[np.uint32]] = []
    for block in first.blocks():
        _refuse_alignments(first)
        digests.append(_mate_digests(block.names, 1))
        yield replace(block, names=_named_mates(block.names, b"/1"))
    expected = np.concatenate(digests) if digests else np.empty((0, 2), dtype=np.uint32)
    num_read = 0
    for block in second.blocks():
        _refuse_alignments(second)
        names = _named_mates(block.names, b"/2")
        found = _mate_digests(block.names, 2)
        _check_mates(found, expected[num_read : num_read + len(found)], block.names, num_read, first, second)
        num_read += len(found)
        yield replace(block, names=names)
    if num_read < len(expected):
        raise InputError(
            shown(second.source),
            f"holds {num_read:,} records, and {shown(first.source)}, the other file of the pair, {len(expected):,}. "
            f"{_ADVICE}",
        )


def _refuse_alignments(file: SequenceFile) -> None:
    if file.format in ("bam", "cram", "sam"):
        raise InputError(
            shown(file.source),
            f"is {file.format.upper()} and given as one file of a pair. Give it alone: it tells mates apart itself.",
        )


def _named_mates(names: Ragged, ending: bytes) -> Ragged:
    """The names, told apart by ``/1`` or ``/2``."""
    return Ragged.from_bytes(name.removesuffix(ending) + ending for name in names.to_bytes())


def _mate_digests(names: Ragged, number: int) -> NDArray[np.uint32]:
    """(n, 2) four bytes of the name without what makes it that of mate ``number``, and of the whole name.

    Mates share one or the other: ``r.1`` may be read 1 of both files, or the first mate of read r. A name that says
    ``/1`` or ``/2`` is never the name of both. Files that do not match differ in more records than may fall together.
    """
    whole = names.to_bytes()
    ids = [_MATE_ENDINGS[number].sub(b"", name) for name in whole]
    plain = [name + b"/%d" % number if name.endswith((b"/1", b"/2")) else name for name in whole]
    return np.column_stack([_short_digests(ids), _short_digests(plain)])


def _short_digests(ids: list[bytes]) -> NDArray[np.uint32]:
    return hash_strings(ids)[:, 0].astype(np.uint32)


def _check_mates(
    found: NDArray[np.uint32],
    expected: NDArray[np.uint32],
    names: Ragged,
    num_before: int,
    first: SequenceFile,
    second: SequenceFile,
) -> None:
    """Refuse a record of the second file that is not the mate of the same record of the first."""
    differs = np.flatnonzero((found[: len(expected)] != expected).all(axis=1))
    if len(differs):
        at = int(differs[0])
        name = names[at].tobytes().decode(errors="backslashreplace")
        raise InputError(
            shown(second.source),
            f"record {num_before + at + 1:,}, {name}, has another id than record {num_before + at + 1:,} of "
            f"{shown(first.source)}, the other file of the pair. {_ADVICE}",
        )
    if len(found) > len(expected):
        raise InputError(
            shown(second.source),
            f"holds more records than {shown(first.source)}, the other file of the pair, which ends after "
            f"{num_before + len(expected):,}. {_ADVICE}",
        )
