"""What to cite comes from CITATION.cff alone, in every form."""

from __future__ import annotations

import re

import pytest
import yaml

from virnucpro import __version__
from virnucpro.citation import methods_sentence, parse_cff, read_cff


def test_the_file_names_the_method_and_the_encoders():
    """Identifiers of the three publications; the version is the program's."""
    works = parse_cff(read_cff())
    assert works.software.version == __version__
    assert (works.method.pages, works.method.volume, works.method.issue) == ("bbaf224", "26", "3")
    dois = {encoder.abbreviation: encoder.doi for encoder in works.encoders}
    assert dois == {"ESM-2": "10.1126/science.ade2574", "DNABERT-S": "10.48550/arXiv.2402.08777"}


@pytest.mark.parametrize("style", ["text", "bibtex", "methods"])
def test_the_command_prints_the_method(virnucpro, style):
    """Whatever the form, to stdout."""
    ended = virnucpro("citation", "--format", style)
    assert ended.code == 0, ended.err
    assert re.search("Li.*2025", ended.out, re.DOTALL)


def test_cff_is_the_file_itself(virnucpro):
    """What reference managers read."""
    ended = virnucpro("citation", "--format", "cff")
    assert yaml.safe_load(ended.out) == yaml.safe_load(read_cff())


def test_bibtex_entries_have_balanced_braces_and_keys_of_their_own():
    """A reference manager can read them."""
    works = parse_cff(read_cff())
    entries = [work.bibtex for work in (works.method, works.software, *works.encoders)]
    assert all(entry.count("{") == entry.count("}") for entry in entries)
    keys = [re.match(r"@\w+\{([\w-]+),\n", entry)[1] for entry in entries]
    assert keys == ["li2025", "virnucpro", "lin2023", "zhou2024"]
    assert "author = {Lin, Zeming and Akin, Halil and" in entries[2]
    assert "pages = {1123--1130}" in entries[2]


def test_a_title_may_hold_what_tex_reserves():
    """Such letters are escaped."""
    cff = (
        "title: A_b & {c} 100 %\nversion: 1\nauthors: [{name: X}]\npreferred-citation: {title: T, authors: [{name: Y}]}"
    )
    assert r"title = {{A\_b \& \{c\} 100 \%}}" in parse_cff(cff).software.bibtex


def test_encoders_are_cited_where_they_were_used():
    """The bundled model needs no other publication than the method's."""
    works = parse_cff(read_cff())
    rule = "sequences were called viral"
    lite = methods_sentence(works, version="1", model="lite", kinds=("six_frame_profiles", "residue_conv"), rule=rule)
    published = methods_sentence(works, version="1", model="500", kinds=("dnabert_s", "esm2"), rule=rule)
    assert "ESM-2" not in lite
    assert "ESM-2 (Lin et al., 2023)" in published
    assert "DNABERT-S (Zhou et al., 2024)" in published
