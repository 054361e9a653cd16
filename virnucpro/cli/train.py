"""``virnucpro train``."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from virnucpro.cli.options import COUNT, FOLDER, terminal_options, together
from virnucpro.errors import UsageError
from virnucpro.progress import Reporter

_EPILOG = """\
Presets: lite trains small encoders and a head from scratch; profiles and nearest replace what the model of --start
counts, and the proteins that it searches; head trains a head on encoders, those of a bundle or
others, whose embeddings are computed once and kept in the cache (VIRNUCPRO_CACHE, features/); published does so by
the published recipe (Li et al. 2025), whose split of frames flatters what it measures while it trains.

Genomes and clusters are never on both sides of the split, nor are families, but for viruses that are measured as
of seen families. To resume a training that was stopped, repeat the same command. The bundle is calibrated on the
dev part; training.json holds recipe and figures.

\b
Examples:
  virnucpro train --data data --output my-lite
  virnucpro train --data data --output my-lite --preset nearest --start lite --final
  virnucpro train --data mine.fasta --labels mine.tsv --output my-lite --minutes 30
  virnucpro train --data phages.gb --data hosts.gb --output my-head --preset head --encoder 500 --layer 6
  virnucpro train --data data --output my-esm --preset head --encoder lite --encoder esm2_t30_150M_UR50D.pt
"""


data_options = together(
    click.option(
        "--data",
        type=click.Path(path_type=Path, exists=True),
        required=True,
        multiple=True,
        help="Folder with train/, dev/ and manifest.tsv.gz; FASTA (with --labels); or GenBank. Repeatable.",
    ),
    click.option(
        "--labels",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Table of the FASTA records: id, label, and optionally group, cluster, genome, split.",
    ),
    click.option(
        "--split-seed",
        type=click.IntRange(min=0),
        default=1,
        show_default=True,
        help="Seed of the split into train and dev, if the labels name none.",
    ),
    click.option(
        "--dev-share",
        type=click.FloatRange(min=0, max=1, min_open=True),
        default=1.0,
        show_default=True,
        help="Share of the dev protocol's sequences to draw.",
    ),
)
"""What the data are; ``evaluate`` has them too."""


@click.command(epilog=_EPILOG)
@data_options
@click.option("-o", "--output", type=FOLDER, required=True, help="Bundle folder to write.")
@click.option(
    "--preset",
    type=click.Choice(("lite", "profiles", "nearest", "head", "published")),
    default="lite",
    show_default=True,
    help="Recipe.",
)
@click.option("--encoder", "encoders", multiple=True, help="For head and published: bundle, or encoder (twice).")
@click.option("--layer", type=COUNT, help="Cut ESM-2 and DNABERT-S after this many layers.")
@click.option("--start", metavar="BUNDLE", help="Start from the weights of a bundle trained with lite.")
@click.option(
    "--final", is_flag=True, help="For nearest: once all is chosen on dev, make the table of train, dev and release."
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Highest learning rate, for lite.  [default: 0.002]",
)
@click.option("--fragments", type=COUNT, help="Sequences to train on.  [default: the preset's]")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="Train for about this many minutes (lite only)."
)
@click.option(
    "--fragment-length",
    type=click.IntRange(min=100),
    default=500,
    show_default=True,
    help="Bases of a fragment, for head and published.",
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Seed of everything random.")
@click.option("--device", default="auto", show_default=True, help="Device for the encoders of head and published.")
@click.option("-t", "--threads", type=COUNT, default=1, show_default=True, help="CPU threads.")
@click.option("--fresh", is_flag=True, help="Delete the training in --output and start over.")
@terminal_options("no_progress", "quiet")
def train(
    data: tuple[Path, ...],
    labels: Path | None,
    split_seed: int,
    output: Path,
    show_bars: bool,
    **options: Any,  # noqa: ANN401 - Click's
) -> None:
    """Train a model on labelled sequences."""
    from virnucpro.encoders.device import choose_devices
    from virnucpro.engine.threads import use_threads
    from virnucpro.training import presets
    from virnucpro.training.datasets import load_dataset
    from virnucpro.training.nearest import train_nearest
    from virnucpro.training.summary import length_table

    use_threads(options["threads"])
    request = presets.Request(**{item.name: options[item.name] for item in fields(presets.Request)})
    request = replace(request, device=choose_devices(request.device)[0] if request.encoders else "cpu")
    request.check()
    if options["final"] and request.preset != "nearest":
        raise UsageError("--final is for --preset nearest.")
    if request.preset == "nearest":
        figures = train_nearest(data, output, request, is_final=options["final"], num_threads=options["threads"])
    else:
        dataset = load_dataset(data, labels, split_seed)
        if options["fresh"]:
            presets.start_over(output)
        figures = presets.train(dataset, output, request, Reporter(show_bars))
    click.echo(length_table(figures))
    click.echo(f"\n{output}: use it with virnucpro predict --model {output.absolute()}")
