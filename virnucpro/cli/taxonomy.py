"""``virnucpro taxonomy``."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.options import FILE, FOLDER, device_option, run_argument, terminal_options, threads_option
from virnucpro.errors import UsageError

_EPILOG = """\
Writes STEM.taxonomy.tsv (a line for every hit), STEM.taxonomy.counts.tsv (by taxon), STEM.taxonomy.nwk (a tree) and
STEM.taxonomy.krona.txt (for ktImportText) into RUN, and the page again if it is there. A model runs only with
--reference: --device and --threads are for it.

\b
Examples:
  virnucpro taxonomy results
  virnucpro embed known.fasta -o known.h5
  virnucpro taxonomy results --reference known.h5 --taxdump taxdump
"""


@click.command(epilog=_EPILOG)
@run_argument
@click.option(
    "--reference",
    type=FILE,
    metavar="EMB",
    help="Name hits by these embeddings of known sequences (.h5 or .npz of embed), whose ids are names in --taxdump.",
)
@click.option("--taxdump", type=FOLDER, metavar="DIR", help="NCBI's taxonomy: a folder with names.dmp and nodes.dmp.")
@device_option
@threads_option
@terminal_options("no_progress", "quiet", "verbose")
def taxonomy(
    run: Path, reference: Path | None, taxdump: Path | None, device: str, threads: int | None, show_bars: bool
) -> None:
    """Say which viruses the hits of a finished run are.

    RUN is the output directory of predict. Each hit gets a lineage, as deep as can be told.
    """
    if (reference is None) != (taxdump is None):
        raise UsageError("--reference and --taxdump go together: known sequences, and the taxonomy of their names.")
    from virnucpro.embeddings.taxa import read_reference
    from virnucpro.encoders.device import choose_devices
    from virnucpro.resources import available_cpus
    from virnucpro.run.taxonomy import name_hits

    named = name_hits(
        run,
        None if reference is None or taxdump is None else read_reference(reference, taxdump),
        devices=tuple(choose_devices(device)) if reference is not None else ("cpu",),
        num_threads=threads or available_cpus(),
        show_bars=show_bars,
    )
    for stem, found in named.items():
        num_named = sum(bool(hit.named.lineage) for hit in found.hits)
        num_novel = sum(hit.named.is_novel for hit in found.hits)
        click.echo(f"{stem}: {len(found.hits):,} hits, {num_named:,} named, {num_novel:,} novel")
