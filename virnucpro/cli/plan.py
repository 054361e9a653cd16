"""``virnucpro plan``."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from virnucpro.cli.options import (
    FOLDER,
    cascade_options,
    given_samples,
    given_settings,
    input_options,
    json_option,
    measured_options,
)
from virnucpro.logs import start_logging

_EPILOG = """\
Runs the real program on the first records of the inputs and scales up by how much of them it read. Small inputs are
read whole. Nothing is kept. The last line is the command to run.

\b
Examples:
  virnucpro plan contigs.fasta
  virnucpro plan reads.fastq.gz -m 500 --device cuda -o /scratch/results
  virnucpro plan reads.fastq.gz -m 500 --cascade
  virnucpro plan *.fna --seconds 60 --json
"""


@click.command(epilog=_EPILOG)
@input_options
@click.option(
    *("-o", "--output"),
    type=FOLDER,
    metavar="DIR",
    default=Path("results"),
    show_default=True,
    help="Directory that predict would write to.",
)
@measured_options
@cascade_options
@click.option(
    "--seconds",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    default=15.0,
    show_default=True,
    help="About how long to run on the first records.",
)
@json_option
def plan(
    inputs: tuple[str, ...],
    reads1: tuple[str, ...],
    reads2: tuple[str, ...],
    samplesheet: Path | None,
    name: str | None,
    output: Path,
    seconds: float,
    as_json: bool,
    **given: Any,  # noqa: ANN401 - Click's
) -> None:
    """Estimate the time, memory and disk space a run needs.

    INPUT is what predict would be given; files only, no stdin.
    """
    from virnucpro.inputs import look_at

    samples = given_samples(inputs, reads1, reads2, samplesheet, name)
    reference = str(given["reference"]) if given["reference"] else None
    look_at(samples, reference)
    asked = given_settings(given)
    start_logging(-1)
    begun = time.perf_counter()

    from virnucpro.bundles import load_bundle
    from virnucpro.encoders.device import choose_devices, dtype_name
    from virnucpro.machine.plan import PlanSettings, make_plan, plan_text
    from virnucpro.run import predict as pipeline

    devices = choose_devices(given["device"])
    float_type = dtype_name(given["dtype"], devices[0])
    settings = PlanSettings(
        inputs=tuple(path for sample in samples for path in sample.paths),
        bundle=load_bundle(given["model"], dtype=float_type),
        devices=tuple(devices),
        dtype=float_type,
        output=output,
        unit_rows=asked.layout.unit_rows,
        seconds=seconds,
        import_seconds=time.perf_counter() - begun,
        reference=reference,
    )
    made = make_plan(settings, lambda paths, folder: pipeline.predict(paths, folder, asked).record)
    command = _command(click.get_current_context())
    if as_json:
        total = asdict(made.total_seconds)
        click.echo(json.dumps({**asdict(made), "total_seconds": total, "command": command}, indent=2))
    else:
        click.echo(f"{plan_text(made)}\n\n{command}")


def _command(context: click.Context) -> str:
    """The same command of predict, without what only plan takes."""
    words: list[str] = ["virnucpro", "predict", *context.params["inputs"]]
    for option in context.command.params:
        value = context.params[option.name or ""]
        if not isinstance(option, click.Option) or option.name in ("seconds", "as_json"):
            continue
        if not value or (value == option.get_default(context) and option.name != "output"):
            continue
        if value is True:
            words.append(option.opts[0])
        elif option.multiple:
            words += [word for each in value for word in (option.opts[0], each)]
        else:
            words += [option.opts[0], ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)
