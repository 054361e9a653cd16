"""Types and options that several commands share, so that they have one name and one description."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import reduce, wraps
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from virnucpro.errors import UsageError
from virnucpro.logs import start_logging
from virnucpro.samples import Sample, pairs_of, read_samplesheet, samples_of
from virnucpro.settings import DTYPES, PLACES, Settings, make_settings


class _Place(click.Path):
    """A path; an empty one, of a variable that is not set, is refused and not taken for the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - Click's
        """The path."""
        if not os.fspath(value):
            self.fail("the name is empty.", param, ctx)
        return super().convert(value, param, ctx)


FILE = _Place(path_type=Path, dir_okay=False)
FOLDER = _Place(path_type=Path, file_okay=False)
SOURCE = click.Path(dir_okay=True, readable=False)
"""A file of sequences, or ``-``. Whether it can be read is found out, and said with more words, when it is read."""
COUNT = click.IntRange(min=1)
MODELS = ("lite", "300", "500")
_DEVICES = "auto, cpu, cuda, cuda:N or mps."

_Command = Callable[..., Any]


def together(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Several options as one decorator, in this order."""
    return lambda command: reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def output_option(
    kind: click.Path, metavar: str, help_text: str, *, required: bool = False
) -> Callable[[_Command], _Command]:
    """Where a command writes to, as ``output``."""
    return click.option("-o", "--output", type=kind, metavar=metavar, required=required, help=help_text)


def device_setting(default: str) -> Callable[[_Command], _Command]:
    """A device that is None if it is not given; ``default`` says in words what is taken then."""
    return click.option("--device", metavar="NAME", help=f"{_DEVICES}  [default: {default}]")


reference_option = click.option(
    "--reference", type=FILE, metavar="FASTA", help="FASTA that the reads of a CRAM were aligned to."
)
input_options = together(
    click.argument("inputs", nargs=-1, type=SOURCE, metavar="INPUT..."),
    click.option("-1", "--reads1", type=SOURCE, metavar="FILE", multiple=True, help="First reads of a pair; see -2."),
    click.option(
        *("-2", "--reads2"),
        type=SOURCE,
        metavar="FILE",
        multiple=True,
        help="Their mates. Give -1 and -2 once for each pair.",
    ),
    click.option(
        "--samplesheet",
        type=FILE,
        metavar="FILE",
        help="Table of samples: sample, path and, for pairs, path2 (or fastq_1, fastq_2).",
    ),
    click.option("--name", metavar="NAME", help="Name of the sample, for one input, pair or stdin."),
    reference_option,
)
"""The inputs of ``predict``; ``given_samples`` takes what they hold."""


def given_samples(
    inputs: tuple[str, ...],
    reads1: tuple[str, ...],
    reads2: tuple[str, ...],
    samplesheet: Path | None,
    name: str | None,
) -> tuple[Sample, ...]:
    """The samples that the options name, in order: inputs, pairs, those of the sheet.

    Raises:
        UsageError: there is none, or they cannot be followed.
        InputError: the sheet cannot be read.
    """
    sheet = read_samplesheet(samplesheet) if samplesheet is not None else ()
    samples: list[str | Sample] = [*inputs, *pairs_of(reads1, reads2), *sheet]
    if not samples:
        raise UsageError("no input. Name a FASTA or FASTQ file, or - for stdin: virnucpro predict in.fasta -o DIR")
    return samples_of(samples, name)


def complete_model(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a shell offers for a model: the names that every machine knows, else a file or folder."""
    del context, parameter
    names = [CompletionItem(name) for name in MODELS if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def only_one(context: click.Context, option: click.Parameter, values: tuple[Path, ...]) -> Path | None:
    """The value of an option that may be given once; a second one is refused, not taken in silence."""
    if len(values) > 1:
        raise click.BadParameter(f"given {len(values)} times ({', '.join(map(str, values))}).", context, option)
    return values[0] if values else None


def _limits(context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, float] | None:
    """Two ascending probabilities."""
    if value is None:
        return None
    try:
        low, high = map(float, value.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise click.BadParameter(f"{value!r} is not two ascending probabilities, such as 0.1,0.98.", context, option)
    return low, high


def given_settings(given: Mapping[str, Any], path: Path | None = None) -> Settings:
    """Settings: an option that has the name of one is that setting; the limits of a cascade are two.

    Args:
        given: name of each parameter to its value, None where it was not given.
        path: settings file, which options win over.

    Raises:
        UsageError: options contradict each other, or a value makes no sense.
    """
    low, high = given.get("cascade_limits") or (None, None)
    named = {**given, "cascade_low": low, "cascade_high": high}
    return make_settings(path, {place: named.get(name) for name, place in PLACES.items()})


cascade_options = together(
    click.option(
        "--cascade",
        is_flag=True,
        default=None,
        help="Screen everything with lite; run the chosen model only where lite is unsure.",
    ),
    click.option(
        "--cascade-limits",
        metavar="LOW,HIGH",
        callback=_limits,
        help="With --cascade: p_virus below and above which lite is sure.  [default: of the model, or 0.1,0.98]",
    ),
)

_TERMINAL = {
    "no_progress": click.option("--no-progress", is_flag=True, help="Draw no progress bars."),
    "quiet": click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only."),
    "verbose": click.option("-v", "--verbose", is_flag=True, help="Log more."),
}


def terminal_options(*names: str) -> Callable[[_Command], _Command]:
    """Options about what is said on the terminal, by name: they start logging and give the command ``show_bars``."""

    def add(command: _Command) -> _Command:
        @wraps(command)
        def started(
            *args: object, no_progress: bool = False, quiet: bool = False, verbose: bool = False, **given: object
        ) -> Any:  # noqa: ANN401 - what the command gives
            start_logging(-1 if quiet else int(verbose))
            return command(*args, show_bars=not (no_progress or quiet), **given)

        return together(*(_TERMINAL[name] for name in names))(started)

    return add


run_argument = click.argument("run", type=FOLDER, metavar="RUN")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
fresh_option = click.option("--fresh", is_flag=True, help="Start over: delete what an earlier run stored.")
rows_option = click.option(
    "--keep-intermediate", is_flag=True, help="Also write STEM.rows.tsv.gz: every kept frame with its scores."
)
legacy_option = click.option("--legacy-output", is_flag=True, help="Also write the published program's two files.")
plots_option = click.option(
    "--plots", type=click.Choice(["png", "svg", "pdf"]), help="Also write figures, in STEM.plots/ next to the results."
)
fragment_length_option = click.option(
    "--fragment-length", type=click.IntRange(min=3), metavar="N", help="Bases of a fragment.  [default: the model's]"
)

device_option = click.option("--device", metavar="NAME", default="auto", show_default=True, help=_DEVICES)
gpus_option = click.option("--gpus", metavar="NUMBERS", help="Physical GPUs to use, such as 0,1.  [default: all]")
threads_option = click.option("-t", "--threads", type=COUNT, metavar="N", help="CPU threads in all.  [default: all]")
dtype_option = click.option(
    "--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Float type of the encoders."
)
measured_options = together(
    click.option(
        *("-m", "--model"),
        metavar="MODEL",
        default="lite",
        show_default=True,
        shell_complete=complete_model,
        help="Model, as in predict.",
    ),
    device_option,
    dtype_option,
    threads_option,
)
runtime_options = together(
    gpus_option,
    click.option("--parallel", is_flag=True, default=None, help="Use several worker processes if there is no GPU."),
    threads_option,
    click.option(
        "--loader-workers",
        type=click.IntRange(min=0),
        metavar="N",
        help="Processes per encoder that read ahead.  [default: from a profile, otherwise by device]",
    ),
    click.option(
        "--token-budget",
        type=COUNT,
        metavar="N",
        help="Tokens in a batch of the encoders.  [default: from a profile, otherwise by device]",
    ),
)
"""How the encoders compute; none of these changes a result, and each has the name of its setting."""
