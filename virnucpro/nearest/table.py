"""The table of proteins: masked residues, and whose they are.

The file is a Zstandard frame of NumPy's ``.npz``, read without pickle: ``residues`` (codes, a break after each
protein), ``lengths`` of the proteins, ``organisms`` (number of each protein's organism), ``groups`` (number of each
organism's group, -1 for what is left out), ``viral`` and ``classes`` of the groups, and the three lists of names as
UTF-8, one a line.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import ModelError
from virnucpro.nearest.residues import BREAK, CODES, MASKED, mask
from virnucpro.sequence.ragged import Ragged, offsets_of

if TYPE_CHECKING:
    from zstandard import ZstdDecompressionReader

_NO_GROUP = -1
"""Of the organism whose proteins are left out."""
_LEVEL = 3
"""Higher ones look for repeats, of which proteins have none: larger files, and slower to read."""
_ZIP_HEAD = struct.Struct("<14xI8xHH")
"""Of a member of a ZIP file: CRC-32, and the lengths of its name and of its extra field."""


@dataclass(frozen=True)
class Table:
    """Proteins of viruses and of cells.

    Attributes:
        residues: (total,) uint8 codes, masked, with one break before the first protein and one after each.
        starts: (n + 1,) int64, where each protein begins; the last one is the end.
        organisms: (n,) int32, number of the organism of each protein.
        groups: (organisms,) int32, number of the group of each organism; -1 of the one whose proteins are left out.
        viral: (groups,) whether each group is one of viruses.
        organism_names: of the organisms.
        group_names: families of viruses, genera of cells.
        group_classes: what the groups are (``virus``, ``bacteria`` ...).
    """

    residues: NDArray[np.uint8]
    starts: NDArray[np.int64]
    organisms: NDArray[np.int32]
    groups: NDArray[np.int32]
    viral: NDArray[np.bool_]
    organism_names: list[str]
    group_names: list[str]
    group_classes: list[str]

    def __len__(self) -> int:
        return len(self.organisms)

    @property
    def num_residues(self) -> int:
        """Residues of all proteins, masked ones too."""
        return len(self.residues) - len(self) - 1

    @cached_property
    def group_of_protein(self) -> NDArray[np.int32]:
        """(n,) number of the group of each protein."""
        return np.asarray(self.groups[self.organisms], dtype=np.int32)

    @cached_property
    def is_viral(self) -> NDArray[np.bool_]:
        """(n,) whether each protein is a virus's."""
        return np.asarray(self.viral[self.group_of_protein])

    def describe(self, protein: int) -> tuple[str, str, str]:
        """Organism, group and class of a protein; three empty strings for -1, which is none."""
        if protein < 0:
            return "", "", ""
        organism = self.organisms[protein]
        group = self.groups[organism]
        return self.organism_names[organism], self.group_names[group], self.group_classes[group]

    def only(self, kept: NDArray[np.bool_]) -> Table:
        """The same with the proteins that are ``kept`` (n,)."""
        lengths = np.diff(self.starts) - 1
        inside = np.concatenate([[True], np.repeat(kept, lengths + 1)])
        starts = 1 + offsets_of(lengths[kept] + 1)
        return Table(
            self.residues[inside],
            starts,
            self.organisms[kept],
            self.groups,
            self.viral,
            self.organism_names,
            self.group_names,
            self.group_classes,
        )

    @property
    def proteins(self) -> Ragged:
        """Residue codes of the n proteins, each with the break after it."""
        return Ragged(self.residues[1:], self.starts - 1)

    def without(self, left_out: NDArray[np.bool_]) -> Table:
        """The same, where proteins that are ``left_out`` (n,) match nothing.

        They keep their numbers, and a file its residues: only the short list of organisms changes.
        """
        residues = self.residues.copy()
        _hide(residues, self.starts, left_out)
        return replace(
            self,
            residues=residues,
            organisms=np.where(left_out, len(self.groups), self.organisms).astype(np.int32),
            groups=np.append(self.groups, np.int32(_NO_GROUP)),
            organism_names=[*self.organism_names, ""],
        )

    def save(self, path: Path) -> None:
        """Write the file."""
        content = io.BytesIO()
        np.savez(
            content,
            residues=self.residues[1:],
            lengths=(np.diff(self.starts) - 1).astype(np.uint32),
            organisms=self.organisms,
            groups=self.groups,
            viral=self.viral,
            organism_names=_packed(self.organism_names),
            group_names=_packed(self.group_names),
            classes=_packed(self.group_classes),
        )
        import zstandard  # noqa: PLC0415 - only tables of proteins need it

        path.write_bytes(zstandard.ZstdCompressor(level=_LEVEL).compress(content.getvalue()))


def _hide(residues: NDArray[np.uint8], starts: NDArray[np.int64], hidden: NDArray[np.bool_]) -> None:
    """Mask proteins in place."""
    for protein in np.flatnonzero(hidden).tolist():
        residues[starts[protein] : starts[protein + 1] - 1] = MASKED


def with_breaks(codes: Ragged) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Items of residue codes end to end, a break before the first and after each; and (n + 1,) where each begins."""
    starts = 1 + offsets_of(codes.lengths + 1)
    residues = np.full(starts[-1], BREAK, dtype=np.uint8)
    is_inside = np.ones(len(residues), dtype=np.bool_)
    is_inside[starts - 1] = False
    residues[is_inside] = codes.values[codes.offsets[0] : codes.offsets[-1]]
    return residues, starts


def make_table(proteins: Ragged, organisms: Sequence[tuple[str, str, str]]) -> Table:
    """A table of proteins.

    Args:
        proteins: n of them, ASCII.
        organisms: organism, group and class of each; the class ``virus`` is that of viruses.
    """
    residues, starts = with_breaks(Ragged(CODES[proteins.values], proteins.offsets))
    mask(residues)
    groups = {group: i for i, group in enumerate(sorted({(kind, name) for _, name, kind in organisms}))}
    names = {name: i for i, name in enumerate(sorted(set(organisms)))}
    return Table(
        residues,
        starts,
        np.array([names[organism] for organism in organisms], dtype=np.int32),
        np.array([groups[kind, group] for _, group, kind in names], dtype=np.int32),
        np.array([kind == "virus" for kind, _ in groups], dtype=np.bool_),
        [name for name, _, _ in names],
        [name for _, name in groups],
        [kind for kind, _ in groups],
    )


def load_table(path: Path) -> Table:
    """Read a table; the last one that was read is kept, for the same file is asked for by each stage.

    Raises:
        ModelError: the file is missing, damaged or no table.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ModelError(f"{path}: there is no such table of proteins. Get the model again.") from error
    return _load(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)
def _load(path: Path, _mtime_ns: int, _size: int) -> Table:
    import zstandard  # noqa: PLC0415 - only tables of proteins need it

    try:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_size=1 << 20) as content:
            members = dict(_read_members(content))
        lengths = members["lengths"][1:].astype(np.int64)
        residues = members["residues"]
        residues[0] = BREAK
        organisms, groups, viral, *names = (
            members[name][1:] for name in ("organisms", "groups", "viral", "organism_names", "group_names", "classes")
        )
        table = Table(residues, 1 + offsets_of(lengths + 1), organisms, groups, viral, *map(_unpacked, names))
    except (OSError, zstandard.ZstdError, KeyError, ValueError, EOFError, struct.error) as error:
        raise ModelError(f"{path}: not a readable table of proteins ({error}). Get the file again.") from error
    if table.starts[-1] != len(table.residues) or len(lengths) != len(table):
        raise ModelError(f"{path}: the table of proteins is not whole. Get the file again.")
    _hide(table.residues, table.starts, table.group_of_protein == _NO_GROUP)
    return table


def _read_members(content: ZstdDecompressionReader) -> Iterator[tuple[str, NDArray[Any]]]:
    """Names and items of the one-dimensional arrays of an ``.npz``, each with room for one more before it.

    NumPy reads them by way of a copy, which takes as long as all the rest.

    Raises:
        EOFError, ValueError, struct.error: this is not, or no longer, what was written.
    """
    while (head := content.read(_ZIP_HEAD.size))[:4] == b"PK\3\4":
        crc, name_bytes, extra_bytes = _ZIP_HEAD.unpack(head)
        name = content.read(name_bytes).decode().removesuffix(".npy")
        content.read(extra_bytes)
        start = content.read(10)  # of the .npy: magic, version, length of the rest of its header
        header = start + content.read(int.from_bytes(start[8:], "little"))
        (count,), _, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header[8:]))
        if dtype.hasobject:
            raise ValueError(f"{name} holds objects")
        items = np.empty(count + 1, dtype)
        data = items.data.cast("B")[dtype.itemsize :]
        if content.readinto(data) != len(data):
            raise EOFError(f"{name} is cut off")
        if zlib.crc32(data, zlib.crc32(header)) != crc:
            raise ValueError(f"{name} is damaged")
        yield name, items


def _packed(names: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(names).encode(), dtype=np.uint8)


def _unpacked(names: NDArray[np.uint8]) -> list[str]:
    return names.tobytes().decode().split("\n")
