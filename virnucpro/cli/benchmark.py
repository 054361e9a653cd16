"""``virnucpro benchmark``."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.options import COUNT, FILE, measured_options, output_option
from virnucpro.errors import UsageError, VirNucProError
from virnucpro.logs import start_logging

_SECTIONS = ("extraction", "encoders", "merge", "run")
_EPILOG = """\
Every figure is measured three times; the table shows median, lowest and highest. The whole runs are the program as a
process of its own, with a tenth of the reads and with all of them: time, CPU time and memory. Merging is measured with
1, 2 and 4 processes. Measure on a quiet machine.

With --compare, figures of the same name are shown next to the older ones. A figure is worse if it lost more than a
tenth and more than its runs vary. Exit codes: 0 none is worse, 1 at least one is.

\b
Examples:
  virnucpro benchmark
  virnucpro benchmark --only extraction,merge --output figures.json
  virnucpro benchmark --only extraction,merge --compare figures.json
  virnucpro benchmark -m 500 --device cuda --only encoders,run --reads 5000
"""


def _sections(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """Comma-separated sections."""
    names = tuple(part.strip() for part in value.split(",") if part.strip())
    unknown = [name for name in names if name not in _SECTIONS]
    if unknown or not names:
        wrong = f"{unknown[0]!r} is not one of" if unknown else "give some of"
        raise click.BadParameter(f"{wrong} {', '.join(_SECTIONS)}.", context, option)
    return names


@click.command(epilog=_EPILOG)
@click.option(
    "--only",
    metavar="NAMES",
    callback=_sections,
    default=",".join(_SECTIONS),
    show_default=True,
    help="Sections to measure, separated by commas.",
)
@measured_options
@click.option(
    "--reads", "num_reads", type=COUNT, metavar="N", default=20_000, show_default=True, help="Reads of 300 bases."
)
@output_option(FILE, "FILE", "Also write the figures to this JSON file.")
@click.option("--compare", type=FILE, metavar="OLD", help="Compare with the figures of an older JSON file.")
def benchmark(
    only: tuple[str, ...],
    model: str,
    device: str,
    dtype: str,
    threads: int | None,
    num_reads: int,
    output: Path | None,
    compare: Path | None,
) -> None:
    """Measure the speed and memory of this machine."""
    start_logging(-1)

    from virnucpro.encoders.device import choose_devices, dtype_name
    from virnucpro.machine import benchmark as machine
    from virnucpro.resources import available_cpus

    old = machine.read(compare) if compare is not None else {}
    place = choose_devices(device)[0]
    settings = machine.BenchmarkSettings(model, place, dtype_name(dtype, place), threads or available_cpus(), num_reads)
    figures = list(machine.measure(settings, only))
    if output is not None:
        machine.write(output, settings, figures)
    click.echo(machine.table(figures, old))
    if old and not any(figure.name in old for figure in figures):
        raise UsageError(f"{compare} has none of these figures. Measure the same sections with the same options.")
    worse = [figure.name for figure in figures if figure.name in old and machine.is_worse(old[figure.name], figure)]
    if worse:
        raise VirNucProError(
            f"{len(worse)} of {len(figures)} figures are worse than in {compare}. Measure once more on a quiet machine "
            "before you look for the cause."
        )
