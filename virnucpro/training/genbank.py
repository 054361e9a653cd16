"""GenBank records, labelled by their lineage."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.errors import InputError, UsageError
from virnucpro.training.genomes import VIRUS, LabelledRecord, base_codes

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
