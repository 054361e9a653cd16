"""A command line that cannot be followed ends with one line that says what to do, and the documented code."""

from __future__ import annotations

import click
import pytest
from conftest import mixed_records, write_fasta

from virnucpro.cli.predict import predict

WRONG = {
    "no input": (["predict", "-o", "a"], 2, "no input. Name a FASTA or FASTQ file"),
    "no output": (["predict", "in.fasta"], 2, "no output directory. Name one with -o DIR."),
    "two outputs": (["predict", "in.fasta", "-o", "a", "--output", "b"], 2, "given 2 times (a, b)"),
    "an option without its value": (["predict", "in.fasta", "-o"], 2, "requires an argument"),
    "an unknown option": (["predict", "in.fasta", "-o", "a", "--modle", "lite"], 2, "--model"),
    "an option before the command": (
        ["-o", "a", "predict", "in.fasta"],
        2,
        "No such option '-o'. See 'virnucpro --help'.",
    ),
    "an unknown command": (["predikt", "in.fasta"], 2, "Did you mean predict?"),
    "a command of other programs": (["run", "in.fasta"], 2, "Did you mean predict?"),
    "another one": (["download", "500"], 2, "Did you mean models fetch?"),
    "an option for inputs": (["predict", "-i", "in.fasta", "-o", "a"], 2, "virnucpro predict in.fasta -o DIR"),
    "an option of other programs": (["predict", "in.fasta", "--out", "a"], 2, "Did you mean -o?"),
    "one for CPUs": (["assign", "in.fasta", "--cpus", "2"], 2, "--cpus"),
    "an unknown command of a group": (["models", "fetsch"], 2, "See 'virnucpro models --help'."),
    "an unknown preset": (["predict", "in.fasta", "-o", "a", "--preset", "harsh"], 2, "'harsh' is not one of"),
    "a threshold of two": (["predict", "in.fasta", "-o", "a", "--threshold", "2"], 2, "0<=x<=1"),
    "two ways to call": (["predict", "in.fasta", "-o", "a", "--preset", "strict", "--fdr", "0.1"], 2, "give one"),
    "an unknown device": (["predict", "in.fasta", "-o", "a", "--device", "gpu"], 2, "choose auto, cpu"),
    "an unknown model": (["predict", "in.fasta", "-o", "a", "-m", "nosuch"], 6, "lite, 300, 500"),
    "no settings file": (["predict", "in.fasta", "-o", "a", "--config", "nowhere.yaml"], 2, "nowhere.yaml"),
    "an output that is a file": (["predict", "in.fasta", "-o", "in.fasta"], 2, "'in.fasta' is a file"),
    "an output inside a file": (["predict", "in.fasta", "-o", "in.fasta/a"], 4, "a part of its path is a file"),
    "the same input twice": (["predict", "in.fasta", "in.fasta", "-o", "a"], 2, "would both write"),
    "no such input": (["predict", "nowhere.fasta", "-o", "a"], 3, "no such file"),
    "a directory as input": (["predict", "empty", "-o", "a"], 3, "is a directory"),
    "no such sample sheet": (["predict", "--samplesheet", "nowhere.csv", "-o", "a"], 3, "nowhere.csv"),
    "no run to call": (["call", "empty"], 2, "holds no run"),
    "a run that is a file": (["verify", "in.fasta"], 2, "'in.fasta' is a file"),
    "no run to verify": (["verify", "empty"], 2, "holds no run"),
    "no run to merge": (["merge", "nowhere"], 2, "holds no run"),
    "no run to report": (["report", "empty"], 2, "holds no finished run"),
    "no reads to assign": (["assign", "empty"], 2, "Missing option '--reads'"),
    "no record": (["rerun"], 2, "Missing argument 'RECORD'"),
    "an unknown model to show": (["models", "path", "nosuch"], 6, "virnucpro models list"),
    "no archive": (["models", "import", "in.fasta"], 6, "is not an archive of models"),
    "no shell": (["completion"], 2, "Choose from: bash, zsh, fish"),
    "an unknown table": (["schema", "--table", "nosuch"], 2, "There are sequences"),
    "a plan of nothing": (["plan"], 2, "no input"),
    "an unknown section": (["benchmark", "--only", "nosuch"], 2, "'nosuch' is not one of"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_followed_is_one_line(virnucpro, tmp_path, monkeypatch, what):
    """The last line, and the only one that is not of the log."""
    monkeypatch.chdir(tmp_path)
    write_fasta(tmp_path / "in.fasta", mixed_records(2))
    (tmp_path / "empty").mkdir()
    arguments, code, text = WRONG[what]
    ended = virnucpro(*arguments)
    lines = [line for line in ended.err.splitlines() if " INFO " not in line]
    assert (ended.code, ended.out) == (code, "")
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("Error: ")
    assert text in lines[0]


def test_no_arguments_show_the_help(virnucpro):
    """Of the program and of a group of commands, with the code of a command line that asks for nothing."""
    for arguments, first in (([], "Usage: virnucpro [OPTIONS]"), (["models"], "Usage: virnucpro models")):
        ended = virnucpro(*arguments)
        assert ended.code == 2
        assert ended.err.startswith(first)


def test_predict_alone_shows_the_most_common_lines(virnucpro):
    """Three of them, which the command line understands, with the code of a command line that asks for nothing."""
    ended = virnucpro("predict")
    assert (ended.code, ended.out) == (2, "")
    lines = [line.split("#")[0].split() for line in ended.err.splitlines() if line.startswith("  virnucpro predict ")]
    assert len(lines) == 3
    for _, _, *arguments in lines:
        predict.make_context("predict", arguments)


def test_the_help_of_predict_groups_its_options(virnucpro):
    """Options of the published program last; each option once."""
    text = virnucpro("predict", "--help").out
    titles = ["Main:", "Calls:", "Output:", "Performance:", "Compatibility with the published program:"]
    assert [line for line in text.splitlines() if line in titles] == titles
    names = [option.opts[-1] for option in predict.params if isinstance(option, click.Option)]
    shown = [line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  -")]
    assert len(shown) == len(names) + 1, "help is one more"
    assert text.index("Compatibility") < text.index("--model-type") < text.index("Examples:")


def test_the_help_lists_every_command_once(virnucpro):
    """In sections, the main one first."""
    from virnucpro.cli import cli

    text = virnucpro("--help").out
    assert text.index("predict ") < text.index("After a run:") < text.index("About:")
    for name in cli.list_commands(None):
        assert sum(line.split()[:1] == [name] for line in text.splitlines()) == 1


def test_the_version_is_one_line(virnucpro):
    from virnucpro import __version__

    assert virnucpro("-V").out == virnucpro("--version").out == f"virnucpro {__version__}\n"
