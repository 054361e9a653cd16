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
from typing import Any, TypeVar, Unpack

from virnucpro.errors import UsageError, VirNucProError
from virnucpro.hierarchy.cache import AnswerCache
from virnucpro.hierarchy.draft import Draft
from virnucpro.hierarchy.resolvers import (
    Claim,
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


class BuildOptions(CallOptions, total=False):
    """How a hierarchy is built; each may be left out. Retry, rate limit, progress and cancel are ``CallOptions``.

    Attributes:
        cache: where answers are kept; by default nowhere.
        max_concurrent: questions at the same time, 8.
        batch_size: names in a question about many, 20.
        max_levels: most levels to climb, 64.
        max_siblings: most names below one parent that are taken in, 100.
        desc: name of the progress bars; by default none are drawn.
    """

    cache: AnswerCache | None
    max_concurrent: int
    batch_size: int
    max_levels: int
    max_siblings: int
    desc: str | None


def build_hierarchy(
    terms: Iterable[str],
    resolver: Resolver,
    *,
    with_siblings: bool = False,
    with_evidence: bool = False,
    **options: Unpack[BuildOptions],
) -> Tree:
    """Build a tree over ``terms``.

    Args:
        terms: names to begin with; case, underscores and blanks make no difference.
        resolver: who is asked.
        with_siblings: also take in the names right below each parent.
        with_evidence: show all edges to the resolver at the end.
        **options: see :class:`BuildOptions`.

    Raises:
        UsageError: no terms, an empty one, one of more than 1,000 letters, or a resolver that refuses to work at all.
        CallCancelledError: ``cancel`` was set. Answers so far are in the cache.
    """
    builder = HierarchyBuilder(terms, resolver, **options)
    builder.climb()
    if with_siblings:
        builder.find_siblings()
    builder.reorganise()
    if with_evidence:
        builder.add_evidence()
    return builder.tree()


class _Stop:
    """Set by the user, or by an error that all further questions would meet."""

    def __init__(self, is_asked: Callable[[], bool]) -> None:
        self._is_asked = is_asked
        self.error: VirNucProError | None = None

    def is_set(self) -> bool:
        return self.error is not None or self._is_asked()


class HierarchyBuilder:
    """Builds one tree, step by step; see :func:`build_hierarchy`, which takes all steps, for arguments and errors."""

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
        cancel = options.get("cancel")
        self._stop = _Stop(cancel.is_set if cancel is not None else lambda: False)
        self._options: CallOptions = {**options, "cancel": self._stop}
        self._lock = threading.Lock()
        self._draft, self._num_answers = Draft(), 0
        names = [_clean_term(number, term) for number, term in enumerate(terms, start=1)]
        if not names:
            raise UsageError("no terms: give at least one name.")
        for name in sorted(names, key=lambda name: (normalise_name(name), name)):
            self._draft.add(name, "term")

    def climb(self) -> None:
        """Ask for parents, level by level."""
        answers: dict[str, list[Claim]] = {}

        def ask(name: str) -> list[str]:
            answers[name] = self._answer("parent", name, _checked_claims, self._resolver.parents)
            return [claim.parent for claim in answers[name]]

        with self._timed("climb"):
            levels = run_levels(
                self._names(),
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
            return self._answer("siblings", name, _checked_names, self._resolver.siblings)

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
        """Ask for accepted names, merge names that have the same one, then choose one parent for each."""

        def ask(batch: list[str]) -> list[list[str]]:
            return [[accepted] for accepted in _checked_names(self._resolver.accepted(batch))]

        accepted = {}
        found = self._ask_batches("reorganise", "accepted", self._names(), ask, _checked_names, str)
        for name, answer in found.items():
            if isinstance(answer, Exception):
                self._draft.decide("kept", name, name, reason=f"its batch failed: {answer}")
            elif answer != [name]:
                accepted[normalise_name(name)] = answer[0]
        self._draft.merge(accepted)
        self._draft.choose_parents()

    def add_evidence(self) -> None:
        """Show all edges to the resolver, in batches."""
        edges = [(self._draft.names[key], claim.parent) for key, claim in sorted(self._draft.parents.items())]

        def ask(batch: list[tuple[str, str]]) -> list[list[Claim]]:
            return [[] if claim is None else _checked_claims([claim]) for claim in self._resolver.evidence(batch)]

        for edge, answer in self._ask_batches("evidence", "evidence", edges, ask, _checked_claims, "|".join).items():
            if isinstance(answer, Exception):
                self._draft.decide("kept", *edge, reason=f"its batch failed: {answer}")
            for claim in answer if isinstance(answer, list) else ():
                self._draft.follow(edge, claim)

    def tree(self) -> Tree:
        """What was built."""
        return self._draft.tree()

    def _names(self) -> list[str]:
        return sorted(self._draft.names.values(), key=normalise_name)

    def _note_failure(self, name: str, error: Exception) -> None:
        kind = "unknown" if isinstance(error, UnknownNameError) else "failed"
        self._draft.decide(kind, name, reason=str(error) or type(error).__name__)

    def _ask_batches(
        self,
        step: str,
        kind: str,
        questions: list[Question],
        ask: Callable[[list[Question]], list[Answer]],
        check: Callable[[Any], Answer],
        name_of: Callable[[Question], str],
    ) -> dict[Question, Answer | Exception]:
        """The answer to each question, from the cache or asked for in batches; a batch that fails is its error."""
        known = {question: self._known(kind, name_of(question), check) for question in questions}
        answers = {question: answer for question, answer in known.items() if answer is not None}
        found: dict[Question, Answer | Exception] = dict(answers)

        def asked(batch: list[Question]) -> list[Answer]:
            new = ask(batch)
            if len(new) != len(batch):
                raise NonsenseError(f"{len(batch)} questions, and {len(new)} answers.")
            for question, answer in zip(batch, new, strict=True):
                self._keep(kind, name_of(question), answer)
            return new

        batches = chunk_list([question for question in questions if question not in found], self._batch_size)
        for batch, new in self._ask(step, batches, asked):
            found.update(zip(batch, [new] * len(batch) if isinstance(new, Exception) else new, strict=True))
        return {question: found[question] for question in questions}

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

    def _answer(self, kind: str, name: str, check: Callable[[Any], Answer], ask: Callable[[str], object]) -> Answer:
        """The answer about a name, from the cache or asked for."""
        known = self._known(kind, name, check)
        if known is None:
            known = check(ask(name))
            self._keep(kind, name, known)
        return known

    def _known(self, kind: str, name: str, check: Callable[[Any], Answer]) -> Answer | None:
        stored = self._cache.get(self._fingerprint, kind, name) if self._cache is not None else None
        try:
            return None if stored is None else check(stored)
        except (ResolverError, TypeError, ValueError):  # not what was written: asked again
            return None

    def _keep(self, kind: str, name: str, answer: object) -> None:
        if self._cache is not None:
            self._cache.put(self._fingerprint, kind, name, answer)


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


def _checked_names(names: object) -> list[str]:
    """Names of a resolver or, as JSON, of the cache."""
    if not isinstance(names, Sequence) or isinstance(names, str):
        raise NonsenseError(f"expected a list of names, got {names!r:.60}.")
    return [_checked_name(name) for name in names]


def _checked_claims(claims: Iterable[Claim]) -> list[Claim]:
    """Claims of a resolver or, as JSON, of the cache."""
    checked = []
    for item in claims:
        claim = Claim(*item)
        if not 0 <= float(claim.confidence) <= 1:
            raise NonsenseError(f"a confidence of {claim.confidence!r}; expected 0 to 1.")
        checked.append(Claim(_checked_name(claim.parent), str(claim.evidence), str(claim.rank), claim.confidence))
    return checked
