"""Tables of fragments made of a few words, and finished runs around them: results are tested without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.atomic import write_json
from virnucpro.bundles.rules import Calibration, Rules, Thresholds
from virnucpro.nearest.genes import SHORTEST_RECORD_NT
from virnucpro.progress import Reporter
from virnucpro.request import Options
from virnucpro.results.calls import Calling
from virnucpro.results.fragments import Fragments
from virnucpro.results.stored_table import FRAGMENT_DTYPE, GENE_DTYPE, SEQUENCE_DTYPE, TableWriter
from virnucpro.run_dir import MANIFEST_SCHEMA, RunDir
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import FRAME_NAMES, Status
from virnucpro.stages import write
from virnucpro.stages.base import Index, IndexedInput
from virnucpro.stages.tabulate import ScoredModels, StoredScores

WINDOW = 500
PRESETS = {"sensitive": (0.5, 0.6), "balanced": (0.6, 0.9), "strict": (0.6, 0.99)}
RULES = Rules(
    name="lite",
    fingerprint="ab" * 32,
    fragment_length=WINDOW,
    min_length=100,
    scores_frameless=True,
    row_rule="mean",
    calibration=Calibration((WINDOW,), (1.0,), (0.0,), exponent=0.0),
    threshold=0.5,
    presets={name: Thresholds(*pair) for name, pair in PRESETS.items()},
)
"""A sequence is the mean of its fragments, and probabilities are those of the fragments."""

Line = tuple[str | bytes, int, float | Sequence[float], Status]
"""Id, bases, p_virus of all fragments or of each (NaN without a score), and status."""


def line(name: str | bytes, length: int, p_virus: float | Sequence[float], status: Status = Status.OK) -> Line:
    """A sequence; one that is not ``OK`` or has no bases has no scores."""
    return name, length, p_virus, status


def table_of(lines: Sequence[Line], rules: Rules = RULES) -> Fragments:
    """A table with these sequences, in fragments of 500 bases."""
    sequences = np.zeros(len(lines), dtype=SEQUENCE_DTYPE)
    parts = []
    for number, (_, length, p_virus, status) in enumerate(lines):
        sequences[number]["length"], sequences[number]["status"] = length, status
        mine = np.zeros(-(-length // WINDOW), dtype=FRAGMENT_DTYPE)
        mine["sequence"] = number
        mine["start"] = WINDOW * np.arange(len(mine))
        mine["stop"] = np.minimum(mine["start"] + WINDOW, length)
        p = np.broadcast_to(np.asarray(p_virus, dtype=np.float64), len(mine))
        with np.errstate(divide="ignore"):
            mine["log_odds"] = np.clip(np.log(p) - np.log1p(-p), -30, 30)
        mine["num_open"] = 1
        parts.append(mine)
    names = Ragged.from_bytes([name if isinstance(name, bytes) else name.encode() for name, *_ in lines])
    return Fragments.of((rules,), sequences, names, np.concatenate([np.zeros(0, FRAGMENT_DTYPE), *parts]))


def with_genes(table: Fragments) -> Fragments:
    """The table with a gene for each scored fragment of the longer sequences, nearest to what it looks like."""
    fragments = table.fragments
    is_long = table.sequences["length"][table.positions] >= SHORTEST_RECORD_NT
    kept = fragments[is_long & ~np.isnan(fragments["log_odds"])]
    genes = np.zeros(len(kept), dtype=GENE_DTYPE)
    for name in ("sequence", "start", "stop"):
        genes[name] = kept[name]
    genes["strand"] = np.where(np.arange(len(genes)) // 3 % 2, -1, 1)
    genes["bits_virus"], genes["bits_cell"] = np.where(kept["log_odds"] > 0, [[300], [0]], [[0], [300]])
    genes["nearest"] = np.where(kept["log_odds"] > 0, 7, -1)
    return replace(table, genes=genes, organisms={7: ("made phage", "Madeviridae")})


def write_run(
    root: Path,
    lines: Sequence[Line],
    *,
    stem: str = "in",
    calling: Calling | None = None,
    rules: Rules = RULES,
    record: dict[str, Any] | None = None,
    **summary: object,
) -> Path:
    """A finished run of one input whose sequences are ``lines``: table, results and summary, changed as given."""
    run_dir, table = RunDir(root), with_genes(table_of(lines, rules))
    run_dir.work.mkdir(parents=True, exist_ok=True)
    with TableWriter(run_dir.table) as writer:
        writer.append(table.sequences, table.names, table.fragments, np.zeros(len(table.fragments), np.int64))
        writer.append_genes(table.genes, table.sites)
        organisms = {str(number): names for number, names in table.organisms.items()}
        writer.finish({"frames": [dict.fromkeys(FRAME_NAMES.values(), 0)], "organisms": organisms})
    write_json(run_dir.manifest, {"schema": MANIFEST_SCHEMA})
    rules.write(run_dir.rules)
    num_bases = int(table.sequences["length"].sum())
    item = IndexedInput(f"{stem}.fasta", stem, "fasta", "none", "0" * 64, 0, len(lines), num_bases)
    index = Index((item,), (), len(table.fragments))
    index.write(run_dir)
    scores = ScoredModels(StoredScores(run_dir, rules, index))
    stored = Fragments.open(run_dir.table, (rules,))
    write.run(index, stored, scores, calling or Calling(), Options(), Reporter(bars=False))
    path = run_dir.result(stem, "summary.json")
    write_json(path, json.loads(path.read_text()) | summary)
    if record is not None:
        write_json(run_dir.result(stem, "run.json"), record)
    return root
