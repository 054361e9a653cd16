"""The Tab key, in the shells that are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

PROGRAM = "virnucpro"
BASH = """
eval "$(virnucpro completion bash)"
COMP_WORDS=({words} "{last}") COMP_CWORD={position}
_virnucpro_completion virnucpro
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
WANTED = {
    "a command": (["virnucpro"], "pre", {"predict", "prepare"}),
    "options": (["virnucpro", "predict"], "--mod", {"--model", "--model-type", "--model-path"}),
    "choices": (["virnucpro", "predict", "--format"], "", {"tsv", "parquet", "jsonl"}),
    "models": (["virnucpro", "predict", "in.fasta", "-m"], "l", {"lite"}),
    "commands of a group": (["virnucpro", "models"], "ex", {"export"}),
    "shells": (["virnucpro", "completion"], "", {"bash", "zsh", "fish"}),
}


@pytest.fixture
def shell(tmp_path):
    """Runs a script in a shell that finds the program by its name, and gives what it prints."""
    program = tmp_path / PROGRAM
    program.write_text(f"#!{sys.executable}\nfrom virnucpro.cli import main\nmain()\n")
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def run(name, *arguments):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
        command = [name, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.splitlines()

    return run


@pytest.mark.parametrize("what", WANTED)
def test_bash_completes(shell, what):
    """The function that bash calls on Tab fills ``COMPREPLY``."""
    words, last, wanted = WANTED[what]
    script = BASH.format(words=" ".join(words), last=last, position=len(words))
    assert set(shell("bash", "--norc", "-c", script)) == wanted


@pytest.mark.parametrize("what", WANTED)
def test_fish_completes(shell, what):
    """``complete -C`` is what fish itself asks on Tab."""
    words, last, wanted = WANTED[what]
    line = " ".join([*words, last])
    offered = shell("fish", "--no-config", "-c", f"virnucpro completion fish | source; complete -C '{line}'")
    assert {item.partition("\t")[0] for item in offered} == wanted


@pytest.mark.parametrize("what", WANTED)
def test_zsh_is_told_what_to_offer(shell, what):
    """The words, each with its description, that the function of zsh asks the program for."""
    words, last, wanted = WANTED[what]
    line = " ".join([*words, last])
    script = f"env COMP_WORDS='{line}' COMP_CWORD={len(words)} _VIRNUCPRO_COMPLETE=zsh_complete virnucpro"
    answer = shell("zsh", "-f", "-c", script)
    assert set(answer[1::3]) == wanted


def test_zsh_takes_the_script(shell):
    """It defines its function and registers it."""
    script = 'autoload -U compinit; compinit -D -u; eval "$(virnucpro completion zsh)"; print $_comps[virnucpro]'
    assert shell("zsh", "-f", "-c", script) == ["_virnucpro_completion"]


def test_files_are_offered_where_files_are_asked_for(shell):
    """An input, a run and a record: the shell is told to offer files or folders itself."""
    for command, kind in (("predict", "file"), ("verify", "dir"), ("rerun", "file")):
        script = f"env COMP_WORDS='virnucpro {command} ' COMP_CWORD=2 _VIRNUCPRO_COMPLETE=bash_complete virnucpro"
        assert shell("bash", "--norc", "-c", script) == [f"{kind},"]


def test_a_tab_key_does_not_wait_for_torch(shell):
    """Completing an option of predict imports what its help does, and no more."""
    asked = "COMP_WORDS='virnucpro predict --mod' COMP_CWORD=2 _VIRNUCPRO_COMPLETE=bash_complete"
    imported = shell("bash", "--norc", "-c", f"{asked} PYTHONPROFILEIMPORTTIME=1 virnucpro 2>&1 >/dev/null")
    assert not [line for line in imported if line.split("|")[-1].strip() in ("torch", "numpy")]
    assert imported


def test_an_unknown_shell_is_a_usage_error(virnucpro):
    """One line with the shells there are."""
    ended = virnucpro("completion", "tcsh")
    assert ended.code == 2
    assert "'bash', 'zsh', 'fish'" in ended.err
