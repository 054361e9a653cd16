"""From names to one tree, by asking a resolver for parents; :func:`build_hierarchy` is the way in.

>>> from virnucpro.hierarchy import CallableResolver, build_hierarchy
>>> above = {"Tequatrovirus": "Straboviridae", "Straboviridae": "Caudoviricetes", "Caudoviricetes": None}
>>> tree = build_hierarchy(["Tequatrovirus"], CallableResolver(lambda name: above[name]))
>>> tree.lineage("Tequatrovirus")
['Caudoviricetes', 'Straboviridae', 'Tequatrovirus']
"""

from __future__ import annotations

from virnucpro.hierarchy.build import HierarchyBuilder, build_hierarchy
from virnucpro.hierarchy.cache import AnswerCache
from virnucpro.hierarchy.chat import ChatResolver
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
