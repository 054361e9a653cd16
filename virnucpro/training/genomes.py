"""Genomes by class and family, in memory as base codes."""

from __future__ import annotations

import csv
import gzip
import io
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.encoders.codons import AMBIGUOUS_BASE, BASE_CODES
from virnucpro.errors import InputError
from virnucpro.sequence.fasta import SequenceFile
from virnucpro.sequence.ragged import offsets_of

VIRUS = "virus"
LETTERS = np.frombuffer(b"ACGTN", dtype=np.uint8)
"""ASCII letter of each base code."""
_MORE = "_more"
PROPHAGE = "prophage"
"""A class of the manifest that is read as a family of viruses: what was cut out of hosts as nearer to viruses."""
_ONE_GROUP = {"Shigella": "Escherichia"}
"""Genera that are another."""
ONLY_TRAIN = ("Escherichia", "Haloarcula")
"""Genera of hosts that other splits of the data hold too: they stay on one side, that of train."""
LEAST_TESTED_NT = 5000
_FREEDOM = 54  # 63 trinucleotides, less three letters at each of three places
_RANDOM_BELOW = 1.6

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledRecord:
    """A record of a data set."""

    name: str  # its id
    codes: NDArray[np.uint8]  # (length,) uint8 base codes 0..4
    label: str  # ``virus``, or the class of hosts
    group: str  # family of a virus, genus of a host
    cluster: str = ""  # what is alike in sequence; empty where unknown
    genome: str = ""  # what it is a part of; empty where unknown
    split: str = ""  # ``train``, ``dev``, ``dev_novel`` or ``dev_seen``; empty before it is assigned
    proteins: tuple[bytes, ...] = ()  # annotated proteins


@dataclass(frozen=True)
class Genomes:
    """Records end to end, each with a class and a group; iteration gives the base codes of each."""

    codes: NDArray[np.uint8]  # (total,) uint8 base codes 0..4
    offsets: NDArray[np.int64]  # (n + 1,) int64
    classes: NDArray[np.str_]  # n class names
    groups: NDArray[np.str_]  # n family (virus) or genus names
    splits: NDArray[np.str_]  # n of ``train``, ``dev``, ``dev_novel``, ``dev_seen``, ``release``
    ids: NDArray[np.str_]  # n record ids

    @classmethod
    def of(cls, records: Sequence[LabelledRecord]) -> Genomes:
        """Lay one record or more end to end."""
        codes = [record.codes for record in records]
        return cls(
            np.concatenate(codes),
            offsets_of(np.array([len(item) for item in codes], dtype=np.int64)),
            classes=np.array([record.label for record in records]),
            groups=np.array([record.group for record in records]),
            splits=np.array([record.split for record in records]),
            ids=np.array([record.name for record in records]),
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) bases of each record."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, record: int) -> NDArray[np.uint8]:
        return self.codes[self.offsets[record] : self.offsets[record + 1]]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self[record] for record in range(len(self)))


def load_genomes(folder: Path, part: str) -> Genomes:
    """Read ``<folder>/<part>/<class>.fasta.gz`` and the rows of ``<folder>/manifest.tsv.gz`` that describe them.

    ``<class>_more.fasta.gz`` holds further records of a class. Hosts of another part than ``train`` that are
    ``ONLY_TRAIN`` are left out. Records that are as good as random letters are named in a warning, and read all the
    same.

    Args:
        folder: the data folder.
        part: ``train``, ``dev`` or ``release``.

    Raises:
        InputError: a file is missing, or a record is not in the manifest.
    """
    table = read_table(folder / "manifest.tsv.gz", ("class", "id", "split", "family_or_genus"))
    manifest = {(row["class"], row["id"]): row for row in table}
    files = sorted((folder / part).glob("*.fasta.gz"))
    if not files:
        raise InputError(str(folder / part), "holds no <class>.fasta.gz; give the folder with train/ and dev/.")
    records: list[LabelledRecord] = []
    num_known = 0
    for path in files:
        label = path.name.removesuffix(".fasta.gz").removesuffix(_MORE)
        for name, codes in read_codes(path):
            if (label, name) not in manifest:
                raise InputError(str(path), f"record {name} is not in manifest.tsv.gz.")
            row = manifest[label, name]
            group = _ONE_GROUP.get(row["family_or_genus"], row["family_or_genus"])
            if part != "train" and label != VIRUS and group in ONLY_TRAIN:
                num_known += 1
                continue
            kind = (VIRUS, PROPHAGE) if label == PROPHAGE else (label, group)
            records.append(LabelledRecord(name, codes, *kind, split=row["split"]))
    if num_known:
        _LOG.info("%s: %d records left out, whose genera train has", folder / part, num_known)
    if random := [record.name for record in records if is_random(record.codes)]:
        named = ", ".join(random[:5])
        message = "%s: %d records are as good as random letters (%s ...); no genome is"
        _LOG.warning(message, folder / part, len(random), named)
    return Genomes.of(records)


def is_random(codes: NDArray[np.uint8]) -> bool:
    """Whether the trinucleotides of a record are about as frequent as its letters alone make them.

    The G statistic against independent letters, of 54 degrees of freedom, lies at them for random letters and at many
    times as much for any genome. Records of less than ``LEAST_TESTED_NT`` are not tested.
    """
    if len(codes) < LEAST_TESTED_NT:
        return False
    numbers = 16 * codes[:-2].astype(np.int64) + 4 * codes[1:-1] + codes[2:]
    is_clear = np.maximum(np.maximum(codes[:-2], codes[1:-1]), codes[2:]) < AMBIGUOUS_BASE
    counts = np.bincount(numbers[is_clear], minlength=64).reshape(4, 4, 4)
    letters = counts.sum(axis=(1, 2)) / max(counts.sum(), 1)
    expected = counts.sum() * letters[:, None, None] * letters[None, :, None] * letters[None, None, :]
    statistic = 2 * np.sum(counts * np.log((counts + 1e-12) / (expected + 1e-12)))
    return bool(statistic < _RANDOM_BELOW * _FREEDOM)


def read_codes(path: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Name and base codes of each record of a FASTA file, packed or not.

    Raises:
        InputError: it is not, or not only, nucleotide sequences.
    """
    for block in SequenceFile(str(path)).blocks():
        for name, bases in zip(block.names.to_bytes(), block.bases, strict=True):
            yield name.decode("utf-8", "replace"), base_codes(bases)


def base_codes(letters: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Base codes 0..4 of (n,) ASCII letters; any letter but A C G T U is 4."""
    return BASE_CODES[letters].astype(np.uint8)


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a tab-separated table with a header line, packed with gzip or not; a cell that is missing is empty.

    Raises:
        InputError: it cannot be read, or lacks one of the columns.
    """
    try:
        packed = path.read_bytes()
        text = (gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(str(path), f"cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", restval="")
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(str(path), f"has no column {' and '.join(missing)}; the first line names them.")
    return [{name: text.strip() for name, text in row.items() if name} for row in reader]
