"""``virnucpro benchmark`` at a tiny size: every figure is there, and ours and the peer's output are equal."""

import json

import pytest

from virnucpro.benchmarks.measure import Figure, Goal, take_turns
from virnucpro.benchmarks.plain_extraction import cut_windows


@pytest.fixture
def measured(virnucpro, tmp_path):
    """Run some sections; gives the record that was written and the printed table."""

    def run(*sections, **options):
        path = tmp_path / "figures.json"
        given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
        ended = virnucpro("benchmark", "--only", ",".join(sections), "-o", path, "--seconds", 0, "--threads", 1, *given)
        assert ended.code == 0, ended.err
        return json.loads(path.read_text()), ended.out

    return run


def of(record, section):
    return [figure for figure in record["figures"] if figure["section"] == section]


def test_extraction_keeps_the_rows_that_both_peers_keep(measured):
    record, table = measured("extraction", records=300)
    figures = of(record, "extraction")
    assert [(figure["peer"], figure["agrees"]) for figure in figures] == [
        ("plain Python", True),
        ("Biopython", True),
    ] * 2
    assert all(figure["value"] > 0 and figure["peer_value"] > 0 and figure["ratio"] > 0 for figure in figures)
    assert all(len(figure["values"]) >= 3 for figure in figures)
    assert ">= 60x" in table


def test_encoders_agree_with_fair_esm_and_with_the_plain_layers(measured):
    record, _ = measured("encoders", esm2="8M", dnabert_layers=1, strings=6)
    figures = of(record, "encoders")
    assert len(figures) == 2 * 2 + 2
    assert all(figure["agrees"] for figure in figures)
    exact = [figure["max_difference"] for figure in figures if "float32" in figure["what"]]
    assert max(exact) <= 1e-5


def test_results_have_the_scores_and_windows_of_the_peer(measured):
    record, table = measured("results", rows=120)
    written, whole, kept, *stages = of(record, "results")
    assert written["ratio"] > 0
    assert "merged files kept" in kept["what"]
    for figure in (whole, kept):
        assert figure["agrees"]
        assert figure["ratio"] > 0
    assert [figure["what"].split()[-1] for figure in stages] == ["merge", "classify", "consensus", "write"]
    assert "rows of 3,328" in table


def test_predict_and_memory_run_the_program(measured, tiny_bundle):
    record, _ = measured("predict", "memory", model=tiny_bundle, predict_reads=60, reads="20,80", read_length=150)
    whole, *stages = of(record, "predict")
    assert whole["unit"] == "fragments/s"
    assert {"of it extract", "of it embed", "of it write"} <= {figure["what"].strip() for figure in stages}
    small, large, ratio = of(record, "memory")
    assert 0 < small["value"] < 8
    assert ratio["ratio"] == pytest.approx(large["value"] / small["value"])


def test_the_record_says_where_it_was_measured(measured):
    record, _ = measured("extraction", records=100)
    assert record["machine"]["cpus"] >= 1
    assert len(record["machine"]["load_at_start"]) == len(record["load_at_end"]) == 3
    assert record["versions"]["torch"]
    assert record["settings"]["num_records"] == 100


def test_a_missing_model_is_found_before_anything_is_measured(virnucpro, tmp_path):
    ended = virnucpro("benchmark", "--only", "extraction,predict", "--model", tmp_path / "none")
    assert ended.code == 6
    assert ended.out == ""


@pytest.mark.parametrize("option", [("--only", "speed"), ("--only", ","), ("--esm2", "7M"), ("--reads", "many")])
def test_unknown_names_are_usage_errors(virnucpro, option):
    assert virnucpro("benchmark", *option).code == 2


def test_goals_are_reached_from_the_right_side():
    assert Figure("s", "w", "u", (3.0, 1.0, 2.0), goal=Goal(least=2)).is_reached
    assert Figure("s", "w", "u", (2.0,), goal=Goal(most=1)).is_reached is False
    assert Figure("s", "w", "u", (2.0,), ratio=1.5, goal=Goal(least=1, least_ratio=2)).is_reached is False
    assert Figure("s", "w", "u", (), goal=Goal(least=1)).is_reached is None


def test_contestants_take_turns_and_run_three_times():
    order = []
    rates = take_turns({name: lambda name=name: order.append(name) or 1 for name in "ab"}, 0)
    assert order == ["a", "b"] * 4
    assert [len(values) for values in rates.values()] == [3, 3]


def test_the_plain_rule_cuts_as_published():
    assert cut_windows(301, 300) == [(0, 300), (150, 301)]
