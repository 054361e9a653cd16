"""Options that let an engine do the work of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from virnucpro.cli.options import COUNT, together

if TYPE_CHECKING:
    from virnucpro.engines import Engine

_OPTIONS = {
    "engine": click.option(
        "--engine",
        type=click.Choice(["local", "slurm", "ray"]),
        default="local",
        show_default=True,
        help="Where to compute: on this machine, in jobs of Slurm (or another scheduler), or on a Ray cluster.",
    ),
    "jobs": click.option("--jobs", type=COUNT, metavar="N", default=8, show_default=True, help="Jobs at a time."),
    "parts": click.option("--parts", type=COUNT, metavar="N", help="Parts of the work.  [default: 4 times --jobs]"),
    "job_gpus": click.option(
        "--job-gpus", type=click.IntRange(min=0), metavar="N", default=0, show_default=True, help="GPUs for each job."
    ),
    "job_threads": click.option(
        "--job-threads",
        type=COUNT,
        metavar="N",
        default=1,
        show_default=True,
        help="CPU threads for each job or actor.",
    ),
    "address": click.option(
        "--address", metavar="HOST:PORT", default="local", show_default=True, help="The Ray cluster."
    ),
    "no_shared_files": click.option(
        "--no-shared-files",
        is_flag=True,
        help="With Ray: send files to every machine, even if they seem to share a file system.",
    ),
    "engine_profile": click.option(
        "--engine-profile", metavar="NAME", help="A Snakemake profile; its scheduler is used in place of Slurm."
    ),
    "engine_args": click.option(
        "--engine-arg", "engine_args", multiple=True, metavar="ARG", help="Passed on to Snakemake; may be repeated."
    ),
}
ENGINE_OPTIONS = tuple(_OPTIONS)
"""Names of the parameters."""
engine_options = together(*_OPTIONS.values())


def take_engine(given: dict[str, Any]) -> Engine | None:
    """Take the options of an engine out of what was given; None for this machine, or where there are none.

    Raises:
        UsageError: the engine is not installed.
    """
    mine = {name: given.pop(name) for name in ENGINE_OPTIONS if name in given}
    if mine.get("engine", "local") == "local":
        return None
    from virnucpro import engines

    engine = engines.Engine(
        name=mine["engine"],
        jobs=mine["jobs"],
        parts=mine["parts"],
        gpus=mine["job_gpus"],
        threads=mine["job_threads"],
        address=mine["address"],
        shares_files=not mine["no_shared_files"],
        profile=mine["engine_profile"],
        arguments=mine["engine_args"],
    )
    engines.require(engine)
    return engine
