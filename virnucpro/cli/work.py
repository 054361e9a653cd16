"""``virnucpro work``."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.options import device_setting, run_argument, runtime_options, terminal_options
from virnucpro.errors import UsageError

_EPILOG = """\
Start it from a job array, a queue or a loop over ssh. A unit that is done has a receipt and is left alone, so any call
can be repeated. Several calls may share one directory at the same time, on one file system. Without a shared file
system, copy RUN to each machine, or prepare the same inputs there, and collect the units with 'sync' and
'finish --from'.

Exit code 1 if some units cannot be computed (all others are), 143 and 130 if interrupted.

\b
Examples:
  virnucpro work run --shard 3/16 --gpus 0
  virnucpro work run --units 0-99,120
"""


@click.command(epilog=_EPILOG)
@run_argument
@click.option("--shard", metavar="I/N", help="The I-th of N parts of the units, 1/N to N/N.")
@click.option("--units", metavar="RANGES", help="These units, such as 0-99,120.")
@device_setting("as prepared")
@runtime_options
@terminal_options("no_progress", "quiet")
def work(run: Path, shard: str | None, units: str | None, show_bars: bool, **runtime: object) -> None:
    """Compute some units of a prepared run.

    RUN is the directory that prepare made. Without --shard or --units: all units that are not done. Options that are
    not given are as in prepare.
    """
    if shard is not None and units is not None:
        raise UsageError("--shard and --units both choose units: give one.")

    from virnucpro.run import by_hand, shards

    def choice(num_units: int) -> range | list[int]:
        if shard is not None:
            return shards.units_of_shard(shard, num_units)
        return range(num_units) if units is None else shards.units_of_ranges(units, num_units)

    given = {name: value for name, value in runtime.items() if value is not None}
    worked = by_hand.work(run, choice, given, show_bars=show_bars)
    click.echo(f"{worked.num_done:,} units done now, {worked.num_here:,} were done, run {worked.run[:12]}")
