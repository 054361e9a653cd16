"""Which viruses the hits are, as a sunburst for the page: a view for each taxon, one of which is shown.

A click on a taxon leads to its view, one on the middle back up. That is done by links and the style sheet alone: the
page runs no script.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from virnucpro.errors import StoreError
from virnucpro.results.lineages import TaxonCount
from virnucpro.results.schema import TAXA

MOST_VIEWS = 200
"""Taxa with a view of their own: those with most hits."""
_MOST_LEVELS = 64
_SIZE, _MIDDLE, _RING = 400, 52.0, 36.0
_NUM_RINGS = 4
_LISTED = 12
_MIDDLE_LETTERS = 16
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


@dataclass(frozen=True)
class _Taxon:
    """A taxon with those below it."""

    count: TaxonCount  # what it holds
    colour: str  # of it
    below: list[_Taxon]  # those right below, most hits first


def draw(counts: Sequence[TaxonCount]) -> str:
    """All views, as HTML; empty without hits."""
    root = _tree(counts)
    if not root.below:
        return ""
    shown = sorted((taxon for taxon in _walk(root) if taxon.below), key=lambda taxon: -taxon.count.num_hits)
    numbers = {taxon.count.lineage: number for number, taxon in enumerate(shown[:MOST_VIEWS])}
    views = (_view(taxon, numbers) for taxon in shown[:MOST_VIEWS])
    return f'<div class="suns">\n{"".join(views)}</div>'


def _tree(counts: Sequence[TaxonCount]) -> _Taxon:
    top = [count for count in counts if len(count.lineage) == 1]
    root = _Taxon(TaxonCount((), "", sum(c.num_hits for c in top), sum(c.num_bases for c in top)), "", [])
    found: dict[tuple[str, ...], _Taxon] = {(): root}
    for count in sorted(counts, key=lambda count: (len(count.lineage), -count.num_hits, count.lineage)):
        above = found.get(count.lineage[:-1])
        if above is not None:
            found[count.lineage] = _Taxon(count, _colour(count, above), [])
            above.below.append(found[count.lineage])
    return root


def _colour(count: TaxonCount, above: _Taxon) -> str:
    """The hue of the first ring, lighter by level and a little by place; grey for what is no taxon."""
    if not count.rank:
        return _GREY
    place = len(above.below)
    if not above.colour:
        return f"hsl({_HUES[place % len(_HUES)]} 62% 46%)"
    hue = above.colour.partition("(")[2].split()[0]
    return f"hsl({hue} 58% {min(46 + 4 * len(count.lineage) + 3 * (place % 3), 80)}%)"


def _walk(taxon: _Taxon) -> Iterator[_Taxon]:
    yield taxon
    for below in taxon.below:
        yield from _walk(below)


def _view(taxon: _Taxon, numbers: dict[tuple[str, ...], int]) -> str:
    """A taxon in the middle, and those below it around."""
    name, hits = _name(taxon), f"{taxon.count.num_hits:,} hits"
    rings = "".join(_rings(taxon, 0.0, 2 * math.pi, 0, numbers))
    middle = f'<circle r="{_MIDDLE - 2}" style="fill:var(--card)"/>'
    middle += f'<text y="-4" text-anchor="middle" font-size="12">{escape(_short(name))}</text>'
    middle += f'<text y="14" text-anchor="middle" font-size="11">{hits}</text>'
    if taxon.count.lineage:
        up = _nearest_above(taxon.count.lineage, numbers)
        middle = f'<a href="#taxon-{up}"><title>Back up</title>{middle}</a>'
    half = _SIZE // 2
    label = f"{name}: {hits}, by the taxa below it"
    return (
        f'<div class="sun" id="taxon-{numbers[taxon.count.lineage]}">\n'
        f'<svg viewBox="{-half} {-half} {_SIZE} {_SIZE}" role="img" aria-label="{escape(label)}" '
        f'style="fill:var(--ink)">\n{rings}{middle}\n</svg>\n{_list(taxon, numbers)}</div>\n'
    )


def _rings(taxon: _Taxon, start: float, stop: float, level: int, numbers: dict[tuple[str, ...], int]) -> Iterator[str]:
    """Arcs of the taxa below one; hits that are named no deeper leave a gap at the end."""
    if level == _NUM_RINGS:
        return
    angle = start
    for below in taxon.below:
        end = angle + (stop - start) * below.count.num_hits / max(taxon.count.num_hits, 1)
        if end - angle >= _LEAST_ANGLE:
            inner = _MIDDLE + level * _RING
            arc = f'<path d="{_arc(angle, end, inner, inner + _RING)}" style="fill:{below.colour}"/>'
            title = f"<title>{escape(_described(below))}</title>"
            if below.count.lineage in numbers:
                yield f'<a href="#taxon-{numbers[below.count.lineage]}">{title}{arc}</a>\n'
            else:
                yield f"<g>{title}{arc}</g>\n"
            yield from _rings(below, angle, end, level + 1, numbers)
        angle = end


def _arc(start: float, stop: float, inner: float, outer: float) -> str:
    """A piece of a ring; angles in radians from the top, clockwise."""
    stop = min(stop, start + 2 * math.pi - 1e-3)
    is_large = int(stop - start > math.pi)
    (a, b), (c, d) = ((_point(angle, outer), _point(angle, inner)) for angle in (start, stop))
    return f"M{a}A{outer} {outer} 0 {is_large} 1 {c}L{d}A{inner} {inner} 0 {is_large} 0 {b}Z"


def _point(angle: float, radius: float) -> str:
    return f"{radius * math.sin(angle):.2f} {-radius * math.cos(angle):.2f}"


def _list(taxon: _Taxon, numbers: dict[tuple[str, ...], int]) -> str:
    """The taxa right below, as a table."""
    lines = []
    for below in taxon.below[:_LISTED]:
        name = escape(_name(below))
        if below.count.lineage in numbers:
            name = f'<a href="#taxon-{numbers[below.count.lineage]}">{name}</a>'
        swatch = f'<span class="swatch" style="background-color:{below.colour}" aria-hidden="true"></span>'
        lines.append(
            f'<tr><th scope="row" class="call">{swatch}{name}</th><td>{escape(below.count.rank)}</td>'
            f'<td class="number">{below.count.num_hits:,}</td></tr>\n'
        )
    num_more = len(taxon.below) - _LISTED
    more = f'<tr><td colspan="3">and {num_more:,} more</td></tr>\n' if num_more > 0 else ""
    head = '<tr><th scope="col">taxon</th><th scope="col">rank</th><th scope="col" class="number">hits</th></tr>'
    return f"<table>\n<thead>{head}</thead>\n<tbody>\n{''.join(lines)}{more}</tbody>\n</table>\n"


def _described(taxon: _Taxon) -> str:
    rank = f" ({taxon.count.rank})" if taxon.count.rank else ""
    return f"{_name(taxon)}{rank}: {taxon.count.num_hits:,} hits, {taxon.count.num_bases:,} bases"


def _name(taxon: _Taxon) -> str:
    return taxon.count.lineage[-1] if taxon.count.lineage else "All hits"


def _short(name: str) -> str:
    return name if len(name) <= _MIDDLE_LETTERS else f"{name[: _MIDDLE_LETTERS - 1]}…"


def _nearest_above(lineage: tuple[str, ...], numbers: dict[tuple[str, ...], int]) -> int:
    """The view of the taxon above that has one; the root always has."""
    return next(numbers[lineage[:level]] for level in range(len(lineage) - 1, -1, -1) if lineage[:level] in numbers)
