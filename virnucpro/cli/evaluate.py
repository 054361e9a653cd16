"""``virnucpro evaluate``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from virnucpro.cli.options import COUNT, FOLDER, terminal_options
from virnucpro.cli.train import data_options

_EPILOG = """\
Writes evaluation.json and evaluation.html: curves, figures by length, virus family and host class, error
rates of the presets, and how many sequences of no organism each preset calls virus. The same options give
the same figures.

\b
Examples:
  virnucpro evaluate --data data --model lite -o evaluation
  virnucpro evaluate --data data --records genomes --communities -o evaluation
  virnucpro evaluate --data mine.fasta --labels mine.tsv --model my-bundle --dev-share 0.1 -o evaluation
"""


@click.command(epilog=_EPILOG)
@data_options
@click.option("-m", "--model", default="lite", show_default=True, help="Bundle to measure, as in predict.")
@click.option(*("-o", "--output"), type=FOLDER, default="evaluation", show_default=True, help="Folder to write into.")
@click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True, help="Seed of the sequences drawn.")
@click.option("--panel/--no-panel", default=True, show_default=True, help="Also measure sequences of no organism.")
@click.option(
    "--records",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Also measure the whole records of DIR: FASTA files, labels.tsv (name, truth) and, optionally, prophages.tsv "
    "(accession, start, stop; 1-based closed).",
)
@click.option(
    "--communities/--no-communities",
    default=False,
    show_default=True,
    help="Also measure false discovery in communities made of the data, with 0, 1, 10, 50 and 100 % viruses.",
)
@click.option(
    "--fit-records",
    is_flag=True,
    help="First fit how fragments and genes make the call of a longer record, and write that into the model's "
    "bundle.yaml. The model must not have been trained on the data.",
)
@click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps; the first of several."
)
@click.option("-t", "--threads", type=COUNT, default=1, show_default=True, help="CPU threads.")
@terminal_options("quiet")
def evaluate(
    data: tuple[Path, ...],
    labels: Path | None,
    split_seed: int,
    dev_share: float,
    model: str,
    output: Path,
    seed: int,
    panel: bool,
    records: Path | None,
    communities: bool,
    fit_records: bool,
    device: str,
    threads: int,
    show_bars: bool,
) -> None:
    """Measure a model on labelled sequences it was not trained on."""
    del show_bars
    from virnucpro.atomic import write_json
    from virnucpro.bundles import load_bundle
    from virnucpro.encoders.device import choose_devices
    from virnucpro.engine.threads import use_threads
    from virnucpro.run.predict import score
    from virnucpro.settings import make_settings
    from virnucpro.training import assessment, datasets, dev, page, summary
    from virnucpro.training import records as whole

    use_threads(threads)
    bundle = load_bundle(model)
    genomes = datasets.load_dev(data, labels, split_seed)
    size = replace(dev.DevSize().scaled(dev_share), seed=seed)
    parts = dev.load_model(bundle, choose_devices(device)[0])
    settings = make_settings(None, {"science.model": model, "runtime.device": device, "runtime.threads": threads})
    scored = partial(score, settings=settings)
    found = assessment.assess(bundle, parts, genomes, size, scored if panel else None)
    if fit_records:
        whole.fit_bundle(bundle.folder, genomes, scored)
    if records is not None:
        found |= whole.measure_folder(records, scored)
    if communities:
        found |= whole.measure_dataset(genomes, scored, seed)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "evaluation.json", found)
    page.write_page(found, output / "evaluation.html")
    click.echo(summary.length_table(found["lengths"]))
    if panel:
        click.echo(f"\n{summary.panel_table(found['panel'])}")
    for name in ("records", "curated", "whole_dev", "communities"):
        if name in found:
            click.echo("\n" + summary.records_text(name, found[name]))
    click.echo(f"\n{output / 'evaluation.html'}")
