"""The reference of all commands, from the commands themselves.

    python tests/command_reference.py > docs/commands.md

Where ``docs/commands.md`` is not what this prints, a test fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from virnucpro.cli import cli
from virnucpro.cli.forms import Command

_HEAD = """\
# Commands
`virnucpro COMMAND --help` prints the same on the terminal. Made by `python tests/command_reference.py`.
"""
_VERBATIM = "\b"


def walk(command: click.Command = cli, parent: click.Context | None = None) -> Iterator[click.Context]:
    """A context for every command of the program, the program itself first."""
    name = command.name if parent else "virnucpro"
    context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from walk(child, context)


def reference() -> str:
    """The page, in Markdown."""
    return "\n".join([_HEAD, *(_section(context) for context in walk())])


def _section(context: click.Context) -> str:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.command_path}", *_text(command.help), f"```\n{usage}\n```"]
    if isinstance(command, click.Group):
        parts.append("\n".join(_commands(command, context)))
    parts += ["\n".join(_options(context)), *_text(command.epilog)]
    return "\n\n".join(parts) + "\n"


def _text(text: str | None) -> Iterator[str]:
    """Paragraphs in one line each, but for those that Click is told to leave as they are: these are code."""
    for paragraph in (text or "").strip().split("\n\n"):
        if not paragraph.startswith(_VERBATIM):
            yield _escaped(" ".join(paragraph.split()))
            continue
        title, *lines = paragraph.removeprefix(_VERBATIM).strip("\n").splitlines()
        code = "\n".join(line.removeprefix("  ") for line in lines)
        yield f"{_escaped(title)}\n```\n{code}\n```"


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    yield "| command | what it does |\n|---|---|"
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is not None:
            anchor = f"{context.command_path} {name}".replace(" ", "-")
            yield f"| [`{name}`](#{anchor}) | {_escaped(command.get_short_help_str(limit=100))} |"


def _options(context: click.Context) -> Iterator[str]:
    yield "| option | meaning |\n|---|---|"
    command = context.command
    options = [parameter for parameter in command.get_params(context) if isinstance(parameter, click.Option)]
    groups = command.in_groups(context) if isinstance(command, Command) else [("", options)]
    for title, members in groups:
        if len(groups) > 1:
            yield f"| **{title}** | |"
        for record in (option.get_help_record(context) for option in members):
            if record is not None:
                names, text = record
                cell = names.replace("|", "\\|")  # a bar ends a table's cell, in code too
                yield f"| `{cell}` | {_escaped(text)} |"


def _escaped(text: str) -> str:
    return re.sub(r"([|*\[\]])", r"\\\1", " ".join(text.split()).replace("<", "&lt;"))


if __name__ == "__main__":
    click.echo(reference(), nl=False)
