"""Who knows the parent of a name: what a resolver must answer, and those made of a function or a table."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

from virnucpro.errors import VirNucProError


class ResolverError(VirNucProError):
    """A resolver did not answer one question; the others go on."""


class UnknownNameError(ResolverError):
    """A resolver does not know the name.

    Args:
        name: the name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(name)

    def __str__(self) -> str:
        return f"{self.name!r} is not known to the resolver."


class BusyError(ResolverError):
    """A resolver could not be reached, or asks to come back later.

    Args:
        problem: what it said.
        retry_after_seconds: when to come back, if it said so.
    """

    def __init__(self, problem: str, retry_after_seconds: float | None = None) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(problem)


class NonsenseError(ResolverError):
    """An answer that cannot be understood."""


class Claim(NamedTuple):
    """That a name lies below ``parent``, and who says so.

    Attributes:
        parent: the name above.
        evidence: why, in a sentence or a reference.
        rank: of the name itself (family, genus, ...); empty where it is not known.
        confidence: 0 to 1.
    """

    parent: str
    evidence: str = ""
    rank: str = ""
    confidence: float = 1.0


Edge = tuple[str, str]
"""A name and its parent."""


@lru_cache(maxsize=1 << 17)
def normalise_name(name: str) -> str:
    """The form in which names are compared: Unicode NFKC, no case, single blanks, no underscores or quotes around.

    >>> normalise_name(" Human_mastadenovirus  C ")
    'human mastadenovirus c'
    """
    plain = unicodedata.normalize("NFKC", name).replace("_", " ")
    return " ".join(plain.casefold().split()).strip("\"'`")


class Resolver:
    """What is asked while a hierarchy is built. Methods are called by several threads at the same time.

    Only ``parents`` must be there. A method may raise :class:`ResolverError` (or anything else) for one question: that
    is recorded, and the rest goes on.
    """

    @property
    def fingerprint(self) -> str:
        """Tells resolvers with other answers apart, in a cache."""
        return type(self).__name__

    def parents(self, name: str) -> Sequence[Claim]:
        """What lies above ``name``: one claim or several; none if it is a root.

        Raises:
            UnknownNameError: the name is not known.
        """
        raise UnknownNameError(name)

    def siblings(self, parent: str) -> Sequence[str]:
        """Names right below ``parent``; those that are asked about are among them."""
        del parent
        return ()

    def accepted(self, names: Sequence[str]) -> Sequence[str]:
        """The accepted name of each; those with the same one are merged."""
        return names

    def evidence(self, edges: Sequence[Edge]) -> Sequence[Claim | None]:
        """For each (name, parent) the parent that it should have and why; None has nothing to add."""
        return [None] * len(edges)


ParentAnswer = Claim | str | Iterable[Claim | str] | None


@dataclass(frozen=True)
class CallableResolver(Resolver):
    """Asks a Python function for parents; who knows more than these writes a :class:`Resolver`.

    Attributes:
        find_parents: from a name to its parent, several, or None for a root; names or :class:`Claim` objects.
        name: tells it apart in a cache.
    """

    find_parents: Callable[[str], ParentAnswer]
    name: str = "callable"

    @property
    def fingerprint(self) -> str:
        """See ``Resolver.fingerprint``."""
        return self.name

    def parents(self, name: str) -> Sequence[Claim]:
        """See ``Resolver.parents``."""
        answer = self.find_parents(name)
        if answer is None or answer == "":
            return ()
        several = [answer] if isinstance(answer, (Claim, str)) else answer
        return [found if isinstance(found, Claim) else Claim(found) for found in several]


@dataclass
class TableResolver(Resolver):
    """Answers from memory.

    Attributes:
        source: what the table was read from, and its digest.
        claims: normalised name to what is said of it; none for a root.
        names: normalised name to its spelling.
        synonyms: normalised other name to the accepted names that it may stand for.
    """

    source: str
    claims: dict[str, list[Claim]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    synonyms: dict[str, list[str]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """See ``Resolver.fingerprint``."""
        return self.source

    def add(self, name: str, claim: Claim | None) -> None:
        """Take in that ``name`` exists and, unless it is a root, what lies above it."""
        key = normalise_name(name)
        self.names.setdefault(key, name)
        claims = self.claims.setdefault(key, [])
        if claim is not None and claim.parent not in [known.parent for known in claims]:
            claims.append(claim)

    def add_synonym(self, other: str, name: str) -> None:
        """Take in that ``other`` is another name of ``name``."""
        accepted = self.synonyms.setdefault(normalise_name(other), [])
        if name not in accepted:
            accepted.append(name)

    def parents(self, name: str) -> Sequence[Claim]:
        """See ``Resolver.parents``; those of a synonym are those of all that it may stand for."""
        key = normalise_name(name)
        if key in self.claims:
            return self.claims[key]
        if key not in self.synonyms:
            raise UnknownNameError(name)
        return [claim for accepted in self.synonyms[key] for claim in self.claims[normalise_name(accepted)]]

    def siblings(self, parent: str) -> Sequence[str]:
        """See ``Resolver.siblings``."""
        return self._children.get(normalise_name(parent), [])

    def accepted(self, names: Sequence[str]) -> Sequence[str]:
        """See ``Resolver.accepted``; a synonym of several stays as it is."""
        return [self._accepted(name) for name in names]

    def _accepted(self, name: str) -> str:
        key = normalise_name(name)
        found = self.synonyms.get(key, [])
        return found[0] if len(found) == 1 and key not in self.claims else self.names.get(key, name)

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {}
        for key, claims in self.claims.items():
            for claim in claims:
                children.setdefault(normalise_name(claim.parent), []).append(self.names[key])
        return children
