"""``virnucpro prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virnucpro.cli.engine_options import ENGINE_OPTIONS
from virnucpro.cli.forms import Command
from virnucpro.cli.predict import GROUPS, predict
from virnucpro.errors import UsageError

_EPILOG = """\
Takes the options of predict: settings are those of the whole run. What is computed where is decided by 'work'.
The float type is chosen here, for all machines: set it with --dtype if this machine has no GPU and others do.

\b
Example:
  virnucpro prepare contigs.fasta -o run --model 300 --dtype bfloat16
  virnucpro work run --shard 1/2
  virnucpro work run --shard 2/2
  virnucpro finish run
"""


def _prepare(**given: Any) -> None:  # noqa: ANN401 - the options of predict
    from virnucpro.run import by_hand, shards

    if "-" in given["inputs"]:
        raise UsageError("prepare reads files: 'finish' looks at them again. Write stdin to a file first.")
    assert predict.callback is not None  # noqa: S101 - for mypy: it is a command of ours
    predict.callback(**given, only_prepare=True)
    output: Path = given["output"]
    run_dir, index = by_hand.prepared(output)
    click.echo(
        f"{output}: {len(index.units):,} units (0-{len(index.units) - 1}), {index.num_rows:,} rows, "
        f"run {shards.digest_of_run(run_dir, index)[:12]}"
    )


prepare = Command(
    "prepare",
    params=[option for option in predict.params if option.name not in ENGINE_OPTIONS],
    groups=GROUPS,
    callback=_prepare,
    help="Cut inputs into units that any machine can work on.",
    epilog=_EPILOG,
)
"""Made of the options of predict."""
