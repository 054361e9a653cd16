"""``virnucpro finish``."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.options import FOLDER, no_progress_option, quiet_option, run_argument
from virnucpro.logs import start_logging

_EPILOG = """\
Every unit must have its receipt, of this run and of its rows, and every file must be what the receipt says. Else
what is missing or wrong is listed with its units and rows, exit code 1, and no result is written. The inputs must
be where they were. Results are those of predict, byte for byte.

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
    help="First take finished units from this copy of the run, such as 'sync' brought from another machine.",
)
@no_progress_option
@quiet_option
def finish(run: Path, folders: tuple[Path, ...], no_progress: bool, quiet: bool) -> None:
    """Check the units of a prepared run and write its results.

    RUN is the directory that prepare made.
    """
    start_logging(-1 if quiet else 0)

    from virnucpro.run import by_hand  # noqa: PLC0415 - --help should not wait for it

    by_hand.finish(run, folders, show_bars=not (no_progress or quiet))
