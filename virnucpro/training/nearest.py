"""The nearest proteins in a bundle: the table beside trained encoders, and how much it counts, chosen on dev.

The encoders know the genomes of their training by heart, so nothing can be learnt from these about how much to trust
the encoders beside the table. The dev part is new to both.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles import Bundle, load_bundle
from virnucpro.errors import UsageError
from virnucpro.nearest.evidence import Evidence, look_at
from virnucpro.nearest.search import CELL, VIRUS
from virnucpro.nearest.table import Table
from virnucpro.training.calibration import calibrate_bundle, fit_logistic, hats, read_settings, write_settings
from virnucpro.training.dev import CALIBRATED_LENGTHS, DevSize, Model, cut_rows, draw_dev, join_rows, load_model
from virnucpro.training.evaluation import Figures
from virnucpro.training.genomes import Genomes, load_genomes
from virnucpro.training.presets import Request
from virnucpro.training.proteins import Protein, fit_table, proteins_of, read_organisms, read_proteins

TABLE = "nearest.npz.zst"
KNOTS = (0, 28, 34, 40, 50, 65, 90, 140, 250)
"""Scores between which evidence is linear."""
_RIDGE = 3e-5


def table_of(folder: Path, parts: Iterable[str], num_threads: int = 1) -> Table:
    """The table of the genomes and proteins of some parts of a data folder.

    Raises:
        InputError: the data cannot be read.
        UsageError: a program that is needed is missing.
    """
    organisms = read_organisms(folder / "manifest.tsv.gz")
    found: list[Iterable[Protein]] = []
    for part in parts:
        found.append(proteins_of(load_genomes(folder, part), organisms))
        found += [read_proteins(path) for path in sorted((folder / part).glob("*.faa.gz"))]
    return fit_table(chain.from_iterable(found), num_threads)


def train_nearest(
    paths: Sequence[Path], output: Path, request: Request, *, is_final: bool, num_threads: int = 1
) -> Figures:
    """What ``virnucpro train --preset nearest`` does; with ``is_final`` the table is then made of all parts.

    Raises:
        UsageError: ``paths`` is no data folder, or a program that is needed is missing.
    """
    if len(paths) != 1 or not paths[0].is_dir():
        raise UsageError("--preset nearest takes one data folder, with train/, dev/ and manifest.tsv.gz.")
    folder = paths[0]
    table = table_of(folder, ("train",), num_threads)
    size = DevSize().scaled(request.dev_share)
    figures = add_nearest(table, load_genomes(folder, "dev"), load_bundle(request.start or "lite"), output, size)
    if is_final:
        parts = [part for part in ("train", "dev", "release") if (folder / part).is_dir()]
        _write(output, read_settings(output), table_of(folder, parts, num_threads), parts)
        load_bundle(str(output.absolute()))
    return figures


def add_nearest(table: Table, dev_genomes: Genomes, start: Bundle, output: Path, size: DevSize) -> Figures:
    """Write a bundle of the trained parts of ``start`` and a table of proteins, weighed and calibrated on dev."""
    output.mkdir(parents=True, exist_ok=True)
    for role in ("nucleotide", "protein", "head"):
        shutil.copyfile(start.encoder(role) if role != "head" else start.head, output / f"{role}.safetensors")
    settings = read_settings(start.folder)
    plain = load_model(replace(start, nearest=None, evidence=None))
    evidence = asdict(fit_evidence(table, plain, dev_genomes, size))
    settings |= {"nearest": TABLE, "evidence": json.loads(json.dumps(evidence))}  # lists in place of tuples
    _write(output, settings, table, ["train"])
    return calibrate_bundle(dev_genomes, output, size)


def _write(output: Path, settings: dict[str, Any], table: Table, parts: Sequence[str]) -> None:
    table.save(output / TABLE)
    made_of = {"parts": list(parts), "proteins": len(table), "residues": table.num_residues}
    write_settings(output, settings | {"provenance": settings["provenance"] | {"nearest": made_of}})


def fit_evidence(table: Table, plain: Model, dev_genomes: Genomes, size: DevSize) -> Evidence:
    """How much what is found counts beside the log-odds of a model, from dev sequences of one fragment.

    A logistic regression at each length, on the model's log-odds, linear splines over both scores, and traits; all is
    given as a multiple of what the model's log-odds count.
    """
    lines: dict[int, tuple[NDArray[np.float64], ...]] = {}
    for length in CALIBRATED_LENGTHS:
        dev = draw_dev(dev_genomes, length, size)
        rows = cut_rows(dev.letters, length)
        log_odds = join_rows(rows, plain.log_odds(rows), "mean")
        known = ~np.isnan(log_odds)
        first = np.unique(rows.fragments, return_index=True)[1]
        found = look_at(table, rows.nucleotides.take(first))
        design = np.concatenate([*(hats(found.scores[:, side], KNOTS) for side in (VIRUS, CELL)), found.traits], axis=1)
        weights = fit_weights(log_odds[known], design, dev.is_virus[known], dev.weights[known])
        lines[length] = tuple(np.split(np.round(weights, 4), [len(KNOTS), 2 * len(KNOTS)]))
    virus, cell, traits = (tuple(tuple(line[part].tolist()) for line in lines.values()) for part in range(3))
    return Evidence(tuple(map(float, lines)), tuple(map(float, KNOTS)), virus, cell, traits)


def fit_weights(
    log_odds: NDArray[np.float64],
    design: NDArray[np.float64],
    is_virus: NDArray[np.bool_],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(columns,) weights of a design beside log-odds, whose own weight is 1: ridge regression of the label.

    Args:
        log_odds: (n,) of a model.
        design: (n, columns).
        is_virus: (n,).
        weights: (n,) of the sequences.
    """
    columns = np.concatenate([log_odds[:, None], np.ones((len(log_odds), 1)), design], axis=1)
    ridge = _RIDGE * np.array([0.0, 0.0, *np.ones(design.shape[1])])
    found = fit_logistic(columns, is_virus, weights / weights.sum(), ridge=ridge)
    return np.asarray(found[2:] / max(found[0], 0.1))
