"""Speed and memory next to named peers: ``python -m benchmarks --help``, in the folder ``tests/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchmarks import gpu, suite
from benchmarks.inputs import ESM2_SIZES
from benchmarks.measure import Settings
from virnucpro.cli.options import COUNT, FILE, threads_option
from virnucpro.logs import start_logging
from virnucpro.resources import available_cpus

_SECTIONS = ("extraction", "encoders", "results", "scaling", "predict", "duplicates", "memory")
_EPILOG = """\
Every section prints a table: our median, the peer's, their ratio, the goal, and the largest difference of
the two outputs. Peers that are not installed (fair-esm, transformers, Biopython) are listed as missing.

Two models are made on the spot, with random weights. The encoders of --model hollow do next to nothing: time and
memory of everything else. Those of --model random-8M, DNABERT-S of one layer and ESM-2 8M, take nearly all the time,
as those of the published models do.

\b
Examples (in the folder tests/):
  python -m benchmarks --only extraction,results --output figures.json
  python -m benchmarks --only encoders --esm2 650M --strings 32 -t 2
  python -m benchmarks --only gpu --output gpu.json
  python -m benchmarks --only memory --model hollow --reads 1000,10000,100000,1000000,10000000
  python -m benchmarks --only duplicates --model random-8M --predict-reads 6000
"""


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
@click.option(
    "--only",
    metavar="NAMES",
    callback=_split,
    default=",".join(_SECTIONS),
    show_default=True,
    help="Sections to measure, with commas between them; gpu is one more, measured by default where there is a GPU.",
)
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Also write the figures to this JSON file.")
@click.option(
    "--seconds",
    metavar="S",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Budget of each contestant; each runs three times at least.",
)
@threads_option
@click.option("-m", "--model", metavar="MODEL", default="lite", show_default=True, help="Model, as in predict.")
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
def benchmark(
    only: tuple[str, ...],
    output: Path | None,
    threads: int | None,
    **sizes: Any,
) -> None:
    """Measure speed and memory next to named peers."""
    _check(only, (*_SECTIONS, "gpu"), "--only")
    _check(sizes["esm2"], tuple(ESM2_SIZES), "--esm2")
    start_logging(-1)
    if only == _SECTIONS and gpu.is_there():
        only = (*only, "gpu")
    suite.run(Settings(threads=threads or available_cpus(), **sizes), only, output)


def _check(names: tuple[str, ...], known: tuple[str, ...], option: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise click.UsageError(f"{option}: give some of {', '.join(known)}.")


if __name__ == "__main__":
    benchmark()
