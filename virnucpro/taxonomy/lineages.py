"""Lineages of viruses by ICTV names, and where the groups of a table of proteins belong.

``ictv.tsv`` holds the names from realm to family, each with the name above it, as the ICTV has them in its Master
Species List 39; what a later list splits or merges keeps its old name. It is read and climbed as any table of
``virnucpro.hierarchy``. Groups of a table are names as sources give them: families, higher taxa, ``unclassified
Tymovirales``, or names that were cut off; what none of this fits is no taxon.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from virnucpro.hierarchy.resolvers import Resolver, UnknownNameError, normalise_name
from virnucpro.hierarchy.tables import read_tsv
from virnucpro.taxonomy import RANKS

Lineage = tuple[tuple[str, str], ...]
"""(rank, name) from the top down; ranks that a taxon lacks are left out."""

_FILE = Path(__file__).with_name("ictv.tsv")
_WORD = re.compile(r"[A-Za-z]+(?![A-Za-z])(?!-like)")
"""A whole word, unless ``-like`` follows."""
_SHORTEST_STUB = 4
_MOST_LEVELS = 64


class Names:
    """Names of taxa, looked up in a resolver.

    Args:
        resolver: who knows what lies above a name.
        names: all names, for those that were cut off; empty if such are not expected.
    """

    def __init__(self, resolver: Resolver, names: Iterable[str] = ()) -> None:
        self._resolver = resolver
        self._names = sorted(names)
        self._known: dict[str, Lineage] = {}
        self._groups: dict[str, Lineage] = {}

    def lineage(self, name: str) -> Lineage:
        """The lineage of a taxon, its own name last; empty for a name that is not known.

        Of several parents the first is taken; a circle ends where it closes.
        """
        if name not in self._known:
            self._known[name] = self._climb(name)
        return self._known[name]

    def _climb(self, name: str) -> Lineage:
        (name,) = self._resolver.accepted([name])
        found: list[tuple[str, str]] = []
        seen: set[str] = set()
        while normalise_name(name) not in seen and len(seen) < _MOST_LEVELS:
            seen.add(normalise_name(name))
            try:
                claims = self._resolver.parents(name)
            except UnknownNameError:
                break
            if not claims:
                break
            if claims[0].rank in RANKS:
                found.append((claims[0].rank, name))
            name = claims[0].parent
        return tuple(reversed(found))

    def lineage_of_group(self, group: str) -> Lineage:
        """The lineage of a table's group: of its deepest name that is known, or of what a cut-off name may have been.

        What may have been several names is what these have in common.
        """
        if group not in self._groups:
            self._groups[group] = self._read(group)
        return self._groups[group]

    def _read(self, group: str) -> Lineage:
        words = _WORD.findall(group.replace("_", " "))
        known = max((self.lineage(word) for word in words), key=len, default=())
        if known or len(words) != 1 or len(group) < _SHORTEST_STUB:
            return known
        return common(
            [self.lineage(name) for name in self._names if normalise_name(name).startswith(normalise_name(group))]
        )


def common(lineages: list[Lineage]) -> Lineage:
    """What lineages share from the top."""
    shared: list[tuple[str, str]] = []
    for level in zip(*lineages, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return tuple(shared)


@cache
def ictv() -> Names:
    """The bundled names."""
    table = read_tsv(_FILE)
    return Names(table, [*table.names.values(), *table.synonyms])
