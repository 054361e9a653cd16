"""``virnucpro benchmark`` at a tiny size: every figure is there, is saved, and is compared with older ones."""

from __future__ import annotations

import json

import pytest

from virnucpro.machine.benchmark import Figure, is_worse, read


@pytest.fixture
def measured(virnucpro, tiny_bundle, tmp_path):
    """Measure some sections; gives the figures that were written and the printed table."""
    path = tmp_path / "figures.json"

    def run(*sections):
        options = ("-m", tiny_bundle, "--device", "cpu", "-t", 1, "--reads", 30)
        ended = virnucpro("benchmark", "--only", ",".join(sections), "-o", path, *options)
        assert ended.code == 0, ended.err
        return json.loads(path.read_text()), ended.out

    return run


@pytest.mark.parametrize(
    ("sections", "units"),
    [
        (("extraction", "encoders"), ["fragments/s", "rows/s", "rows/s"]),
        pytest.param(("merge",), ["rows/s"] * 3, marks=pytest.mark.slow),
    ],
)
def test_parts_are_measured(measured, sections, units):
    record, table = measured(*sections)
    assert [figure["unit"] for figure in record["figures"]] == units
    for figure in record["figures"]:
        assert len(figure["values"]) == 3
        assert min(figure["values"]) > 0
        assert figure["name"] in table
    assert record["machine"]["cpus"] >= 1
    assert record["settings"]["num_reads"] == 30


@pytest.mark.slow
def test_whole_runs_are_measured_in_processes_of_their_own(measured):
    record, _ = measured("run")
    units = [figure["unit"] for figure in record["figures"]]
    assert units == ["s", "s", "MB", "reads/s"] * 2
    assert all(figure["value"] > 0 for figure in record["figures"])


def test_figures_are_compared_with_older_ones(virnucpro, measured, tmp_path, tiny_bundle):
    """Against a machine that was a thousand times faster, and one that was as much slower."""
    record, _ = measured("encoders")
    for factor, code in ((1e3, 1), (1e-3, 0)):
        old = tmp_path / "old.json"
        figures = [f | {"values": [factor * value for value in f["values"]]} for f in record["figures"]]
        old.write_text(json.dumps(record | {"figures": figures}))
        options = ("-m", tiny_bundle, "--device", "cpu", "-t", 1, "--reads", 30)
        ended = virnucpro("benchmark", "--only", "encoders", "--compare", old, *options)
        assert ended.code == code
        assert ("2 of 2 figures are worse" in ended.err) == bool(code)


@pytest.mark.parametrize(
    ("unit", "old", "new", "worse"),
    [
        ("rows/s", (100, 101, 99), (80, 81, 79), True),
        ("rows/s", (100, 101, 99), (120, 121, 119), False),
        ("rows/s", (100, 101, 99), (95, 96, 94), False),
        ("rows/s", (100, 150, 99), (80, 81, 79), False),
        ("s", (10, 11, 10), (15, 16, 15), True),
        ("MB", (10, 11, 10), (5, 6, 5), False),
    ],
)
def test_worse_is_a_tenth_and_more_than_the_runs_vary(unit, old, new, worse):
    assert is_worse(Figure("f", unit, old), Figure("f", unit, new)) == worse


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1}', '{"schema": 2, "figures": [{}]}', "[" * 10**5])
def test_a_file_of_something_else_is_a_usage_error(virnucpro, tmp_path, content):
    path = tmp_path / "old.json"
    path.write_text(content)
    ended = virnucpro("benchmark", "--compare", path)
    assert (ended.code, ended.out) == (2, "")
    assert str(path) in ended.err


@pytest.mark.parametrize(
    ("options", "code"), [(("--only", "speed"), 2), (("--only", ","), 2), (("-m", "nowhere"), 6), (("--reads", "0"), 2)]
)
def test_wrong_use_is_one_line_and_its_exit_code(virnucpro, options, code):
    ended = virnucpro("benchmark", *options)
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.strip().splitlines()[-1].startswith("Error: ")


def test_a_written_file_is_read_as_it_was(measured, tmp_path):
    record, _ = measured("encoders")
    figures = read(tmp_path / "figures.json")
    assert [list(figure.values) for figure in figures.values()] == [f["values"] for f in record["figures"]]
