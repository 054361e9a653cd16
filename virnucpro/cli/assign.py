"""``virnucpro assign``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from virnucpro.errors import UsageError

if TYPE_CHECKING:
    from virnucpro.report.assign import ReadCounts

_TABLE_ENDING = ".sequences.tsv"

_EPILOG = """\
Writes RUN/<stem>.reads.tsv.gz, a line for each read, and RUN/<stem>.reads.json, counts that add up. A read
takes the call of the contig of its best alignment, or has a status that says why not.

\b
Examples:
  minimap2 -c -x sr --paf-no-hit contigs.fasta reads.fastq.gz > reads.paf
  virnucpro assign results --reads reads.paf
  virnucpro assign results --reads reads.bam --min-identity 0.97
"""


@click.command(epilog=_EPILOG)
@click.argument("run", type=Path)
@click.option("--reads", required=True, help="Reads aligned to the contigs: PAF, BAM, CRAM or SAM; - is stdin.")
@click.option("--sample", help="Which sample of RUN holds the contigs, where it has several.")
@click.option("--min-identity", type=click.FloatRange(0, 1), default=0.95, show_default=True)
@click.option("--min-coverage", type=click.FloatRange(0, 1), default=0.8, show_default=True, help="Of the read.")
@click.option("--reference", help="FASTA of the contigs, for a CRAM.")
@click.option("-o", "--output", type=Path, help="Table to write.  [default: RUN/<stem>.reads.tsv.gz]")
def assign(
    run: Path,
    reads: str,
    sample: str | None,
    min_identity: float,
    min_coverage: float,
    reference: str | None,
    output: Path | None,
) -> None:
    """Give reads the call of the contig they align to.

    RUN is the directory where predict wrote the results of the contigs.
    """
    table = _table(run, sample)

    from virnucpro.report.assign import Limits, assign_reads  # noqa: PLC0415 - --help should not wait for it

    output = output or run / f"{table.name.removesuffix(_TABLE_ENDING)}.reads.tsv.gz"
    counts = assign_reads(table, reads, output, Limits(min_identity, min_coverage), reference)
    _print(counts)
    click.echo(f"{output}", err=True)


def _table(run: Path, sample: str | None) -> Path:
    """The table of the contigs.

    Raises:
        UsageError: there is none, or it is not clear which.
    """
    tables = sorted(run.glob(f"*{_TABLE_ENDING}"))
    if sample is not None:
        tables = [table for table in tables if table.name == sample + _TABLE_ENDING]
    if not tables:
        name = f"{sample or '<stem>'}{_TABLE_ENDING}"
        raise UsageError(f"{run} holds no {name}. Name the directory that predict was given with -o.")
    if len(tables) > 1:
        names = ", ".join(table.name.removesuffix(_TABLE_ENDING) for table in tables)
        raise UsageError(f"{run} holds several samples ({names}). Choose one with --sample.")
    return tables[0]


def _print(counts: ReadCounts) -> None:
    """Statuses add up to reads, calls to assigned reads."""
    click.echo(f"reads\t{counts.num_reads}")
    for status, number in counts.statuses.items():
        click.echo(f"{status}\t{number}")
    for call, number in sorted(counts.calls.items()):
        click.echo(f"assigned to {call}\t{number}")
