"""``virnucpro plan``."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from virnucpro.cli.options import (
    FOLDER,
    SOURCE,
    json_option,
    measured_device_option,
    measured_dtype_option,
    measured_model_option,
    threads_option,
)
from virnucpro.errors import UsageError
from virnucpro.logs import start_logging

if TYPE_CHECKING:
    from virnucpro.tuning.plan import Plan, PlanSettings
    from virnucpro.tuning.speed import RunProgram

_EPILOG = """\
Reads a sample of each INPUT (of a large plain file pieces all over it, of a compressed one its beginning),
runs the real program on a little of it, and scales up. Nothing is kept. The last line is the command to run.

\b
Examples:
  virnucpro plan contigs.fasta
  virnucpro plan reads.fastq.gz -m 500 --device cuda -o /scratch/results
  virnucpro plan *.fna --sample-mb 16 --json
"""


@click.command(epilog=_EPILOG)
@click.argument("inputs", nargs=-1, type=SOURCE, metavar="INPUT...")
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
@click.option(
    "--sample-mb",
    metavar="MB",
    type=click.FloatRange(min=0.01),
    default=4.0,
    show_default=True,
    help="Megabytes of text to read of each input; a smaller file is read whole.",
)
@json_option
def plan(
    inputs: tuple[str, ...],
    output: Path,
    model: str,
    device: str,
    dtype: str,
    threads: int | None,
    sample_mb: float,
    as_json: bool,
) -> None:
    """Foresee time, memory and disk of a run.

    INPUT is what predict would be given; files only, no stdin.
    """
    if not inputs:
        raise UsageError("no input. Name the FASTA or FASTQ files of the run: virnucpro plan in.fasta")
    start_logging(-1)
    begun = time.perf_counter()

    from virnucpro import pipeline  # noqa: PLC0415 - --help should not wait for torch
    from virnucpro.bundles import load_bundle  # noqa: PLC0415
    from virnucpro.encoders.device import available_cpus, choose_devices  # noqa: PLC0415
    from virnucpro.tuning.machine import dtype_name  # noqa: PLC0415
    from virnucpro.tuning.plan import PlanSettings, make_plan  # noqa: PLC0415

    del pipeline  # imported for the time that it takes
    devices = choose_devices(device)
    float_type = dtype_name(dtype, devices[0])
    settings = PlanSettings(
        inputs=inputs,
        bundle=load_bundle(model, dtype=float_type),
        devices=tuple(devices),
        dtype=float_type,
        threads=threads or available_cpus(),
        output=output,
        sample_bytes=int(sample_mb * 1e6),
        import_seconds=time.perf_counter() - begun,
    )
    made = make_plan(settings, _program(model, settings))
    options = {"-m": model, "--device": device, "--dtype": dtype}
    usual = {"-m": "lite", "--device": "auto", "--dtype": "auto"}
    given = [part for name, value in options.items() if value != usual[name] for part in (name, value)]
    given += ["-t", str(threads)] if threads else []
    _show(made, shlex.join(["virnucpro", "predict", *inputs, "-o", str(output), *given]), as_json=as_json)


def _show(made: Plan, command: str, *, as_json: bool) -> None:
    from virnucpro.tuning.plan_text import plan_text  # noqa: PLC0415

    if as_json:
        total = asdict(made.seconds.total)
        click.echo(json.dumps({**asdict(made), "total_seconds": total, "command": command}, indent=2))
        return
    click.echo(f"{plan_text(made)}\n\n{command}")


def _program(model: str, settings: PlanSettings) -> RunProgram:
    """The program as the user would run it, on the first device."""
    from virnucpro import pipeline  # noqa: PLC0415
    from virnucpro.config import make_config  # noqa: PLC0415
    from virnucpro.tuning.speed import ProgramFigures  # noqa: PLC0415

    config = make_config(
        None,
        {
            "science.model": model,
            "science.dtype": settings.dtype,
            "runtime.device": settings.devices[0],
            "runtime.threads": settings.threads,
        },
    )

    def run(fasta: Path, folder: Path) -> ProgramFigures:
        results = pipeline.predict([fasta], folder, config)
        seconds = results.record["seconds"]
        after = (value for stage, value in seconds.items() if stage not in ("total", "extract", "embed"))
        return ProgramFigures(
            embed_seconds=seconds.get("embed", 0.0),
            rest_seconds=sum(after),
            total_seconds=seconds["total"],
            num_rows=results.record["counts"]["num_rows"],
            result_bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        )

    return run
