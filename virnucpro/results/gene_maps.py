"""Genes along the viruses and proviruses that a page shows, by what is nearest to them: why they are called so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro.nearest.path import MOSTLY_CELL, UNMATCHED, VIRAL, classes_of
from virnucpro.results.called import InputResults
from virnucpro.results.drawing import Canvas, Label, Shape, nice_step
from virnucpro.results.overview import Overview

FLANK_NT = 8_000
"""Of host that is shown on either side of a provirus."""
MOST_GENES = 400
"""Of a map; a longer virus is shown as far as they reach."""
_SIZE = (720, 74)
_MARGIN = 8.0
_LANES = {1: 12.0, -1: 34.0}
_THICK = 16.0
_AXIS = 58.0
_COLOURS = {"virus": "virus", "cell": "not_virus", "both": "uncertain", "neither": "no_call"}


@dataclass(frozen=True)
class GeneMap:
    """What is drawn of a sequence."""

    name: bytes  # of the sequence
    start: int  # first base shown, 0-based
    stop: int  # one after the last
    region: tuple[int, int] | None  # of the provirus, 0-based half-open; None for a whole virus
    genes: NDArray[np.void]  # (g,) GENE_DTYPE
    organisms: Mapping[int, tuple[str, str]]  # number of an organism to its name and family; empty for none
    num_left_out: int = 0  # genes of the sequence that are not shown though they belong to the virus

    @property
    def kinds(self) -> list[str]:
        """What each gene is near to: virus, cell, both or neither."""
        classes = classes_of(self.genes["bits_virus"], self.genes["bits_cell"])
        names = np.array(["neither", "cell", "both", "virus"])
        places = (classes > UNMATCHED).astype(np.int64) + (classes > MOSTLY_CELL) + (classes >= VIRAL)
        return [str(name) for name in names[places]]


def gene_maps(results: InputResults, shown: Overview) -> list[GeneMap]:
    """Of the proviruses that are shown, then of the hits that have genes."""
    maps = [_map(results, found.position, (found.start - 1, found.stop)) for found in shown.proviruses]
    has_region = {found.position for found in shown.proviruses}
    whole = [_map(results, hit.position) for hit in shown.hits if hit.position not in has_region]
    return [*maps, *(found for found in whole if len(found.genes))]


def _map(results: InputResults, position: int, region: tuple[int, int] | None = None) -> GeneMap:
    table = results.table.slice(position, position + 1)
    start, stop = 0, int(table.sequences["length"][0])
    if region is not None:
        start, stop = max(start, region[0] - FLANK_NT), min(stop, region[1] + FLANK_NT)
    inside = np.array(table.genes[(table.genes["stop"] > start) & (table.genes["start"] < stop)])
    kept = inside[:MOST_GENES]
    if len(kept) < len(inside):
        stop = int(kept["stop"][-1])
    organisms = {number: table.organisms.get(number, ("", "")) for number in np.unique(kept["nearest"]).tolist()}
    return GeneMap(table.names[0].tobytes(), start, stop, region, kept, organisms, len(inside) - len(kept))


def draw(shown: GeneMap) -> Canvas:
    """The map: an arrow for each gene, those of the other strand below; the provirus is shaded."""
    canvas = Canvas(_SIZE)
    scale = (_SIZE[0] - 2 * _MARGIN) / max(1, shown.stop - shown.start)

    def x(place: float) -> float:
        return _MARGIN + (min(max(place, shown.start), shown.stop) - shown.start) * scale

    if shown.region is not None:
        left, right = x(shown.region[0]), x(shown.region[1])
        corners = [(left, 4.0), (left, _AXIS), (right, _AXIS), (right, 4.0)]
        canvas.shapes.append(Shape(corners, fill="virus", opacity=0.12))
    for gene, kind in zip(shown.genes, shown.kinds, strict=True):
        canvas.shapes.append(_arrow(gene, x(gene["start"]), x(gene["stop"]), kind, shown))
    canvas.shapes.append(Shape([(_MARGIN, _AXIS), (_SIZE[0] - _MARGIN, _AXIS)], stroke="faint"))
    step = int(max(1, nice_step(max(1, shown.stop - shown.start) / 6)))
    for place in range(-(-shown.start // step) * step, shown.stop + 1, step):
        canvas.shapes.append(Shape([(x(place), _AXIS), (x(place), _AXIS + 3)], stroke="faint"))
        canvas.shapes.append(Label((x(place), _AXIS + 14), f"{place / 1000:g}", size=10))
    return canvas


def _arrow(gene: np.void, left: float, right: float, kind: str, shown: GeneMap) -> Shape:
    strand = int(gene["strand"])
    top, tip = _LANES[strand], min(5.0, right - left)
    back, front, neck = (left, right, right - tip) if strand > 0 else (right, left, left + tip)
    bottom = top + _THICK
    points = [(back, top), (neck, top), (front, top + _THICK / 2), (neck, bottom), (back, bottom)]
    name, family = shown.organisms[int(gene["nearest"])]
    nearest = f", nearest virus {name}{f' ({family})' if family else ''}" if name and kind in ("virus", "both") else ""
    text = (
        f"{gene['start'] + 1:,} to {gene['stop']:,}: {gene['bits_virus']:.0f} bits to viruses, "
        f"{gene['bits_cell']:.0f} to cells{nearest}"
    )
    return Shape(points, fill=_COLOURS[kind], opacity=0.35 if kind == "neither" else 0.9, title=text)


def described(shown: GeneMap) -> str:
    """What a map shows, in words."""
    inside = shown.genes
    kinds = np.array(shown.kinds)
    if shown.region is not None:
        middle = (inside["start"] + inside["stop"]) / 2
        within = (middle >= shown.region[0]) & (middle < shown.region[1])
        inside, kinds = inside[within], kinds[within]
    parts = [f"{int((kinds == kind).sum())} {words}" for kind, words in _WORDS.items() if (kinds == kind).any()]
    families = [shown.organisms[int(number)][1] for number in inside["nearest"][kinds == "virus"]]
    known = [family for family in families if family]
    most = max(sorted(set(known)), key=known.count) if known else ""
    place = (
        f"Provirus {shown.region[0] + 1:,} to {shown.region[1]:,}"
        if shown.region is not None
        else f"Whole sequence, {shown.stop - shown.start:,} bases shown"
    )
    more = f"; {shown.num_left_out:,} further genes are not shown" if shown.num_left_out else ""
    return (
        f"{place}: {len(inside)} genes, {', '.join(parts) or 'none'}"
        f"{f'; most often nearest to {most}' if most else ''}{more}."
    )


_WORDS = {
    "virus": "nearer to viruses",
    "both": "near to both",
    "cell": "nearer to cells",
    "neither": "near to neither",
}
