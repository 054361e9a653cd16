"""The documentation says what the program does: every command, every option, every example."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command_reference import reference, walk
from conftest import read_tsv

from virnucpro.cli import cli

ROOT = Path(__file__).parents[2]
COMMANDS = {context.command_path: context for context in walk()}
REFERENCE = ROOT / "docs" / "commands.md"
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def examples(text):
    """The arguments of every call of the program in lines of a shell, what stands after ``virnucpro``."""
    for line in text.splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        words.whitespace_split = True
        call = None
        for word in words:
            if word == "virnucpro":
                call = []
            elif call is not None and set(word) <= set("|&;<>()"):
                yield call
                call = None
            elif call is not None:
                call.append(word)
        if call is not None:
            yield call


def examples_of_help(context):
    """The same of an epilog: in the paragraphs that Click leaves as they are."""
    paragraphs = context.command.epilog.split("\n\n")
    return [call for text in paragraphs if text.startswith("\b") for call in examples(text)]


def check(arguments):
    """Parse a call as the program would, and run nothing."""
    command, context, path = cli, None, "virnucpro"
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        context = click.Context(command, parent=context, info_name=path, **command.context_settings)
        path, *arguments = arguments
        command = command.get_command(context, path)
        assert command is not None, f"there is no command {path}"
    try:
        command.make_context(path, list(arguments), parent=context)
    except click.exceptions.Exit:
        return  # it asks for help or the version
    except click.BadParameter as error:
        if "does not exist" not in error.message:  # the files of an example are the reader's
            raise


def test_the_reference_is_what_the_commands_say():
    """Write it anew: python tests/command_reference.py > docs/commands.md."""
    assert REFERENCE.read_text() == reference()


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_has_help(path):
    """A sentence for the command and for each option, an example at the end."""
    command = COMMANDS[path].command
    assert command.help, "no help"
    assert len(command.help.splitlines()[0]) <= 64, "the first line is cut in the list of commands"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{option.name} has no help"
            assert option.help[0].isupper() or option.name in ("device", "model"), option.help
            assert re.search(r"[.\])]$", option.help), option.help
    assert command.epilog, "no epilog"
    assert examples_of_help(COMMANDS[path]), "no example"


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_is_in_the_prose(path):
    """Beside the reference, a page tells what the command is for."""
    prose = "\n".join(page.read_text() for page in PAGES if page != REFERENCE)
    assert f"{path} " in prose or f"{path}`" in prose


@pytest.mark.parametrize("path", COMMANDS)
def test_every_example_of_the_help_is_understood(path):
    """Its options exist and take these values."""
    for arguments in examples_of_help(COMMANDS[path]):
        check(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_example_of_the_pages_is_understood(page):
    """In blocks of shell; usage lines of the reference are none."""
    for language, block in FENCED.findall(page.read_text()):
        for arguments in examples(block) if language in ("", "sh", "bash") else ():
            if not any(word.startswith("[") or word.endswith("...") for word in arguments):
                check(arguments)


def test_the_check_of_examples_sees_what_is_wrong():
    """Were it blind, every example would pass."""
    assert list(examples("zcat a.gz | virnucpro predict - -o out > log  # why")) == [["predict", "-", "-o", "out"]]
    check(["predict", "a.fasta", "-o", "out"])
    with pytest.raises(click.UsageError):
        check(["predict", "a.fasta", "--no-such-option"])
    with pytest.raises(AssertionError, match="no command"):
        check(["predikt"])


def test_help_of_no_command_loads_torch():
    """Asking for help is answered at once."""
    code = (
        "import sys; from command_reference import walk; texts = [c.get_help() for c in walk()]; "
        "sys.exit(17 if 'torch' in sys.modules or not texts else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("path", COMMANDS)
def test_help_is_printed_with_both_spellings(path, virnucpro):
    """On standard output, with exit code 0."""
    _, *words = path.split()
    for spelling in ("-h", "--help"):
        ended = virnucpro(*words, spelling)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith(f"Usage: {path}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Every file that a page names in a link is there, and every heading."""
    links = [link.partition("#") for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link, *_ in links if link and not (page.parent / link).exists()] == []
    places = [(page.parent / link if link else page, anchor) for link, _, anchor in links if anchor]
    assert [(str(path), anchor) for path, anchor in places if anchor not in anchors(path)] == []


def anchors(path):
    """Of the headings of a page, as its site and the forge make them."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_messages_of_the_troubleshooting_page_exist():
    """What it quotes stands in the program, and every exit code of the index has a row."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| ([\d, ]+) \| (.+?) \|", page, re.MULTILINE)
    sources = "\n".join(path.read_text() for path in (ROOT / "virnucpro").rglob("*.py"))
    sources = re.sub(r'"\n\s*f?"', "", sources).lower()
    quoted = [message for _, cell in rows for message in re.findall(r"`(.+?)`", cell)]
    parts = [part.strip(" .:,()") for message in quoted for part in re.split(r"\.\.\.|\bN\b|\b0\b", message)]
    parts = [part.lower() for part in parts if len(part) > 4]
    ours = [part for part in parts if part not in ("no such option", "no such command")]  # Click's
    assert [part for part in ours if part not in sources] == []
    index = (ROOT / "docs" / "README.md").read_text().partition("## Exit codes")[2]
    assert {code for codes, _ in rows for code in codes.split(", ")} == set(
        re.findall(r"\d+", " ".join(re.findall(r"^\| ([\d, ]+) \|", index, re.MULTILINE)))
    ) - {"0"}


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in index] == []


def test_the_first_run_is_what_its_page_shows(virnucpro, tmp_path):
    """The rows that it shows are clear-cut, so that a better model calls them alike."""
    page = (ROOT / "docs" / "first-run.md").read_text()
    _, shown = (block for language, block in FENCED.findall(page) if language == "text")
    head, *rows = [line.split() for line in shown.splitlines()]
    assert virnucpro("predict", ROOT / "examples" / "metagenome.fasta", "-o", tmp_path, "--no-report").code == 0
    table = {row["name"]: row for row in read_tsv(tmp_path / "metagenome.sequences.tsv")}
    assert set(head) <= table["contig_004"].keys()
    assert [row[:3] for row in rows] == [[row[0], table[row[0]]["length"], table[row[0]]["call"]] for row in rows]


PYTHON_PAGES = [page for page in PAGES if any(language == "python" for language, _ in FENCED.findall(page.read_text()))]


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.stem)
def test_the_python_examples_run(page, tmp_path, monkeypatch, capsys):
    """All blocks of a page in turn, on the contigs of examples/; what they print is what the page shows."""
    shutil.copy(ROOT / "examples" / "metagenome.fasta", tmp_path / "contigs.fasta")
    monkeypatch.chdir(tmp_path)
    blocks = FENCED.findall(page.read_text())
    exec("\n".join(block for language, block in blocks if language == "python"), {})  # noqa: S102
    printed = capsys.readouterr().out
    if page.stem == "python":
        assert "contig_" in printed
    else:
        assert printed == "".join(block for language, block in blocks if language == "text")
