"""The command line. Thin: each command is one module, and errors become exit codes here alone.

No command imports torch before it is run, so that ``--help`` answers at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from importlib import import_module

import click

from virnucpro import __version__, lifeline
from virnucpro.cli.forms import meant_command, meant_option
from virnucpro.errors import VirNucProError, of_machine
from virnucpro.logs import printable

_SECTIONS = {
    "Predict": ("predict",),
    "After a run": ("call", "taxonomy", "report", "assign", "verify", "merge", "rerun"),
    "Other machines": ("prepare", "work", "finish", "sync"),
    "Models and this machine": ("models", "doctor"),
    "Time and memory": ("plan", "profile", "benchmark"),
    "Models of your own": ("train", "evaluate"),
    "Embeddings and names": ("embed", "nearest", "cache", "hierarchy"),
    "About": ("schema", "citation", "completion"),
}
"""Commands as the help lists them. Each is the object of its name in the module of its name."""

_EPILOG = """\
Exit codes: 0 complete, 1 internal error, 2 usage, 3 input refused, 4 resources (memory, disk, directory
in use), 5 finished with losses (all listed), 6 model missing or damaged, 130 and 143 interrupted (repeat
the command to resume).

\b
Example:
  virnucpro predict contigs.fasta -o results
"""


_SHORT_HELP = 64
"""Characters of the line that the list of commands has for each."""


class _Commands(click.Group):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [name for names in _SECTIONS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = getattr(import_module(f"virnucpro.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            meant = meant_command(args[0], self.list_commands(ctx))
            if meant is None:
                raise
            raise click.UsageError(f"No such command '{args[0]}'. Did you mean {meant}?", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(ctx)))
        for title, names in _SECTIONS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (name.ljust(width), command.get_short_help_str(_SHORT_HELP))
                        for name, command in commands
                        if command
                    ]
                )


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(__version__, "-V", "--version", message="virnucpro %(version)s")
def cli() -> None:
    """Tell which sequences of a metagenome are viral.

    'virnucpro COMMAND --help' describes a command.
    """


def main() -> None:
    """Run the command line and exit with the documented code."""
    # Read when torch is first imported: a thread that waits for another one then sleeps. Where it spins, two programs
    # on the same cores slow each other tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with lifeline.interruptible():
        try:
            code = cli.main(prog_name="virnucpro", standalone_mode=False)
        except BaseException as error:  # noqa: BLE001 - the last frame: whatever comes is ours to answer for
            code = exit_code_of(error)
    sys.exit(code if isinstance(code, int) else 0)


def exit_code_of(error: BaseException) -> int:
    """Say what went wrong in one line and give the documented exit code."""
    if isinstance(error, click.Abort) and isinstance(error.__cause__, EOFError):
        error = error.__cause__  # Click takes any end of file for a closed terminal
    if lifeline.received or isinstance(error, (click.Abort, KeyboardInterrupt)):
        number = lifeline.received[0] if lifeline.received else signal.SIGINT
        how = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
        click.echo(f"Interrupted ({how}). Finished work is kept: repeat the command to resume.", err=True)
        return 128 + number
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, (click.ClickException, VirNucProError)):
        _say(error)
        return error.exit_code
    if (of_ours := of_machine(error)) is not None:
        logging.getLogger("virnucpro").debug("what the machine refused", exc_info=error)
        _say(of_ours)
        return of_ours.exit_code
    if not isinstance(error, BrokenPipeError):
        logging.getLogger("virnucpro").error("internal error", exc_info=error)
        text = printable(f"{type(error).__name__}: {error}", keep="\n")
        click.echo(f"Error: internal: {text}. Please report it with the log.", err=True)
    return 1


def _say(error: click.ClickException | VirNucProError) -> None:
    """Say what went wrong; where the command line itself cannot be followed, also where its help is."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
    elif isinstance(error, click.UsageError):
        program = error.ctx.command_path if error.ctx else "virnucpro"
        text = meant_option(error) if isinstance(error, click.NoSuchOption) else error.format_message()
        sentence = " ".join(text.split()).rstrip(".")  # Click may list choices on lines of their own
        end = "" if sentence.endswith("?") else "."
        click.echo(f"Error: {printable(sentence)}{end} See '{program} --help'.", err=True)
    else:
        text = printable(str(error), keep="\n")
        click.echo(f"Error: {text}", err=True)
