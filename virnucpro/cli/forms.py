"""Forms of commands: options in groups, and answers to what users of other programs type."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import click

OTHER_COMMANDS = {
    **dict.fromkeys(("run", "classify", "detect", "identify", "end-to-end", "annotate", "scan"), "predict"),
    **dict.fromkeys(("download", "download-database", "download-models", "fetch", "setup", "install"), "models fetch"),
    **dict.fromkeys(("list", "list-models"), "models list"),
    **dict.fromkeys(("check", "test", "info", "self-test"), "doctor"),
    **dict.fromkeys(("resume", "continue"), "predict"),
    **dict.fromkeys(("version", "help"), "--help"),
}
"""What other programs call a command, to ours."""

_INPUT = "Inputs are given without an option: virnucpro predict in.fasta -o DIR"
_OTHER_OPTIONS = {
    **dict.fromkeys(("-i", "--in", "--input", "--inputs", "--fasta", "-f"), _INPUT),
    **dict.fromkeys(("--out", "--outdir", "--out-dir", "--output-folder", "--results"), "-o"),
    **dict.fromkeys(("-p", "-c", "-j", "--cpu", "--cpus", "--cores", "--num-threads", "--nthreads"), "-t"),
    **dict.fromkeys(("-d", "--db", "--database", "--models"), "--model"),
    **dict.fromkeys(("--gpu", "--cuda", "--use-gpu"), "--device cuda"),
    **dict.fromkeys(("--overwrite", "--restart"), "--fresh"),
    **dict.fromkeys(("--cutoff", "--min-score", "--score", "--conservative"), "--threshold or --preset"),
}
"""What other programs call an option, to ours or to a sentence."""


class Command(click.Command):
    """A command that lists its options in groups.

    Args:
        groups: title to names of parameters, in order; those that no group names come last, under ``Options``.
    """

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:  # noqa: ANN401 - Click's own
        super().__init__(*args, **kwargs)
        self._groups = groups or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each group under its title."""
        for title, options in self.in_groups(ctx):
            records = (option.get_help_record(ctx) for option in options)
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])

    def in_groups(self, ctx: click.Context) -> list[tuple[str, list[click.Option]]]:
        """Title and options of each group, as the help lists them."""
        options = [option for option in self.get_params(ctx) if isinstance(option, click.Option)]
        left = {"help" if "--help" in option.opts else option.name: option for option in options}
        found = [(title, [left.pop(name) for name in names if name in left]) for title, names in self._groups.items()]
        return [(title, options) for title, options in [*found, ("Options", list(left.values()))] if options]


def meant_option(error: click.NoSuchOption) -> str:
    """A sentence about an option that is not there: the one that was meant, as far as that is known."""
    command = error.ctx.command if error.ctx is not None else None
    known = {name for parameter in (command.params if command is not None else ()) for name in parameter.opts}
    meant = _OTHER_OPTIONS.get(error.option_name)
    if meant == _INPUT:
        return f"No such option '{error.option_name}'. {_INPUT}"
    if meant is None or meant.split()[0] not in known:
        return error.format_message()
    return f"No such option '{error.option_name}'. Did you mean {meant}?"


def meant_command(name: str, known: Sequence[str]) -> str | None:
    """The command that was meant by one that is not there; None without an idea."""
    near = difflib.get_close_matches(name, known, n=1)
    return OTHER_COMMANDS.get(name) or (near[0] if near else None)
