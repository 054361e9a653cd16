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
    "benchmark": "virnucpro.cli.benchmark:benchmark",
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


class _Terminated(BaseException):
    """SIGTERM; not an Exception, so that nothing on the way takes it for a failure."""


def main() -> None:
    """Run the command line and exit with the documented code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except VirNucProError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _say_interrupted("Ctrl-C")
        sys.exit(130)
    except _Terminated:
        _say_interrupted("SIGTERM")
        sys.exit(143)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:  # the last frame: whatever is left is ours to answer for
        logging.getLogger("virnucpro").exception("internal error")
        click.echo(f"Error: internal: {type(error).__name__}: {error}. Please report it with the log.", err=True)
        sys.exit(1)


def _terminate(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise _Terminated


def _say_interrupted(how: str) -> None:
    click.echo(f"Interrupted ({how}). Finished work is kept: the same command goes on from here.", err=True)
