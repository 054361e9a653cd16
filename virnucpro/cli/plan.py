"""``virnucpro plan``."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from virnucpro.cli.options import (
    FOLDER,
    cascade_options,
    given_samples,
    input_options,
    json_option,
    measured_device_option,
    measured_dtype_option,
    measured_model_option,
    threads_option,
)
from virnucpro.errors import UsageError
from virnucpro.logs import start_logging

if TYPE_CHECKING:
    from virnucpro.machine.plan import Plan, Predict
    from virnucpro.settings import Settings

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
    "-o",
    "--output",
    type=FOLDER,
    metavar="DIR",
    default=Path("results"),
    show_default=True,
    help="Directory that predict would write to.",
)
@measured_model_option
@measured_device_option
@measured_dtype_option
@threads_option
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
    model: str,
    device: str,
    dtype: str,
    threads: int | None,
    cascade: bool | None,
    cascade_limits: tuple[float, float] | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Estimate the time, memory and disk space a run needs.

    INPUT is what predict would be given; files only, no stdin.
    """
    from virnucpro.inputs import look_at  # noqa: PLC0415 - brings numpy, which --help should not wait for

    samples = given_samples(inputs, reads1, reads2, samplesheet, name)
    look_at(samples)
    if cascade_limits is not None and not cascade:
        raise UsageError("--cascade-limits needs --cascade.")
    start_logging(-1)
    begun = time.perf_counter()

    from virnucpro.bundles import load_bundle  # noqa: PLC0415 - --help should not wait for torch
    from virnucpro.encoders.device import choose_devices  # noqa: PLC0415
    from virnucpro.machine.machine import dtype_name  # noqa: PLC0415
    from virnucpro.machine.plan import PlanSettings, make_plan  # noqa: PLC0415
    from virnucpro.run import predict as pipeline  # noqa: PLC0415
    from virnucpro.settings import make_settings  # noqa: PLC0415

    del pipeline  # imported for the time that it takes
    devices = choose_devices(device)
    low, high = cascade_limits or (None, None)
    asked = make_settings(
        None,
        {
            "science.model": model,
            "science.dtype": dtype,
            "science.cascade": cascade,
            "science.cascade_low": low,
            "science.cascade_high": high,
            "runtime.device": device,
            "runtime.threads": threads,
        },
    )
    float_type = dtype_name(dtype, devices[0])
    settings = PlanSettings(
        inputs=tuple(path for sample in samples for path in sample.paths),
        bundle=load_bundle(model, dtype=float_type),
        devices=tuple(devices),
        dtype=float_type,
        output=output,
        unit_rows=asked.layout.unit_rows,
        seconds=seconds,
        import_seconds=time.perf_counter() - begun,
    )
    made = make_plan(settings, _predict(asked))
    pairs = [part for first, second in zip(reads1, reads2, strict=True) for part in ("-1", first, "-2", second)]
    sheet = ["--samplesheet", str(samplesheet)] if samplesheet is not None else []
    named = [*inputs, *pairs, *sheet, *(["--name", name] if name is not None else [])]
    options = {"-m": model, "--device": device, "--dtype": dtype}
    usual = {"-m": "lite", "--device": "auto", "--dtype": "auto"}
    given = [part for name, value in options.items() if value != usual[name] for part in (name, value)]
    given += ["-t", str(threads)] if threads else []
    given += ["--cascade"] if cascade else []
    given += ["--cascade-limits", ",".join(f"{limit:g}" for limit in cascade_limits)] if cascade_limits else []
    _show(made, shlex.join(["virnucpro", "predict", *named, "-o", str(output), *given]), as_json=as_json)


def _show(made: Plan, command: str, *, as_json: bool) -> None:
    from virnucpro.machine.plan_text import plan_text  # noqa: PLC0415

    if as_json:
        total = asdict(made.total_seconds)
        click.echo(json.dumps({**asdict(made), "total_seconds": total, "command": command}, indent=2))
        return
    click.echo(f"{plan_text(made)}\n\n{command}")


def _predict(settings: Settings) -> Predict:
    """The program with these settings, as the user would run it."""
    from virnucpro.run import predict as pipeline  # noqa: PLC0415

    def predict(paths: Sequence[Path], folder: Path) -> Mapping[str, Any]:
        return pipeline.predict(paths, folder, settings).record

    return predict
