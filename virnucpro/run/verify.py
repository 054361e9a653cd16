"""Is everything in a run directory what was written, and is anything missing?

Every stored file is compared with its own digest and with what it must have been made from; the results are compared
with the digests in the run record. Nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.atomic import check_json, file_digest
from virnucpro.bundles.rules import Rules
from virnucpro.errors import StoreError
from virnucpro.progress import Reporter
from virnucpro.results import pages
from virnucpro.results.finished import RunRecord, Summary
from virnucpro.results.stored_table import read_arrays
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


def verify(path: Path, *, show_bars: bool = False) -> Findings:
    """Look at every file of a run.

    Raises:
        UsageError: there is no such run, or not one whose inputs were cut to the end.
        StoreError: manifest or index cannot be read, so that nothing else can be compared with them.
    """
    run_dir, findings = RunDir(path), Findings()
    run_dir.check_is_run()
    with run_dir.reading():
        index, manifest = Index.read(run_dir), run_dir.read_manifest()
        with Reporter(show_bars).stage("verify", len(index.units) * len(run_dir.models), "units") as advance:
            for part in run_dir.models:
                model = StoredModel.of(manifest, part)
                are = np.zeros((index.num_rows, 2), dtype=bool)
                for unit, indexed in enumerate(index.units):
                    _Look(part, unit, indexed, model, findings, are).at_all()
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

    @property
    def fingerprint_of_features(self) -> str:
        """What merged files and scores carry."""
        return fingerprint_of(self.fingerprint, self.dtype)

    def fingerprint_of_shards(self, role: str) -> str:
        """What the shards of an encoder carry."""
        return fingerprint_of(self.digests[role], self.dtype)


@dataclass(frozen=True)
class _Look:
    """Looks at the files that a model has of one unit, and notes what is wrong."""

    run_dir: RunDir  # of the model
    unit: int
    indexed: IndexedUnit
    model: StoredModel
    findings: Findings
    are: NDArray[np.bool_]  # (num_rows, 2) of the run, whether rows need a score and have one

    def at_all(self) -> None:
        """Look at every file."""
        path = self.run_dir.unit(self.unit)
        table = self._at(path, "unit", {})
        if table is None:
            return
        if len(table["rows"]) != self.indexed.num_rows:
            self._note("damaged", path, f"holds {len(table['rows'])} rows, {self.indexed.num_rows} were cut")
        digest = store.read_attributes(path, "unit")["digest"]
        made_from = {"unit_digest": digest, "fingerprint": self.model.fingerprint_of_features}
        num_shards = 0
        for role in ROLES:
            if (shard := self.run_dir.embedding(role, self.unit)).exists():
                self._at(shard, "embedding", made_from | {"fingerprint": self.model.fingerprint_of_shards(role)})
                num_shards += 1
        self._at_nearest(len(table["fragments"]), made_from)
        self._at_scores(table["rows"], made_from, num_shards)

    def _at_nearest(self, num_fragments: int, made_from: Mapping[str, str]) -> None:
        path, rules = self.run_dir.nearest(self.unit), self.run_dir.rules
        if path.exists():
            found = self._at(path, "nearest", made_from)
            if found is not None and len(found["log_odds"]) != num_fragments:
                self._note("damaged", path, "is of other fragments than the unit's")
        elif rules.exists() and Rules.read(rules).adds_nearest:
            self._note("missing", path, "the nearest proteins of the unit's fragments are not known yet")

    def _at_scores(self, rows: NDArray[np.void], made_from: Mapping[str, str], num_shards: int) -> None:
        merged, path = self.run_dir.merged(self.unit), self.run_dir.scores(self.unit)
        features = self._at(merged, "merged", made_from) if merged.exists() else None
        try:
            is_computed = computed_rows(self.run_dir, self.unit, rows, self.indexed.first_row)
        except StoreError as error:
            self._note("damaged", self.run_dir.selection(self.unit), error.problem)
            return
        num_computed = int(is_computed.sum())
        if not path.exists():
            what = "merged, not scored" if merged.exists() else f"{num_shards} of {len(ROLES)} embeddings are there"
            self._note("missing", path, f"{num_computed:,} rows have no score yet ({what})")
            return
        scores = self._at(path, "scores", made_from)
        for name, arrays in (("scores", scores), ("features", features)):
            num_held = num_computed if arrays is None else len(next(iter(arrays.values())))
            if num_held != num_computed:
                self._note("damaged", path, f"{num_held} {name} of {num_computed} rows")
        if scores is not None and len(scores["scores"]) == num_computed:
            self._count(rows, is_computed, ~np.isnan(scores["scores"]).any(axis=1))

    def _count(self, rows: NDArray[np.void], is_computed: NDArray[np.bool_], finite: NDArray[np.bool_]) -> None:
        """Mark the rows that need a score and have one; duplicates are as their source, maybe of an earlier unit."""
        mine = self.are[self.indexed.first_row :][: self.indexed.num_rows]
        mine[is_computed, 0], mine[is_computed, 1] = True, finite
        are_copies = ~are_own_source(rows, self.indexed.first_row)
        mine[are_copies] = self.are[rows["source"][are_copies]]
        self.findings.num_scored += int(mine[:, 1].sum())
        path = self.run_dir.failed(self.unit)
        listed = set(poison.read(path))
        if listed != set(np.flatnonzero(~finite).tolist()):
            self._note("damaged", self.run_dir.scores(self.unit), f"lacks scores of other rows than {path.name} lists")
        elif listed:
            self._note("failed", path, f"{len(listed)} rows could not be computed")

    def _at(self, path: Path, kind: str, made_from: Mapping[str, str]) -> dict[str, NDArray[Any]] | None:
        """The arrays of a file, or None and a problem noted."""
        self.findings.num_files += 1
        try:
            return store.verify(path, kind, made_from)
        except StoreError as error:
            self._note("damaged", path, error.problem)
            return None

    def _note(self, kind: Kind, path: Path, text: str) -> None:
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
    """Delete what is damaged or failed and all that is made from it, so that the same run makes it again."""
    for problem in problems:
        if problem.unit is None:
            continue  # results are written again in any case
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
