"""``virnucpro work``."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.options import COUNT, DEVICES, run_argument, terminal_options, threads_option
from virnucpro.errors import UsageError

_EPILOG = """\
Call it from whatever starts programs: a job array, a queue, a loop over ssh. A unit that is done has a receipt and
is left alone, so that any call can be repeated; several may run in one directory at the same time, where they share
a file system. Elsewhere copy RUN to each machine, or prepare the same inputs there, and bring the units back
with 'sync' and 'finish --from'.

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
@click.option("--device", metavar="NAME", help=f"{DEVICES}.  [default: as prepared]")
@click.option("--gpus", metavar="NUMBERS", help="Physical GPUs to use, such as 0,1; one process each.")
@click.option("--parallel", is_flag=True, default=None, help="Use several worker processes if there is no GPU.")
@threads_option
@click.option("--token-budget", type=COUNT, metavar="N", help="Tokens in a batch of the encoders.")
@click.option(
    "--loader-workers", type=click.IntRange(min=0), metavar="N", help="Processes per encoder that read ahead."
)
@terminal_options("no_progress", "quiet")
def work(run: Path, shard: str | None, units: str | None, show_bars: bool, **runtime: object) -> None:
    """Compute some units of a prepared run.

    RUN is the directory that prepare made. Without --shard or --units: all units that are not done.
    """
    if shard is not None and units is not None:
        raise UsageError("--shard and --units both choose units: give one.")

    from virnucpro.run import by_hand, shards  # noqa: PLC0415 - brings torch, which --help should not wait for

    def choice(num_units: int) -> range | list[int]:
        if shard is not None:
            return shards.units_of_shard(shard, num_units)
        return range(num_units) if units is None else shards.units_of_ranges(units, num_units)

    given = {name: value for name, value in runtime.items() if value is not None}
    worked = by_hand.work(run, choice, given, show_bars=show_bars)
    click.echo(f"{worked.num_done:,} units done now, {worked.num_here:,} were done, run {worked.run[:12]}")
