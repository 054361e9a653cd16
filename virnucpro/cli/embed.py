"""``virnucpro embed``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from virnucpro.cli.options import (
    DEVICES,
    FILE,
    FOLDER,
    SOURCE,
    terminal_options,
    threads_option,
)

if TYPE_CHECKING:
    from virnucpro.embeddings.levels import Level
    from virnucpro.embeddings.loader import Alphabet

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
@click.option("-o", "--output", type=FILE, required=True, metavar="OUT", help="File for the embeddings.")
@click.option(
    "-e",
    "--encoder",
    "encoders",
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
@click.option(
    "--fragment-length",
    type=click.IntRange(min=3),
    metavar="NT",
    help="Bases of a fragment.  [default: the model's, else 500]",
)
@click.option("--device", metavar="NAME", default="auto", show_default=True, help=f"{DEVICES}.")
@click.option("--gpus", metavar="NUMBERS", help="GPUs to use, such as 0,1; each takes a part at a time.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Float type of the encoders.",
)
@click.option("--cache", type=FOLDER, metavar="DIR", help="Use the embeddings kept in this folder, and add to them.")
@click.option("--fresh", is_flag=True, help="Begin again, whatever an earlier run left.")
@threads_option
@terminal_options("no_progress", "quiet", "verbose")
def embed(
    source: str,
    output: Path,
    encoders: tuple[str, ...],
    level: Level,
    precision: str,
    alphabet: Alphabet | None,
    fragment_length: int | None,
    device: str,
    gpus: str | None,
    dtype: str,
    cache: Path | None,
    fresh: bool,
    threads: int | None,
    show_bars: bool,
) -> None:
    """Write embeddings of sequences to a file.

    INPUT holds DNA, in any format that predict reads, or proteins in FASTA. Rows are in input order.
    """
    from virnucpro.embeddings.job import EmbedRequest, embed_file  # noqa: PLC0415 - --help should not wait for it
    from virnucpro.encoders.device import choose_devices  # noqa: PLC0415
    from virnucpro.inputs import refuse_overwriting  # noqa: PLC0415
    from virnucpro.progress import Reporter  # noqa: PLC0415
    from virnucpro.resources import available_cpus  # noqa: PLC0415

    refuse_overwriting([source], [output])
    request = EmbedRequest(
        source,
        output,
        encoders,
        level,
        precision,
        alphabet,
        fragment_length,
        tuple(choose_devices(device, gpus)),
        threads or available_cpus(),
        dtype,
        cache,
    )
    num_rows, about = embed_file(request, Reporter(show_bars), fresh=fresh)
    if not click.get_current_context().params["quiet"]:
        widths = ", ".join(f"{facts.name} {facts.width}" for facts in about.encoders)
        click.echo(f"{output}: {num_rows:,} rows ({about.level}), {widths}")
