"""Which viruses the hits are, as a sunburst for the page: a view for each taxon, one of which is shown.

A click on a taxon leads to its view, one on the middle back up. That is done by links and the style sheet alone: the
page runs no script. ``templates/sunburst.html.j2`` writes the views.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from virnucpro.errors import StoreError
from virnucpro.results.lineages import TaxonCount
from virnucpro.results.schema import TAXA

MOST_VIEWS = 200
"""Taxa with a view of their own: those with most hits."""
_MOST_LEVELS = 64
_MIDDLE, _RING = 52.0, 36.0
_NUM_RINGS = 4
_LEAST_ANGLE = 0.004  # radians; what is thinner cannot be seen
_HUES = (22, 210, 42, 150, 280, 330, 180, 100)
"""Of the taxa of the first ring, by their hits; ``_GREY`` is that of hits without a name."""
_GREY = "hsl(215 8% 60%)"


def read_counts(path: Path) -> list[TaxonCount]:
    """The table of counts that a run wrote.

    Raises:
        StoreError: it is none.
    """
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        counts = [_read_line(line) for line in lines]
    except (OSError, ValueError) as error:
        raise StoreError(path, f"is damaged ({error})") from error
    if tuple(header.split("\t")) != TAXA.header:
        raise StoreError(path, "is damaged (its header is another)")
    return counts


def _read_line(line: str) -> TaxonCount:
    lineage, rank, *numbers = line.split("\t")
    num_hits, num_bases, num_here = map(int, numbers)
    names = tuple(lineage.split(";"))
    if len(names) > _MOST_LEVELS or num_hits < 1:
        raise ValueError(f"{len(names)} levels, {num_hits} hits")
    return TaxonCount(names, "" if rank == "NA" else rank, num_hits, num_bases, num_here)


@dataclass
class Taxon:
    """A taxon with those below it."""

    count: TaxonCount  # what it holds
    colour: str = ""  # of it
    below: list[Taxon] = field(default_factory=list)  # those right below, most hits first
    view: int | None = None  # number of its view, if it has one

    @property
    def name(self) -> str:
        """Its own, without those above."""
        return self.count.lineage[-1] if self.count.lineage else "All hits"


class View(NamedTuple):
    """A taxon in the middle, and those below it around."""

    taxon: Taxon
    up: int | None  # view of the nearest one above; None for all hits
    arcs: list[tuple[Taxon, str]]  # those below, and their shape as the path of an SVG


def views(counts: Sequence[TaxonCount]) -> list[View]:
    """A view of all hits and of the taxa with most of them; none without hits."""
    top = [count for count in counts if len(count.lineage) == 1]
    root = Taxon(TaxonCount((), "", sum(c.num_hits for c in top), sum(c.num_bases for c in top)))
    found: dict[tuple[str, ...], Taxon] = {(): root}
    for count in sorted(counts, key=lambda count: (len(count.lineage), -count.num_hits, count.lineage)):
        above = found.get(count.lineage[:-1])
        if above is not None:
            found[count.lineage] = Taxon(count, _colour(count, above))
            above.below.append(found[count.lineage])
    shown = sorted((taxon for taxon in found.values() if taxon.below), key=lambda taxon: -taxon.count.num_hits)
    for number, taxon in enumerate(shown[:MOST_VIEWS]):
        taxon.view = number
    made = []
    for taxon in shown[:MOST_VIEWS]:
        up = [found[taxon.count.lineage[:level]].view for level in range(len(taxon.count.lineage))]
        nearest = next((view for view in reversed(up) if view is not None), None)
        made.append(View(taxon, nearest, list(_arcs(taxon, 0.0, 2 * math.pi, 0))))
    return made


def _colour(count: TaxonCount, above: Taxon) -> str:
    """The hue of the first ring, lighter by level and a little by place; grey for what is no taxon."""
    if not count.rank:
        return _GREY
    place = len(above.below)
    if not above.colour:
        return f"hsl({_HUES[place % len(_HUES)]} 62% 46%)"
    hue = above.colour.partition("(")[2].split()[0]
    return f"hsl({hue} 58% {min(46 + 4 * len(count.lineage) + 3 * (place % 3), 80)}%)"


def _arcs(taxon: Taxon, start: float, stop: float, level: int) -> Iterator[tuple[Taxon, str]]:
    """Pieces of rings for the taxa below one; hits that are named no deeper leave a gap at the end."""
    if level == _NUM_RINGS:
        return
    inner, angle = _MIDDLE + level * _RING, start
    for below in taxon.below:
        end = angle + (stop - start) * below.count.num_hits / max(taxon.count.num_hits, 1)
        if end - angle >= _LEAST_ANGLE:
            yield below, _path(angle, end, inner, inner + _RING)
            yield from _arcs(below, angle, end, level + 1)
        angle = end


def _path(start: float, stop: float, inner: float, outer: float) -> str:
    """A piece of a ring; angles in radians from the top, clockwise."""
    stop = min(stop, start + 2 * math.pi - 1e-3)
    is_large = int(stop - start > math.pi)
    (a, b), (c, d) = ((_point(angle, outer), _point(angle, inner)) for angle in (start, stop))
    return f"M{a}A{outer} {outer} 0 {is_large} 1 {c}L{d}A{inner} {inner} 0 {is_large} 0 {b}Z"


def _point(angle: float, radius: float) -> str:
    return f"{radius * math.sin(angle):.2f} {-radius * math.cos(angle):.2f}"
