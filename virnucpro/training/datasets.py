"""Data sets to train on: a folder with its manifest, FASTA with a table of labels, or GenBank files.

Whatever it comes from, a data set is two sets of records, ``train`` and ``dev``. No genome, no cluster and, but for
viruses of the split ``dev_seen``, no family or genus is on both sides.
"""

from __future__ import annotations

import gzip
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.errors import InputError, UsageError
from virnucpro.training.genomes import VIRUS, Genomes, LabelledRecord, base_codes, load_genomes, read_codes, read_table

SPLITS = ("train", "dev", "dev_novel", "dev_seen")
DEV_SHARE = 0.1
_CLASS_OF_TAXON = {
    "Viruses": VIRUS,
    "Bacteria": "bacteria",
    "Archaea": "archaea",
    "Fungi": "fungi",
    "Viridiplantae": "plant",
    "Vertebrata": "vertebrate",
    "Metazoa": "invertebrate",
    "Eukaryota": "protozoa",
}
"""The first of these taxa that a lineage holds names the class: narrow ones stand before wide ones."""
_ORGANELLES = ("mitochondrion", "chloroplast", "plastid")


@dataclass(frozen=True)
class Dataset:
    """What to train on and what to measure on."""

    train: Genomes  # records of the split ``train``
    dev: Genomes  # all others
    # id of a training record to its annotated proteins; empty where there are no annotations
    proteins: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)


def load_dataset(paths: Sequence[Path], labels: Path | None = None, seed: int = 1) -> Dataset:
    """Read a data set.

    Args:
        paths: one folder with ``train/``, ``dev/`` and ``manifest.tsv.gz``; or FASTA files, which need ``labels``; or
            GenBank files.
        labels: table of the FASTA records, see :func:`read_labels`.
        seed: of the split, where the labels name none.

    Raises:
        InputError: a file cannot be read or contradicts another.
        UsageError: the paths are not of one sort.
    """
    if len(paths) == 1 and paths[0].is_dir():
        if labels is not None:
            raise UsageError("--labels goes with FASTA files; a data folder has its manifest.tsv.gz.")
        return Dataset(load_genomes(paths[0], "train"), load_genomes(paths[0], "dev"))
    folders = [path for path in paths if path.is_dir()]
    if folders:
        raise UsageError(f"{folders[0]}: is a folder; give one folder, or files only.")
    records = _read_files(paths, labels)
    found = sorted({record.label for record in records})
    if VIRUS not in found or len(found) < 2:
        told = ", ".join(found) or "nothing"
        raise InputError(str(paths[0]), f"holds {told}; training needs records labelled virus and records of hosts.")
    if all(record.split for record in records):
        check_splits(records, str(labels or paths[0]))
    else:
        records = assign_splits(records, seed)
    train = [record for record in records if record.split == "train"]
    dev = [record for record in records if record.split != "train"]
    if not (train and dev):
        message = "leaves train or dev without a record; label more groups, or name the splits."
        raise InputError(str(paths[0]), message)
    proteins = {record.name: record.proteins for record in train if record.proteins}
    return Dataset(Genomes.of(train), Genomes.of(dev), proteins)


def load_dev(paths: Sequence[Path], labels: Path | None = None, seed: int = 1) -> Genomes:
    """The dev part alone; of a data folder the train part is not read.

    Raises:
        InputError, UsageError: as :func:`load_dataset`.
    """
    if len(paths) == 1 and paths[0].is_dir() and labels is None:
        return load_genomes(paths[0], "dev")
    return load_dataset(paths, labels, seed).dev


def read_labels(path: Path) -> dict[str, dict[str, str]]:
    """Read the table of labels: tab-separated, a header line, ``id`` and ``label``, optionally more.

    ======= ==========================================================================
    column  what it holds
    ======= ==========================================================================
    id      first word of the record's header
    label   ``virus``, or the class of hosts
    group   family or genus; each record is a group of its own where it is empty
    cluster records alike in sequence
    genome  segments and contigs of one genome
    split   ``train``, ``dev`` (hosts), ``dev_novel`` or ``dev_seen`` (viruses); all or none
    ======= ==========================================================================

    Raises:
        InputError: a column is missing, an id is there twice, or a split is unknown.
    """
    table: dict[str, dict[str, str]] = {}
    for number, row in enumerate(read_table(path, ("id", "label")), 2):
        if not row["label"]:
            raise InputError(str(path), f"{row['id']} has no label.", number)
        if row["id"] in table:
            raise InputError(str(path), f"{row['id']} is there twice.", number)
        if row.get("split") and row["split"] not in SPLITS:
            raise InputError(str(path), f"split {row['split']!r} is none of {', '.join(SPLITS)}.", number)
        table[row["id"]] = row
    if len({bool(row.get("split")) for row in table.values()}) > 1:
        raise InputError(str(path), "names a split for some records only; name it for all, or for none.")
    return table


def assign_splits(records: Sequence[LabelledRecord], seed: int, dev_share: float = DEV_SHARE) -> list[LabelledRecord]:
    """Split whole families, clusters and genomes.

    Of viruses, whole families of about ``dev_share`` of the bases become ``dev_novel``, and of the others clusters of
    about ``dev_share`` become ``dev_seen``. Of each class of hosts, genera of about ``dev_share`` become ``dev``.
    What shares a cluster or a genome stays together, across families too.
    """
    generator = np.random.default_rng([seed, 0x5EED])
    held_out: dict[str, str] = {}

    def hold_out(sets: list[list[LabelledRecord]], label: str, virus_split: str) -> None:
        for record in _take([members for members in sets if _bases(members, label)], label, dev_share, generator):
            held_out[record.name] = virus_split if record.label == VIRUS else "dev"

    families = joined(records, lambda record: (record.group, record.cluster, record.genome))
    for label in sorted({record.label for record in records}):
        left = [members for members in families if members[0].name not in held_out]
        hold_out(left, label, "dev_novel")
    rest = [record for record in records if record.name not in held_out]
    clusters = joined(rest, lambda record: ("", record.cluster, record.genome))
    # A host among them would be in dev with its genus in train.
    viral = [members for members in clusters if all(record.label == VIRUS for record in members)]
    hold_out(viral, VIRUS, "dev_seen")
    return [replace(record, split=held_out.get(record.name, "train")) for record in records]


def check_splits(records: Sequence[LabelledRecord], source: str) -> None:
    """Check splits that the user named against the rule.

    Raises:
        InputError: a genome or cluster, or a family or genus that should be new, is on both sides.
    """
    sides: dict[tuple[str, str], set[bool]] = defaultdict(set)
    for record in records:
        group = "" if record.split == "dev_seen" else record.group
        for key in (("genome", record.genome), ("cluster", record.cluster), ("group", group)):
            sides[key].add(record.split == "train")
    for (what, name), found in sides.items():
        if name and len(found) == 2:
            raise InputError(source, f"{what} {name} is in train and in dev; keep it on one side.")


def joined(
    records: Sequence[LabelledRecord], keys_of: Callable[[LabelledRecord], tuple[str, ...]]
) -> list[list[LabelledRecord]]:
    """Sets of records that share a key, directly or through others; an empty key joins nothing."""
    owner: dict[tuple[int, str], int] = {}
    parents = list(range(len(records)))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    for number, record in enumerate(records):
        for key in enumerate(keys_of(record)):
            if key[1]:
                parents[root(number)] = root(owner.setdefault(key, number))
    sets: dict[int, list[LabelledRecord]] = defaultdict(list)
    for number, record in enumerate(records):
        sets[root(number)].append(record)
    return list(sets.values())


def _take(
    sets: list[list[LabelledRecord]], label: str, share: float, generator: np.random.Generator
) -> list[LabelledRecord]:
    """Random sets that hold about ``share`` of the bases of ``label``: at least one where there are two, never all."""
    bases = np.array([_bases(members, label) for members in sets])
    taken: list[LabelledRecord] = []
    total = 0
    for number in generator.permutation(len(sets))[:-1].tolist():
        if taken and total + bases[number] > 1.5 * share * bases.sum():
            continue
        taken += sets[number]
        total += int(bases[number])
        if total >= share * bases.sum():
            break
    return taken


def _bases(records: Sequence[LabelledRecord], label: str) -> int:
    return sum(len(record.codes) for record in records if record.label == label)


def _read_files(paths: Sequence[Path], labels: Path | None) -> list[LabelledRecord]:
    if labels is None:
        return [record for path in paths for record in read_genbank(path)]
    table = read_labels(labels)
    records: dict[str, LabelledRecord] = {}
    for path in paths:
        for name, codes in read_codes(path):
            if name not in table:
                raise InputError(str(path), f"record {name} is not in {labels}.")
            if name in records:
                raise InputError(str(path), f"record {name} is there twice.")
            row = table[name]
            cluster, genome, split = (row.get(column, "") for column in ("cluster", "genome", "split"))
            records[name] = LabelledRecord(name, codes, row["label"], row.get("group") or name, cluster, genome, split)
    return list(records.values())


def read_genbank(path: Path) -> Iterator[LabelledRecord]:
    """Read labelled records; the genome of a record is its organism.

    Raises:
        InputError: the file is no GenBank, or a lineage tells no class.
        UsageError: Biopython is not installed.
    """
    try:
        from Bio import SeqIO  # noqa: PLC0415 - only GenBank files need it
    except ImportError as error:
        raise UsageError("GenBank files are read by Biopython: install it, or give FASTA and --labels.") from error
    try:
        packed = path.read_bytes()
        text = gzip.decompress(packed).decode() if packed[:2] == b"\x1f\x8b" else packed.decode()
        parsed = list(SeqIO.parse(io.StringIO(text), "genbank"))  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read as GenBank ({error}).") from error
    if not parsed:
        raise InputError(str(path), "holds no GenBank record; FASTA files need --labels.")
    for record in parsed:
        lineage = list(record.annotations.get("taxonomy", []))
        organism = str(record.annotations.get("organism", record.id))
        label = class_of(lineage, _qualifiers(record, "source", "organelle"), _qualifiers(record, "source", "plasmid"))
        if not label:
            told = "; ".join(lineage) or "no lineage"
            raise InputError(str(path), f"{record.id}: its lineage ({told}) tells no class; use FASTA and --labels.")
        yield LabelledRecord(
            record.id,
            base_codes(np.frombuffer(str(record.seq).encode(), dtype=np.uint8)),
            label,
            group_of(label, lineage, organism),
            genome=organism,
            proteins=tuple(text.encode() for text in _qualifiers(record, "CDS", "translation")),
        )


def class_of(lineage: Sequence[str], organelles: Sequence[str] = (), plasmids: Sequence[str] = ()) -> str:
    """The class that a lineage and the qualifiers of the source name; empty where they name none."""
    found = next((kind for taxon, kind in _CLASS_OF_TAXON.items() if taxon in lineage), "")
    if found in ("", VIRUS):
        return found
    if any(word in text for text in organelles for word in _ORGANELLES):
        return "organelle"
    return "plasmid" if plasmids else found


def group_of(label: str, lineage: Sequence[str], organism: str) -> str:
    """Family of a virus (``-viridae``), genus of a host (the first word of the organism where no taxon is it)."""
    if label == VIRUS:
        return next((taxon for taxon in lineage if taxon.endswith("viridae")), organism)
    first = organism.removeprefix("Candidatus ").split()[:1]
    return first[0] if first else organism


def _qualifiers(record: Any, feature_type: str, name: str) -> list[str]:  # noqa: ANN401 - Biopython has no types
    """Values of a qualifier of all features of one type."""
    features = (feature for feature in record.features if feature.type == feature_type)
    return [text for feature in features for text in feature.qualifiers.get(name, [])]
