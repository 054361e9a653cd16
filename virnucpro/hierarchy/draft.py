"""A hierarchy while it is built: names and what is said of them, merged and brought into one tree. Asks nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from virnucpro.hierarchy.resolvers import Claim, Edge, normalise_name
from virnucpro.hierarchy.tree import Decision, Node, Tree


class Draft:
    """Names by their normalised form (*key*), with all claims about the parent of each.

    Attributes:
        names: key to spelling.
        claims: key to key of a parent to what is said.
        parents: key to the claim that was chosen; filled by ``choose_parents``.
        decisions: so far.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.claims: dict[str, dict[str, Claim]] = {}
        self.parents: dict[str, Claim] = {}
        self.decisions: list[Decision] = []
        self._status: dict[str, str] = {}
        self._others: dict[str, set[str]] = {}

    def add(self, name: str, status: str) -> None:
        """Take a name in, unless it is there."""
        key = normalise_name(name)
        self.names.setdefault(key, name)
        self._status.setdefault(key, status)

    def claim(self, name: str, claim: Claim) -> None:
        """Take in what is said of a name; of several claims of one parent the most certain counts."""
        _keep_surest(self.claims.setdefault(normalise_name(name), {}), normalise_name(claim.parent), claim)

    def decide(
        self, kind: str, name: str, chosen: str | None = None, rejected: Iterable[str] = (), reason: str = ""
    ) -> None:
        """Record a decision."""
        self.decisions.append(Decision(kind, name, chosen, tuple(rejected), reason))

    def merge(self, accepted: Mapping[str, str]) -> None:
        """Let names be others; what is said of both is kept.

        Args:
            accepted: key to accepted name.
        """
        targets = {key: _followed(key, accepted) for key in self.names}
        spellings = {normalise_name(name): name for name in sorted(accepted.values(), reverse=True)}
        names: dict[str, str] = {}
        status: dict[str, str] = {}
        for key in sorted(self.names, key=lambda key: (targets[key] != key, key)):
            old, target = self.names[key], targets[key]
            names.setdefault(target, spellings.get(target) or self.names[target])
            if old != names[target]:
                self._others.setdefault(target, set()).add(old)
            if target not in status or self._status[key] == "term":
                status[target] = self._status[key]
            if target != key:
                self.decide("merged", old, names[target], reason="the same accepted name")
        claims: dict[str, dict[str, Claim]] = {}
        for key in sorted(self.claims, key=lambda key: (targets[key] != key, key)):
            merged = claims.setdefault(targets[key], {})
            for parent, claim in self.claims[key].items():
                above = targets[parent]
                if above != targets[key]:
                    _keep_surest(merged, above, claim._replace(parent=names[above]))
        self.names, self._status, self.claims = names, status, claims

    def choose_parents(self) -> None:
        """Give each name its best parent that closes no circle."""
        support = Counter(parent for claims in self.claims.values() for parent in claims)
        candidates = sorted(
            (-claim.confidence, self._is_general(parent, claims), -support[parent], key, parent)
            for key, claims in self.claims.items()
            for parent, claim in claims.items()
        )
        above: dict[str, str] = {}  # union-find over the parts of the forest

        def root(key: str) -> str:
            while key in above:
                above[key] = above.get(above[key], above[key])
                key = above[key]
            return key

        for *_, key, parent in candidates:
            claim = self.claims[key][parent]
            if key in self.parents:
                continue
            if root(parent) == key:
                self.decide("circle", self.names[key], rejected=[claim.parent], reason=claim.evidence)
            else:
                self.parents[key] = claim
                above[key] = root(parent)
        for key, chosen in sorted(self.parents.items()):
            rejected = [claim for claim in self.claims[key].values() if claim is not chosen]
            if rejected:
                said = (f"{claim.parent} ({claim.confidence:g}): {claim.evidence}" for claim in (chosen, *rejected))
                names = sorted(claim.parent for claim in rejected)
                self.decide("several_parents", self.names[key], chosen.parent, names, "; ".join(said))

    def _is_general(self, parent: str, claims: Mapping[str, Claim]) -> bool:
        """Whether a parent lies above another one of ``claims``."""
        todo = [other for other in claims if other != parent] if len(claims) > 1 else []
        seen = set(todo)
        while todo:
            above = self.claims.get(todo.pop(), {}).keys() - seen
            if parent in above:
                return True
            seen |= above
            todo += above
        return False

    def follow(self, edge: Edge, claim: Claim) -> None:
        """Take evidence about a chosen edge in; a name is moved where that leaves a tree."""
        key, parent = normalise_name(edge[0]), normalise_name(claim.parent)
        top = parent
        while top != key and top in self.parents:
            top = normalise_name(self.parents[top].parent)
        if parent == normalise_name(edge[1]):
            self.parents[key] = claim
        elif parent not in self.names or top == key:
            problem = "it would close a circle" if parent in self.names else "it is not in the tree"
            self.decide("kept", edge[0], edge[1], [claim.parent], f"{problem}: {claim.evidence}")
        else:
            self.parents[key] = claim
            self.decide("moved", edge[0], claim.parent, [edge[1]], claim.evidence)

    def tree(self) -> Tree:
        """What has been built so far."""
        nodes = {}
        for key, name in sorted(self.names.items(), key=lambda item: item[1]):
            claim = self.parents.get(key, Claim(""))
            ranks = [said.rank for said in (claim, *self.claims.get(key, {}).values()) if said.rank]
            nodes[name] = Node(
                name=name,
                parent=self.names[normalise_name(claim.parent)] if claim.parent else None,
                rank=ranks[0] if ranks else "",
                status=self._status[key],
                evidence=claim.evidence,
                confidence=claim.confidence,
                other_names=tuple(sorted(self._others.get(key, set()) - {name})),
            )
        return Tree(nodes, tuple(self.decisions))


def _keep_surest(claims: dict[str, Claim], parent: str, claim: Claim) -> None:
    known = claims.get(parent)
    if known is None or (claim.confidence, claim.rank != "") > (known.confidence, known.rank != ""):
        claims[parent] = claim


def _followed(key: str, accepted: Mapping[str, str]) -> str:
    """The key that a name ends at when its accepted name has an accepted name, and so on."""
    seen = {key}
    while key in accepted:
        key = normalise_name(accepted[key])
        if key in seen:
            return min(seen)
        seen.add(key)
    return key
