"""``virnucpro benchmark``."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.options import COUNT, FILE, measured_model_option, threads_option
from virnucpro.errors import UsageError
from virnucpro.logs import start_logging

_SECTIONS = ("extraction", "encoders", "results", "scaling", "predict", "memory")
_EPILOG = """\
Every section prints a table: our median, the peer's, their ratio, the goal, and the largest difference of
the two outputs. Peers that are not installed (fair-esm, Biopython) are said to be missing.

\b
Examples:
  virnucpro benchmark
  virnucpro benchmark --only extraction,results --output figures.json
  virnucpro benchmark --only encoders --esm2 650M --strings 32 -t 2
"""


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
    help="Sections to measure, with commas between them.",
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
@measured_model_option
@click.option(
    "--records",
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
    "--strings", type=COUNT, metavar="N", default=128, show_default=True, help="Strings that the section encoders gets."
)
@click.option(
    "--rows", type=COUNT, metavar="N", default=20_000, show_default=True, help="Rows that the section results gets."
)
@click.option(
    "--predict-reads",
    type=COUNT,
    metavar="N",
    default=100_000,
    show_default=True,
    help="Reads that the section predict gets.",
)
@click.option(
    "--reads",
    metavar="NUMBERS",
    callback=_split,
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
    help="Bases of the reads of predict and memory.",
)
def benchmark(
    only: tuple[str, ...],
    output: Path | None,
    seconds: float,
    threads: int | None,
    model: str,
    records: int,
    esm2: tuple[str, ...],
    dnabert_layers: int,
    strings: int,
    rows: int,
    predict_reads: int,
    reads: tuple[str, ...],
    read_length: int,
) -> None:
    """Measure speed and memory beside named peers."""
    _check(only, _SECTIONS, "--only")
    if not all(number.isdigit() and int(number) > 0 for number in reads):
        raise UsageError(f"--reads takes numbers such as 10000,1000000, not {','.join(reads)}.")

    start_logging(-1)

    from virnucpro.benchmarks import suite  # noqa: PLC0415 - brings torch, which --help should not wait for
    from virnucpro.benchmarks.inputs import ESM2_SIZES  # noqa: PLC0415
    from virnucpro.benchmarks.measure import Settings  # noqa: PLC0415
    from virnucpro.encoders.device import available_cpus  # noqa: PLC0415

    _check(esm2, tuple(ESM2_SIZES), "--esm2")
    settings = Settings(
        seconds=seconds,
        threads=threads or available_cpus(),
        model=model,
        num_records=records,
        esm2=esm2,
        dnabert_layers=dnabert_layers,
        num_strings=strings,
        num_rows=rows,
        predict_reads=predict_reads,
        memory_reads=tuple(int(number) for number in reads),
        read_length=read_length,
    )
    suite.run(settings, only, output)


def _check(names: tuple[str, ...], known: tuple[str, ...], option: str) -> None:
    if not names:
        raise UsageError(f"{option} names nothing: give some of {', '.join(known)}.")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"{option}: {unknown[0]} is none of {', '.join(known)}.")
