"""``virnucpro cache``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import click

from virnucpro.cli.options import FOLDER, json_option
from virnucpro.errors import UsageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_folder = click.argument("folder", type=FOLDER, metavar="DIR")
_EXAMPLE = """\
\b
Example:
  virnucpro cache %s embeddings
"""


def _size(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """Bytes of a size such as 500M."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)\s*([KMGT]?)B?", value.strip(), re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"{value!r} is not a size such as 500M or 20G.", context, option)
    return int(found[1]) * _UNITS[found[2].upper()]


def _existing(folder: Path) -> Path:
    from virnucpro.embeddings.cache import FILE_NAME

    if not (folder / FILE_NAME).is_file():
        raise UsageError(f"{folder} is not a cache of embeddings: there is no {FILE_NAME} in it.")
    return folder


@click.group(epilog=_EXAMPLE % "info")
def cache() -> None:
    """Inspect, shrink or remove a cache of embeddings.

    DIR is the folder that --cache names.
    """


@cache.command(epilog=_EXAMPLE % "info")
@_folder
@json_option
def info(folder: Path, as_json: bool) -> None:
    """Show what a cache holds, by encoder."""
    from virnucpro.embeddings.cache import EmbeddingCache

    with EmbeddingCache(_existing(folder)) as found:
        encoders, num_bytes = found.encoders(), found.num_bytes()
    if as_json:
        click.echo(json.dumps({"bytes": num_bytes, "encoders": [asdict(encoder) for encoder in encoders]}, indent=2))
        return
    for encoder in encoders:
        click.echo(
            f"{encoder.name}  {encoder.num_rows:,} embeddings of width {encoder.width} in {encoder.dtype}  "
            f"{encoder.fingerprint[:12]}"
        )
    click.echo(f"{sum(encoder.num_rows for encoder in encoders):,} embeddings, {num_bytes / 1e6:,.1f} MB")


@cache.command(
    epilog="""\
SIZE is a number of bytes, or a size such as 500M or 20G.

\b
Examples:
  virnucpro cache prune embeddings --max-size 5G
  virnucpro cache prune embeddings --unused-days 30
"""
)
@_folder
@click.option(
    "--max-size",
    callback=_size,
    metavar="SIZE",
    help="Shrink the cache to this size: what was not used for longest is removed.",
)
@click.option("--unused-days", type=click.IntRange(min=0), metavar="N", help="Remove what was not used for N days.")
def prune(folder: Path, max_size: int | None, unused_days: int | None) -> None:
    """Remove embeddings that are not used."""
    from virnucpro.embeddings.cache import EmbeddingCache

    if max_size is None and unused_days is None:
        raise UsageError("say what goes: --max-size or --unused-days.")
    with EmbeddingCache(_existing(folder)) as found:
        num_gone = found.prune(max_size, unused_days)
        click.echo(f"{num_gone:,} embeddings removed, {found.num_bytes() / 1e6:,.1f} MB left")


@cache.command(epilog=_EXAMPLE % "clear")
@_folder
def clear(folder: Path) -> None:
    """Remove a cache, even if it is damaged or of another version."""
    from virnucpro.embeddings.cache import remove_cache

    remove_cache(_existing(folder))
    click.echo(f"{folder}: no embeddings are kept")
