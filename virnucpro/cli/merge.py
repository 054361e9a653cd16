"""``virnucpro merge``."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.options import COUNT, FILE, output_option, terminal_options, together
from virnucpro.errors import UsageError

_EPILOG = """\
For a run: every unit whose two shards are there is merged, unless it already was. predict does this by itself: the
command is for runs whose embeddings were made elsewhere, or whose merging stopped. Exit code 1 if some pairs
cannot be merged; they are listed with the reason, and all others are merged.
--check examines a run made by prepare and work: a unit without its receipt or files is named (exit code 1).

For other files of embeddings (HDF5, .npz, torch.save or pickled dicts with embeddings, start_index, end_index
and model; no code in them is run): they are sorted by start index, must cover 0 to N without gap or overlap,
with one width and one model, and become one HDF5 file with figures of their quality. Exit code 3 if something
is wrong: every fault is listed with its file and range, and nothing is written.

\b
Examples:
  virnucpro merge results --merge-threads 8
  virnucpro merge shards -o merged.h5 --metadata titles.tsv
  virnucpro merge shards --check --take 1000
  virnucpro merge run --check
"""


file_options = together(
    click.option("--take", type=COUNT, metavar="N", help="Take the first N items of each file, where files hold more."),
    click.option("--metadata", type=FILE, metavar="TABLE", help="Join a .tsv, .csv or .jsonl by its column index."),
)
"""How files of embeddings are merged; ``sync`` has them too."""


@click.command(epilog=_EPILOG)
@click.argument("places", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN | FILES...")
@output_option(FILE, "FILE", "Merge files of embeddings into this one.")
@click.option(
    "--check", is_flag=True, help="Check every number of files of embeddings, or every receipt of a run; write nothing."
)
@file_options
@click.option("--merge-threads", type=COUNT, metavar="N", help="For a run: processes that merge.  [default: one a CPU]")
@terminal_options("no_progress", "quiet")
def merge(
    places: tuple[Path, ...],
    output: Path | None,
    check: bool,
    take: int | None,
    metadata: Path | None,
    merge_threads: int | None,
    show_bars: bool,
) -> None:
    """Merge the embeddings of a run, or files of embeddings.

    RUN is the output directory of predict, FILES are files of embeddings or folders of them.
    """
    is_run = len(places) == 1 and (places[0] / "run" / "manifest.json").is_file()
    if output is not None or (check and not is_run):
        merge_files(places, output, check=check, take=take, metadata=metadata, show_bars=show_bars)
        return

    from virnucpro.run import by_hand, upkeep

    if check:
        index = by_hand.check(places[0])
        click.echo(f"{len(index.units):,} units are here and intact, rows 0 to {index.num_rows:,}")
        return
    if len(places) > 1 or take is not None or metadata is not None:
        raise UsageError("files of embeddings are merged into one file. Name it with --output, or use --check.")
    merged = upkeep.merge(places[0], num_processes=merge_threads, show_bars=show_bars)
    click.echo(
        f"{merged.num_merged} merged now, {merged.num_here} were merged already, {merged.num_scored} are scored and "
        f"need it no more, {merged.num_waiting} wait for their embeddings"
    )


def merge_files(
    places: tuple[Path, ...],
    output: Path | None,
    *,
    check: bool,
    take: int | None,
    metadata: Path | None,
    show_bars: bool,
) -> None:
    """Merge or check files of embeddings and print their figures."""
    from virnucpro.clusters import merge as merging
    from virnucpro.inputs import refuse_overwriting
    from virnucpro.progress import Reporter

    paths = [path for path in merging.files_in(places) if path != output]
    refuse_overwriting([*paths, metadata], [output] if output is not None else [])
    planned = merging.plan(paths, take=take)
    reporter = Reporter(show_bars)
    if output is None or check:
        merged = merging.check(planned, reporter)
    else:
        merged = merging.merge(planned, output, reporter, metadata=metadata)
    for line in merging.lines(planned, merged):
        click.echo(line)
    if merged.path is not None:
        click.echo(f"{merged.path}: {planned.total:,} items, SHA-256 {merged.sha256}")
