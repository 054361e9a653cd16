"""Embeddings on disk to result tables, against named vectors in lists."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from benchmarks.measure import Figure, Goal, Settings, ratio_of, take_turns
from benchmarks.plain_results import PlainResults
from virnucpro import store
from virnucpro.bundles import load_bundle
from virnucpro.encoders import save_encoder
from virnucpro.executors.local import PoolExecutor
from virnucpro.heads import MLPHead, load_head, save_head
from virnucpro.machine.reads import write_reads
from virnucpro.progress import Reporter
from virnucpro.request import Options
from virnucpro.results.calls import Calling
from virnucpro.results.tables import row_names
from virnucpro.run_dir import RunDir
from virnucpro.settings import Layout, Runtime
from virnucpro.stages import classify, extract, merge, tabulate, write
from virnucpro.stages.base import ROLES, Index, Run, shard_made_from
from virnucpro.stages.tabulate import ScoredModels, StoredScores

SECTION = "results"
_LENGTH_NT = 300
_WIDTHS = {"nucleotide": ("nt", 768), "protein": ("aa", 2560)}
_FEATURE_WIDTH = 3328
_HIDDEN_WIDTH = 512
_TOLERANCE = 1e-5
_STAGES = ("merge", "classify", "tabulate", "write")
"""In the order of the work; the stages begin in another, since each pulls from the one before."""


def measure(settings: Settings) -> Iterator[Figure]:
    """Writing of random embeddings of the published widths, and all stages after it."""
    torch.set_num_threads(settings.threads)
    with TemporaryDirectory(prefix="virnucpro-benchmark-") as folder:
        ours = prepare(Path(folder), settings)
        peer = PlainResults(Path(folder) / "peer")
        peer.folder.mkdir()
        names = ours.names()
        yield _measure_writing(ours, peer, names, settings)
        head = load_head(ours.run.bundle.head)
        rates = take_turns(
            {
                "ours": lambda: float(ours.compute(keep_merged=False)),
                "kept": lambda: float(ours.compute(keep_merged=True)),
                "peer": lambda: float(peer.run(len(names), head)),
            },
            settings.seconds,
            before={"ours": ours.clear, "kept": ours.clear, "peer": os.sync},
        )
        difference = max(_largest_difference(ours.scores(), peer.row_table), _other_windows(ours, peer))
        for name, title in (("ours", "merge, head, fragments, tables"), ("kept", "the same, and merged files kept")):
            yield Figure(
                SECTION,
                f"{title} of {len(names):,} rows of {_FEATURE_WIDTH:,}",
                "rows/s",
                rates[name],
                "lists joined by name",
                rates["peer"],
                ratio_of(rates[name], rates["peer"]),
                Goal(least_ratio=20) if name == "ours" else Goal(),
                difference,
                _TOLERANCE,
                f"float32; threads: {settings.threads}",
            )
        yield from _stage_figures(ours, len(names))


def _measure_writing(ours: Embedded, peer: PlainResults, names: list[str], settings: Settings) -> Figure:
    nucleotide, protein = (ours.embeddings(role) for role in ROLES)

    def write_ours() -> float:
        ours.write_embeddings({"nucleotide": nucleotide, "protein": protein})
        return len(names)

    def write_peer() -> float:
        peer.save_features(names, nucleotide, protein)
        return len(names)

    rates = take_turns({"ours": write_ours, "peer": write_peer}, settings.seconds)
    return Figure(
        SECTION,
        f"embeddings of {len(names):,} rows to disk",
        "rows/s",
        rates["ours"],
        "torch.save of lists",
        rates["peer"],
        ratio_of(rates["ours"], rates["peer"]),
        note="float32",
    )


@dataclass(frozen=True)
class Embedded:
    """A run whose embeddings are on disk."""

    run: Run
    index: Index
    threads: int

    def compute(self, *, keep_merged: bool) -> int:
        """All stages after embedding, from nothing; returns the number of rows.

        Args:
            keep_merged: write merged files too, as a run that keeps its embeddings does.
        """
        run, index = self.run, self.index
        run.reporter.seconds.clear()
        units: Iterable[int] = range(len(index.units))
        scorer = classify.Scorer(run, self.threads, Runtime().batch_size, keep_embeddings=True)
        with PoolExecutor(self.threads) as merger, run.reporter.stage("classify", index.num_rows, "rows") as advance:
            if keep_merged:
                units = merge.run(run, units, len(index.units), merger)
            for unit in units:
                advance(scorer.score(unit))
        with StoredScores(run.dir, run.rules, index) as stored:
            scores = ScoredModels(stored)
            table = tabulate.run(index, scores, run.reporter)
            write.run(index, table, scores, Calling(), Options(legacy_output=True), run.reporter)
        return index.num_rows

    @property
    def num_feature_bytes(self) -> int:
        """Of all merged files."""
        return sum(unit.num_sources for unit in self.index.units) * _FEATURE_WIDTH * np.dtype(np.float32).itemsize

    def clear(self) -> None:
        """Remove what ``compute`` wrote, and wait for the disk: our fsync would wait for what the peer left to it."""
        for done in ("merged", "scores"):
            shutil.rmtree(self.run.dir.work / done, ignore_errors=True)
        os.sync()

    def write_embeddings(self, embeddings: dict[str, NDArray[np.float32]]) -> None:
        """Write the shards of both encoders, as the embed stage does."""
        first = 0
        for unit, indexed in enumerate(self.index.units):
            digest = store.read_attributes(self.run.dir.unit(unit), "unit")["digest"]
            rows = slice(first, first + indexed.num_sources)
            for role, array in embeddings.items():
                made = shard_made_from(self.run.bundle, role, self.run.dtype, digest)
                store.write_arrays(self.run.dir.embedding(role, unit), "embedding", {"embedding": array[rows]}, made)
            first = rows.stop

    def names(self) -> list[str]:
        """Published name of every row."""
        names: list[str] = []
        for unit in range(len(self.index.units)):
            table = store.read_unit(self.run.dir.unit(unit))
            ids = table.names.take(table.rows["sequence"] - table.sequences["number"][0]).to_bytes()
            names += [name.decode() for name in row_names(ids, table.rows)]
        return names

    def embeddings(self, role: str) -> NDArray[np.float32]:
        """Of all rows."""
        paths = (self.run.dir.embedding(role, unit) for unit in range(len(self.index.units)))
        return np.concatenate([store.read_arrays(path, "embedding", "embedding")["embedding"] for path in paths])

    def scores(self) -> NDArray[np.float32]:
        """Of all rows."""
        paths = (self.run.dir.scores(unit) for unit in range(len(self.index.units)))
        return np.concatenate([store.read_arrays(path, "scores", "scores")["scores"] for path in paths])


def prepare(folder: Path, settings: Settings, unit_rows: int = Layout().unit_rows) -> Embedded:
    """Coding reads, one row each and some more, cut as ever, with random embeddings."""
    bundle = load_bundle(str(_write_bundle(folder / "bundle", settings.seed)))
    reads = write_reads(folder / "reads.fasta", settings.num_rows, _LENGTH_NT, 1.0, settings.seed)
    run_dir = RunDir(folder / "run")
    run_dir.prepare(force=False)
    run = Run(
        dir=run_dir,
        inputs=(str(reads),),
        bundle=bundle,
        fragment_length=_LENGTH_NT,
        unit_rows=unit_rows,
        dtype="float32",
        reporter=Reporter(bars=False),
    )
    index = extract.run(run)
    ours = Embedded(run, index, settings.threads)
    rng = np.random.default_rng(settings.seed)
    num_rows = sum(unit.num_sources for unit in index.units)
    ours.write_embeddings(
        {role: rng.standard_normal((num_rows, width), dtype=np.float32) for role, (_, width) in _WIDTHS.items()}
    )
    return ours


def _write_bundle(folder: Path, seed: int) -> Path:
    """A bundle with a head of the published shape; its encoders are named and never run."""
    folder.mkdir()
    for role, (alphabet, width) in _WIDTHS.items():
        config = {"kind": "none", "alphabet": alphabet, "width": width}
        save_encoder(folder / f"{role}.safetensors", config, {"none": torch.zeros(1)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = MLPHead(_FEATURE_WIDTH, _HIDDEN_WIDTH)
    save_head(folder / "head.safetensors", head, {})
    settings = {
        "schema": 1,
        "name": "benchmark",
        "fragment_length": _LENGTH_NT,
        "min_length": 0,
        "frameless": "skip",
        "rows": "max",
        **{role: f"{role}.safetensors" for role in (*_WIDTHS, "head")},
        "threshold": 0.5,
        "calibration": {"lengths": [_LENGTH_NT], "slope": [1.0], "intercept": [0.0], "exponent": 0.5},
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


def _stage_figures(ours: Embedded, num_rows: int) -> Iterator[Figure]:
    for stage in _STAGES:
        seconds = ours.run.reporter.seconds[stage]
        yield Figure(
            SECTION, f"  of it {stage}", "s", (seconds,), note=f"{num_rows:,} rows, last run, merged files kept"
        )


def _largest_difference(scores: NDArray[np.float32], row_table: Path) -> float:
    expected = np.loadtxt(row_table, delimiter="\t", skiprows=1, usecols=(2, 3), ndmin=2)
    return float(np.abs(scores - expected).max())


def _other_windows(ours: Embedded, peer: PlainResults) -> int:
    """Windows that are called otherwise, or that one side lacks."""
    stem = ours.index.inputs[0].stem
    path = ours.run.dir.named(stem, "<stem>_merged/prediction_results_highestscore.csv")
    return len(set(path.read_text().splitlines()) ^ set(peer.window_table.read_text().splitlines()))
