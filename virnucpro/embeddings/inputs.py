"""Sequences as they come: a file, a mapping, records of other libraries, an iterator."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from virnucpro.embeddings.loader import Alphabet
from virnucpro.embeddings.validation import ModelValidationError, check_text
from virnucpro.errors import InputError
from virnucpro.sequence.proteins import read_proteins

Sequences = str | os.PathLike[str] | Mapping[str, Any] | Iterable[Any]
"""A path; a mapping of ids to sequences; records of Biopython, pysam, scikit-bio or dnaio; (id, sequence) pairs; plain
sequences, which are called by their number."""

_PROTEIN_ONLY = frozenset("EFILPQZJOefilpqzjo")
_LOOKED_AT = 100
"""Records by which the alphabet of a file is told."""


def as_records(sequences: Mapping[str, Any] | Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Id and sequence of each record, in order.

    Raises:
        ModelValidationError: an item is no record.
    """
    items = sequences.items() if isinstance(sequences, Mapping) else sequences
    for number, item in enumerate(items):
        yield _as_record(number, item)


def _as_record(number: int, item: Any) -> tuple[str, str]:  # noqa: ANN401 - of whatever library
    if isinstance(item, (str, bytes)):
        return str(number), _text(item)
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return str(item[0]), _text(item[1])
    metadata = getattr(item, "metadata", None)
    if isinstance(metadata, Mapping) and "id" in metadata:  # scikit-bio
        return str(metadata["id"]), str(item)
    for name, sequence in (("id", "seq"), ("name", "sequence"), ("query_name", "query_sequence")):
        if hasattr(item, name) and hasattr(item, sequence):  # Biopython; dnaio and pysam's FASTA; pysam's alignments
            identity = str(getattr(item, name))
            return next(iter(identity.split()), str(number)), _text(getattr(item, sequence))
    raise ModelValidationError(f"item {number + 1} is no sequence record ({type(item).__name__}).")


def _text(sequence: Any) -> str:  # noqa: ANN401 - of whatever library
    if sequence is None:
        return ""
    return sequence.decode("ascii", errors="replace") if isinstance(sequence, bytes) else str(sequence)


def checked_records(records: Iterable[tuple[str, str]], alphabet: Alphabet) -> Iterator[tuple[str, str]]:
    """The same records in upper case; empty sequences stay.

    Raises:
        ModelValidationError: a sequence holds letters outside the alphabet; its id is said.
    """
    for name, sequence in records:
        try:
            yield name, check_text(sequence, alphabet) if sequence else ""
        except ModelValidationError as error:
            raise ModelValidationError(f"{name}: {error}") from error


def alphabet_of(path: Path) -> Alphabet:
    """Whether a FASTA file holds proteins, by the letters of its first records; all else is taken for nucleotides.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            begin = stream.read(1)
    except OSError as error:
        raise InputError(str(path), f"{error.strerror}.") from error
    if begin not in (b">", b"\x1f", b"\n", b";"):
        return "nt"
    for number, (_, protein) in enumerate(read_proteins(path)):
        if not _PROTEIN_ONLY.isdisjoint(protein.decode("latin-1")):
            return "aa"
        if number == _LOOKED_AT:
            break
    return "nt"


def protein_records(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Names and upper-case sequences of a FASTA file of proteins; a stop at the end is left out.

    Raises:
        InputError: it cannot be read, or a sequence holds other letters.
    """
    for name, protein in read_proteins(path):
        text = protein.decode("latin-1").removesuffix("*")
        try:
            yield name, check_text(text, "aa").encode() if text else b""
        except ModelValidationError as error:
            raise InputError(str(path), f"{name.decode(errors='backslashreplace')}: {error}") from error
