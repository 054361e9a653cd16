"""What to cite. ``CITATION.cff`` is the one source; it lies beside the package or in its installed metadata."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from virnucpro.errors import VirNucProError

_BIBTEX_NAMES = {"journal": "journal", "volume": "volume", "issue": "number", "pages": "pages", "doi": "doi"}
_BIBTEX_ESCAPES = str.maketrans({letter: f"\\{letter}" for letter in "&%$#_{}"})

ENCODER_NAMES = {"esm2": "ESM-2", "dnabert_s": "DNABERT-S"}
"""Kinds of encoders that have a publication of their own, and the ``abbreviation`` of that publication."""


@dataclass(frozen=True)
class Reference:
    """A work to cite, as in the Citation File Format."""

    abbreviation: str  # what it is known by in this program; empty for the method
    title: str  # of the work
    authors: tuple[tuple[str, str], ...]  # (family name, given names); the given names are empty for a group
    year: str = ""  # of publication; empty for the software
    journal: str = ""  # where it appeared; empty for the software
    volume: str = ""  # of the journal
    issue: str = ""  # of the journal
    pages: str = ""  # first and last page, or the article's number
    doi: str = ""  # without ``https://doi.org/``
    version: str = ""  # of the software

    @property
    def key(self) -> str:
        """Its name in BibTeX."""
        return f"{self.authors[0][0].split()[-1].lower()}{self.year}" if self.year else self.title.lower()

    @property
    def short(self) -> str:
        """Author and year, as in a running text."""
        more = " et al." if len(self.authors) > 1 else ""
        return f"{self.authors[0][0]}{more}, {self.year}"

    @property
    def text(self) -> str:
        """One entry of a list of references."""
        authors = ", ".join(f"{family} {_initials(given)}".strip() for family, given in self.authors)
        if not self.journal:
            return f"{authors}. {self.title}, version {self.version}."
        issue = f"({self.issue})" if self.issue else ""
        place = f" {self.volume}{issue}: {self.pages.replace('--', '-')}" if self.volume else ""
        doi = f" doi:{self.doi}" if self.doi else ""
        return f"{authors} ({self.year}). {self.title}. {self.journal}{place}.{doi}"

    @property
    def bibtex(self) -> str:
        """A BibTeX entry."""
        authors = " and ".join(f"{family}, {given}" if given else f"{{{family}}}" for family, given in self.authors)
        fields = {"author": authors, "title": f"{{{self.title.translate(_BIBTEX_ESCAPES)}}}"}
        fields |= {
            name: getattr(self, attribute).translate(_BIBTEX_ESCAPES) for attribute, name in _BIBTEX_NAMES.items()
        }
        fields |= {"year": self.year, "note": f"version {self.version}" if self.version else ""}
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
        return "\n".join([f"@{'article' if self.journal else 'misc'}{{{self.key},", *lines, "}"])


@dataclass(frozen=True)
class Citation:
    """All there is to cite."""

    software: Reference  # this program
    method: Reference  # the published method that it implements
    encoders: tuple[Reference, ...]  # publications of the encoders of the published models

    def of_encoders(self, kinds: Collection[str]) -> tuple[Reference, ...]:
        """The publications of encoders of these kinds."""
        names = {ENCODER_NAMES[kind] for kind in kinds if kind in ENCODER_NAMES}
        return tuple(encoder for encoder in self.encoders if encoder.abbreviation in names)


def read_cff() -> str:
    """The text of ``CITATION.cff``.

    Raises:
        VirNucProError: the installation lacks it.
    """
    name = "CITATION.cff"
    beside = Path(__file__).parents[1] / name  # in a checkout; a wheel has it among its licence files
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    text = metadata.distribution("virnucpro").read_text(f"licenses/{name}")
    if text is None:
        raise VirNucProError(f"{name} is not among the installed files. Reinstall VirNucPro.")
    return text


def parse_cff(text: str) -> Citation:
    """What a ``CITATION.cff`` says."""
    content = yaml.safe_load(text)
    return Citation(
        software=_reference(content),
        method=_reference(content["preferred-citation"]),
        encoders=tuple(_reference(entry) for entry in content.get("references", ())),
    )


def methods_sentence(citation: Citation, *, version: str, model: str, kinds: Collection[str], rule: str) -> str:
    """A sentence for a Methods section.

    Args:
        citation: what to cite.
        version: of this program.
        model: what was used, such as ``the bundled model lite``.
        kinds: of its encoders.
        rule: when a sequence was called viral, as the end of a sentence.
    """
    encoders = " and ".join(f"{encoder.abbreviation} ({encoder.short})" for encoder in citation.of_encoders(kinds))
    using = f", which embeds fragments with {encoders}" if encoders else ""
    return (
        f"Viral sequences were identified with {citation.software.title} {version} "
        f"({citation.method.short}) and {model}{using}; {rule}."
    )


def _reference(entry: dict[str, Any]) -> Reference:
    pages = [str(entry[name]) for name in ("start", "end") if name in entry]
    plain = {name: str(entry.get(name, "")) for name in ("year", "journal", "volume", "issue", "doi", "version")}
    return Reference(
        abbreviation=entry.get("abbreviation", ""),
        title=entry["title"],
        authors=tuple(
            (author.get("name") or author["family-names"], author.get("given-names", "")) for author in entry["authors"]
        ),
        pages="--".join(pages),
        **plain,
    )


def _initials(given: str) -> str:
    return "".join(part[0] for part in given.replace("-", " ").split())
