"""``virnucpro embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virnucpro.cli.options import (
    FILE,
    FOLDER,
    SOURCE,
    device_option,
    dtype_option,
    fragment_length_option,
    fresh_option,
    gpus_option,
    output_option,
    terminal_options,
    threads_option,
)

_EPILOG = """\
OUT ends with .h5, .npz, .parquet or .h5ad (AnnData). An encoder is MODEL:nucleotide, MODEL:protein, an encoder file
or a plug-in. To resume a run, repeat the same command; its parts are in OUT.parts until then.

\b
Examples:
  virnucpro embed contigs.fasta -o contigs.h5
  virnucpro embed proteins.faa -o proteins.npz --encoder 300:protein --cache embeddings --precision half
"""


@click.command(epilog=_EPILOG)
@click.argument("source", type=SOURCE, metavar="INPUT")
@output_option(FILE, "OUT", "File for the embeddings.", required=True)
@click.option(
    *("-e", "--encoder", "encoders"),
    multiple=True,
    metavar="NAME",
    help="Encoder; may be given several times.  [default: those of lite that read the input]",
)
@click.option(
    "--level",
    type=click.Choice(["sequence", "fragment", "frame"]),
    default="sequence",
    show_default=True,
    help="One row for each sequence, fragment or reading frame.",
)
@click.option(
    "--precision",
    type=click.Choice(["single", "half"]),
    default="single",
    show_default=True,
    help="Precision of the values in the file.",
)
@click.option("--alphabet", type=click.Choice(["nt", "aa"]), help="What INPUT holds.  [default: by its first records]")
@fragment_length_option
@device_option
@gpus_option
@dtype_option
@click.option("--cache", type=FOLDER, metavar="DIR", help="Use the embeddings kept in this folder, and add to them.")
@fresh_option
@threads_option
@terminal_options("no_progress", "quiet", "verbose")
def embed(
    source: str,
    output: Path,
    device: str,
    gpus: str | None,
    threads: int | None,
    fresh: bool,
    show_bars: bool,
    **asked: Any,  # noqa: ANN401 - Click's
) -> None:
    """Write embeddings of sequences to a file.

    INPUT holds DNA, in any format that predict reads, or proteins in FASTA. Rows are in input order.
    """
    from virnucpro.embeddings.job import EmbedRequest, embed_file
    from virnucpro.encoders.device import choose_devices
    from virnucpro.inputs import refuse_overwriting
    from virnucpro.progress import Reporter
    from virnucpro.resources import available_cpus

    refuse_overwriting([source], [output])
    devices = tuple(choose_devices(device, gpus))
    request = EmbedRequest(source, output, devices=devices, threads=threads or available_cpus(), **asked)
    num_rows, about = embed_file(request, Reporter(show_bars), fresh=fresh)
    if not click.get_current_context().params["quiet"]:
        widths = ", ".join(f"{facts.name} {facts.width}" for facts in about.encoders)
        click.echo(f"{output}: {num_rows:,} rows ({about.level}), {widths}")
