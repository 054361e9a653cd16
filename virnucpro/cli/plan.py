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
    cascade_options,
    json_option,
    measured_device_option,
    measured_dtype_option,
    measured_model_option,
    threads_option,
)
from virnucpro.errors import UsageError
from virnucpro.logs import start_logging

if TYPE_CHECKING:
    from virnucpro.bundles.cascade import Limits
    from virnucpro.machine.plan import Plan, PlanSettings, Program
    from virnucpro.machine.speed import RunProgram

_KNOWN = ("total", "extract", "select", "embed")
"""Stages that are foreseen by themselves."""
_EPILOG = """\
Reads a sample of each INPUT (of a large plain file pieces all over it, of a compressed one its beginning),
runs the real program on a little of it, and scales up. Nothing is kept. The last line is the command to run.

\b
Examples:
  virnucpro plan contigs.fasta
  virnucpro plan reads.fastq.gz -m 500 --device cuda -o /scratch/results
  virnucpro plan reads.fastq.gz -m 500 --cascade
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
@cascade_options
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
    cascade: bool | None,
    cascade_limits: tuple[float, float] | None,
    sample_mb: float,
    as_json: bool,
) -> None:
    """Foresee time, memory and disk of a run.

    INPUT is what predict would be given; files only, no stdin.
    """
    if not inputs:
        raise UsageError("no input. Name the FASTA or FASTQ files of the run: virnucpro plan in.fasta")
    if cascade_limits is not None and not cascade:
        raise UsageError("--cascade-limits are limits of a cascade: ask for one (--cascade).")
    start_logging(-1)
    begun = time.perf_counter()

    from virnucpro.bundles import load_bundle  # noqa: PLC0415
    from virnucpro.bundles.cascade import Limits  # noqa: PLC0415
    from virnucpro.encoders.device import available_cpus, choose_devices  # noqa: PLC0415
    from virnucpro.machine.machine import dtype_name  # noqa: PLC0415
    from virnucpro.machine.plan import PlanSettings, make_plan  # noqa: PLC0415
    from virnucpro.run import predict as pipeline  # noqa: PLC0415 - --help should not wait for torch
    from virnucpro.stages.cascade import choose_first  # noqa: PLC0415

    del pipeline  # imported for the time that it takes
    devices = choose_devices(device)
    float_type = dtype_name(dtype, devices[0])
    bundle, first = load_bundle(model, dtype=float_type), None
    if cascade:
        limits = Limits(*cascade_limits) if cascade_limits is not None else None
        first = choose_first(bundle, load_bundle(bundle.first_model, dtype=float_type), limits)
    settings = PlanSettings(
        inputs=inputs,
        bundle=bundle,
        devices=tuple(devices),
        dtype=float_type,
        threads=threads or available_cpus(),
        output=output,
        sample_bytes=int(sample_mb * 1e6),
        import_seconds=time.perf_counter() - begun,
        first=first,
    )
    made = make_plan(settings, _program(model, settings))
    options = {"-m": model, "--device": device, "--dtype": dtype}
    usual = {"-m": "lite", "--device": "auto", "--dtype": "auto"}
    given = [part for name, value in options.items() if value != usual[name] for part in (name, value)]
    given += ["-t", str(threads)] if threads else []
    given += ["--cascade"] if cascade else []
    given += ["--cascade-limits", ",".join(f"{limit:g}" for limit in cascade_limits)] if cascade_limits else []
    _show(made, shlex.join(["virnucpro", "predict", *inputs, "-o", str(output), *given]), as_json=as_json)


def _show(made: Plan, command: str, *, as_json: bool) -> None:
    from virnucpro.machine.plan_text import plan_text  # noqa: PLC0415

    if as_json:
        total = asdict(made.seconds.total)
        click.echo(json.dumps({**asdict(made), "total_seconds": total, "command": command}, indent=2))
        return
    click.echo(f"{plan_text(made)}\n\n{command}")


def _program(model: str, settings: PlanSettings) -> Program:
    """The program as the user would run it, on the first device."""
    from virnucpro.config import make_config  # noqa: PLC0415
    from virnucpro.machine.speed import ProgramFigures  # noqa: PLC0415
    from virnucpro.run import predict as pipeline  # noqa: PLC0415

    plain = {
        "science.model": model,
        "science.dtype": settings.dtype,
        "runtime.device": settings.devices[0],
        "runtime.threads": settings.threads,
    }

    def program(limits: Limits | None) -> RunProgram:
        cascade = {} if limits is None else {"cascade": True, "cascade_low": limits.low, "cascade_high": limits.high}
        config = make_config(None, plain | {f"science.{name}": value for name, value in cascade.items()})

        def run(fasta: Path, folder: Path) -> ProgramFigures:
            record = pipeline.predict([fasta], folder, config).record
            first = record.get("cascade")
            runs = [record["seconds"], *([first["seconds"]] if first is not None else ())]
            return ProgramFigures(
                embed_seconds=sum(seconds.get("embed", 0.0) for seconds in runs),
                rest_seconds=sum(value for seconds in runs for stage, value in seconds.items() if stage not in _KNOWN),
                total_seconds=record["seconds"]["total"],
                num_rows=(record["counts"] if first is None else first)["num_rows"],
                result_bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
            )

        return run

    return program
