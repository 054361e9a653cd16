"""``virnucpro predict``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from virnucpro.cli.call import call_options, format_option
from virnucpro.cli.engine_options import ENGINE_OPTIONS, engine_options, take_engine
from virnucpro.cli.forms import Command
from virnucpro.cli.options import (
    COUNT,
    FILE,
    FOLDER,
    cascade_options,
    complete_model,
    device_setting,
    fragment_length_option,
    fresh_option,
    given_samples,
    given_settings,
    input_options,
    legacy_option,
    only_one,
    plots_option,
    rows_option,
    runtime_options,
    terminal_options,
)
from virnucpro.errors import UsageError
from virnucpro.request import Options, Request
from virnucpro.samples import probable_pairs
from virnucpro.settings import CALL_SETTINGS, DTYPES

_log = logging.getLogger(__name__)

_EPILOG = """\
Results are written to DIR, named after the input without its endings (STEM): STEM.sequences.tsv (a row for every
input sequence), .fragments.tsv.gz, .virus.fna.gz, .regions.tsv, .report.html, .summary.json and more; for the whole
run .run.json and .log.

To resume a run that was stopped, repeat the same command.

\b
Examples:
  virnucpro predict contigs.fasta -o results
  zcat reads.fastq.gz | virnucpro predict - -o results --threads 8
  virnucpro predict a.fna b.fna.gz -o results --parallel --keep-intermediate
  virnucpro predict -1 s_1.fastq.gz -2 s_2.fastq.gz -o results
  virnucpro predict contigs.fasta -o results --model 300 --cascade
"""


GROUPS = {
    "Main": (
        *("output", "reads1", "reads2", "name", "samplesheet", "reference", "model", "fragment_length"),
        *("cascade", "cascade_limits", "config_file"),
    ),
    "Calls": CALL_SETTINGS,
    "Output": (
        *("table_format", "taxonomy", "no_report", "plots", "keep_intermediate", "keep_embeddings", "fresh", "force"),
        *("no_progress", "quiet", "verbose", "help"),
    ),
    "Performance": (
        *("device", "gpus", "parallel", "threads", "merge_threads", "loader_workers", "token_budget", "batch_size"),
        *("unit_rows", "dtype", "compile"),
    ),
    "Engine": ENGINE_OPTIONS,
    "Compatibility with the published program": (
        *("model_type", "model_path", "expected_length", "legacy_output", "resume"),
    ),
}
"""Options as the help lists them; those that are not named here come last."""

_COMMON = """\
Usage: virnucpro predict INPUT... -o DIR

  virnucpro predict contigs.fasta -o results                        # the bundled model, on any machine
  virnucpro predict contigs.fasta -o results -m 500 --device cuda   # the published model, on a GPU
  virnucpro predict *.fastq.gz -o results --threads 8               # several inputs, each with its own results

See 'virnucpro predict --help'.\
"""


@click.command(cls=Command, groups=GROUPS, epilog=_EPILOG)
@input_options
@click.option(
    *("-o", "--output", "--output-dir", "output"),
    type=FOLDER,
    metavar="DIR",
    multiple=True,
    callback=only_one,
    help="Directory for the results.  [required]",
)
@click.option(
    *("-m", "--model"),
    metavar="MODEL",
    shell_complete=complete_model,
    help="lite (bundled), 300 or 500 (published), a bundle folder or a head file.  [default: lite]",
)
@click.option(
    "--model-type",
    type=click.Choice(["300", "500", "custom"]),
    help="Use --model instead: 300, 500, or a file with --model-path.",
)
@click.option(
    "--model-path",
    type=click.Path(),
    metavar="PATH",
    help="Use --model instead: bundle folder or head file (.pth, .safetensors).",
)
@fragment_length_option
@click.option(
    "--expected-length",
    type=click.IntRange(min=3),
    metavar="N",
    help="Like --fragment-length, but also accepted when the model was trained on another length.",
)
@cascade_options
@call_options
@format_option
@click.option("--dtype", type=click.Choice(DTYPES), help="Float type of the encoders.  [default: auto]")
@device_setting("auto")
@runtime_options
@click.option(
    "--merge-threads",
    type=COUNT,
    metavar="N",
    help="Merge the two embeddings of each unit into one file for the head, in N processes.  [default: the head reads "
    "both; with --keep-embeddings 1, with --parallel too, --threads]",
)
@click.option(
    "--compile/--no-compile",
    default=None,
    callback=lambda _context, _option, value: {True: "always", False: "never"}.get(value),
    help="Compile the layers of transformers, or not.  [default: on a GPU, for many rows]",
)
@click.option("--batch-size", type=COUNT, metavar="N", help="Rows the head scores at a time.  [default: 1024]")
@click.option("--unit-rows", type=COUNT, metavar="N", help="Rows in a unit of work.  [default: 8192]")
@click.option(
    "--config", "config_file", type=FILE, metavar="FILE", help="YAML with science:, layout: and runtime: settings."
)
@click.option("--resume", is_flag=True, help="Resume an earlier run (always done; accepted for scripts).")
@fresh_option
@click.option("--force", is_flag=True, help="Replace files in DIR that have the name of a result but belong to no run.")
@engine_options
@rows_option
@click.option("--keep-embeddings", is_flag=True, help="Keep embeddings and features in DIR/run.")
@legacy_option
@click.option("--taxonomy", is_flag=True, help="Also say which viruses the hits are: STEM.taxonomy.tsv and more.")
@click.option("--no-report", is_flag=True, help="Do not write STEM.report.html and the files for MultiQC.")
@plots_option
@terminal_options("no_progress", "quiet", "verbose")
def predict(
    inputs: tuple[str, ...],
    reads1: tuple[str, ...],
    reads2: tuple[str, ...],
    samplesheet: Path | None,
    name: str | None,
    output: Path | None,
    resume: bool,
    fresh: bool,
    force: bool,
    show_bars: bool,
    only_prepare: bool = False,
    **given: Any,  # noqa: ANN401 - Click's
) -> None:
    """Tell which sequences of INPUT are viral.

    INPUT is FASTA or FASTQ, plain or compressed (gz, bz2, xz, zst), or BAM, CRAM or SAM; - is stdin. The format
    is detected from the content. Each input, or each sample of a sheet, gets its own results.
    """
    context = click.get_current_context(silent=True)
    if context is not None and not inputs and not reads1 and output is None and samplesheet is None:
        click.echo(_COMMON, err=True)
        context.exit(2)
    samples = given_samples(inputs, reads1, reads2, samplesheet, name)
    if output is None:
        raise UsageError("no output directory. Name one with -o DIR.")
    if resume and fresh:
        raise UsageError("--resume continues and --fresh starts over: choose one.")
    engine = take_engine(given)
    if engine is not None and "-" in inputs:
        raise UsageError("with --engine the inputs are files: they are looked at again. Write stdin to a file first.")
    settings, options = given_settings(_one_of_each(given), given["config_file"]), _options_of(given)
    for pair in probable_pairs(inputs):
        _log.warning(
            "%s and %s look like the two files of a pair; each gets its own results. To read them as one: -1 %s -2 %s",
            *pair * 2,
        )
    from virnucpro.inputs import check_inputs

    check_inputs(
        samples,
        output,
        options.reference,
        (samplesheet, *(given[name] for name in ("config_file", "model", "model_path"))),
    )

    from virnucpro.run import predict as pipeline

    pipeline.execute(
        Request(samples, settings, options),
        output,
        fresh=fresh,
        force=force,
        show_bars=show_bars,
        only_prepare=only_prepare or engine is not None,
    )
    if engine is not None:
        from virnucpro import engines
        from virnucpro.run import by_hand

        engines.compute(output, engine, show_bars=show_bars)
        by_hand.finish(output, show_bars=show_bars)


def _options_of(given: Mapping[str, Any]) -> Options:
    named = {
        **given,
        "is_length_meant": given["expected_length"] is not None,
        "reference": str(given["reference"]) if given["reference"] else None,
        "with_report": not given["no_report"],
        "with_taxonomy": given["taxonomy"],
    }
    return Options(**{item.name: named[item.name] for item in fields(Options)})


def _one_of_each(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with one model and one fragment length from those that name these.

    Raises:
        UsageError: they contradict each other.
    """
    model, model_type, model_path = given["model"], given["model_type"], given["model_path"]
    if model is not None and (model_type is not None or model_path is not None):
        raise UsageError(f"--model and --model-{'path' if model_type is None else 'type'} both name a model: give one.")
    if model_type not in (None, "custom") and model_path is not None:
        raise UsageError("--model-path goes with --model-type custom.")
    if model_type == "custom" and model_path is None:
        raise UsageError("--model-type custom needs --model-path.")
    length, expected = given["fragment_length"], given["expected_length"]
    if expected is not None and length not in (None, expected):
        raise UsageError("--expected-length and --fragment-length name two lengths: give one.")
    return {**given, "model": model or model_path or model_type, "fragment_length": expected or length}
