"""``virnucpro finish``."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.options import FOLDER, run_argument, terminal_options

_EPILOG = """\
Every unit must have its receipt, made for this run and these rows, and every file must match its receipt. Otherwise
everything missing or wrong is listed with its units and rows, no result is written, and the exit code is 1. The
inputs must be where they were. Results are those of predict, byte for byte.

\b
Examples:
  virnucpro finish run
  virnucpro finish run --from shards/alpha --from shards/beta
"""


@click.command(epilog=_EPILOG)
@run_argument
@click.option(
    "--from",
    "folders",
    type=FOLDER,
    multiple=True,
    metavar="FOLDER",
    help="First take finished units from this copy of the run, such as one that 'sync' fetched.",
)
@terminal_options("no_progress", "quiet")
def finish(run: Path, folders: tuple[Path, ...], show_bars: bool) -> None:
    """Check the units of a prepared run and write its results.

    RUN is the directory that prepare made.
    """
    from virnucpro.run import by_hand

    by_hand.finish(run, folders, show_bars=show_bars)
