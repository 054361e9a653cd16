"""``virnucpro profile``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import click

from virnucpro.cli.options import json_option, measured_options
from virnucpro.errors import UsageError
from virnucpro.logs import start_logging

_QUIET_LOAD = 0.5
_EPILOG = """\
The figures are saved in the cache (VIRNUCPRO_CACHE, profiles/) for this model, device, float type, number of CPUs
and version of torch. predict then takes token budgets and processes from there, unless its own options say
otherwise. Results do not change. Measure on a quiet machine.

\b
Examples:
  virnucpro profile
  virnucpro profile -m 500 --device cuda:0 --seconds 300
  virnucpro profile --show --json
  virnucpro profile --forget
"""


@click.command(epilog=_EPILOG)
@measured_options
@click.option(
    "--seconds",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="About how long to measure; a large model needs more to try large batches.",
)
@click.option("--show", is_flag=True, help="Print the saved figures; measure nothing.")
@click.option("--forget", is_flag=True, help="Delete the saved figures; measure nothing.")
@json_option
def profile(
    model: str,
    device: str,
    dtype: str,
    threads: int | None,
    seconds: float,
    show: bool,
    forget: bool,
    as_json: bool,
) -> None:
    """Find the settings that are fastest on this machine.

    Measures batch sizes, processes and threads, on the first device if there are several.
    """
    if show and forget:
        raise UsageError("--show prints the figures and --forget deletes them: choose one.")
    start_logging(-1)

    from virnucpro.bundles import load_bundle
    from virnucpro.encoders.device import choose_devices, dtype_name
    from virnucpro.machine import profile as measurement
    from virnucpro.machine import profiles
    from virnucpro.machine.profiles import choice_text, profile_text
    from virnucpro.resources import available_cpus

    place = choose_devices(device)[0]
    float_type = dtype_name(dtype, place)
    bundle = load_bundle(model, dtype=float_type)
    if forget:
        was_there = profiles.forget(profiles.key_of(bundle, place, float_type))
        click.echo("The profile is deleted." if was_there else "There was no profile.")
        return
    if show:
        found = profiles.find(bundle, place, float_type)
        if found is None:
            raise UsageError(f"there is no profile of {model} on {place} in {float_type}. Measure: virnucpro profile")
        click.echo(json.dumps(asdict(found), indent=2) if as_json else profile_text(found))
        return
    _warn_if_busy(available_cpus())
    settings = measurement.ProfileSettings(bundle, place, float_type, threads or available_cpus(), seconds)
    measured = measurement.measure(settings)
    path = profiles.save(measured)
    click.echo(json.dumps(asdict(measured), indent=2) if as_json else profile_text(measured))
    if not as_json:
        click.echo(f"\npredict now takes {choice_text(measured)}\nsaved in {path}")


def _warn_if_busy(num_cpus: int) -> None:
    load = os.getloadavg()[0]
    if load > _QUIET_LOAD * num_cpus:
        click.echo(
            f"Warning: other programs keep {load:.1f} of {num_cpus} CPUs busy, so the figures are those of a busy "
            "machine. Measure again when it is quiet.",
            err=True,
        )
