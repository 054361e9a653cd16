"""From stored scores to the table of fragments, in one pass over the units."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import CountError
from virnucpro.results.fragments import FRAGMENT_DTYPE, SEQUENCE_DTYPE, Fragments, TableWriter
from virnucpro.sequence.table import UnitTable
from virnucpro.stages.base import Index, ScoredRun
from virnucpro.stages.consensus import ScoredUnit, scored_units


def run(run: ScoredRun, index: Index) -> Fragments:
    """Write the table of a run whose units are all scored, and open it.

    Raises:
        CountError: some row has no score, or more than one; or the table lacks a sequence or a fragment.
    """
    with run.reporter.stage("tabulate", index.num_rows, "rows") as advance, TableWriter(run.dir.table) as writer:
        for unit in scored_units(run, index, strings=("names",)):
            writer.append(_sequences(unit.table), unit.table.names, _fragments(unit), unit.num_failed)
            advance(len(unit.table.rows))
        writer.finish()
    table = Fragments.open(run.dir.table, (run.rules,))
    for what, expected, found in (
        ("sequences", index.num_sequences, len(table)),
        ("fragments", index.num_fragments, len(table.fragments)),
    ):
        if expected != found:
            raise CountError(f"{expected} {what} were cut, {found} are in {run.dir.table}")
    return table


def _sequences(table: UnitTable) -> NDArray[np.void]:
    sequences = np.zeros(len(table.sequences), dtype=SEQUENCE_DTYPE)
    for name in ("length", "status"):
        sequences[name] = table.sequences[name]
    return sequences


def _fragments(unit: ScoredUnit) -> NDArray[np.void]:
    cut = unit.table.fragments
    fragments = np.zeros(len(cut), dtype=FRAGMENT_DTYPE)
    for name in ("sequence", "start", "stop"):
        fragments[name] = cut[name]
    fragments["log_odds"], fragments["num_open"] = unit.log_odds, unit.num_open
    if "masked" in (cut.dtype.names or ()):
        fragments["masked"] = cut["masked"]
    return fragments
