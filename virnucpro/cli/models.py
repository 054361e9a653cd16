"""``virnucpro models``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from virnucpro.cli.options import json_option, terminal_options
from virnucpro.errors import ModelError, UsageError
from virnucpro.progress import Reporter
from virnucpro.text import aligned

if TYPE_CHECKING:
    from virnucpro.registry.inventory import Entry

_GROUP_EPILOG = """\
Models are kept in VIRNUCPRO_CACHE (default: virnucpro in the user's cache folder).

\b
On a machine with network, then on one without:
  virnucpro models fetch 500
  virnucpro models export models.tar 500
  virnucpro models import models.tar
"""
_FETCH_EPILOG = """\
To resume a fetch that was stopped, repeat the same command.

\b
Example:
  virnucpro models fetch 500
"""
_VERIFY_EPILOG = """\
Exit code 6 if a file is not what was recorded.

\b
Example:
  virnucpro models verify 500
"""


@click.group(epilog=_GROUP_EPILOG)
def models() -> None:
    """List, fetch, verify, export and import models."""


@models.command("list", epilog="\b\nExample:\n  virnucpro models list --json")
@json_option
def list_models(as_json: bool) -> None:
    """Show the models on this machine and those that can be fetched."""
    from virnucpro.registry.inventory import list_entries

    entries = list_entries()
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=2, default=str))
        return
    header = ("name", "state", "size", "fingerprint", "licence")
    click.echo(aligned([header, *(_cells(entry) for entry in entries)], num_left=len(header)))
    click.echo(
        "\nWhere they are: virnucpro models path NAME. Parts and sources: virnucpro models list --json", err=True
    )


@models.command(epilog="\b\nExample:\n  virnucpro models path lite")
@click.argument("name")
def path(name: str) -> None:
    """Print the folder of a model.

    If NAME is not a bundle yet, print the folder of each of its parts.
    """
    from virnucpro.registry.inventory import places_of

    for place in places_of(name):
        click.echo(place.folder)


@models.command(epilog=_FETCH_EPILOG)
@click.argument("name")
@click.option("--mirror", metavar="URL", help="Fetch every file from this address instead of its own host.")
@click.option(
    "--retries", type=click.IntRange(min=0), metavar="N", default=4, show_default=True, help="Attempts after the first."
)
@click.option("--again", is_flag=True, help="Also fetch what the cache of the hub or of torch already has.")
@terminal_options("no_progress", "quiet")
def fetch(name: str, mirror: str | None, retries: int, again: bool, show_bars: bool) -> None:
    """Fetch a released model.

    Fetches the checkpoints of NAME that are not on this machine yet. Every file is checked against what its
    source says about it.
    """
    from virnucpro.registry import fetch as fetching
    from virnucpro.registry.download import Patience
    from virnucpro.registry.inventory import parts_of, places_of

    if not parts_of(name):
        for place in places_of(name):
            click.echo(f"{name}: nothing to fetch, it is already in {place.folder}")
        return
    how = fetching.Fetching(mirror, Patience(attempts=retries + 1), Reporter(show_bars))
    for folder in fetching.fetch(name, how, again=again):
        click.echo(folder)


@models.command(epilog=_VERIFY_EPILOG)
@click.argument("name", required=False)
def verify(name: str | None) -> None:
    """Check every file of a model against its SHA-256.

    Without NAME, check all models on this machine.
    """
    from virnucpro.registry import inventory

    places = inventory.places_here() if name is None else inventory.places_of(name)
    num_wrong = 0
    for place in places:
        problems = inventory.verify(place)
        num_wrong += len(problems)
        for problem in problems:
            click.echo(f"wrong  {place.name}  {problem}")
        if not problems:
            click.echo(f"ok     {place.name}  {place.folder}")
    if num_wrong:
        count = "one file or folder is" if num_wrong == 1 else f"{num_wrong} files or folders are"
        raise ModelError(f"{count} not as recorded. Delete what is named above and fetch or import it again.")


@models.command(epilog="\b\nExample:\n  virnucpro models record --answers my_bundle/")
@click.argument("name")
@click.option("--answers", is_flag=True, help="Also run the bundle and record its answers, for doctor.")
def record(name: str, answers: bool) -> None:
    """Record the SHA-256 of the files of a model.

    NAME is a bundle, a bundle folder, or a checkpoint whose files were put into their folder by hand.
    """
    from virnucpro.registry import inventory, known_answers
    from virnucpro.registry.receipts import write_receipt

    place = inventory.place_to_record(name)
    if answers:
        if place.part is not None:
            raise UsageError(f"--answers is for bundles; {name} is a checkpoint.")
        from virnucpro.bundles import load_bundle
        from virnucpro.cli.doctor import predict_known

        given = known_answers.ask(predict_known(str(place.folder)))
        fingerprint = load_bundle(str(place.folder)).fingerprint
        known_answers.write_answers(place.folder, known_answers.KnownAnswers(fingerprint, tuple(given)))
    receipt = inventory.describe(place)
    write_receipt(place.folder, receipt)
    for file in receipt.files:
        click.echo(f"{file.sha256}  {file.name}")


@models.command("export", epilog="\b\nExample:\n  virnucpro models export models.tar lite 500")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@terminal_options("quiet")
def export_models(file: Path, names: tuple[str, ...], force: bool, show_bars: bool) -> None:
    """Write models to one archive.

    Without NAME, write all models on this machine.
    """
    from virnucpro.inputs import refuse_overwriting
    from virnucpro.registry.archive import export_archive
    from virnucpro.registry.inventory import places_here

    wanted = names or tuple(place.name for place in places_here())
    refuse_overwriting([path for name in names for path in Path(name).glob("*")], [file])
    for folder in export_archive(wanted, file, Reporter(show_bars), force=force):
        click.echo(f"{folder.place}: {len(folder.receipt.files)} files, {folder.receipt.size_bytes:,} bytes")
    click.echo(f"{file}: {file.stat().st_size:,} bytes")


@models.command("import", epilog="\b\nExample:\n  virnucpro models import models.tar")
@click.argument("file", type=click.Path(path_type=Path))
@terminal_options("quiet")
def import_models(file: Path, show_bars: bool) -> None:
    """Import the models of an archive.

    Every file is checked against its SHA-256. The import is all-or-nothing.
    """
    from virnucpro.registry.archive import import_archive

    for done in import_archive(file, Reporter(show_bars)):
        click.echo(f"{done.folder}: {done.num_new} new files, {done.num_here} already here")


def _cells(entry: Entry) -> tuple[str, ...]:
    size = f"{entry.size_bytes / 1e6:,.1f} MB"
    return (
        entry.name,
        entry.state,
        size if entry.size_is_exact else f"about {size}",
        entry.fingerprint[:12] if entry.fingerprint else "NA",
        entry.licence,
    )
