"""``virnucpro sync``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from virnucpro.cli.merge import file_options, merge_files
from virnucpro.cli.options import COUNT, FILE, FOLDER, terminal_options
from virnucpro.errors import IncompleteRunError, UsageError

if TYPE_CHECKING:
    from virnucpro.clusters.machines import Machine

MERGED = "merged.h5"
_EPILOG = """\
Machines are described in clusters.toml, in .credentials/NAME.credentials (JSON, mode 600), or in both. The SSH
configuration and the agent are used; host keys are verified, always. Files of machine NAME go to OUTPUT/NAME.
What is there and intact is left alone; a download that stopped continues where it stopped. Digests are
those of SHA256SUMS or FILE.sha256 next to the files.

When everything is here, the files are merged into OUTPUT/merged.h5, as 'virnucpro merge' does it; --sync-only
leaves that out, for files that are not embeddings of a range of items each.

Exit code 0 only if every file is here; 5 if a machine or a file failed (each is listed, the others are
here), 3 if they cannot be merged, 4 if the disk is full.

\b
Example:
  virnucpro sync --clusters "alpha beta" --output shards
"""


@click.command(epilog=_EPILOG)
@click.option("--config", type=FILE, metavar="FILE", help="Description of the machines.  [default: clusters.toml]")
@click.option(
    "--credentials", type=FOLDER, default=".credentials", show_default=True, metavar="FOLDER", help="Credentials files."
)
@click.option("--clusters", metavar="NAMES", default="", help='Only these machines, such as "alpha beta".')
@click.option("-o", "--output", type=FOLDER, default="shards", show_default=True, metavar="FOLDER", help="Where to.")
@click.option("--path", metavar="FOLDER", help="Folder on the machines, in place of the one described.")
@click.option(
    "--pattern", "patterns", multiple=True, metavar="GLOB", help="Files to fetch, in place of those described."
)
@click.option(
    "--max-concurrent", type=COUNT, default=4, show_default=True, metavar="N", help="Files at a time, per machine."
)
@click.option("--retries", type=click.IntRange(min=0), default=4, show_default=True, metavar="N", help="Per machine.")
@click.option("--sync-only", is_flag=True, help="Fetch, and merge nothing.")
@click.option("--merge-only", is_flag=True, help="Fetch nothing, and merge what is here.")
@file_options
@terminal_options("no_progress", "quiet", "verbose")
def sync(
    config: Path | None,
    credentials: Path,
    clusters: str,
    output: Path,
    path: str | None,
    patterns: tuple[str, ...],
    max_concurrent: int,
    retries: int,
    sync_only: bool,
    merge_only: bool,
    take: int | None,
    metadata: Path | None,
    show_bars: bool,
) -> None:
    """Fetch files from other machines over SFTP, and merge them."""
    from virnucpro.clusters.machines import chosen_machines

    if sync_only and merge_only:
        raise UsageError("--sync-only and --merge-only leave nothing to do. Use one of them.")
    machines = chosen_machines(config, credentials, clusters, path, patterns)
    if not merge_only:
        _fetch(machines, output, max_concurrent=max_concurrent, retries=retries, show_bars=show_bars)
    if not sync_only:
        folders = tuple(output / machine.name for machine in machines)
        merge_files(folders, output / MERGED, check=False, take=take, metadata=metadata, show_bars=show_bars)


def _fetch(machines: list[Machine], output: Path, *, max_concurrent: int, retries: int, show_bars: bool) -> None:
    """Fetch and say what became of it.

    Raises:
        IncompleteRunError: something did not come.
    """
    try:
        from virnucpro.clusters import sync as fetching
    except ModuleNotFoundError as error:
        raise UsageError(f"sync needs {error.name}. Install it: pip install 'virnucpro[sftp]'") from error
    from virnucpro.progress import Reporter

    reporter = Reporter(show_bars)
    outcomes = fetching.sync(machines, output, reporter, attempts=retries + 1, max_concurrent=max_concurrent)
    for outcome in outcomes:
        for line in outcome.lines():
            click.echo(line)
    incomplete = [outcome.machine.name for outcome in outcomes if not outcome.is_complete]
    if incomplete:
        raise IncompleteRunError(
            f"not everything is here: see {', '.join(incomplete)} above. Run the same command again."
        )
