"""Two models, one set of results: the first looks at everything, the other at what the first is not sure of.

The run of the model asked for lies where every run does, that of the first model in ``run/first/``. Both number the
sequences alike. In the units of the model asked for, a sequence that the first decided has status ``DECIDED`` and no
fragments: this is where the decisions are kept, under the digests of the units. They are made once, when these units
are cut, and not again by a run that goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.bundles import Bundle
from virnucpro.bundles.cascade import DEFAULT_LIMITS, Limits
from virnucpro.bundles.rules import Rules
from virnucpro.errors import CountError, StoreError, UsageError
from virnucpro.mapped import chunks, let_go, new_table
from virnucpro.results.calls import Calling, Judge, Limit, probability, sequence_log_odds
from virnucpro.results.text import words
from virnucpro.run_dir import RunDir, read_json
from virnucpro.sequence.dedup import SequenceIndex
from virnucpro.sequence.masks import Masking
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.recut import recut
from virnucpro.sequence.table import DECIDED, Status
from virnucpro.stages import consensus
from virnucpro.stages.base import ROLES, Index, Run, ScoredRun, StoredRun
from virnucpro.stages.consensus import SUM_DTYPE, ScoredUnit, scored_units
from virnucpro.stages.extract import write_index, write_units
from virnucpro.stages.interleave import Share, interleaved

_log = logging.getLogger(__name__)

NO_LEGACY = "the published program's files are of one model, and --cascade is two: leave one of both out."
ASKED, FIRST = 0, 1
"""Which model decided a sequence."""

JOINED_DTYPE = np.dtype([*SUM_DTYPE.descr, ("model", "i1")])
"""What a sequence adds up to in the run of the model that decided it, and which one that is."""

_LIMITS = ("science.cascade_low", "science.cascade_high")


@dataclass(frozen=True)
class FirstModel:
    """The model that looks first, and when it decides.

    Attributes:
        bundle: it.
        limits: between which it is not sure.
        cautions: what a user should know of the limits.
    """

    bundle: Bundle
    limits: Limits
    cautions: list[str]

    def pinned(self) -> dict[str, Any]:
        """What the manifest of the model asked for holds of it."""
        return {
            "science.cascade_first": self.bundle.name,
            "science.cascade_first_fingerprint": self.bundle.fingerprint,
            **dict(zip(_LIMITS, self.limits, strict=True)),
        }


def choose_first(asked: Bundle, first: Bundle, given: Limits | None) -> FirstModel:
    """Put a model before the one asked for.

    Args:
        asked: the model asked for.
        first: the one that it names to look first.
        given: limits of the user; those of ``asked`` where None, else the usual ones.

    Raises:
        UsageError: they are the same model.
    """
    if first.fingerprint == asked.fingerprint:
        raise UsageError(
            f"--cascade lets model {first.name} look first, and that is the model asked for. Name another with --model."
        )
    known = asked.cascade
    cautions: list[str] = []
    if given is not None or known is None:
        return FirstModel(first, given or DEFAULT_LIMITS, cautions)
    if known.first_fingerprint != first.fingerprint:
        limits = f"{DEFAULT_LIMITS.low:g} and {DEFAULT_LIMITS.high:g}"
        cautions.append(
            f"the limits of model {asked.name} were found with another {first.name} than the one here: the usual ones "
            f"are used, {limits}"
        )
        return FirstModel(first, DEFAULT_LIMITS, cautions)
    return FirstModel(first, known.limits, cautions)


@dataclass(frozen=True)
class FirstLook:
    """What the first model found.

    Attributes:
        run: its run.
        index: of its units.
        sums: (num_sequences,) SUM_DTYPE, memory-mapped.
        limits: between which it is not sure.
    """

    run: ScoredRun
    index: Index
    sums: NDArray[np.void]
    limits: Limits

    @property
    def num_failed_rows(self) -> int:
        """Rows it could not compute; their sequences went on."""
        return consensus.total_of("num_failed", self.sums)


@contextmanager
def first_look(run: ScoredRun, index: Index, limits: Limits) -> Iterator[FirstLook]:
    """Add up what the first model found; the sums are there as long as the block runs."""
    try:
        yield FirstLook(run, index, consensus.run(run, index), limits)
    finally:
        run.dir.sequence_sums.unlink(missing_ok=True)


@contextmanager
def stored_look(run: ScoredRun) -> Iterator[FirstLook | None]:
    """What the first model found in a finished cascade, ``run`` being that of the model asked for; None in others."""
    if not run.dir.is_cascade:
        yield None
        return
    first = run.dir.first
    low, high = (float(read_json(run.dir.manifest)[name]) for name in _LIMITS)
    scored = StoredRun(first, Rules.read(first.rules), run.reporter)
    with first_look(scored, Index.read(first), Limits(low, high)) as look:
        yield look


def are_unsure(rules: Rules, sums: NDArray[np.void], limits: Limits) -> NDArray[np.bool_]:
    """(n,) whether the first model leaves sequences to the other: no score, one within the limits, or any doubt."""
    p_virus = probability(sequence_log_odds(rules, sums))
    is_sure = (p_virus < limits.low) | (p_virus > limits.high)  # not so where there is no score
    is_sure &= (sums["status"] == Status.OK) & (sums["num_failed"] == 0)
    return np.asarray(~is_sure)


def extract(run: Run, look: FirstLook) -> Index:
    """Cut for the model asked for what the first is not sure of; what was cut before stays as it was.

    A record that is not fit for the model asked for (too short, say) is its own to answer, however sure the first is.
    """
    if run.dir.index.exists():
        return replace(Index.read(run.dir), inputs=look.index.inputs)
    num_chosen = 0

    def choose(sequences: NDArray[np.void]) -> NDArray[np.bool_]:
        nonlocal num_chosen
        first = int(sequences["number"][0]) if len(sequences) else 0
        sums = look.sums[first : first + len(sequences)]
        chosen = are_unsure(look.run.rules, sums, look.limits) | (sequences["status"] != Status.OK)
        num_chosen += int(chosen.sum())
        let_go(look.sums)
        return np.asarray(chosen)

    contents = SequenceIndex(left_over=run.dir.left_over_rows)
    tables = recut(
        (store.read_unit(look.run.dir.unit(unit)) for unit in range(len(look.index.units))),
        choose,
        fragment_length=run.fragment_length,
        masking=Masking(run.bundle.min_length, run.bundle.doubts_repetitive),
        unit_rows=run.unit_rows,
        score_frameless=run.bundle.scores_frameless,
        input_starts={item.first_sequence for item in look.index.inputs},
        contents=contents,
    )
    with run.reporter.stage("select", look.index.num_sequences, "sequences") as advance:
        units, num_fragments = write_units(run, tables, contents, advance)
    for unit in range(len(units)):
        _drop_stale(run.dir, unit)
    message = "%s of %s sequences pass from model %s to model %s"
    numbers = f"{num_chosen:,}", f"{look.index.num_sequences:,}"
    _log.info(message, *numbers, look.run.rules.name, run.bundle.name)
    return write_index(run, Index(look.index.inputs, units, num_fragments))


def _drop_stale(run_dir: RunDir, unit: int) -> None:
    """Delete what was made from a unit that is another one now.

    Only a mended run comes to this: rows of the first model that had failed, and units that were damaged later.
    """
    digest = store.read_attributes(run_dir.unit(unit), "unit")["digest"]
    made = {run_dir.scores(unit): "scores", run_dir.merged(unit): "merged", run_dir.nearest(unit): "nearest"}
    made |= {run_dir.embedding(role, unit): "embedding" for role in ROLES}
    for path, kind in made.items():
        try:
            store.is_made_from(path, kind, {"unit_digest": digest})
        except StoreError:
            path.unlink()
            run_dir.failed(unit).unlink(missing_ok=True)


class _JoinedJudge(Judge):
    """Calls the sequences of one input, each by the rules of the model that decided it; one rate of false discovery."""

    def __init__(self, asked: Rules, first: Rules, calling: Calling, sums: NDArray[np.void]) -> None:
        self._first = first
        self._preset = calling.preset
        super().__init__(asked, calling, sums)

    def _log_odds(self, sums: NDArray[np.void]) -> NDArray[np.float64]:
        return np.where(
            sums["model"] == FIRST, sequence_log_odds(self._first, sums), sequence_log_odds(self.rules, sums)
        )

    def _limits(self, sums: NDArray[np.void]) -> tuple[Limit, Limit]:
        by_first = sums["model"] == FIRST
        pairs = zip(self._first.thresholds(self._preset), self.rules.thresholds(self._preset), strict=True)
        not_virus, virus = (np.where(by_first, *pair) for pair in pairs)
        return not_virus, virus


@dataclass(frozen=True)
class Join:
    """Both runs of a finished cascade as one.

    Attributes:
        asked: run of the model asked for.
        index: of its units.
        look: what the first model found.
        sums: (num_sequences,) JOINED_DTYPE, memory-mapped.
    """

    asked: ScoredRun
    index: Index
    look: FirstLook
    sums: NDArray[np.void]

    @property
    def titles(self) -> dict[int, str]:
        """What each model is called in results: its name, and where both have the same one also its fingerprint."""
        rules = {ASKED: self.asked.rules, FIRST: self.look.run.rules}
        is_same = rules[ASKED].name == rules[FIRST].name
        return {model: f"{of.name}@{of.fingerprint[:8]}" if is_same else of.name for model, of in rules.items()}

    def cells(self, sums: NDArray[np.void]) -> Ragged:
        """The column ``model`` of some sequences."""
        titles = self.titles
        return words([titles[model].encode() for model in (ASKED, FIRST)], sums["model"])

    @property
    def num_fragments(self) -> int:
        """That results must hold."""
        return consensus.total_of("num_fragments", self.sums)

    @property
    def num_rows(self) -> int:
        """That results must hold."""
        return sum(consensus.total_of(name, self.sums) for name in ("num_rows", "num_frameless"))

    def are_of(self, model: int, part: slice) -> NDArray[np.bool_]:
        """Whether each of a range of sequences was decided by a model."""
        are_its = np.asarray(self.sums["model"][part] == model)
        let_go(self.sums)
        return are_its

    def judge(self, calling: Calling, part: slice) -> Judge:
        """For the sequences of one input."""
        return _JoinedJudge(self.asked.rules, self.look.run.rules, calling, self.sums[part])

    def described(self) -> dict[str, Any]:
        """The first model and when it decides, for the summary."""
        first = self.look.run.rules
        return {"first": first.name, "first_fingerprint": first.fingerprint, **self.look.limits._asdict()}

    def units(self, *, with_strings: bool) -> Iterator[ScoredUnit]:
        """What both models scored, in the order of the sequences, each from the model that decided it.

        Args:
            with_strings: nucleotides and proteins of the rows too; else these lists are empty.
        """
        return interleaved(
            [
                Share(scored_units(run, index), index, partial(self.are_of, model))
                for run, index, model in ((self.look.run, self.look.index, FIRST), (self.asked, self.index, ASKED))
            ],
            with_strings=with_strings,
        )


@contextmanager
def joined(run: ScoredRun, index: Index, sums: NDArray[np.void], look: FirstLook) -> Iterator[Join]:
    """Join what the model asked for found (``run``, ``index``, ``sums``) with what the first did.

    Raises:
        CountError: a fragment or row is lost, or was decided by nobody.
    """
    num_sequences = look.index.num_sequences
    if index.num_sequences != num_sequences:
        raise CountError(f"{num_sequences} sequences were looked at first, {index.num_sequences} afterwards")
    both = new_table(run.dir.joined_sums, JOINED_DTYPE, (num_sequences,))
    for part in chunks(num_sequences, both, sums, look.sums):
        by_first = sums["status"][part] == DECIDED
        for name in SUM_DTYPE.names or ():
            if name.startswith("num_") and sums[name][part][by_first].any():
                raise CountError(f"{run.dir.root}: both models decided the same sequence ({name} is not 0)")
            both[name][part] = np.where(by_first, look.sums[name][part], sums[name][part])
        both["model"][part] = np.where(by_first, FIRST, ASKED)
    try:
        yield Join(run, index, look, both)
    finally:
        run.dir.joined_sums.unlink(missing_ok=True)
