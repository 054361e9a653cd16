"""``virnucpro nearest``."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from virnucpro.cli.options import (
    COUNT,
    DEVICES,
    FILE,
    terminal_options,
    threads_option,
)

if TYPE_CHECKING:
    from virnucpro.embeddings.levels import Embeddings

_EPILOG = """\
Columns: query, rank, nearest, similarity; of fragments and frames also where both lie (start and stop, 0-based
half-open). A query that has nothing to compare is left out.

\b
Examples:
  virnucpro embed known.fasta -o known.h5
  virnucpro nearest contigs.fasta --against known.h5 -k 3 -o nearest.tsv
"""


@click.command(epilog=_EPILOG)
@click.argument("query", type=FILE, metavar="QUERY")
@click.option("--against", type=FILE, required=True, metavar="EMB", help="Embeddings to look in: .h5 or .npz of embed.")
@click.option("-k", "num_nearest", type=COUNT, default=5, show_default=True, metavar="K", help="Neighbours of a query.")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="File for the table.  [default: standard output]")
@click.option("--skip-self", is_flag=True, help="Leave out neighbours with the query's id.")
@click.option("--device", metavar="NAME", default="auto", show_default=True, help=f"{DEVICES}.")
@threads_option
@terminal_options("no_progress", "quiet", "verbose")
def nearest(
    query: Path,
    against: Path,
    num_nearest: int,
    output: Path | None,
    skip_self: bool,
    device: str,
    threads: int | None,
    show_bars: bool,
) -> None:
    """Find the most similar embeddings of each sequence.

    QUERY is a file of embeddings, or of sequences, which are embedded as those of EMB were.
    """
    from virnucpro.atomic import atomic_write  # noqa: PLC0415
    from virnucpro.embeddings.files import read_embeddings  # noqa: PLC0415 - --help should not wait for it
    from virnucpro.embeddings.neighbours import nearest as find  # noqa: PLC0415
    from virnucpro.embeddings.neighbours import read_query  # noqa: PLC0415
    from virnucpro.encoders.device import choose_devices  # noqa: PLC0415
    from virnucpro.inputs import refuse_overwriting  # noqa: PLC0415
    from virnucpro.progress import Reporter  # noqa: PLC0415
    from virnucpro.resources import available_cpus  # noqa: PLC0415

    refuse_overwriting([query, against], [output] if output is not None else [])
    known, about = read_embeddings(against)
    reporter = Reporter(show_bars)
    queries = read_query(query, about, tuple(choose_devices(device)), threads or available_cpus(), reporter)
    num_own = max(Counter(known.columns()["id"]).values(), default=0) if skip_self else 0
    found, similarities = find(queries.joined(), known.joined(), num_nearest + num_own)
    rows = _rows(queries, known, found.tolist(), similarities.tolist(), num_nearest, skip_self=skip_self)
    with nullcontext() if output is None else atomic_write(output) as temporary:
        if temporary is None:
            csv.writer(sys.stdout, delimiter="\t", lineterminator="\n").writerows(rows)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream, delimiter="\t", lineterminator="\n").writerows(rows)


def _rows(
    queries: Embeddings,
    known: Embeddings,
    found: list[list[int]],
    similarities: list[list[float]],
    num_nearest: int,
    *,
    skip_self: bool,
) -> Iterator[list[object]]:
    """The table, its header first."""
    has_places = known.level != "sequence"
    yield [
        *("query", *(("query_start", "query_stop") if has_places else ()), "rank"),
        *("nearest", *(("nearest_start", "nearest_stop") if has_places else ()), "similarity"),
    ]
    for row, (numbers, values) in enumerate(zip(found, similarities, strict=True)):
        named = [(number, value) for number, value in zip(numbers, values, strict=True) if number >= 0]
        mine = _place(queries, row, has_places=has_places)
        if skip_self:
            named = [
                (number, value) for number, value in named if _place(known, number, has_places=False)[0] != mine[0]
            ]
        for rank, (number, value) in enumerate(named[:num_nearest], start=1):
            yield [*mine, rank, *_place(known, number, has_places=has_places), f"{value:.6f}"]


def _place(embeddings: Embeddings, row: int, *, has_places: bool) -> list[object]:
    key = embeddings.keys[row]
    place = [int(key["start"]), int(key["stop"])] if has_places else []
    return [embeddings.ids[int(key["sequence"])], *place]
