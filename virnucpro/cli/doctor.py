"""``virnucpro doctor``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from virnucpro.cli.options import json_option

_EPILOG = """\
OK: works. WARN: works, but see the line. FAIL: does not work. Exit code 1 if anything fails.

\b
Examples:
  virnucpro doctor
  virnucpro doctor --json > doctor.json
"""


@click.command(epilog=_EPILOG)
@json_option
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Check that VirNucPro works on this machine.

    Looks at libraries, devices, disk and models, and runs a self-test with known answers.
    """
    from virnucpro.registry.checkup import look

    findings = []
    for finding in look(predict_known("lite")):
        findings.append(finding)
        if not as_json:
            colour = {"OK": "green", "WARN": "yellow", "FAIL": "red"}[finding.state]
            click.echo(f"{click.style(f'{finding.state:<4}', fg=colour)}  {finding.name:<14}  {finding.text}")
    works = all(finding.state != "FAIL" for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": works, "findings": [asdict(finding) for finding in findings]}, indent=2))
    context.exit(0 if works else 1)


def predict_known(model: str) -> Callable[[Path, Path], Path]:
    """How a self-test runs a model: everything a user's run goes through, on the CPU in float32.

    Returns:
        a function from a FASTA file and a folder to the table of sequences.
    """

    def run(fasta: Path, output: Path) -> Path:
        from virnucpro.run import predict as pipeline
        from virnucpro.settings import make_settings

        options = {"science.model": model, "science.dtype": "float32", "runtime.device": "cpu"}
        return pipeline.predict([fasta], output, make_settings(None, options)).path("sequences.tsv")

    return run
