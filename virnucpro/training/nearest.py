"""The nearest proteins in a bundle: the table beside trained encoders, and how much it counts, chosen on dev.

The table holds what genomes code for, one protein of a cluster. Genes of cells without introns and of long viral
genomes are found by Pyrodigal; of all other genomes the longest stop-free runs are taken that do not lie upon each
other. Proteins of either side that are half identical to a longer one are left out (MMseqs2's linclust; Steinegger and
Soeding 2018), so that a family counts by how much it varies, not by how often it was sequenced.

The encoders know the genomes of their training by heart, so nothing can be learnt from these about how much to trust
the encoders beside the table. The dev part is new to both.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles import load_bundle
from virnucpro.errors import InputError, UsageError
from virnucpro.nearest.codons import CODE
from virnucpro.nearest.evidence import Evidence, look_at
from virnucpro.nearest.search import CELL, NONE, search_codes
from virnucpro.nearest.search import VIRUS as VIRAL
from virnucpro.nearest.table import Table, make_table
from virnucpro.sequence.ragged import Ragged
from virnucpro.training.calibration import calibrate_bundle, fit_logistic, hats, read_settings, write_settings
from virnucpro.training.composition import open_runs
from virnucpro.training.dev import CALIBRATED_LENGTHS, DevSize, Model, cut_rows, draw_dev, join_rows, load_model
from virnucpro.training.evaluation import Figures
from virnucpro.training.genomes import LETTERS, VIRUS, Genomes, load_genomes, read_table
from virnucpro.training.presets import Request

TABLE = "nearest.npz.zst"
KNOTS = (0, 28, 34, 40, 50, 65, 90, 140, 250)
"""Scores between which evidence is linear."""
_RIDGE = 3e-5
WITHOUT_INTRONS = ("archaea", "bacteria", "mge", "organelle", "plasmid")
LONG_VIRUS_NT = 15_000
"""Viral genomes from here on are mostly written as those of bacteria are: genes without introns, one after another."""
SHORTEST_GENE, SHORTEST_RUN, SHORTEST_VIRAL_RUN = 50, 80, 50
"""Residues. Shorter runs are mostly no genes."""
MOST_OVERLAP = 0.3
"""Share of a stop-free run that may lie upon longer ones."""
IDENTITY, COVERAGE = 0.5, 0.8
THINNED = {"bacteria": 0.33, "Caudoviricetes": 0.5}
"""Share that stays of the proteins that are alone in their cluster, of a class of hosts or a family of viruses. Of
these two there are far more than of all others, and so many of them are as good on dev as all."""
LEAST_SHARED, NEARER, GENERA = 100, 1.3, 5
"""What makes a viral protein one of cells: score, how many times that of other viruses, in how many parts of genera."""
FEWEST, MOST_CELLULAR, BESIDE = 3, 0.1, 5
"""So many of them, and such a share of its proteins, make a viral record a piece of a cell about them: this many
proteins to either side."""
_PARTS = 24
"""Of the genera, by chance."""
_LONGEST_NAME = 60
_TRANSLATION = CODE.ljust(256)  # of codons


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
    """Make a bundle of the trained parts of ``start`` and a table of proteins, weighed and calibrated on dev.

    With ``is_final`` the table is then made of all parts.

    Raises:
        UsageError: ``paths`` is no data folder, or a program that is needed is missing.
    """
    if len(paths) != 1 or not paths[0].is_dir():
        raise UsageError("--preset nearest takes one data folder, with train/, dev/ and manifest.tsv.gz.")
    folder = paths[0]
    table = table_of(folder, ("train",), num_threads)
    dev, size = load_genomes(folder, "dev"), DevSize().scaled(request.dev_share)
    start = load_bundle(request.start or "lite")
    output.mkdir(parents=True, exist_ok=True)
    for role in ("nucleotide", "protein", "head"):
        shutil.copyfile(start.encoder(role) if role != "head" else start.head, output / f"{role}.safetensors")
    settings = read_settings(start.folder)
    plain = load_model(replace(start, nearest=None, evidence=None))
    evidence = asdict(fit_evidence(table, plain, dev, size))
    settings |= {"nearest": TABLE, "evidence": json.loads(json.dumps(evidence))}  # lists in place of tuples
    _write(output, settings, table, ["train"])
    figures = calibrate_bundle(dev, output, size)
    if is_final:
        parts = [part for part in ("train", "dev", "release") if (folder / part).is_dir()]
        _write(output, read_settings(output), table_of(folder, parts, num_threads), parts)
        load_bundle(str(output.absolute()))
    return figures


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
        design = np.concatenate([*(hats(found.scores[:, side], KNOTS) for side in (VIRAL, CELL)), found.traits], axis=1)
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


@dataclass(frozen=True)
class Protein:
    """A protein and whose it is."""

    letters: bytes  # one a residue
    organism: str  # a name, or empty
    group: str  # family of viruses, or genus
    kind: str  # ``virus`` or a class of hosts


def proteins_of(genomes: Genomes, organisms: dict[str, str]) -> Iterator[Protein]:
    """Proteins of all records, in their order; ``organisms`` are names by record.

    Raises:
        UsageError: Pyrodigal is not installed.
    """
    try:
        from pyrodigal import GeneFinder  # noqa: PLC0415 - only this needs it
    except ImportError as error:
        raise UsageError("a table of proteins needs Pyrodigal: pip install pyrodigal.") from error
    finder = GeneFinder(meta=True, min_gene=3 * SHORTEST_GENE)
    for record, codes in enumerate(genomes):
        kind, group = str(genomes.classes[record]), str(genomes.groups[record])
        if kind in WITHOUT_INTRONS or (kind == VIRUS and len(codes) >= LONG_VIRUS_NT):
            found = [gene.translate().rstrip("*").encode() for gene in finder.find_genes(LETTERS[codes].tobytes())]
        else:
            found = longest_runs(codes, SHORTEST_VIRAL_RUN if kind == VIRUS else SHORTEST_RUN)
        name = organisms.get(str(genomes.ids[record]), "")[:_LONGEST_NAME]
        yield from (Protein(letters, name, group, kind) for letters in found)


def longest_runs(codes: NDArray[np.uint8], shortest: int) -> list[bytes]:
    """Proteins of the longest stop-free runs of both strands, of ``shortest`` residues or more, by length."""
    is_covered = np.zeros(len(codes), dtype=np.bool_)
    chosen = []
    for start, stop, codons in sorted(open_runs(codes, shortest), key=lambda run: (run[0] - run[1], run[0])):
        if is_covered[start:stop].sum() <= MOST_OVERLAP * (stop - start):
            is_covered[start:stop] = True
            chosen.append(codons.tobytes().translate(_TRANSLATION))
    return chosen


def read_proteins(path: Path) -> Iterator[Protein]:
    """Viral proteins of a FASTA file (gzip), whose headers end in ``|family``.

    Raises:
        InputError: it is none.
    """
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        text = lines.read()
    if not text.startswith(">"):
        raise InputError(str(path), "is no FASTA.")
    for entry in text[1:].split("\n>"):
        header, _, letters = entry.partition("\n")
        family = header.rpartition("|")[2].strip() or "unclassified"
        if family.startswith("Rd"):  # supergroups by their polymerase, cut at any length
            family = "Riboviria"
        yield Protein("".join(letters.split()).encode(), "", family, VIRUS)


def read_organisms(manifest: Path) -> dict[str, str]:
    """Id of each record to the name of its organism; empty where the manifest has none.

    Raises:
        InputError: it cannot be read.
    """
    return {row["id"]: row.get("organism", "") for row in read_table(manifest, ("id",))}


def fit_table(proteins: Iterable[Protein], num_threads: int = 1, seed: int = 1) -> Table:
    """Cluster the proteins of each side, thin out what there is too much of, and make a table.

    Raises:
        UsageError: MMseqs2 is not installed, or fails.
    """
    sides: tuple[list[Protein], list[Protein]] = ([], [])
    for protein in proteins:
        sides[protein.kind != VIRUS].append(protein)
    generator = np.random.default_rng(seed)
    kept: list[Protein] = []
    for side in sides:
        numbers, sizes = representatives(side, num_threads)
        lots = generator.random(len(numbers))
        for number, size, lot in zip(numbers.tolist(), sizes.tolist(), lots.tolist(), strict=True):
            protein = side[number]
            if size > 1 or lot < THINNED.get(protein.kind, 1.0) * THINNED.get(protein.group, 1.0):
                kept.append(protein)
    whose = [(protein.organism, protein.group, protein.kind) for protein in kept]
    table = make_table(Ragged.from_bytes(protein.letters for protein in kept), whose)
    return table.without(find_cellular(table, num_threads))


def find_cellular(table: Table, num_threads: int = 1, seed: int = 1) -> NDArray[np.bool_]:
    """(n,) whether each protein of a virus is rather one of cells: ribosomal, of RNA polymerase, a chaperone ...

    Curated proviruses and contigs of viromes hold such genes by mistake, and large phages have some of their own; all
    cells would resemble a virus there. A viral protein is left out where cells are clearly nearer to it than
    any other virus and many genera are about as near; of a record with many such proteins so are those beside them, and
    what is left of it is its provirus. Transposons do not count as cells here: retroviruses resemble some by nature.
    """
    viral = np.flatnonzero(table.is_viral)
    queries, itself = table.proteins.take(viral), np.arange(len(table), dtype=np.int32)
    scores = search_codes(table, queries, folds=itself, left_out=itself[viral], num_threads=num_threads).scores
    is_near = (scores[:, CELL] >= LEAST_SHARED) & (scores[:, CELL] >= NEARER * scores[:, VIRAL])
    near = np.flatnonzero(is_near)
    part_of_group = np.random.default_rng(seed).integers(0, _PARTS, len(table.group_names))
    part_of_group[table.viral | (np.array(table.group_classes) == "te")] = NONE
    part_of_protein = part_of_group[table.group_of_protein]
    num_parts = np.zeros(len(near), dtype=np.int64)
    for part in range(_PARTS):
        found = search_codes(table.only(part_of_protein == part), queries.take(near), num_threads=num_threads).scores
        num_parts += found[:, CELL] >= np.maximum(scores[near, CELL] / 2, LEAST_SHARED)
    is_cellular = np.zeros(len(table), dtype=np.bool_)
    is_cellular[viral[near[num_parts >= GENERA]]] = True
    all_of, of_cells = (
        np.bincount(table.organisms[some], minlength=len(table.organism_names))
        for some in (table.is_viral, is_cellular)
    )
    is_piece = (of_cells >= FEWEST) & (of_cells >= MOST_CELLULAR * all_of) & (np.array(table.organism_names) != "")
    for protein in np.flatnonzero(is_cellular & is_piece[table.organisms]).tolist():
        beside = np.arange(max(protein - BESIDE, 0), min(protein + BESIDE + 1, len(table)))
        is_cellular[beside[table.organisms[beside] == table.organisms[protein]]] = True
    return is_cellular


def representatives(proteins: list[Protein], num_threads: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of one protein of each cluster, ascending, and how many the cluster has.

    Raises:
        UsageError: MMseqs2 is not installed, or fails.
    """
    program = shutil.which("mmseqs")
    if program is None:
        raise UsageError("a table of proteins needs MMseqs2 (mmseqs), which is not on the PATH; Bioconda has it.")
    if not proteins:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    with TemporaryDirectory(prefix="virnucpro-") as folder:
        path = Path(folder)
        with (path / "in.faa").open("wb") as file:
            file.writelines(b">%d\n%s\n" % (i, protein.letters) for i, protein in enumerate(proteins))
        limits = ("--min-seq-id", str(IDENTITY), "-c", str(COVERAGE), "--cov-mode", "1")
        places = (str(path / name) for name in ("in.faa", "out", "tmp"))
        command = [program, "easy-linclust", *places, *limits, "--threads", str(num_threads), "-v", "1"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - a list, no shell
        if done.returncode:
            raise UsageError(f"mmseqs failed: {(done.stderr or done.stdout).strip()[-500:]}")
        with (path / "out_cluster.tsv").open(encoding="utf-8") as lines:
            chosen = np.array([int(line.partition("\t")[0]) for line in lines], dtype=np.int64)
    numbers, sizes = np.unique(chosen, return_counts=True)
    return numbers, sizes
