"""``virnucpro report``."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.options import FILE, output_option, plots_option, run_argument, terminal_options
from virnucpro.errors import UsageError

_EPILOG = """\
RUN is the output directory of virnucpro predict; each input in it gets its own page, STEM.report.html, which needs
no other file and can be sent by mail. No model is run.

\b
Examples:
  virnucpro report results
  virnucpro report results -o contigs.html
  virnucpro report results --plots pdf
"""


@click.command(epilog=_EPILOG)
@run_argument
@output_option(FILE, "FILE", "Page to write, if RUN holds one input.  [default: RUN/STEM.report.html]")
@plots_option
@click.option("--multiqc", is_flag=True, help="Also write what MultiQC reads: RUN/STEM.virnucpro_mqc.json.")
@terminal_options("quiet")
def report(run: Path, output: Path | None, plots: str | None, multiqc: bool, show_bars: bool) -> None:
    """Show the results of a run as a page."""
    del show_bars

    from virnucpro.inputs import read_by_run, refuse_overwriting
    from virnucpro.results.finished import open_runs, stems_of
    from virnucpro.results.page import write_report
    from virnucpro.results.pages import Pages, write_pages

    stems = stems_of(run)
    if output is not None:
        if len(stems) > 1:
            raise UsageError(f"{run} holds {len(stems)} inputs, and --output names one file. Leave --output out.")
        refuse_overwriting([*read_by_run(run), *(path for path in run.rglob("*") if path.suffix != ".html")], [output])
    for finished in open_runs(run, stems):
        if output is not None:
            click.echo(write_report(finished, output))
        write_pages(finished, Pages(output is None, multiqc, (plots,) if plots else ()), say=click.echo)
