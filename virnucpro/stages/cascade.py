"""Two models, one run: the first screens every sequence, the one asked for computes what the first is not sure of.

Both score the rows of the same units, which are cut for the model asked for. Which rows that one computes is stored
for each unit (``run/selected/``). Decisions follow from the stored scores of the first model, so that a run that is
resumed makes the same ones.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.bundles import Bundle
from virnucpro.bundles.rules import DEFAULT_LIMITS, Limits, Rules
from virnucpro.errors import StoreError, UsageError
from virnucpro.progress import Reporter
from virnucpro.results.calls import probability, sequence_log_odds, sums
from virnucpro.results.fragments import Fragments
from virnucpro.run_dir import RunDir
from virnucpro.sequence.table import Status, are_own_source
from virnucpro.stages import tabulate
from virnucpro.stages.base import ROLES, Index, Run, unit_digest
from virnucpro.stages.tabulate import ScoredModels, StoredScores, are_wanted

_log = logging.getLogger(__name__)

NO_LEGACY = "the published program's files are of one model, and --cascade is two: leave one of both out."


@dataclass(frozen=True)
class FirstModel:
    """The model that looks first, and when it decides."""

    bundle: Bundle
    limits: Limits  # between which it is not sure
    cautions: list[str]  # what a user should know of the limits

    def pinned(self, dtype: str) -> dict[str, Any]:
        """What the manifest holds of it; ``dtype`` is the float type that its encoders compute in."""
        return {
            "science.cascade_first": self.bundle.name,
            "science.cascade_first_fingerprint": self.bundle.fingerprint,
            **{f"science.cascade_first_{role}_digest": self.bundle.digests[role] for role in ROLES},
            "science.cascade_first_dtype": dtype,
            "science.cascade_low": self.limits.low,
            "science.cascade_high": self.limits.high,
        }


def choose_first(asked: Bundle, first: Bundle, given: Limits | None) -> FirstModel:
    """Put a model before the one asked for.

    Args:
        asked: the model asked for.
        first: the one that it names to look first.
        given: limits of the user; those of ``asked`` if None, else the usual ones.

    Raises:
        UsageError: they are the same model.
    """
    if first.fingerprint == asked.fingerprint:
        raise UsageError(
            f"--cascade lets model {first.name} look first, and that is the model asked for. Name another with --model."
        )
    known = asked.cascade
    if given is not None or known is None:
        return FirstModel(first, given or DEFAULT_LIMITS, [])
    if known.first_fingerprint == first.fingerprint:
        return FirstModel(first, known.limits, [])
    caution = (
        f"the limits of model {asked.name} were found with another {first.name} than the one here: the usual ones are "
        f"used, {DEFAULT_LIMITS.low:g} and {DEFAULT_LIMITS.high:g}"
    )
    return FirstModel(first, DEFAULT_LIMITS, [caution])


def decide(table: Fragments, limits: Limits) -> NDArray[np.bool_]:
    """(num_sequences,) which sequences the first model decides: those it is sure of, with nothing odd about them."""
    decided = [np.zeros(0, dtype=bool)]
    for part in table.parts():
        p_virus = probability(sequence_log_odds(part, sums(part)))
        is_sure = (p_virus < limits.low) | (p_virus > limits.high)  # not so without a score
        is_sure &= (part.sequences["status"] == Status.OK) & (part.sequences["num_failed"] == 0)
        decided.append(is_sure & (part.sequences["length"] >= table.rules[0].min_length))
    return np.concatenate(decided)


def select(run: Run, index: Index, decided: NDArray[np.bool_] | None) -> Index:
    """Store which rows a model computes; returns the index with how many these are.

    A row that stands for later copies of it is computed if one of them is wanted. What was made from another selection
    is deleted.

    Args:
        run: of the model.
        index: of the units.
        decided: (num_sequences,) those that another model decided.
    """
    needed = np.zeros(index.num_rows, dtype=bool)
    for unit in range(len(index.units)):
        table = store.read_unit(run.dir.unit(unit), ())
        needed[table.rows["source"][are_wanted(run.rules, table, decided)]] = True
    units = []
    for unit, indexed in enumerate(index.units):
        table = store.read_unit(run.dir.unit(unit), ())
        mine = needed[indexed.first_row : indexed.first_row + indexed.num_rows]
        mine &= are_own_source(table.rows, indexed.first_row)
        _store(run.dir, unit, mine)
        units.append(replace(indexed, num_sources=int(mine.sum())))
    return replace(index, units=tuple(units))


def _store(run_dir: RunDir, unit: int, selected: NDArray[np.bool_]) -> None:
    made_from = {"unit_digest": unit_digest(run_dir, unit)}
    path = run_dir.selection(unit)
    try:
        is_here = store.is_made_from(path, "selection", made_from)
        if is_here and np.array_equal(store.read_arrays(path, "selection", "rows")["rows"], selected):
            return
    except StoreError as error:
        _log.warning("%s; it is made again", error)
    for stale in (
        *(run_dir.embedding(role, unit) for role in ROLES),
        *(run_dir.merged(unit), run_dir.scores(unit), run_dir.nearest(unit), run_dir.failed(unit)),
    ):
        stale.unlink(missing_ok=True)
    store.write_arrays(path, "selection", {"rows": selected}, made_from)


def first_run(run: Run, first: FirstModel) -> Run:
    """The run of the first model over the units of ``run``."""
    return replace(run, dir=run.dir.first, bundle=first.bundle, reporter=Reporter(run.reporter.bars))


@dataclass(frozen=True, eq=False)
class FirstLook:
    """What the first model did."""

    run: Run  # of it
    model: FirstModel  # it, and its limits
    index: Index  # of the units, with what it computed of them
    scores: StoredScores  # of all rows that it computed
    decided: NDArray[np.bool_]  # (num_sequences,) the sequences that it decided
    num_failed: int  # rows it could not compute; their sequences go on


@contextmanager
def screened(run: Run, first: FirstModel, index: Index, compute: Callable[[Run, Index], None]) -> Iterator[FirstLook]:
    """Let the first model score all units."""
    _log.info("model %s, fingerprint %s, screens everything", run.bundle.name, run.bundle.fingerprint[:16])
    run.rules.write(run.dir.rules)
    chosen = select(run, index, None)
    compute(run, chosen)
    with StoredScores(run.dir, run.rules, index) as scores:
        decided, num_failed = look(scores, index, first.limits, run.reporter)
        num_open = index.num_sequences - int(decided.sum())
        _log.info(
            "%s of %s sequences pass from model %s to the model asked for",
            f"{num_open:,}",
            f"{len(decided):,}",
            run.bundle.name,
        )
        yield FirstLook(run, first, chosen, scores, decided, num_failed)


def described(first: Rules, limits: Limits) -> dict[str, Any]:
    """What summaries say of the model that looked first."""
    return {"first": first.name, "first_fingerprint": first.fingerprint, **limits._asdict()}


def look(first: StoredScores, index: Index, limits: Limits, reporter: Reporter) -> tuple[NDArray[np.bool_], int]:
    """What the first model decides, see ``decide``, and how many rows it could not compute."""
    table = tabulate.run(index, ScoredModels(first), reporter)
    decided, num_failed = decide(table, limits), table.total("num_failed")
    shutil.rmtree(first.run_dir.table)
    return decided, num_failed
