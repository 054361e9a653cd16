"""``virnucpro verify``."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.options import run_argument, terminal_options
from virnucpro.errors import IncompleteRunError, VirNucProError

_EPILOG = """\
Reads every stored file and result and compares it with its recorded digest. Exit codes: 0 everything is intact, 1
something is damaged, 5 nothing is damaged, but the run is not finished or has failed rows.

With --repair what is damaged is deleted and computed again, failed rows are tried again, and an unfinished run is
finished, with its own inputs and settings.

\b
Examples:
  virnucpro verify results
  virnucpro verify results --repair
"""


@click.command(epilog=_EPILOG)
@run_argument
@click.option("--repair", is_flag=True, help="Compute again what is damaged, missing or failed.")
@terminal_options("no_progress", "quiet")
def verify(run: Path, repair: bool, show_bars: bool) -> None:
    """Check that a run is whole and undamaged.

    RUN is the output directory of predict.
    """
    from virnucpro.run import upkeep
    from virnucpro.run import verify as verification

    findings = verification.verify(run, show_bars=show_bars)
    for problem in findings.problems:
        click.echo(f"{problem.kind}  {problem.path}: {problem.text}")
    click.echo(
        f"{findings.num_files} files read; {findings.num_scored:,} of {findings.num_rows:,} rows have a score; "
        f"{len(findings.problems)} problems"
    )
    if not findings.problems:
        return
    if repair:
        upkeep.repair(run, findings, show_bars=show_bars)
        click.echo(f"{run}: repaired")
        return
    advice = f"'virnucpro verify {run} --repair' computes it again."
    if findings.of("damaged"):
        raise VirNucProError(f"{run}: {len(findings.of('damaged'))} files are damaged. {advice}")
    raise IncompleteRunError(f"{run}: some rows have no score. {advice}")
