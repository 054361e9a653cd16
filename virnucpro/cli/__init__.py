"""The command line. Thin: each command is one module, and errors become exit codes here alone.

No command imports torch before it is run, so that ``--help`` answers at once.
"""

from __future__ import annotations

import logging
import signal
import sys
from importlib import import_module
from types import FrameType

import click

from virnucpro import __version__
from virnucpro.errors import VirNucProError

_COMMANDS = {
    "predict": "virnucpro.cli.predict:predict",
    "merge": "virnucpro.cli.merge:merge",
    "verify": "virnucpro.cli.verify:verify",
    "call": "virnucpro.cli.call:call",
    "report": "virnucpro.cli.report:report",
    "assign": "virnucpro.cli.assign:assign",
    "plan": "virnucpro.cli.plan:plan",
    "profile": "virnucpro.cli.profile:profile",
    "schema": "virnucpro.cli.schema:schema",
    "benchmark": "virnucpro.cli.benchmark:benchmark",
    "citation": "virnucpro.cli.citation:citation",
    "models": "virnucpro.cli.models:models",
    "doctor": "virnucpro.cli.doctor:doctor",
}

_EPILOG = """\
Exit codes: 0 complete, 1 internal error, 2 usage, 3 input refused, 4 resources (memory, disk, directory
in use), 5 finished with losses (all listed), 6 model missing or damaged, 130 and 143 interrupted (the
same command goes on).

Example: virnucpro predict contigs.fasta -o results
"""


class _Commands(click.Group):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(__version__, "-V", "--version", message="virnucpro %(version)s")
def cli() -> None:
    """Tell which sequences of a metagenome are viral."""


class _Interrupted(BaseException):
    """Ctrl-C or SIGTERM; not an Exception, so that nothing on the way takes it for a failure."""


_received: list[int] = []
"""Signals that asked for an end. An interrupt inside a C callback may surface as another error: this one tells."""


def main() -> None:
    """Run the command line and exit with the documented code."""
    _received.clear()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's background job ignores Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)
    try:
        code = cli.main(standalone_mode=False)
    except BaseException as error:  # noqa: BLE001 - the last frame: whatever comes is ours to answer for
        sys.exit(_exit_code(error))
    sys.exit(code if isinstance(code, int) else 0)


def _exit_code(error: BaseException) -> int:
    """Say what went wrong in one line and give the documented exit code."""
    if _received or isinstance(error, (click.Abort, KeyboardInterrupt)):
        number = _received[0] if _received else signal.SIGINT
        how = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
        click.echo(f"Interrupted ({how}). Finished work is kept: the same command goes on from here.", err=True)
        return 128 + number
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, VirNucProError):
        click.echo(f"Error: {error}", err=True)
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if not isinstance(error, BrokenPipeError):
        logging.getLogger("virnucpro").error("internal error", exc_info=error)
        click.echo(f"Error: internal: {type(error).__name__}: {error}. Please report it with the log.", err=True)
    return 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    del frame
    _received.append(number)
    raise _Interrupted
