"""Plain English in what users read: wordings that sound foreign, and what to write instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_reference import walk

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md")])
WORDINGS = {
    r"\b(go|goes|going|went|gone) on\b": "resume, continue",
    r"\banew\b": "again, re-call, start over",
    r"\b(held|hold|holds|holding)\b[^.;:\n]{0,60}\bagainst\b": "check against, compare with",
    r"\bforesees?\b|\bforeseen\b": "estimate",
    r"\ball else\b": "everything else, the rest",
    r"\bwhere there (is|are) (none|no)\b": "if there is no X; without X",
    r"(?<![Tt]here )\b(is|are) (no(?! longer| more|-)|none of)\b ": "is not a X, is not one of",
    r"\bbeside\b": "next to, alongside, in addition to",
    r"\bcomes? about\b": "how it is computed",
    r"\bsuffic(e|es|ed)\b": "fit in, be enough",
    r"\bturned back\b": "reverse-complemented",
    r"\blooks? (at everything )?first\b": "screens everything",
    r"\b(is|are) said\b": "is printed, is reported",
    r"\babout so long\b": "for about this many minutes",
    r"\bnear chance\b": "close to chance",
    r", or nothing\b": "all-or-nothing",
    r"\blet go\b": "close, drop",
    r"\bmust bear\b": "must support",
}
"""Pattern to the better wording."""


def found_in(text):
    """Every wording of the list in a text, with the better one."""
    flat = " ".join(text.split())
    return [
        f"...{flat[max(0, match.start() - 40) : match.end() + 40]}...: write {better}"
        for pattern, better in WORDINGS.items()
        for match in re.finditer(pattern, flat, re.IGNORECASE)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_plain_english(page):
    assert found_in(page.read_text()) == []


def test_help_is_plain_english():
    """Of every command and option."""
    assert {context.command_path: found for context in walk() if (found := found_in(context.get_help()))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "the same command goes on",
        "write them anew",
        "every file is held against its digest",
        "NA where there is none",
        "x is no FASTA",
        "a file beside it",
        "all of them come, or nothing",
    ],
)
def test_the_search_finds_what_it_should(text):
    assert len(found_in(text)) == 1


@pytest.mark.parametrize("text", ["there is no such file", "it is no longer read", "there are no rows", "besides"])
def test_the_search_leaves_plain_english_alone(text):
    assert found_in(text) == []
