"""From leaves to roots, level by level, all questions of a level at the same time.

1. *climb*: all terms are asked for their parents, then all parents that are new, and so on to the roots.
2. *siblings*: all parents are asked for the names right below them.
3. *reorganise*: names are asked for their accepted names, in batches; those with the same one are merged. Then each
   name gets one parent: claims are taken by confidence; a parent below another one comes before it; then by how many
   names share the parent, then by the alphabet. One that would close a circle is left out.
4. *evidence*: edges are shown to the resolver, in batches; it may add evidence, or move a name below another one. Where
   a batch fails its edges stay as they are.

The result does not depend on the order of the terms, nor on how many questions are asked at the same time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, Unpack

from virnucpro.errors import UsageError, VirNucProError
from virnucpro.hierarchy.cache import AnswerCache
from virnucpro.hierarchy.draft import Draft
from virnucpro.hierarchy.resolvers import (
    Claim,
    Edge,
    NonsenseError,
    Resolver,
    ResolverError,
    UnknownNameError,
    normalise_name,
)
from virnucpro.hierarchy.tree import Tree
from virnucpro.parallel import CallCancelledError, CallOptions, chunk_list, run_levels, run_parallel

_LOG = logging.getLogger(__name__)
_LONGEST_NAME = 1000
_LISTED_CONFIDENCE = 0.5
"""Of a parent that lists a name: what the name itself says of its parent counts for more."""

Answer = TypeVar("Answer")
Question = TypeVar("Question")


class _HasIsSet(Protocol):
    def is_set(self) -> bool: ...


class _Stop:
    """Set by the user, or by an error that all further questions would meet."""

    def __init__(self, asked: _HasIsSet | None) -> None:
        self._asked = asked
        self.error: VirNucProError | None = None

    def is_set(self) -> bool:
        return self.error is not None or (self._asked is not None and self._asked.is_set())


class HierarchyBuilder:
    """Builds one tree, step by step; :func:`build_hierarchy` takes all steps.

    Args:
        terms: names to begin with; case, underscores and blanks make no difference.
        resolver: who is asked.
        cache: where answers are kept; None keeps none.
        max_concurrent: questions at the same time.
        batch_size: names in a question about many.
        max_levels: most levels to climb.
        max_siblings: most names below one parent that are taken in.
        desc: name of the progress bars; None draws none.
        **options: retry, rate limit, progress and cancel, see :class:`~virnucpro.parallel.CallOptions`.

    Raises:
        UsageError: no terms, or one that is empty or longer than 1,000 letters.
    """

    def __init__(
        self,
        terms: Iterable[str],
        resolver: Resolver,
        *,
        cache: AnswerCache | None = None,
        max_concurrent: int = 8,
        batch_size: int = 20,
        max_levels: int = 64,
        max_siblings: int = 100,
        desc: str | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        self._resolver, self._cache = resolver, cache
        self._fingerprint = resolver.fingerprint if cache is not None else ""
        self._max_concurrent, self._batch_size = max_concurrent, batch_size
        self._max_levels, self._max_siblings, self._desc = max_levels, max_siblings, desc
        self._stop = _Stop(options.get("cancel"))
        self._options: CallOptions = {**options, "cancel": self._stop}
        self._lock = threading.Lock()
        self._terms = [_clean_term(number, term) for number, term in enumerate(terms, start=1)]
        if not self._terms:
            raise UsageError("no terms: give at least one name.")
        self._draft, self._num_answers = Draft(), 0
        for term in sorted(self._terms, key=lambda term: (normalise_name(term), term)):
            self._draft.add(term, "term")

    def climb(self) -> None:
        """Ask for parents, level by level."""
        answers: dict[str, list[Claim]] = {}

        def ask(name: str) -> list[str]:
            claims = self._known("parent", name, _claims_from_json)
            if claims is None:
                claims = _checked_claims(self._resolver.parents(name))
                self._keep("parent", name, [_to_json(claim) for claim in claims])
            answers[name] = claims
            return [claim.parent for claim in claims]

        with self._timed("climb"):
            levels = run_levels(
                sorted(self._draft.names.values(), key=normalise_name),
                self._guarded(ask),
                self._max_concurrent,
                self._desc and f"{self._desc}: level",
                key=normalise_name,
                max_levels=self._max_levels,
                return_exceptions=True,
                **self._options,
            )
        for level in levels:
            for name, found in level.items():
                if isinstance(found, Exception):
                    self._note_failure(name, found)
                for claim in answers.get(name, ()):
                    self._draft.add(claim.parent, "ancestor")
                    self._draft.claim(name, claim)
        asked = {normalise_name(name) for level in levels for name in level}
        for key in sorted(self._draft.names.keys() - asked):
            self._draft.decide(
                "too_deep", self._draft.names[key], reason=f"more than {self._max_levels} levels above the terms"
            )

    def find_siblings(self) -> None:
        """Ask all parents for the names right below them."""
        parents = sorted({parent for claims in self._draft.claims.values() for parent in claims})

        def ask(name: str) -> list[str]:
            names = self._known("siblings", name, _names_from_json)
            if names is None:
                names = _checked_names(self._resolver.siblings(name))
                self._keep("siblings", name, names)
            return names

        for name, found in self._ask("siblings", [self._draft.names[key] for key in parents], ask):
            if isinstance(found, Exception):
                self._note_failure(name, found)
                continue
            by_key = {normalise_name(sibling): sibling for sibling in sorted(found, reverse=True)}
            for key in sorted(by_key)[: self._max_siblings]:
                self._draft.add(by_key[key], "sibling")
                self._draft.claim(by_key[key], Claim(name, f"listed below {name}", confidence=_LISTED_CONFIDENCE))
            if len(by_key) > self._max_siblings:
                self._draft.decide(
                    "cut", name, reason=f"{len(by_key):,} names lie below it, {self._max_siblings} are taken"
                )

    def reorganise(self) -> None:
        """Merge names with the same accepted name, then choose one parent for each."""
        self._draft.merge(self._accepted_names())
        self._draft.choose_parents()

    def add_evidence(self) -> None:
        """Show all edges to the resolver, in batches."""
        edges = [(self._draft.names[key], claim.parent) for key, claim in sorted(self._draft.parents.items())]

        def ask(batch: Sequence[Edge]) -> list[Claim | None]:
            found = list(self._resolver.evidence(batch))
            if len(found) != len(batch):
                raise NonsenseError(f"{len(batch)} edges, and evidence for {len(found)}.")
            claims = [None if claim is None else _checked_claims([claim])[0] for claim in found]
            for edge, claim in zip(batch, claims, strict=True):
                self._keep("evidence", "|".join(edge), [] if claim is None else [_to_json(claim)])
            return claims

        known = {edge: self._known("evidence", "|".join(edge), _claims_from_json) for edge in edges}
        asked = chunk_list([edge for edge in edges if known[edge] is None], self._batch_size)
        new: dict[Edge, Claim | Exception | None] = {}
        for batch, found in self._ask("evidence", asked, ask):
            answers = [found] * len(batch) if isinstance(found, Exception) else found
            new.update(zip(batch, answers, strict=True))
        for edge in edges:
            kept = known[edge]
            answer = new.get(edge) if kept is None else next(iter(kept), None)
            if isinstance(answer, Exception):
                self._draft.decide("kept", edge[0], edge[1], reason=f"its batch failed: {answer}")
            elif answer is not None:
                self._draft.follow(edge, answer)

    def tree(self) -> Tree:
        """What was built."""
        return self._draft.tree()

    def _note_failure(self, name: str, error: Exception) -> None:
        kind = "unknown" if isinstance(error, UnknownNameError) else "failed"
        self._draft.decide(kind, name, reason=str(error) or type(error).__name__)

    def _accepted_names(self) -> dict[str, str]:
        """Key to accepted name, of all names that have another one than their own."""

        def ask(batch: Sequence[str]) -> list[str]:
            found = _checked_names(self._resolver.accepted(batch))
            if len(found) != len(batch):
                raise NonsenseError(f"{len(batch)} names, and {len(found)} accepted names.")
            for name, accepted in zip(batch, found, strict=True):
                self._keep("accepted", name, accepted)
            return found

        names = sorted(self._draft.names.values(), key=normalise_name)
        known = {name: self._known("accepted", name, _name_from_json) for name in names}
        asked = chunk_list([name for name in names if known[name] is None], self._batch_size)
        for batch, found in self._ask("reorganise", asked, ask):
            if isinstance(found, Exception):
                for name in batch:
                    self._draft.decide("kept", name, name, reason=f"its batch failed: {found}")
            else:
                known.update(zip(batch, found, strict=True))
        return {normalise_name(name): accepted for name, accepted in known.items() if accepted and accepted != name}

    def _ask(
        self, step: str, questions: list[Question], ask: Callable[[Question], Answer]
    ) -> list[tuple[Question, Answer | Exception]]:
        """Ask all questions of a step at the same time."""
        with self._timed(step):
            desc = self._desc and f"{self._desc}: {step}"
            answers = run_parallel(
                questions, self._guarded(ask), self._max_concurrent, desc, return_exceptions=True, **self._options
            )
        return list(zip(questions, answers, strict=True))

    def _guarded(self, ask: Callable[[Question], Answer]) -> Callable[[Question], Answer]:
        """The same question; an error of ours that is not about it alone ends the step."""

        def asked(question: Question) -> Answer:
            try:
                answer = ask(question)
            except VirNucProError as error:
                if not isinstance(error, ResolverError):
                    self._stop.error = error
                raise
            with self._lock:
                self._num_answers += 1
            return answer

        return asked

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        """Say how long a step took; what ended it early is raised."""
        begun = time.monotonic()
        yield
        if self._stop.error is not None:
            raise self._stop.error
        if self._stop.is_set():
            raise CallCancelledError(self._num_answers, len(self._draft.names))
        _LOG.info("%s: %s names, %.2f s", step, f"{len(self._draft.names):,}", time.monotonic() - begun)

    def _known(self, kind: str, name: str, read: Callable[[Any], Answer]) -> Answer | None:
        stored = self._cache.get(self._fingerprint, kind, name) if self._cache is not None else None
        try:
            return None if stored is None else read(stored)
        except (ResolverError, TypeError, ValueError):  # not what was written: asked again
            return None

    def _keep(self, kind: str, name: str, answer: object) -> None:
        if self._cache is not None:
            self._cache.put(self._fingerprint, kind, name, answer)


def build_hierarchy(
    terms: Iterable[str],
    resolver: Resolver,
    *,
    with_siblings: bool = False,
    with_evidence: bool = False,
    cache: AnswerCache | None = None,
    max_concurrent: int = 8,
    batch_size: int = 20,
    max_levels: int = 64,
    max_siblings: int = 100,
    desc: str | None = None,
    **options: Unpack[CallOptions],
) -> Tree:
    """Build a tree over ``terms``; see :class:`HierarchyBuilder` for the arguments.

    Args:
        terms: names to begin with.
        resolver: who is asked.
        with_siblings: also take in the names right below each parent.
        with_evidence: show all edges to the resolver at the end.
        cache: where answers are kept.
        max_concurrent: questions at the same time.
        batch_size: names in a question about many.
        max_levels: most levels to climb.
        max_siblings: most names below one parent that are taken in.
        desc: name of the progress bars.
        **options: see :class:`~virnucpro.parallel.CallOptions`.

    Raises:
        UsageError: no terms, an empty one, or a resolver that refuses to work at all.
        CallCancelledError: it was cancelled; what was answered is in the cache.
    """
    builder = HierarchyBuilder(
        terms,
        resolver,
        cache=cache,
        max_concurrent=max_concurrent,
        batch_size=batch_size,
        max_levels=max_levels,
        max_siblings=max_siblings,
        desc=desc,
        **options,
    )
    builder.climb()
    if with_siblings:
        builder.find_siblings()
    builder.reorganise()
    if with_evidence:
        builder.add_evidence()
    return builder.tree()


def _clean_term(number: int, term: str) -> str:
    if not isinstance(term, str) or not normalise_name(term):
        raise UsageError(f"term {number} is empty." if isinstance(term, str) else f"term {number} is not text.")
    if len(term) > _LONGEST_NAME:
        raise UsageError(f"term {number} has {len(term):,} letters; a name has at most {_LONGEST_NAME:,}.")
    return " ".join(term.split())


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not normalise_name(name) or len(name) > _LONGEST_NAME:
        raise NonsenseError(f"expected a name, got {name!r:.60}.")
    return " ".join(name.split())


def _checked_names(names: Iterable[object]) -> list[str]:
    return [_checked_name(name) for name in names]


def _checked_claims(claims: Iterable[Claim]) -> list[Claim]:
    checked = []
    for claim in claims:
        if not 0 <= float(claim.confidence) <= 1:
            raise NonsenseError(f"a confidence of {claim.confidence!r}; expected 0 to 1.")
        checked.append(Claim(_checked_name(claim.parent), str(claim.evidence), str(claim.rank), claim.confidence))
    return checked


def _to_json(claim: Claim) -> list[object]:
    return [claim.parent, claim.evidence, claim.rank, claim.confidence]


def _claims_from_json(stored: Any) -> list[Claim]:  # noqa: ANN401 - whatever the file holds
    return _checked_claims([Claim(*fields) for fields in stored])


def _names_from_json(stored: Any) -> list[str]:  # noqa: ANN401 - whatever the file holds
    if not isinstance(stored, list):
        raise TypeError
    return _checked_names(stored)


def _name_from_json(stored: Any) -> str:  # noqa: ANN401 - whatever the file holds
    return _checked_name(stored)
