"""Genomes by class and family, in memory as base codes."""

from __future__ import annotations

import csv
import gzip
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.encoders.codons import AMBIGUOUS_BASE, BASE_CODES
from virnucpro.errors import InputError
from virnucpro.sequence.ragged import offsets_of

VIRUS = "virus"
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
class Genomes:
    """Records end to end, each with a class and a group."""

    codes: NDArray[np.uint8]  # (total,) uint8 base codes 0..4
    offsets: NDArray[np.int64]  # (n + 1,) int64
    classes: NDArray[np.str_]  # n class names
    groups: NDArray[np.str_]  # n family (virus) or genus names
    splits: NDArray[np.str_]  # n of ``train``, ``dev``, ``dev_novel``, ``dev_seen``, ``release``
    ids: NDArray[np.str_]  # n record ids

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) bases of each record."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1


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


def load_genomes(folder: Path, part: str) -> Genomes:
    """Read ``<folder>/<part>/<class>.fasta.gz`` and the rows of ``<folder>/manifest.tsv.gz`` that describe them.

    ``<class>_more.fasta.gz`` holds further records of a class. Hosts of another part than ``train`` that are
    ``ONLY_TRAIN`` are left out. Records that are ``are_random`` are named in a warning, and read all the same.

    Args:
        folder: the data folder.
        part: ``train``, ``dev`` or ``release``.

    Raises:
        InputError: a file is missing, or a record is not in the manifest.
    """
    manifest = _read_manifest(folder / "manifest.tsv.gz")
    num_known = 0
    files = sorted((folder / part).glob("*.fasta.gz"))
    if not files:
        raise InputError(str(folder / part), "holds no <class>.fasta.gz; give the folder with train/ and dev/.")
    codes: list[NDArray[np.uint8]] = []
    rows: list[tuple[str, str, str, str]] = []
    for path in files:
        class_name = path.name.removesuffix(".fasta.gz").removesuffix(_MORE)
        for header, bases in read_fasta(path):
            name = header.split()[0]
            if (class_name, name) not in manifest:
                raise InputError(str(path), f"record {name} is not in manifest.tsv.gz.")
            split, group = manifest[class_name, name]
            if part != "train" and class_name != VIRUS and group in ONLY_TRAIN:
                num_known += 1
                continue
            codes.append(BASE_CODES[np.frombuffer(bases, dtype=np.uint8)].astype(np.uint8))
            rows.append((VIRUS, PROPHAGE, split, name) if class_name == PROPHAGE else (class_name, group, split, name))
    if num_known:
        _LOG.info("%s: %d records left out, whose genera train has", folder / part, num_known)
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    lengths = np.array([len(item) for item in codes], dtype=np.int64)
    genomes = Genomes(np.concatenate(codes), offsets_of(lengths), *columns)
    if (random := are_random(genomes)).any():
        names = ", ".join(genomes.ids[random][:5].tolist())
        _LOG.warning(
            "%s: %d records are as good as random letters (%s ...); no genome is", folder / part, random.sum(), names
        )
    return genomes


def are_random(genomes: Genomes) -> NDArray[np.bool_]:
    """(n,) whether the trinucleotides of each record are about as frequent as their letters alone make them.

    The G statistic against independent letters, of 54 degrees of freedom, lies at them for random letters and at many
    times as much for any genome. Records of less than ``LEAST_TESTED_NT`` are not tested.
    """
    found = np.zeros(len(genomes), dtype=np.bool_)
    for record in np.flatnonzero(genomes.lengths >= LEAST_TESTED_NT).tolist():
        codes = genomes.codes[genomes.offsets[record] : genomes.offsets[record + 1]].astype(np.int64)
        numbers = 16 * codes[:-2] + 4 * codes[1:-1] + codes[2:]
        is_clear = np.maximum(np.maximum(codes[:-2], codes[1:-1]), codes[2:]) < AMBIGUOUS_BASE
        counts = np.bincount(numbers[is_clear], minlength=64).reshape(4, 4, 4)
        letters = counts.sum(axis=(1, 2)) / max(counts.sum(), 1)
        expected = counts.sum() * letters[:, None, None] * letters[None, :, None] * letters[None, None, :]
        statistic = 2 * np.sum(counts * np.log((counts + 1e-12) / (expected + 1e-12)))
        found[record] = statistic < _RANDOM_BELOW * _FREEDOM
    return found


def select(genomes: Genomes, keep: Callable[[str, str, str], bool]) -> NDArray[np.int64]:
    """Numbers of the records for which ``keep(class, group, split)`` is true."""
    columns = zip(genomes.classes.tolist(), genomes.groups.tolist(), genomes.splits.tolist(), strict=True)
    return np.flatnonzero(np.array([keep(*row) for row in columns], dtype=bool))


def _read_manifest(path: Path) -> dict[tuple[str, str], tuple[str, str]]:
    if not path.exists():
        raise InputError(str(path), "there is no such file; the data folder needs its manifest.")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return {
            (row["class"], row["id"]): (
                row["split"],
                _ONE_GROUP.get(row["family_or_genus"], row["family_or_genus"]),
            )
            for row in csv.DictReader(lines, delimiter="\t")
        }


def read_fasta(path: Path) -> Iterator[tuple[str, bytes]]:
    """Header and letters of each record, packed with gzip or not.

    Raises:
        InputError: the file cannot be read, or does not begin with a header.
    """
    try:
        whole = path.read_bytes()
        whole = gzip.decompress(whole) if whole[:2] == b"\x1f\x8b" else whole
    except (OSError, EOFError) as error:
        raise InputError(str(path), f"cannot be read ({error}).") from error
    if not whole.lstrip().startswith(b">"):
        raise InputError(str(path), "is not FASTA; GenBank files are given without --labels.")
    for entry in whole.lstrip()[1:].split(b"\n>"):
        header, _, letters = entry.partition(b"\n")
        yield header.decode("utf-8", "replace").strip(), letters.translate(None, b"\r\n \t")
