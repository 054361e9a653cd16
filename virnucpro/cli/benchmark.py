"""``virnucpro benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from virnucpro.cli.options import COUNT, FILE, measured_model_option, threads_option
from virnucpro.errors import UsageError, VirNucProError
from virnucpro.logs import start_logging

if TYPE_CHECKING:
    from virnucpro.benchmarks.record import Record

_SECTIONS = ("extraction", "encoders", "results", "scaling", "predict", "duplicates", "memory")
_EPILOG = """\
Every section prints a table: our median, the peer's, their ratio, the goal, and the largest difference of
the two outputs. Peers that are not installed (fair-esm, transformers, Biopython) are said to be
missing.

--compare holds every figure that both benchmarks have against the old one: by its ratio to the peer where it
has one, which a busy machine moves little, else by itself, if processor, CPUs and threads are the same. A
regression is worse by more than a tenth and by more than the distance between the quartiles of the runs of
either. Exit codes: 0 none, 1 at least one.

Two models are made on the spot, with random weights. The encoders of --model hollow do next to nothing: time and
memory of all else. Those of --model random-8M, DNABERT-S of one layer and ESM-2 8M, take nearly all the time, as
those of the published models do.

\b
Examples:
  virnucpro benchmark
  virnucpro benchmark --only extraction,results --output figures.json
  virnucpro benchmark --only extraction,results --compare figures.json
  virnucpro benchmark --compare old.json new.json
  virnucpro benchmark figures.json --plot figures.svg
  virnucpro benchmark --only encoders --esm2 650M --strings 32 -t 2
  virnucpro benchmark --only gpu --output gpu.json
  virnucpro benchmark --only memory --model hollow --reads 1000,10000,100000,1000000,10000000
  virnucpro benchmark --only duplicates --model random-8M --predict-reads 6000
"""
_STORED = click.Path(exists=True, path_type=Path, dir_okay=False)
_FOR_STORED = {"figures", "compare", "plot"}
"""Parameters that say something of figures that are there already."""


def _numbers(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    """Comma-separated counts."""
    parts = _split(context, option, value)
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"takes numbers such as 10000,1000000, not {value}.", context, option)
    return tuple(map(int, parts))


def _split(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """Comma-separated names or numbers."""
    del context, option
    return tuple(part.strip() for part in value.split(",") if part.strip())


@click.command(epilog=_EPILOG)
@click.argument("figures", required=False, type=_STORED, metavar="[FIGURES]")
@click.option(
    "--only",
    metavar="NAMES",
    callback=_split,
    default=",".join(_SECTIONS),
    show_default=True,
    help="Sections to measure, with commas between them; gpu is one more, measured by default where there is a GPU.",
)
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Also write the figures to this JSON file.")
@click.option("--compare", type=_STORED, metavar="OLD", help="Hold the figures against those of an older JSON file.")
@click.option("--plot", type=FILE, metavar="FILE", help="Draw the figures: a png, svg or pdf file.")
@click.option(
    "--seconds",
    metavar="S",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Budget of each contestant; each runs three times at least.",
)
@threads_option
@measured_model_option
@click.option(
    "--records",
    "num_records",
    type=COUNT,
    metavar="N",
    default=200_000,
    show_default=True,
    help="Reads that the section extraction gets.",
)
@click.option(
    "--esm2", metavar="SIZES", callback=_split, default="8M,35M", show_default=True, help="Of 8M, 35M, 150M, 650M, 3B."
)
@click.option("--dnabert-layers", type=COUNT, metavar="N", default=12, show_default=True, help="Layers of DNABERT-S.")
@click.option(
    "--strings",
    "num_strings",
    type=COUNT,
    metavar="N",
    default=128,
    show_default=True,
    help="Strings that the section encoders gets.",
)
@click.option(
    "--rows",
    "num_rows",
    type=COUNT,
    metavar="N",
    default=20_000,
    show_default=True,
    help="Rows that the sections results and scaling get.",
)
@click.option(
    "--predict-reads",
    type=COUNT,
    metavar="N",
    default=100_000,
    show_default=True,
    help="Reads that the sections predict and duplicates get.",
)
@click.option(
    "--reads",
    "memory_reads",
    metavar="NUMBERS",
    callback=_numbers,
    default="10000,100000,1000000",
    show_default=True,
    help="Reads that the runs of the section memory get.",
)
@click.option(
    "--read-length",
    type=COUNT,
    metavar="N",
    default=300,
    show_default=True,
    help="Bases of the reads of all sections that run a model.",
)
@click.pass_context
def benchmark(
    context: click.Context,
    /,
    figures: Path | None,
    only: tuple[str, ...],
    output: Path | None,
    compare: Path | None,
    plot: Path | None,
    threads: int | None,
    **sizes: Any,  # noqa: ANN401 - fields of Settings
) -> None:
    """Measure speed and memory beside named peers.

    FIGURES is a file that an earlier benchmark wrote: it is shown, compared or drawn, and nothing is measured.
    """
    if figures is not None:
        _refuse_to_measure(context)
    _check(only, (*_SECTIONS, "gpu"), "--only")
    start_logging(-1)

    from virnucpro.benchmarks.record import Record  # noqa: PLC0415 - --help should not wait

    old = None if compare is None else Record.read(compare)
    if plot is not None:
        _check_plot(plot)
    if figures is None:
        new = _measure(only, output, threads, sizes)
    else:
        new = Record.read(figures)
        if compare is None and plot is None:
            _show(new)
    if plot is not None:
        _draw(new, plot)
    if old is not None:
        _compare(old, new, f"{compare}")


def _refuse_to_measure(context: click.Context) -> None:
    """Options of a measurement are not ignored where none is made."""
    for option in context.command.params:
        name = option.name or ""
        if name not in _FOR_STORED and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{option.opts[-1]} is for measuring, and FIGURES were measured already. Leave out one.")


def _measure(only: tuple[str, ...], output: Path | None, threads: int | None, sizes: dict[str, Any]) -> Record:
    from virnucpro.benchmarks import gpu, suite  # noqa: PLC0415 - brings torch
    from virnucpro.benchmarks.inputs import ESM2_SIZES  # noqa: PLC0415
    from virnucpro.benchmarks.measure import Settings  # noqa: PLC0415
    from virnucpro.encoders.device import available_cpus  # noqa: PLC0415

    _check(sizes["esm2"], tuple(ESM2_SIZES), "--esm2")
    if only == _SECTIONS and gpu.is_there():
        only = (*only, "gpu")
    return suite.run(Settings(threads=threads or available_cpus(), **sizes), only, output)


def _show(record: Record) -> None:
    from virnucpro.benchmarks.tables import open_console, section_table  # noqa: PLC0415

    console = open_console()
    for section in dict.fromkeys(figure.section for figure in record.figures):
        console.print(section_table(section, [figure for figure in record.figures if figure.section == section]))


def _check_plot(path: Path) -> None:
    """Before anything is measured."""
    from virnucpro.benchmarks.plot import file_format  # noqa: PLC0415 - brings Matplotlib

    file_format(path)


def _draw(record: Record, path: Path) -> None:
    from virnucpro.benchmarks.plot import write_plot  # noqa: PLC0415

    write_plot(record.figures, path)
    click.echo(path)


def _compare(old: Record, new: Record, old_name: str) -> None:
    """Print both side by side.

    Raises:
        VirNucProError: some figures became worse.
    """
    from virnucpro.benchmarks.compare import compare  # noqa: PLC0415
    from virnucpro.benchmarks.tables import comparison_notes, comparison_table, open_console  # noqa: PLC0415

    comparison = compare(old, new)
    if not comparison.changes:
        raise UsageError(f"{old_name} has none of these figures. Measure the same sections at the same sizes.")
    open_console().print(comparison_table(comparison))
    for line in comparison_notes(comparison):
        click.echo(line)
    if comparison.regressions:
        raise VirNucProError(
            f"{len(comparison.regressions)} of {len(comparison.changes)} figures are worse than in {old_name}, by more "
            "than the noise of both. Measure once more on a quiet machine before you look for the cause."
        )


def _check(names: tuple[str, ...], known: tuple[str, ...], option: str) -> None:
    if not names:
        raise UsageError(f"{option} names nothing: give some of {', '.join(known)}.")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"{option}: {unknown[0]} is none of {', '.join(known)}.")
