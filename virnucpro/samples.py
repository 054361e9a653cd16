"""Samples of a run: what is read together and reported together, named on the command line or in a sheet."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virnucpro.errors import InputError, InputsError, UsageError
from virnucpro.stored_json import read_given

SUMMARY_NAME = "samples.tsv"
"""Of the table of all samples."""
_REQUIRED, _OPTIONAL = ("sample", "path"), ("path2",)
_ALSO_CALLED = {"fastq_1": "path", "fastq_2": "path2"}
"""As in the sheets of nf-core."""
_SUFFIXES = (
    *(".gz", ".bz2", ".xz", ".zst", ".bam", ".cram", ".sam"),
    *(".fasta", ".fastq", ".fna", ".ffn", ".fas", ".fa", ".fq"),
)
_LONGEST_NAME_BYTES = 200
_LARGEST_SHEET_BYTES = 1 << 26


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        name: prefix of its result files.
        paths: its file, or the two files of a pair; ``-`` is stdin.
    """

    name: str
    paths: tuple[str] | tuple[str, str]


def samples_of(inputs: Sequence[str | Sample], name: str | None = None) -> tuple[Sample, ...]:
    """A sample for each input; one that is a file is named like it, without the usual endings.

    Args:
        inputs: files, ``-`` for standard input, or samples.
        name: of the only one of them, instead.

    Raises:
        UsageError: two inputs would write the same files, or a name cannot begin those of files.
    """
    if name is not None and len(inputs) != 1:
        raise UsageError(f"--name names one sample, and there are {len(inputs)}. A --samplesheet names several.")
    samples: dict[str, Sample] = {}
    for item in inputs:
        sample = item if isinstance(item, Sample) else Sample(_name_of(item), (item,))
        if name is not None:
            sample = Sample(name, sample.paths)
        if problem := _name_problem(sample.name):
            raise UsageError(f"{problem} Give it another name: --name NAME, or a --samplesheet.")
        key = _folded(sample.name)
        if key in samples:
            first = samples[key].paths[0]
            raise UsageError(
                f"{first} and {sample.paths[0]} would both write {sample.name}.sequences.tsv. "
                "Give each a name in a table: --samplesheet FILE, with the columns sample and path."
            )
        samples[key] = sample
    return tuple(samples.values())


def pairs_of(firsts: Sequence[str], seconds: Sequence[str]) -> tuple[Sample, ...]:
    """A sample for each pair of files, named like what their names have in common.

    Args:
        firsts: files of the first reads (``-1``).
        seconds: files of their mates, in the same order (``-2``).

    Raises:
        UsageError: there are not as many of both, or both are the same file.
    """
    if len(firsts) != len(seconds):
        raise UsageError(f"there are {len(firsts)} files of -1 and {len(seconds)} of -2. Each needs its mate.")
    pairs = []
    for first, second in zip(firsts, seconds, strict=True):
        if _is_same_file(first, second):
            raise UsageError(f"-1 and -2 both name {first}. Name the two files of the pair.")
        pairs.append(Sample(_shared_name(first, second) or _name_of(first), (first, second)))
    return tuple(pairs)


def probable_pairs(inputs: Sequence[str]) -> list[tuple[str, str]]:
    """Inputs that are named as the two files of a pair are."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for path in inputs:
        if (key := _mate_of(path)) is not None:
            found.setdefault((str(Path(path).parent), *key[:-1]), {})[key[-1]] = path
    return [(mates["1"], mates["2"]) for mates in found.values() if len(mates) > 1]


_MATE_NAME = re.compile(r"(.+)[._-](?:([Rr])(?=[12](?:[._-]|$)))?([12])((?(2)(?:[._-].*)?|(?:_001|_val_\3)?))")


def _mate_of(path: str) -> tuple[str, str, str, str] | None:
    """What mates share in their names, and 1 or 2: of ``x_1.fq``, ``x_R2_001.fastq.gz`` and the like."""
    match = _MATE_NAME.fullmatch(_name_of(path))
    return (match[1], match[2], match[4], match[3]) if match else None


def _shared_name(first: str, second: str) -> str:
    one, other = _mate_of(first), _mate_of(second)
    is_pair = one is not None and other is not None and one[:-1] == other[:-1] and one[-1] != other[-1]
    return one[0] if one is not None and is_pair else ""


def read_samplesheet(path: Path) -> tuple[Sample, ...]:
    """The samples of a sheet, in its order.

    A sheet is a table, comma- or tab-separated, with the columns ``sample``, ``path`` and, for pairs,
    ``path2``; the last two may be called ``fastq_1`` and ``fastq_2``, and then other columns are passed over. Paths are
    relative to the sheet. Empty lines and lines that begin with ``#`` are passed over.

    Raises:
        InputError: the sheet cannot be read or followed, with its line; or several files that it names are not there.
    """
    lines = _lines(path)
    if not lines:
        raise InputError(str(path), "is empty. A sample sheet has a line `sample,path` and a line for each sample.")
    number, header = lines[0]
    delimiter = "\t" if "\t" in header else ","
    columns = _columns(path, number, _cells(path, number, header, delimiter))
    lines_of: dict[str, int] = {}
    samples, absent = [], list[InputError]()
    for number, line in lines[1:]:
        cells = _cells(path, number, line, delimiter)
        if len(cells) != len(columns):
            raise InputError(str(path), f"{len(cells)} cells under {len(columns)} columns.", number)
        try:
            sample = _sample(path, number, dict(zip(columns, cells, strict=True)))
        except _AbsentError as error:
            absent.append(error)
            continue
        key = _folded(sample.name)
        if key in lines_of:
            raise InputError(
                str(path), f"sample {sample.name} stands in line {lines_of[key]} too. Give each its own name.", number
            )
        lines_of[key] = number
        samples.append(sample)
    if absent:
        raise absent[0] if len(absent) == 1 else InputsError(absent)
    if not samples:
        raise InputError(str(path), "names no samples. Add a line for each.", lines[0][0])
    return tuple(samples)


def _name_of(source: str) -> str:
    """The name of a file without directories and endings."""
    name = "stdin" if source == "-" else Path(source).name
    while ending := next((end for end in _SUFFIXES if name.lower().endswith(end) and len(name) > len(end)), None):
        name = name[: -len(ending)]
    return name


class _AbsentError(InputError):
    """A file that a sheet names is not there."""


def _folded(name: str) -> str:
    """Equal for names that some file systems take for one: ``A`` and ``a``, and the two ways to write an e acute."""
    return unicodedata.normalize("NFC", name).casefold()


def _is_same_file(first: str, second: str) -> bool:
    """Also by another name: links count as what they lead to."""
    try:
        return Path(first).samefile(second)
    except (OSError, ValueError):
        return first == second  # whoever reads them will say what is wrong


def _lines(path: Path) -> list[tuple[int, str]]:
    """Line numbers and lines, without empty ones and comments."""
    try:
        text = read_given(path, _LARGEST_SHEET_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(str(path), "is not UTF-8. Save the sample sheet as CSV (UTF-8).") from error
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror}). Check its name.") from error
    lines = enumerate(re.split(r"\r\n|\r|\n", text), start=1)
    return [(number, line) for number, line in lines if line.strip() and not line.lstrip().startswith("#")]


def _cells(path: Path, number: int, line: str, delimiter: str) -> list[str]:
    try:
        (cells,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise InputError(str(path), f"is not a line of a table ({error}). Check its quotes.", number) from error
    return [cell.strip() for cell in cells]


def _columns(path: Path, number: int, columns: list[str]) -> list[str]:
    expected = "Name the columns sample, path and, for pairs, path2, separated by commas or tabs."
    columns = [column.lower() for column in columns]
    is_of_pipelines = set(_ALSO_CALLED) <= set(columns)
    columns = [_ALSO_CALLED.get(column, column) for column in columns]
    unknown = [column for column in columns if column not in _REQUIRED + _OPTIONAL]
    if unknown and not is_of_pipelines:
        raise InputError(str(path), f"unknown column {unknown[0]!r}. {expected}", number)
    missing = [column for column in _REQUIRED if column not in columns]
    if missing:
        raise InputError(str(path), f"there is no column {missing[0]}. {expected}", number)
    if len(set(columns)) < len(columns):
        raise InputError(str(path), f"a column stands there twice. {expected}", number)
    return columns


def _sample(sheet: Path, number: int, cells: dict[str, str]) -> Sample:
    name = cells["sample"]
    if problem := _name_problem(name):
        raise InputError(str(sheet), f"{problem} The name begins the names of the sample's result files.", number)
    if not cells["path"]:
        raise InputError(str(sheet), f"sample {name} has no path.", number)
    path = _file(sheet, number, cells["path"])
    if not cells.get("path2"):
        return Sample(name, (path,))
    mate = _file(sheet, number, cells["path2"])
    if _is_same_file(path, mate):
        raise InputError(str(sheet), f"path and path2 of sample {name} are the same file.", number)
    return Sample(name, (path, mate))


def _name_problem(name: str) -> str:
    """Why files, tables or terminals cannot carry the name of a sample; empty where they can."""
    if not name:
        return "the name of a sample is empty."
    if name[0] in "-.":
        return f"the sample name {name!r} begins with {name[0]!r}."
    if "/" in name or "\\" in name or not name.isprintable():
        return f"the sample name {name!r} holds a slash, a control character or is not UTF-8."
    if len(name.encode()) > _LONGEST_NAME_BYTES:
        return (
            f"the sample name {name[:40]}... has {len(name.encode())} bytes; with more than {_LONGEST_NAME_BYTES} "
            "there is no room for the endings of results."
        )
    return ""


def _file(sheet: Path, number: int, name: str) -> str:
    path = sheet.parent / name
    if not os.path.exists(path):  # noqa: PTH110 - a path with a NUL is none, and no error
        raise _AbsentError(str(sheet), f"no such file: {path}. Paths are relative to the sample sheet.", number)
    if path.is_dir():
        raise InputError(str(sheet), f"{path} is a directory. Name a sequence file.", number)
    return str(path)
