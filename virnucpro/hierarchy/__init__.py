"""From names to one tree, by asking a resolver for parents; :func:`build_hierarchy` is the way in.

>>> from virnucpro.hierarchy import CallableResolver, build_hierarchy
>>> above = {"Tequatrovirus": "Straboviridae", "Straboviridae": "Caudoviricetes", "Caudoviricetes": None}
>>> tree = build_hierarchy(["Tequatrovirus"], CallableResolver(lambda name: above[name]))
>>> tree.lineage("Tequatrovirus")
['Caudoviricetes', 'Straboviridae', 'Tequatrovirus']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virnucpro.hierarchy.build import HierarchyBuilder, build_hierarchy
from virnucpro.hierarchy.cache import AnswerCache
from virnucpro.hierarchy.resolvers import (
    BusyError,
    CallableResolver,
    Claim,
    NonsenseError,
    Resolver,
    ResolverError,
    TableResolver,
    UnknownNameError,
    normalise_name,
)
from virnucpro.hierarchy.tables import read_ictv, read_taxdump, read_tsv
from virnucpro.hierarchy.tree import Decision, Node, Tree, read_tree, write_tree

if TYPE_CHECKING:
    from virnucpro.hierarchy.chat import ChatResolver

__all__ = [
    "AnswerCache",
    "BusyError",
    "CallableResolver",
    "ChatResolver",
    "Claim",
    "Decision",
    "HierarchyBuilder",
    "Node",
    "NonsenseError",
    "Resolver",
    "ResolverError",
    "TableResolver",
    "Tree",
    "UnknownNameError",
    "build_hierarchy",
    "normalise_name",
    "read_ictv",
    "read_taxdump",
    "read_tree",
    "read_tsv",
    "write_tree",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the package's own lazy attribute
    if name == "ChatResolver":  # with its HTTP client, which those who only name lineages do without
        from virnucpro.hierarchy.chat import ChatResolver  # noqa: PLC0415

        return ChatResolver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
