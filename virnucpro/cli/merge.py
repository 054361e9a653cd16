"""``virnucpro merge``."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.options import COUNT, no_progress_option, quiet_option, run_argument
from virnucpro.logs import start_logging

_EPILOG = """\
A unit is merged when both of its shards are there; one that is merged already is left alone. predict does
this by itself: the command is for runs whose embeddings were made elsewhere, or whose merging stopped.

Exit code 1 if some pairs cannot be merged; they are listed with the reason, and all others are merged.

\b
Example:
  virnucpro merge results --merge-threads 8
"""


@click.command(epilog=_EPILOG)
@run_argument
@click.option("--merge-threads", type=COUNT, metavar="N", help="Processes that merge.  [default: one a CPU]")
@no_progress_option
@quiet_option
def merge(run: Path, merge_threads: int | None, no_progress: bool, quiet: bool) -> None:
    """Merge the embeddings of a run, unit by unit.

    RUN is the output directory of predict.
    """
    start_logging(-1 if quiet else 0)

    from virnucpro.run import upkeep  # noqa: PLC0415 - --help should not wait for it

    merged = upkeep.merge(run, num_processes=merge_threads, show_bars=not (no_progress or quiet))
    click.echo(
        f"{merged.num_merged} merged now, {merged.num_here} were merged already, {merged.num_scored} are scored and "
        f"need it no more, {merged.num_waiting} wait for their embeddings"
    )
