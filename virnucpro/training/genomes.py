"""Genomes by class and family, in memory as base codes."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.encoders.codons import BASE_CODES
from virnucpro.errors import InputError
from virnucpro.sequence.ragged import offsets_of

VIRUS = "virus"


@dataclass(frozen=True)
class Genomes:
    """Records end to end, each with a class and a group.

    Attributes:
        codes: (total,) uint8 base codes 0..4.
        offsets: (n + 1,) int64.
        classes: n class names.
        groups: n family (virus) or genus names.
        splits: n of ``train``, ``dev``, ``dev_novel``, ``dev_seen``.
        ids: n record ids.
    """

    codes: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    classes: NDArray[np.str_]
    groups: NDArray[np.str_]
    splits: NDArray[np.str_]
    ids: NDArray[np.str_]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) bases of each record."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1


def load_genomes(folder: Path, part: str) -> Genomes:
    """Read ``<folder>/<part>/<class>.fasta.gz`` and the rows of ``<folder>/manifest.tsv.gz`` that describe them.

    Args:
        folder: the data folder.
        part: ``train`` or ``dev``.

    Raises:
        InputError: a file is missing, or a record is not in the manifest.
    """
    manifest = _read_manifest(folder / "manifest.tsv.gz")
    files = sorted((folder / part).glob("*.fasta.gz"))
    if not files:
        raise InputError(str(folder / part), "holds no <class>.fasta.gz; give the folder with train/ and dev/.")
    codes: list[NDArray[np.uint8]] = []
    rows: list[tuple[str, str, str, str]] = []
    for path in files:
        class_name = path.name.removesuffix(".fasta.gz")
        for name, bases in _read_fasta(path):
            if (class_name, name) not in manifest:
                raise InputError(str(path), f"record {name} is not in manifest.tsv.gz.")
            split, group = manifest[class_name, name]
            codes.append(BASE_CODES[np.frombuffer(bases, dtype=np.uint8)].astype(np.uint8))
            rows.append((class_name, group, split, name))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    lengths = np.array([len(item) for item in codes], dtype=np.int64)
    return Genomes(np.concatenate(codes), offsets_of(lengths), *columns)


def select(genomes: Genomes, keep: Callable[[str, str, str], bool]) -> NDArray[np.int64]:
    """Numbers of the records for which ``keep(class, group, split)`` is true."""
    columns = zip(genomes.classes.tolist(), genomes.groups.tolist(), genomes.splits.tolist(), strict=True)
    return np.flatnonzero(np.array([keep(*row) for row in columns], dtype=bool))


def _read_manifest(path: Path) -> dict[tuple[str, str], tuple[str, str]]:
    if not path.exists():
        raise InputError(str(path), "there is no such file; the data folder needs its manifest.")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return {
            (row["class"], row["id"]): (row["split"], row["family_or_genus"])
            for row in csv.DictReader(lines, delimiter="\t")
        }


def _read_fasta(path: Path) -> Iterator[tuple[str, bytes]]:
    whole = gzip.decompress(path.read_bytes())
    for entry in whole.split(b">")[1:]:
        header, _, sequence = entry.partition(b"\n")
        yield header.split(None, 1)[0].decode(), sequence.translate(None, b"\r\n \t")
