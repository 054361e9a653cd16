"""Is everything in a run directory what was written, and is anything missing?

Every stored file is read and held against its own digest and against what it must have been made from; the
results are held against the digests in the run record. Nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.atomic import check_json, file_digest
from virnucpro.bundles.rules import Rules
from virnucpro.errors import StoreError
from virnucpro.results import pages
from virnucpro.results.fragments import read_arrays
from virnucpro.results.stored import RunRecord, Summary
from virnucpro.run_dir import RunDir
from virnucpro.sequence.table import are_own_source
from virnucpro.stages import poison
from virnucpro.stages.base import ROLES, Index, IndexedUnit, computed_rows, fingerprint_of

Kind = Literal["damaged", "missing", "failed"]


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be."""

    # ``damaged`` (or made from something else), ``missing`` (not computed yet), ``failed`` (rows that could not be
    # computed)
    kind: Kind
    path: Path  # of the file
    text: str  # what is wrong with it
    # the unit it belongs to: the directory of its run and its number there; None for results
    unit: tuple[RunDir, int] | None = None


@dataclass
class Findings:
    """What a look at a run found."""

    num_files: int = 0  # files that were read
    num_rows: int = 0  # rows the run has
    num_scored: int = 0  # rows that have a score (duplicates of a scored row included)
    problems: list[Problem] = field(default_factory=list)  # in the order of the units

    def of(self, kind: Kind) -> list[Problem]:
        """Problems of one kind."""
        return [problem for problem in self.problems if problem.kind == kind]


def verify(run_dir: RunDir, advance: Callable[[int], None] = lambda _: None) -> Findings:
    """Look at every file of a run.

    Raises:
        StoreError: manifest or index cannot be read, so that nothing else can be held against them.
    """
    findings = Findings()
    index, manifest = Index.read(run_dir), run_dir.read_manifest()
    for part in run_dir.models:
        model = StoredModel.of(manifest, part)
        are = np.zeros((index.num_rows, 2), dtype=bool)
        for unit, indexed in enumerate(index.units):
            _verify_unit(part, unit, indexed, model, findings, are)
            advance(1)
        findings.num_rows += int(are[:, 0].sum())
    if run_dir.table.exists():
        findings.num_files += 1
        try:
            read_arrays(run_dir.table)
        except StoreError as error:
            findings.problems.append(Problem("damaged", run_dir.table, error.problem))
    findings.problems += _verify_results(run_dir, findings)
    findings.problems += _verify_pages(run_dir, index)
    return findings


@dataclass(frozen=True)
class StoredModel:
    """What the manifest says of a model of the run."""

    fingerprint: str  # of the model
    digests: dict[str, str]  # role to that of its encoder
    dtype: str  # float type the encoders computed in

    @classmethod
    def of(cls, manifest: Mapping[str, Any], part: RunDir) -> Self:
        """The model whose paths are ``part``."""
        prefix = f"science.cascade_{part.part}_" if part.part else "science."
        name = "fingerprint" if part.part else "model_fingerprint"
        try:
            digests = {role: str(manifest[f"{prefix}{role}_digest"]) for role in ROLES}
            return cls(str(manifest[prefix + name]), digests, str(manifest[f"{prefix}dtype"]))
        except KeyError as error:
            raise StoreError(part.manifest, f"is damaged (it has no {error})") from error


def _verify_unit(
    run_dir: RunDir,
    unit: int,
    indexed: IndexedUnit,
    model: StoredModel,
    findings: Findings,
    are: NDArray[np.bool_],
) -> None:
    look = _Look(run_dir, unit, findings)
    table = look.at(run_dir.unit(unit), "unit", {})
    if table is None:
        return
    digest = store.read_attributes(run_dir.unit(unit), "unit")["digest"]
    if len(table["rows"]) != indexed.num_rows:
        look.note("damaged", run_dir.unit(unit), f"holds {len(table['rows'])} rows, {indexed.num_rows} were cut")
    made_from = {"unit_digest": digest, "fingerprint": fingerprint_of(model.fingerprint, model.dtype)}
    shards = [
        look.at(path, "embedding", {**made_from, "fingerprint": fingerprint_of(model.digests[role], model.dtype)})
        for role in ROLES
        if (path := run_dir.embedding(role, unit)).exists()
    ]
    merged = run_dir.merged(unit)
    features = look.at(merged, "merged", made_from) if merged.exists() else None
    _verify_nearest(look, len(table["fragments"]), made_from)
    try:
        is_computed = computed_rows(run_dir, unit, table["rows"], indexed.first_row)
    except StoreError as error:
        look.note("damaged", run_dir.selection(unit), error.problem)
        return
    num_computed = int(is_computed.sum())
    path = run_dir.scores(unit)
    if not path.exists():
        what = "merged, not scored" if merged.exists() else f"{len(shards)} of {len(ROLES)} embeddings are there"
        look.note("missing", path, f"{num_computed:,} rows have no score yet ({what})")
        return
    scores = look.at(path, "scores", made_from)
    for name, arrays in (("scores", scores), ("features", features)):
        held = None if arrays is None else len(next(iter(arrays.values())))
        if held not in (None, num_computed):
            look.note("damaged", path, f"{held} {name} of {num_computed} rows")
    if scores is not None and len(scores["scores"]) == num_computed:
        _count_scored(look, indexed, table["rows"], is_computed, scores["scores"], are)


def _verify_nearest(look: _Look, num_fragments: int, made_from: Mapping[str, str]) -> None:
    run_dir, unit = look.run_dir, look.unit
    if run_dir.nearest(unit).exists():
        found = look.at(run_dir.nearest(unit), "nearest", made_from)
        if found is not None and len(found["log_odds"]) != num_fragments:
            look.note("damaged", run_dir.nearest(unit), "is of other fragments than the unit's")
    elif run_dir.rules.exists() and Rules.read(run_dir.rules).adds_nearest:
        look.note("missing", run_dir.nearest(unit), "the nearest proteins of the unit's fragments are not known yet")


def _count_scored(
    look: _Look,
    indexed: IndexedUnit,
    rows: NDArray[np.void],
    is_computed: NDArray[np.bool_],
    scores: NDArray[np.float32],
    are: NDArray[np.bool_],
) -> None:
    """Mark the rows that need a score and have one; duplicates are as their source, which may lie in an earlier unit.

    Args:
        look: at the unit.
        indexed: the unit.
        rows: (n,) of the unit.
        is_computed: (n,) which of them the model computes.
        scores: of these.
        are: (num_rows, 2) of the run, whether rows need a score and have one.
    """
    here = slice(indexed.first_row, indexed.first_row + indexed.num_rows)
    own = are_own_source(rows, indexed.first_row)
    finite = ~np.isnan(scores).any(axis=1)
    mine = are[here]
    mine[is_computed, 0], mine[is_computed, 1] = True, finite
    mine[~own] = are[rows["source"][~own]]
    look.findings.num_scored += int(mine[:, 1].sum())
    path = look.run_dir.failed(look.unit)
    listed = set(poison.read(path))
    if listed != set(np.flatnonzero(~finite).tolist()):
        look.note("damaged", look.run_dir.scores(look.unit), f"lacks scores of other rows than {path.name} lists")
    elif listed:
        look.note("failed", path, f"{len(listed)} rows could not be computed")


@dataclass(frozen=True)
class _Look:
    """Looks at the files of one unit."""

    run_dir: RunDir
    unit: int
    findings: Findings

    def at(self, path: Path, kind: str, made_from: Mapping[str, str]) -> dict[str, NDArray[Any]] | None:
        """The arrays of a file, or None and a problem noted."""
        self.findings.num_files += 1
        try:
            return store.verify(path, kind, made_from)
        except StoreError as error:
            self.note("damaged", path, error.problem)
            return None

    def note(self, kind: Kind, path: Path, text: str) -> None:
        self.findings.problems.append(Problem(kind, path, text, (self.run_dir, self.unit)))


def _verify_results(run_dir: RunDir, findings: Findings) -> Iterator[Problem]:
    records = sorted(run_dir.root.glob("*.run.json"))
    for record in records:
        for name, recorded in check_json(record, RunRecord).get("outputs", {}).items():
            path = run_dir.root / name
            findings.num_files += 1
            if not path.is_file():
                yield Problem("damaged", path, "is gone")
            elif f"sha256:{file_digest(path)}" != recorded:
                yield Problem("damaged", path, f"is not what {record.name} says was written")


def _verify_pages(run_dir: RunDir, index: Index) -> Iterator[Problem]:
    """Pages that show other calls than the results do."""
    for item in index.inputs:
        summary = run_dir.result(item.stem, "summary.json")
        if not summary.is_file():
            continue
        try:
            digest = str(check_json(summary, Summary).get("calls_digest", ""))
        except StoreError:
            continue  # its own problem, which the record tells
        for path in pages.stale(run_dir.root, item.stem, digest):
            again = "assign" if path.suffix == ".json" and path.name.endswith(".reads.json") else "report"
            yield Problem("damaged", path, f"shows other calls than the results; 'virnucpro {again}' makes it again")


def drop(problems: list[Problem]) -> None:
    """Delete what is damaged or failed and all that is made from it, so that the same run makes it anew."""
    for problem in problems:
        if problem.unit is None:
            continue  # results are written anew in any case
        run_dir, unit = problem.unit
        chain = [*(run_dir.embedding(role, unit) for role in ROLES), run_dir.merged(unit), run_dir.scores(unit)]
        if problem.kind == "failed":
            stale = [problem.path, *chain]
        elif problem.path == run_dir.selection(unit):
            stale = [problem.path]  # rows are selected again, and what was made of others goes then
        elif problem.path == run_dir.unit(unit):
            # Extraction alone numbers the units, and makes all of them again, the same ones.
            stale = [problem.path, run_dir.index]
        elif problem.path == run_dir.nearest(unit):
            stale = [problem.path]
        else:
            stale = [problem.path, *chain[max(len(ROLES), chain.index(problem.path)) :]]
        if problem.kind != "missing":
            for path in stale:
                path.unlink(missing_ok=True)
