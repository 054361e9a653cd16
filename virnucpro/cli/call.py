"""``virnucpro call``, and the options about calls that it shares with ``predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from virnucpro.cli.options import (
    FOLDER,
    given_settings,
    legacy_option,
    output_option,
    rows_option,
    run_argument,
    terminal_options,
    together,
)
from virnucpro.request import Options
from virnucpro.settings import PRESETS, TABLE_FORMATS, TableFormat


def _prevalence(context: click.Context, option: click.Parameter, value: str | None) -> float | Literal["auto"] | None:
    """A share between 0 and 1, or auto."""
    if value is None or value == "auto":
        return "auto" if value else None
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise click.BadParameter(
            f"{value!r} is neither auto nor a share between 0 and 1, such as 0.05.", context, option
        )
    return share


call_options = together(
    click.option(
        "--preset",
        type=click.Choice(PRESETS),
        help="Thresholds of the model for a known error rate, at equal prevalence.  [default: balanced]",
    ),
    click.option(
        "--threshold",
        type=click.FloatRange(0, 1),
        metavar="P",
        help="Instead of a preset: p_virus from which a sequence is called virus, and below which it is not.",
    ),
    click.option(
        "--fdr",
        type=click.FloatRange(0, 1),
        metavar="P",
        help="Instead of a preset: the highest expected share of false calls among those called virus.",
    ),
    click.option(
        "--prevalence",
        callback=_prevalence,
        metavar="P",
        help="Expected share of viral sequences, which p_virus and fdr depend on; auto estimates it from the scores "
        "of each input (of 200 sequences or more; for fewer it takes 0.5).  [default: auto]",
    ),
)
format_option = click.option(
    "--format",
    "table_format",
    type=click.Choice(TABLE_FORMATS),
    default="tsv",
    show_default=True,
    help="Format of the tables of sequences, fragments and rows.",
)

_EPILOG = """\
Reads the scores stored in RUN/run. With the settings of predict it writes the same tables, byte for byte.

\b
Examples:
  virnucpro call results --preset strict
  virnucpro call results --fdr 0.05 --prevalence 0.02 -o results_fdr5
"""


@click.command(epilog=_EPILOG)
@run_argument
@call_options
@output_option(FOLDER, "DIR", "Directory for the results.  [default: RUN, where they are replaced]")
@format_option
@rows_option
@legacy_option
@terminal_options("quiet", "verbose")
def call(
    run: Path,
    output: Path | None,
    table_format: TableFormat,
    keep_intermediate: bool,
    legacy_output: bool,
    show_bars: bool,
    **settings: object,
) -> None:
    """Re-call a finished run with other thresholds, in seconds.

    RUN is the output directory of predict. No model is run.
    """
    from virnucpro.inputs import read_by_run, refuse_overwriting, results_of
    from virnucpro.stages import call as stage

    stems = {path.name.removesuffix(".summary.json") for path in run.glob("*.summary.json")}
    refuse_overwriting(read_by_run(run), results_of(output or run, stems))
    science = given_settings(settings).science
    options = Options(keep_intermediate=keep_intermediate, legacy_output=legacy_output, table_format=table_format)
    stage.run(run, science, options, output, show_bars=show_bars)
