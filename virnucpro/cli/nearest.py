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

from virnucpro.cli.options import COUNT, FILE, device_option, output_option, terminal_options, threads_option

if TYPE_CHECKING:
    from virnucpro.embeddings.levels import Embeddings

_EPILOG = """\
Columns: query, rank, nearest, similarity; of fragments and frames also where both lie (start and stop, 0-based
half-open). A query that has no embedding is left out.

\b
Examples:
  virnucpro embed known.fasta -o known.h5
  virnucpro nearest contigs.fasta --against known.h5 -k 3 -o nearest.tsv
"""


@click.command(epilog=_EPILOG)
@click.argument("query", type=FILE, metavar="QUERY")
@click.option("--against", type=FILE, required=True, metavar="EMB", help="Embeddings to look in: .h5 or .npz of embed.")
@click.option(
    "-k",
    "num_nearest",
    type=COUNT,
    default=5,
    show_default=True,
    metavar="K",
    help="Neighbours to list for each query.",
)
@output_option(FILE, "FILE", "File for the table.  [default: standard output]")
@click.option("--skip-self", is_flag=True, help="Leave out neighbours with the query's id.")
@device_option
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
    """Find the most similar embeddings for each sequence.

    QUERY is a file of embeddings, or of sequences, which are embedded as those of EMB were.
    """
    from virnucpro.atomic import atomic_write
    from virnucpro.embeddings.files import read_embeddings
    from virnucpro.embeddings.neighbours import nearest as find
    from virnucpro.embeddings.neighbours import read_query
    from virnucpro.encoders.device import choose_devices
    from virnucpro.inputs import refuse_overwriting
    from virnucpro.progress import Reporter
    from virnucpro.resources import available_cpus

    refuse_overwriting([query, against], [output] if output is not None else [])
    known, about = read_embeddings(against)
    reporter = Reporter(show_bars)
    queries = read_query(query, about, tuple(choose_devices(device)), threads or available_cpus(), reporter)
    num_own = max(Counter(known.columns()["id"]).values(), default=0) if skip_self else 0
    found, similarities = find(queries.joined(), known.joined(), num_nearest + num_own)
    rows = _rows(queries, known, found.tolist(), similarities.tolist(), num_nearest, skip_self=skip_self)
    with nullcontext() if output is None else atomic_write(output) as temporary:
        stream = sys.stdout if temporary is None else temporary.open("w", encoding="utf-8", newline="")
        with nullcontext() if temporary is None else stream:
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
    ends = ("",) if known.level == "sequence" else ("", "_start", "_stop")
    yield [*(f"query{end}" for end in ends), "rank", *(f"nearest{end}" for end in ends), "similarity"]
    names = [end.removeprefix("_") or "id" for end in ends]
    of_queries, of_known = (
        list(zip(*(each.columns()[name] for name in names), strict=True)) for each in (queries, known)
    )
    for mine, numbers, values in zip(of_queries, found, similarities, strict=True):
        named = [(of_known[number], value) for number, value in zip(numbers, values, strict=True) if number >= 0]
        others = [(place, value) for place, value in named if not skip_self or place[0] != mine[0]]
        for rank, (place, value) in enumerate(others[:num_nearest], start=1):
            yield [*mine, rank, *place, f"{value:.6f}"]
