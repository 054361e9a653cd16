"""Figures of two benchmarks side by side, and as a picture."""

import json
from dataclasses import replace

import pytest

from virnucpro.benchmarks.compare import compare
from virnucpro.benchmarks.measure import Figure, Goal, Point
from virnucpro.benchmarks.plot import write_plot
from virnucpro.benchmarks.record import Record

CONTEXT = {
    "program": "virnucpro",
    "version": "1",
    "commit": "a",
    "machine": {"processor": "p", "cpus": 2, "load_at_start": [0.1]},
    "versions": {"torch": "2"},
    "settings": {"threads": 2, "esm2": ("8M",)},
}
ALONE = Figure("predict", "reads", "reads/s", (100.0, 101.0, 99.0))
BESIDE = Figure("extraction", "reads", "reads/s", (100.0, 101.0, 99.0), "peer", (10.0, 10.0, 10.0), 10.0)
PEAK = Figure("memory", "peak", "GiB", (1.0,), goal=Goal(most=2), point=Point("peak memory", 1000, "reads"))
LARGER_PEAK = replace(PEAK, what="larger peak", values=(1.1,), point=Point("peak memory", 9000, "reads"))


def judged(old, new, **context):
    (change,) = compare(Record(CONTEXT, (old,)), Record(CONTEXT | context, (new,))).changes
    return change


def scaled(figure, factor):
    """Ours alone becomes faster or slower; the peer does not."""
    faster = replace(figure, values=tuple(factor * value for value in figure.values))
    return replace(faster, ratio=None if figure.ratio is None else factor * figure.ratio)


@pytest.fixture
def written(tmp_path):
    """Write figures as a benchmark does; gives the path."""

    def write(name, *figures):
        Record(CONTEXT, figures).write(tmp_path / name)
        return tmp_path / name

    return write


def test_what_is_slower_by_more_than_a_tenth_is_a_regression():
    assert judged(ALONE, scaled(ALONE, 0.92)).verdict == "same"
    assert judged(ALONE, scaled(ALONE, 0.85)).verdict == "worse"
    assert judged(ALONE, scaled(ALONE, 1.2)).verdict == "better"


def test_what_the_runs_vary_by_themselves_is_no_regression():
    """The quartiles of either benchmark lie further apart than the medians."""
    noisy = replace(ALONE, values=(60.0, 85.0, 110.0))
    assert judged(noisy, replace(ALONE, values=(84.0, 85.0, 86.0))).verdict == "same"
    assert judged(ALONE, noisy).verdict == "same"
    assert judged(ALONE, replace(ALONE, values=(84.0, 85.0, 86.0))).verdict == "worse"


def test_a_busy_machine_slows_ours_and_the_peer_and_is_no_regression():
    busy = replace(BESIDE, values=(50.0,) * 3, peer_values=(5.0,) * 3)
    assert (judged(BESIDE, busy).verdict, judged(BESIDE, busy).judged_by) == ("same", "ratio")
    assert judged(BESIDE, scaled(BESIDE, 0.8)).is_regression


def test_of_memory_and_time_less_is_better():
    assert judged(PEAK, scaled(PEAK, 1.5)).verdict == "worse"
    assert judged(PEAK, scaled(PEAK, 0.5)).verdict == "better"


def test_a_single_run_says_little_and_must_be_worse_by_a_quarter():
    assert judged(PEAK, scaled(PEAK, 1.2)).verdict == "same"
    assert judged(PEAK, scaled(PEAK, 1.3)).verdict == "worse"


def test_another_machine_is_judged_by_ratios_alone():
    other = {"machine": {"processor": "q", "cpus": 2}}
    assert judged(ALONE, scaled(ALONE, 0.5), **other).verdict is None
    assert judged(BESIDE, scaled(BESIDE, 0.5), **other).verdict == "worse"


def test_outputs_that_no_longer_agree_are_a_regression():
    agreeing = replace(BESIDE, max_difference=0.0, tolerance=0.0)
    assert judged(agreeing, replace(agreeing, max_difference=1.0)).is_regression
    assert not judged(replace(agreeing, max_difference=1.0), replace(agreeing, max_difference=1.0)).is_regression


def test_what_differs_is_said_and_load_is_not():
    new = CONTEXT | {"commit": "b", "versions": {"torch": "3"}, "machine": CONTEXT["machine"] | {"load_at_start": [9]}}
    found = compare(Record(CONTEXT, (ALONE, PEAK)), Record(new, (ALONE, BESIDE)))
    assert found.differences == (("commit", "a", "b"), ("versions.torch", "2", "3"))
    assert found.only_old == ("memory: peak",)
    assert found.only_new == ("extraction: reads, against peer",)


def test_a_record_is_read_as_it_was_written(written):
    figures = (ALONE, BESIDE, PEAK)
    path = written("figures.json", *figures)
    assert Record.read(path).figures == figures
    stored = json.loads(path.read_text())
    assert stored["figures"][1]["value"] == 100
    del stored["figures"][0]["point"]
    path.write_text(json.dumps(stored))
    assert Record.read(path).figures == figures, "an earlier one knew no points"


def test_two_files_are_compared_and_nothing_is_measured(virnucpro, written):
    old, same = written("old.json", ALONE, BESIDE), written("same.json", ALONE, BESIDE)
    ended = virnucpro("benchmark", "--compare", old, same)
    assert (ended.code, ended.err) == (0, "")
    assert "within noise" in ended.out
    ended = virnucpro("benchmark", written("new.json", scaled(ALONE, 0.5), BESIDE), "--compare", old)
    assert ended.code == 1
    assert "REGRESSION" in ended.out
    assert "-50.0%" in ended.out
    assert "1 of 2 figures are worse" in ended.err


def test_a_benchmark_is_compared_as_it_is_measured(virnucpro, tmp_path):
    arguments = ("benchmark", "--only", "extraction", "--records", 100, "--seconds", 0)
    assert virnucpro(*arguments, "-o", tmp_path / "old.json").code == 0
    stored = json.loads((tmp_path / "old.json").read_text())
    for figure in stored["figures"]:  # a past that was a thousand times slower
        figure["values"] = [value / 1000 for value in figure["values"]]
        figure["ratio"] /= 1000
    (tmp_path / "old.json").write_text(json.dumps(stored))
    ended = virnucpro(*arguments, "--compare", tmp_path / "old.json", "--plot", tmp_path / "new.svg")
    assert ended.code == 0, ended.err
    assert "Old and new (medians)" in ended.out
    assert "REGRESSION" not in ended.out
    assert (tmp_path / "new.svg").stat().st_size > 1000


def test_stored_figures_are_shown_again(virnucpro, written):
    ended = virnucpro("benchmark", written("figures.json", BESIDE, PEAK))
    assert ended.code == 0
    assert "extraction (medians)" in ended.out
    assert "10.00x" in ended.out


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema": 2, "figures": []}', '{"schema": 1, "figures": [{"what": 1}]}']
)
def test_a_file_without_figures_is_a_usage_error(virnucpro, tmp_path, content):
    path = tmp_path / "figures.json"
    path.write_text(content)
    ended = virnucpro("benchmark", path)
    assert ended.code == 2
    assert str(path) in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("figures.json", "--rows", 5),
        ("figures.json", "-o", "out.json"),
        ("figures.json", "--plot", "plot.gif"),
        ("figures.json", "--compare", "other.json"),
        ("figures.json", "--plot", "plot.png"),
    ],
)
def test_what_cannot_be_done_with_stored_figures_is_a_usage_error(virnucpro, written, monkeypatch, tmp_path, arguments):
    """Measuring options, other formats, nothing in common, nothing to draw."""
    written("figures.json", ALONE)
    written("other.json", BESIDE)
    monkeypatch.chdir(tmp_path)
    assert virnucpro("benchmark", *arguments).code == 2


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_same_figures_give_the_same_picture(tmp_path, ending):
    """Ratios with and without goals, on both sides of 1, and a curve."""
    slower = replace(BESIDE, what="slower", ratio=0.5, goal=Goal(least_ratio=2))
    figures = [ALONE, BESIDE, slower, PEAK, LARGER_PEAK]
    pictures = []
    for name in "ab":
        write_plot(figures, tmp_path / f"{name}.{ending}")
        pictures.append((tmp_path / f"{name}.{ending}").read_bytes())
    assert pictures[0] == pictures[1]


def test_the_picture_names_every_ratio_goal_and_curve(tmp_path):
    figures = [replace(BESIDE, goal=Goal(least_ratio=2)), PEAK, LARGER_PEAK]
    write_plot(figures, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    for shown in ("against peer", "10x  (goal &gt;= 2x)", "memory: peak memory", "9k"):
        assert shown in text
