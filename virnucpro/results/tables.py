"""What the result tables hold, column by column, from the table of fragments and the calls.

Names are bytes and are written back as they were read. Coordinates are 1-based and closed. Probabilities have four
decimals. A value that is not there is NaN or ``NA``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from virnucpro.results.calls import (
    CALLS,
    EVIDENCE_NAMES,
    FAILED,
    STATUS_NAMES,
    failure,
    probability,
    reasons,
    sums,
)
from virnucpro.results.formats import NOTHING, Cells, decimals
from virnucpro.results.fragments import Fragments
from virnucpro.results.prevalence import Prevalence
from virnucpro.results.regions import outside
from virnucpro.sequence.table import FRAME_NAMES

_EVIDENCE = [NOTHING, *(name.encode() for name in EVIDENCE_NAMES)]
_REGION = (NOTHING, b"provirus")
_FRAMES = {frame: b"%+d" % frame if frame else b"0" for frame in FRAME_NAMES}
_FRAME_LETTERS = 2
"""That the published name of a row has after that of its window."""


def sequence_cells(table: Fragments, calls: NDArray[np.void], models: Sequence[bytes] = ()) -> Cells:
    """A line for each sequence, ``schema.SEQUENCES``; with ``models``, their names, ``schema.CASCADE``."""
    added = sums(table)
    is_scored = ~np.isnan(calls["p_virus"])
    top = table.fragments[np.maximum(added["top"], 0)] if len(table.fragments) else table.fragments[:0]
    has_choice = is_scored & (table.sequences["num_fragments"] > 1)
    regions = [NOTHING] * len(table)
    chosen = np.flatnonzero(has_choice)
    bounds = zip(chosen.tolist(), (top["start"][chosen] + 1).tolist(), top["stop"][chosen].tolist(), strict=True)
    for place, start, stop in bounds:
        regions[place] = b"%d-%d" % (start, stop)
    cells: list[Sequence[bytes] | NDArray[np.generic]] = [
        table.names.to_bytes(),
        table.sequences["length"],
        table.sequences["num_fragments"],
        added["num_rows"],
        words(CALLS, calls["call"]),
        calls["p_virus"],
        calls["fdr"],
        np.where(is_scored, added["log_odds"], np.nan),
        _evidence(is_scored, calls["has_open"]),
        regions,
        words(STATUS_NAMES, calls["status"]),
        _reasons(table, calls["status"], added),
    ]
    if models:
        cells.append([models[model] for model in table.sequences["model"].tolist()])
    return cells


def fragment_cells(table: Fragments, prevalence: Prevalence) -> Cells:
    """A line for each fragment, ``schema.FRAGMENTS``."""
    fragments, offsets = table.fragments, table.offsets
    p_virus = fragment_probabilities(table, prevalence)
    names = table.names.to_bytes()
    return (
        [names[position] for position in table.positions.tolist()],
        np.arange(1, len(fragments) + 1) - offsets[:-1][table.positions],
        fragments["start"] + 1,
        fragments["stop"],
        fragments["num_open"],
        p_virus,
        _evidence(~np.isnan(p_virus), fragments["num_open"] > 0),
    )


def fragment_probabilities(table: Fragments, prevalence: Prevalence) -> NDArray[np.float32]:
    """(f,) p_virus at the prevalence given; NaN if there is no score."""
    return probability(table.fragments["log_odds"].astype(np.float64) + prevalence.shift).astype(np.float32)


def gene_cells(table: Fragments, parts: NDArray[np.void]) -> Cells:
    """A line for each gene, ``schema.GENES``; ``parts`` are the proviruses in the sequences."""
    genes = table.genes
    first = np.searchsorted(genes["sequence"], genes["sequence"], side="left")
    names = table.names.to_bytes()
    known = {number: (name.encode(), family.encode()) for number, (name, family) in table.organisms.items()}
    nothing = (NOTHING, NOTHING)
    nearest = [known.get(number, nothing) for number in genes["nearest"].tolist()]
    bits = (genes["bits_virus"], genes["bits_cell"])
    is_inside = ~outside(parts, genes)
    return (
        [names[position] for position in (genes["sequence"] - table.first).tolist()],
        np.arange(1, len(genes) + 1) - first,
        genes["start"] + 1,
        genes["stop"],
        [b"+" if strand > 0 else b"-" for strand in genes["strand"].tolist()],
        *(decimals(np.where(each > 0, each, np.nan), 1) for each in bits),
        [name for name, _ in nearest],
        [family or NOTHING for _, family in nearest],
        [_REGION[inside] for inside in is_inside.tolist()],
    )


def row_names(names: Sequence[bytes], rows: NDArray[np.void]) -> list[bytes]:
    """The published name of each row, ``<id>_chunk_<n><frame>``; ``names`` are those of their sequences."""
    frames = words(FRAME_NAMES, rows["frame"])
    numbers = (rows["fragment"] + 1).tolist()
    return [b"%b_chunk_%d%b" % line for line in zip(names, numbers, frames, strict=True)]


def place_cells(rows: NDArray[np.void]) -> Cells:
    """Frame, start and stop of each row."""
    return [_FRAMES[frame] for frame in rows["frame"].tolist()], rows["start"] + 1, rows["stop"]


def legacy_row_cells(names: Sequence[bytes], scores: NDArray[np.float32]) -> Cells:
    """Lines of ``prediction_results.txt``, ``schema.LEGACY_RESULTS``.

    A score is the shortest text that reads back as the same float32.
    """
    virus = scores[:, 1] > scores[:, 0]  # of two equal scores the first wins, as argmax has it
    others, viral = (scores[:, column].astype("S32").tolist() for column in (0, 1))
    return names, [b"virus" if is_virus else b"others" for is_virus in virus.tolist()], others, viral


def legacy_window_cells(rows: Iterable[tuple[Sequence[bytes], NDArray[np.float32]]]) -> Cells:
    """Lines of ``prediction_results_highestscore.csv``, ``schema.LEGACY_HIGHEST``, quoted if a name needs it.

    A window is virus when the largest virus score over its frames is >= the largest other score. Windows are told apart
    by name alone, as published, so that equal ids fall together. One without a kept frame, and frames that could not be
    computed, are in neither file.

    Args:
        rows: names of rows and their scores, part by part. Memory grows with the number of windows.
    """
    highest: dict[bytes, tuple[float, float]] = {}
    for names, scores in rows:
        for name, other, virus in zip(names, *scores.T.tolist(), strict=True):
            window = name[:-_FRAME_LETTERS]
            best = highest.get(window)
            highest[window] = (other, virus) if best is None else (max(best[0], other), max(best[1], virus))
    windows = sorted(highest)
    calls = [b"True" if highest[window][1] >= highest[window][0] else b"False" for window in windows]
    return [_quoted(window) for window in windows], calls


def _quoted(name: bytes) -> bytes:
    """A cell of a CSV file with tabs, in quotation marks if it needs them."""
    return b'"%b"' % name.replace(b'"', b'""') if b'"' in name or b"\t" in name else name


def words(choices: Mapping[int, str] | Sequence[str], numbers: NDArray[np.integer]) -> list[bytes]:
    """The word of each number."""
    items = choices.items() if isinstance(choices, Mapping) else enumerate(choices)
    encoded = {number: word.encode() for number, word in items}
    return [encoded[number] for number in numbers.tolist()]


def _evidence(scored: NDArray[np.bool_], has_open_frame: NDArray[np.bool_]) -> list[bytes]:
    return [_EVIDENCE[place] for place in np.where(scored, 1 + has_open_frame, 0).tolist()]


def _reasons(table: Fragments, status: NDArray[np.int8], added: NDArray[np.void]) -> list[bytes]:
    """The reason of each status; each sequence with failed rows has its own."""
    known = reasons(table.rules[0])
    texts = [known.get(number, NOTHING) for number in status.tolist()]
    for place in np.flatnonzero(status == FAILED).tolist():
        num_rows = int(added["num_rows"][place]) + int(added["num_frameless"][place])
        texts[place] = failure(int(table.sequences["num_failed"][place]), num_rows)
    return texts
