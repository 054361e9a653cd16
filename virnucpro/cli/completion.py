"""``virnucpro completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_PROGRAM = "virnucpro"
_SHELLS = ("bash", "zsh", "fish")
_EPILOG = """\
Commands, options and their choices are then completed with the Tab key. To install it, run the line of your
shell once and open a new terminal.

\b
Examples:
  virnucpro completion bash >> ~/.bashrc
  virnucpro completion zsh >> ~/.zshrc        # after the line with compinit
  virnucpro completion fish > ~/.config/fish/completions/virnucpro.fish
"""


@click.command(epilog=_EPILOG)
@click.argument("shell", type=click.Choice(_SHELLS), metavar="SHELL")
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands in a shell.

    SHELL is bash (4.4 or newer), zsh or fish.
    """
    script = get_completion_class(shell)
    if script is None:  # Click knows all that can be chosen
        raise click.BadParameter(f"no completion for {shell}", context)
    root = context.find_root().command
    click.echo(script(root, {}, _PROGRAM, f"_{_PROGRAM.upper()}_COMPLETE").source())
