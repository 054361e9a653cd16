"""``virnucpro schema``."""

from __future__ import annotations

import json

import click

from virnucpro.errors import UsageError

_EPILOG = """\
\b
Examples:
  virnucpro schema > schema.json
  virnucpro schema --table sequences
"""


@click.command(epilog=_EPILOG)
@click.option("--table", metavar="NAME", help="One table, such as sequences.  [default: all]")
def schema(table: str | None) -> None:
    """Print what the columns of the tables hold, as JSON.

    TSV writes NA for a missing value, Parquet and JSON lines null. Positions name their coordinate system.
    """
    from virnucpro.results.schema import TABLES, VERSION, described

    if table is not None and table not in TABLES:
        raise UsageError(f"there is no table {table}. There are {', '.join(TABLES)}.")
    tables = [TABLES[table]] if table is not None else list(TABLES.values())
    content = {"schema": VERSION, "tables": {each.name: described(each) for each in tables}}
    click.echo(json.dumps(content, indent=2))
