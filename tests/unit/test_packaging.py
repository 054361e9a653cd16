"""What is installed, and what names it: one list of dependencies, extras that exist, pages that are found."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {
    "torch": "pytorch", "matplotlib": "matplotlib-base", "xxhash": "python-xxhash", "isal": "python-isal",
    "msgspec": "msgspec-python",
}  # fmt: skip
NOT_ON_CONDA_FORGE = {"httpx2"}


def names(requirements):
    return {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements}


PARTS = re.compile(r"([\w-]+)([>=][^;]*)")
NEEDED = names(PROJECT["dependencies"])
TEXTS = [
    path
    for pattern in ("README.md", "docs/*.md", "virnucpro/**/*.py", "Containerfile", ".github/**/*", "workflows/**/*")
    for path in ROOT.glob(pattern)
    if path.is_file()
]


def test_no_extra_is_named_that_does_not_exist():
    """``pip install 'virnucpro[x]'`` anywhere in texts and messages is an extra of pyproject.toml."""
    named = {
        (path.name, extra.strip())
        for path in TEXTS
        for match in re.finditer(r"(?:virnucpro|/src|\.)\[([a-z, ]+)\]", path.read_text(encoding="utf-8"))
        for extra in match[1].split(",")
        if re.search(r"pip|install|extra|`", match.string[max(0, match.start() - 40) : match.start()])
    }
    assert named
    assert {extra for _, extra in named} <= PROJECT["optional-dependencies"].keys(), named


def test_the_conda_recipe_needs_what_the_wheel_needs():
    """One list; names as conda-forge has them."""
    recipe = (ROOT / "recipe" / "meta.yaml").read_text()
    run = recipe.partition("  run:\n")[2].partition("\ntest:")[0]
    listed = {line.strip().removeprefix("- ").split()[0] for line in run.splitlines() if line.strip()}
    assert listed - {"python"} == {CONDA_NAMES.get(name, name) for name in NEEDED}
    assert f'version = "{PROJECT["version"]}"' in recipe


def test_pixi_needs_what_the_wheel_needs():
    """One list; what conda-forge lacks comes from the package index."""
    pixi = tomllib.loads((ROOT / "pixi.toml").read_text())
    listed = pixi["dependencies"].keys() | pixi["pypi-dependencies"].keys()
    assert listed - {"python", "virnucpro"} == {
        CONDA_NAMES.get(name, name) if CONDA_NAMES.get(name, name) in pixi["dependencies"] else name for name in NEEDED
    }


def test_pixi_tests_with_what_the_extra_for_tests_has():
    """From either index, with the same lowest versions."""
    feature = tomllib.loads((ROOT / "pixi.toml").read_text())["feature"]["dev"]
    listed = feature["dependencies"] | feature["pypi-dependencies"]
    extra = {match[1]: match[2] for match in map(PARTS.match, PROJECT["optional-dependencies"]["test"])}
    assert {name: listed.get(name) for name in extra} == extra


def test_lowest_versions_are_the_same_everywhere():
    """Of the wheel, the conda recipe and pixi: none promises what was not tried."""
    pixi = tomllib.loads((ROOT / "pixi.toml").read_text())
    pixi = pixi["dependencies"] | pixi["pypi-dependencies"]
    recipe = dict(re.findall(r"^    - ([\w-]+) (>=[\d.]+)$", (ROOT / "recipe" / "meta.yaml").read_text(), re.MULTILINE))
    for requirement in PROJECT["dependencies"]:
        name, lowest = PARTS.match(requirement).groups()
        conda = CONDA_NAMES.get(name, name)
        assert (recipe[conda], pixi.get(conda, pixi.get(name))) == (lowest, lowest)


def test_requirements_pin_every_dependency_of_the_wheel_and_of_the_tests():
    """The README's set-up installs the program with --no-deps, so the list must be whole."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = names(line for line in lines if line and not line.startswith("#"))
    wanted = NEEDED | names(PROJECT["optional-dependencies"]["test"])
    assert wanted - pinned == set()


def test_the_documentation_site_lists_every_page_once():
    """A page that is not in the navigation is not found."""
    text = (ROOT / "mkdocs.yml").read_text()
    pages = re.findall(r"([\w.-]+\.md)\b", text.partition("\nnav:")[2])
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_forge_files_are_yaml(path):
    """A file that cannot be parsed is passed over by the forge without a word."""
    assert isinstance(yaml.safe_load(path.read_text()), dict)
