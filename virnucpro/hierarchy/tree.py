"""The tree that comes out, and its files.

``.json`` holds everything (``read_tree`` reads it again); ``.tsv`` a line a name; ``.nwk`` (Newick) the names alone.
With the last two, decisions go to a second file, ``<stem>.decisions.tsv``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from virnucpro.atomic import atomic_write, read_json, write_json
from virnucpro.errors import UsageError
from virnucpro.hierarchy.resolvers import normalise_name

FORMATS = (".json", ".tsv", ".nwk")


@dataclass(frozen=True)
class Node:
    """One name.

    Attributes:
        name: in its accepted spelling.
        parent: None for a root.
        rank: empty where it is not known.
        status: ``term`` (asked for), ``ancestor`` or ``sibling`` (found below a parent).
        evidence: for the parent.
        confidence: in the parent, 0 to 1.
        other_names: names that were merged into this one, sorted.
    """

    name: str
    parent: str | None
    rank: str = ""
    status: str = "term"
    evidence: str = ""
    confidence: float = 1.0
    other_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """Something that was not plain, and what was made of it.

    Attributes:
        kind: ``unknown`` (no resolver knows the name: it is a root), ``failed`` (a question was not answered),
            ``several_parents``, ``circle`` (a parent that lies below the name), ``merged``, ``moved`` (evidence speaks
            for another parent), ``kept`` (the evidence of a batch failed, or cannot be followed), ``cut`` (siblings
            beyond the most), ``too_deep``.
        name: that it is about.
        chosen: the parent or name that was chosen, if any.
        rejected: the others.
        reason: evidence or error.
    """

    kind: str
    name: str
    chosen: str | None = None
    rejected: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class _Stored:
    """A tree as JSON."""

    format: Literal["virnucpro hierarchy"]
    version: Literal[1]
    nodes: list[Node]
    decisions: list[Decision]


@dataclass(frozen=True)
class Tree:
    """Names, each below at most one other; several roots are possible.

    Attributes:
        nodes: name to node, in alphabetical order.
        decisions: in the order of the steps, then of the names.
    """

    nodes: dict[str, Node]
    decisions: tuple[Decision, ...] = ()

    @property
    def roots(self) -> list[str]:
        """Names without a parent."""
        return [node.name for node in self.nodes.values() if node.parent is None]

    def find(self, name: str) -> Node:
        """The node of a name, in any spelling or under a name that was merged.

        Raises:
            UsageError: there is none.
        """
        try:
            return self.nodes[self._spellings[normalise_name(name)]]
        except KeyError:
            raise UsageError(f"{name!r} is not in the tree.") from None

    def lineage(self, name: str) -> list[str]:
        """Names from the root to ``name``."""
        node = self.find(name)
        names = [node.name]
        while node.parent is not None:
            node = self.nodes[node.parent]
            names.append(node.name)
        return names[::-1]

    def children(self, name: str | None) -> list[str]:
        """Names right below ``name``; the roots for None."""
        return self._children.get(name, [])

    def walk(self) -> Iterator[tuple[int, Node]]:
        """Depth and node, parents before their children, in alphabetical order."""
        todo = [(0, name) for name in reversed(self.children(None))]
        while todo:
            depth, name = todo.pop()
            yield depth, self.nodes[name]
            todo += [(depth + 1, child) for child in reversed(self.children(name))]

    @cached_property
    def _children(self) -> dict[str | None, list[str]]:
        children: dict[str | None, list[str]] = {}
        for node in self.nodes.values():
            children.setdefault(node.parent, []).append(node.name)
        return children

    @cached_property
    def _spellings(self) -> dict[str, str]:
        others = {normalise_name(other): node.name for node in self.nodes.values() for other in node.other_names}
        return others | {normalise_name(name): name for name in self.nodes}

    def newick(self) -> str:
        """In Newick format, internal nodes named; several roots lie below one without a name."""
        texts: dict[str, str] = {}
        for _, node in reversed(list(self.walk())):
            below = [texts.pop(child) for child in self.children(node.name)]
            texts[node.name] = (f"({','.join(below)})" if below else "") + _quoted(node.name)
        roots = [texts[root] for root in self.roots]
        return (roots[0] if len(roots) == 1 else f"({','.join(roots)})") + ";\n"


def _quoted(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"


def check_format(path: Path) -> None:
    """Refuse a file name that names no format.

    Raises:
        UsageError: with the ones that there are.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: the name of a tree ends with one of {', '.join(FORMATS)}.")


def write_tree(tree: Tree, path: Path) -> list[Path]:
    """Write a tree in the format that the name of the file says; returns the files written.

    Raises:
        UsageError: the name ends with no known format.
        DiskFullError: no space is left.
    """
    check_format(path)
    if path.suffix == ".json":
        write_json(path, asdict(_Stored("virnucpro hierarchy", 1, [*tree.nodes.values()], [*tree.decisions])))
        return [path]
    columns = ("depth", "name", "parent", "rank", "status", "confidence", "evidence", "other_names")
    text = tree.newick() if path.suffix == ".nwk" else _table(columns, (_cells(*each) for each in tree.walk()))
    decisions = path.with_suffix(".decisions.tsv")
    lines = ((d.kind, d.name, d.chosen or "", "; ".join(d.rejected), d.reason) for d in tree.decisions)
    written = {path: text, decisions: _table(("kind", "name", "chosen", "rejected", "reason"), lines)}
    for place, content in written.items():
        with atomic_write(place) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return [*written]


def _cells(depth: int, node: Node) -> tuple[object, ...]:
    others = "; ".join(node.other_names)
    return depth, node.name, node.parent or "", node.rank, node.status, f"{node.confidence:g}", node.evidence, others


def _table(columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerows([columns, *([" ".join(str(cell).split()) for cell in row] for row in rows)])
    return text.getvalue()


def read_tree(path: Path) -> Tree:
    """Read a tree from its ``.json`` file.

    Raises:
        StoreError: it is missing, damaged or of another version.
    """
    stored = read_json(path, _Stored)
    return Tree({node.name: node for node in stored.nodes}, tuple(stored.decisions))
