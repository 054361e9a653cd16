"""``virnucpro rerun``."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from virnucpro.cli.options import COUNT, FOLDER, device_setting, output_option, terminal_options
from virnucpro.errors import IncompleteRunError, UsageError, VirNucProError

if TYPE_CHECKING:
    from virnucpro.request import Request

_EPILOG = """\
RECORD is the .run.json that predict wrote next to its results, or their directory. The inputs must have the
recorded SHA-256 and the model the recorded fingerprint. Version differences are printed first. At the end every
result file is compared with its recorded SHA-256.

Exit codes: 0 all result files are identical, 1 some are not, 3 an input is missing or has changed, 6 the model is
missing or has changed.

\b
Examples:
  virnucpro rerun results/contigs.run.json
  virnucpro rerun results -o /scratch/again
"""


@click.command(epilog=_EPILOG)
@click.argument("record", type=click.Path(path_type=Path))
@output_option(FOLDER, "DIR", "Directory for the new results.  [default: that of RECORD with -rerun at its end]")
@device_setting("as recorded")
@click.option("-t", "--threads", metavar="N", type=COUNT, help="CPU threads in all.  [default: as recorded]")
@terminal_options("no_progress", "quiet")
def rerun(record: Path, output: Path | None, device: str | None, threads: int | None, show_bars: bool) -> None:
    """Repeat a run from its record and compare the results."""
    from virnucpro.run import record as records

    then = records.read_record(record)
    root = (record if record.is_dir() else record.parent).absolute()
    if output is not None and any(output.glob("*.run.json")):
        raise UsageError(f"{output} holds the results of a finished run. Name another directory with --output.")
    output = (output or root.with_name(f"{root.name}-rerun")).absolute()
    folder = Path(then.get("directory", "."))
    with chdir(folder if folder.is_dir() else "."):  # where the run was started: inputs may have relative names
        request = records.request_of(then)
        if device is not None:
            request = request.changed(device=device, gpus=None)
        if threads is not None:
            request = request.changed(threads=threads)
        records.check_inputs(request, then)
        records.check_model(request, then)
        for name, (old, new) in records.version_differences(then).items():
            click.echo(f"version of {name}: {old} then, {new} now")
        now, incomplete = _run(request, output, show_bars=show_bars)
    differing = records.differing_outputs(then["outputs"], now["outputs"])
    for name, how in sorted(differing.items()):
        click.echo(f"{name}: {how}")
    num_same = sum(now["outputs"].get(name) == digest for name, digest in then["outputs"].items())
    click.echo(f"{num_same} of {len(then['outputs'])} result files are identical")
    if differing:
        raise VirNucProError(
            f"{output}: {len(differing)} result files are not those of the record; they are listed above. "
            "Compare versions and settings of the two .run.json."
        )
    if incomplete is not None:
        raise incomplete


def _run(request: Request, output: Path, *, show_bars: bool) -> tuple[dict[str, Any], IncompleteRunError | None]:
    """The record of the new run, and what it could not compute: that too may be as it was.

    A repetition that was stopped resumes; one that is finished starts over, else it would compare what it stored.
    """
    from virnucpro.atomic import read_json
    from virnucpro.run import predict as pipeline
    from virnucpro.run_dir import RunDir

    path = RunDir(output).result(request.run_stem, "run.json")
    try:
        return pipeline.execute(request, output, fresh=path.exists(), show_bars=show_bars).record, None
    except IncompleteRunError as error:
        return read_json(path), error
