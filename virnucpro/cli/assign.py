"""``virnucpro assign``."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.options import FILE, SOURCE, output_option, reference_option, run_argument
from virnucpro.errors import UsageError

_EPILOG = """\
Writes RUN/STEM.reads.tsv.gz, a line for each read, and RUN/STEM.reads.json, counts that add up. A read
takes the call of the contig of its best alignment, or a status that says why not.

\b
Examples:
  minimap2 -c -x sr --paf-no-hit contigs.fasta reads.fastq.gz > reads.paf
  virnucpro assign results --reads reads.paf
  virnucpro assign results --reads reads.bam --min-identity 0.97
"""


@click.command(epilog=_EPILOG)
@run_argument
@click.option(
    "--reads",
    type=SOURCE,
    metavar="FILE",
    required=True,
    help="Reads aligned to the contigs: PAF, BAM, CRAM or SAM; - is stdin.",
)
@click.option("--sample", metavar="NAME", help="Sample of RUN that holds the contigs, if there are several.")
@click.option(
    "--min-identity",
    type=click.FloatRange(0, 1),
    metavar="X",
    default=0.95,
    show_default=True,
    help="Lowest share of equal bases in the alignment.",
)
@click.option(
    "--min-coverage",
    type=click.FloatRange(0, 1),
    metavar="X",
    default=0.8,
    show_default=True,
    help="Lowest share of the read that is aligned.",
)
@reference_option
@output_option(FILE, "FILE", "Table to write.  [default: RUN/STEM.reads.tsv.gz]")
def assign(
    run: Path,
    reads: str,
    sample: str | None,
    min_identity: float,
    min_coverage: float,
    reference: Path | None,
    output: Path | None,
) -> None:
    """Give reads the call of the contig they align to.

    RUN is the directory where predict wrote the results of the contigs.
    """
    from virnucpro.inputs import read_by_run, refuse_overwriting
    from virnucpro.results.assign import assign_reads, summary_path
    from virnucpro.results.finished import open_run, stems_of

    stem = _stem(run, stems_of(run), sample)
    table = f"{stem}.sequences.tsv"
    output = output or run / f"{stem}.reads.tsv.gz"
    refuse_overwriting(
        [reads, reference, *read_by_run(run), *run.glob("*.sequences.tsv")], [output, summary_path(output)]
    )
    counts = assign_reads(
        *(open_run(run, stem).results, table, reads, output),
        min_identity=min_identity,
        min_coverage=min_coverage,
        reference=str(reference) if reference else None,
    )
    click.echo(f"reads\t{counts.num_reads}")
    for status, number in counts.statuses.items():  # these add up to reads, calls to assigned reads
        click.echo(f"{status}\t{number}")
    for call, number in sorted(counts.calls.items()):
        click.echo(f"assigned to {call}\t{number}")
    click.echo(f"{output}", err=True)


def _stem(run: Path, stems: list[str], sample: str | None) -> str:
    """The input that holds the contigs.

    Raises:
        UsageError: there is no such input, or it is not clear which.
    """
    if sample is not None and sample not in stems:
        raise UsageError(f"{run} holds no sample {sample}. It holds {', '.join(stems)}.")
    if sample is None and len(stems) > 1:
        raise UsageError(f"{run} holds several samples ({', '.join(stems)}). Choose one with --sample.")
    return sample or stems[0]
