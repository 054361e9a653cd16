"""Rows to fragments to sequences: the two row rules, calibration, the table, and its independence of units."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from conftest import mixed_records, write_fasta
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_tables import line, table_of

from virnucpro import store
from virnucpro.bundles import load_bundle
from virnucpro.bundles.rules import Bend, Calibration
from virnucpro.errors import CountError
from virnucpro.progress import Reporter
from virnucpro.results.called import ScoredUnit
from virnucpro.results.calls import Call, Calling, call_sequences, probability, sums
from virnucpro.results.fragments import Fragments
from virnucpro.run_dir import RunDir
from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import FRAGMENT_DTYPE, GAP_DTYPE, ROW_DTYPE, SEQUENCE_DTYPE, Status, UnitTable
from virnucpro.stages import tabulate
from virnucpro.stages.base import Index, IndexedInput, IndexedUnit, Run
from virnucpro.stages.tabulate import ScoredModels, StoredScores, fragments_of


def scored(table, scores):
    """A unit whose rows without a score could not be computed."""
    return ScoredUnit(table, scores, np.isnan(scores).any(axis=1))


def tabulated(run, index) -> Fragments:
    """The table of a run whose scores are stored."""
    with StoredScores(run.dir, run.rules, index) as scores:
        return tabulate.run(index, ScoredModels(scores), run.reporter)


NOTHING = Ragged.from_bytes([])
CALIBRATION = Calibration(lengths=(100, 300), slope=(0.5, 1.0), intercept=(-1.0, 0.5), exponent=0.5)

frame_scores = st.tuples(st.sampled_from([1, 2, 3, -1, -2, -3, 0]), st.floats(0, 1, width=32))
fragments_of_rows = st.lists(st.lists(frame_scores, max_size=6), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def make_run(tiny_bundle, tmp_path_factory):
    """A run of the tiny bundle with another row rule and calibration."""
    bundle = load_bundle(str(tiny_bundle))

    def make(rule="max", calibration=CALIBRATION, frameless="skip"):
        return Run(
            dir=RunDir(tmp_path_factory.mktemp("run")),
            inputs=("in.fasta",),
            bundle=replace(bundle, row_rule=rule, calibration=calibration, scores_frameless=frameless == "score"),
            fragment_length=300,
            unit_rows=5,
            dtype="float32",
            reporter=Reporter(bars=False),
        )

    return make


def unit_of(fragments, length=300):
    """A unit of one sequence: for each fragment its rows as (frame, virus score), and the scores of all."""
    rows = [
        (0, index, frame, 0, 90, number)
        for number, (index, frame) in enumerate((i, frame) for i, part in enumerate(fragments) for frame, _ in part)
    ]
    table = UnitTable(
        sequences=np.array([(0, length * len(fragments), Status.OK)], dtype=SEQUENCE_DTYPE),
        names=Ragged.from_bytes([b"s"]),
        descriptions=NOTHING,
        gaps=np.zeros(0, dtype=GAP_DTYPE),
        fragments=np.array(
            [(0, i, length * i, length * (i + 1), len(part), 0, length) for i, part in enumerate(fragments)],
            dtype=FRAGMENT_DTYPE,
        ),
        rows=np.array(rows, dtype=ROW_DTYPE),
        first_row=0,
        nucleotides=NOTHING,
        proteins=NOTHING,
        pieces=NOTHING,
        piece_sequences=np.zeros(0, dtype=np.int64),
    )
    scores = np.array([(1 - virus, virus) for part in fragments for _, virus in part], dtype=np.float32)
    return table, scores.reshape(-1, 2)


def joined_slowly(part, scores, rule):
    """Log-odds of one fragment, row by row."""
    if not part:
        return math.nan
    safe = [(max(float(other), 1e-7), max(float(virus), 1e-7)) for other, virus in scores]
    if rule == "max":
        return math.log(max(virus for _, virus in safe)) - math.log(max(other for other, _ in safe))
    return sum(math.log(virus) - math.log(other) for other, virus in safe) / len(safe)


@pytest.mark.parametrize("rule", ["max", "mean"])
@given(fragments=fragments_of_rows, length=st.integers(30, 500))
def test_rows_make_a_fragment_by_the_rule_of_the_bundle(make_run, rule, fragments, length):
    """``max``: largest virus score against largest other; ``mean``: mean log-odds. Then the line of its length."""
    table, scores = unit_of(fragments, length)
    unit, _ = fragments_of([make_run(rule).rules], scored(table, scores))
    remaining = iter(scores)
    position = min(max((length - 100) / 200, 0), 1)
    slope, intercept = 0.5 + 0.5 * position, -1.0 + 1.5 * position
    expected = [
        slope * joined_slowly(part, list(itertools.islice(remaining, len(part))), rule) + intercept
        for part in fragments
    ]
    np.testing.assert_allclose(unit["log_odds"], expected, rtol=1e-6, atol=1e-6)
    assert unit["num_open"].tolist() == [sum(frame != 0 for frame, _ in part) for part in fragments]


def test_equal_largest_scores_are_called_virus(make_run):
    """The published rule says >=: log-odds 0 is probability one half, and that reaches the threshold."""
    run = make_run("max", Calibration((300,), (1.0,), (0.0,), 0.5))
    table, scores = unit_of([[(1, 0.25), (2, 0.75)]])
    found = tabulated(run, stored(run, table, scores, [table]))
    assert found.fragments["log_odds"].tolist() == [0.0]
    assert call_sequences(found, Calling())[0]["call"].tolist() == [Call.VIRUS]


@pytest.mark.parametrize(
    ("length", "slope", "intercept"),
    [(1, 0.5, -1.0), (100, 0.5, -1.0), (150, 0.625, -0.625), (200, 0.75, -0.25), (300, 1.0, 0.5), (9999, 1.0, 0.5)],
)
def test_calibration_is_linear_between_lengths_and_constant_beyond(length, slope, intercept):
    """Slope and intercept each."""
    log_odds = np.array([-2.0, 0.0, 3.0])
    calibrated = CALIBRATION.fragment_log_odds(log_odds, np.full(3, length))
    np.testing.assert_allclose(calibrated, slope * log_odds + intercept)


def test_a_bend_adds_to_its_own_length_and_in_part_to_those_between():
    """Linear between its points, constant beyond."""
    bends = (Bend((-1.0, 1.0), (0.0, 0.0)), Bend((-1.0, 1.0), (-0.2, 0.6)))
    bent = replace(CALIBRATION, bends=bends)
    log_odds = np.array([-5.0, -1.0, 0.0, 1.0, 5.0])
    for length, share in ((100, 0.0), (200, 0.5), (300, 1.0), (9999, 1.0)):
        lengths = np.full(5, length)
        added = bent.fragment_log_odds(log_odds, lengths) - CALIBRATION.fragment_log_odds(log_odds, lengths)
        np.testing.assert_allclose(added, share * np.array([-0.2, -0.2, 0.2, 0.6, 0.6]), atol=1e-12)


@pytest.mark.parametrize(
    "bend",
    [((-1.0, 1.0), (0.0,)), ((1.0, -1.0), (0.0, 0.1)), ((0.0,), (0.0,)), ((-1.0, 1.0), (0.0, -2.0))],
    ids=["one is missing", "points descend", "one point", "turns down"],
)
def test_a_bend_that_makes_no_sense_is_refused(bend):
    """More log-odds never mean less."""
    good = Bend((-1.0, 1.0), (0.0, 0.0))
    with pytest.raises(ValueError, match="bend"):
        replace(CALIBRATION, bends=(good, Bend(*bend)))
    with pytest.raises(ValueError, match="bends"):
        replace(CALIBRATION, bends=(good,))


@given(mean=st.floats(-20, 20), num=st.integers(1, 10_000), exponent=st.floats(0, 1))
def test_evidence_of_a_sequence_grows_with_a_power_of_its_fragments(mean, num, exponent):
    """Mean times ``n ** exponent``: one fragment is itself, the sign never changes."""
    calibration = replace(CALIBRATION, exponent=exponent)
    found = calibration.sequence_log_odds(np.array([mean, mean]), np.array([num, 1]))
    np.testing.assert_allclose(found, [mean * num**exponent, mean])
    assert abs(found[0]) >= abs(mean)


@given(log_odds=st.lists(st.floats(-1e5, 1e5), min_size=2, max_size=20))
def test_probabilities_lie_between_0_and_1_and_keep_the_order(log_odds):
    """However sure a long genome is, and without a word of warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = probability(np.array(sorted(log_odds)))
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= 0).all()


def test_a_whole_genome_has_a_probability_without_a_warning(make_run):
    """Thousands of sure fragments give log-odds beyond what ``exp`` can take."""
    table = table_of([line("host", 5_000_000, 1e-9), line("virus", 5_000_000, 1 - 1e-9)], make_run().rules)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = call_sequences(table, Calling())[0]
    assert found["p_virus"].tolist() == [0.0, 1.0]
    assert found["call"].tolist() == [Call.NOT_VIRUS, Call.VIRUS]


@pytest.mark.parametrize("rule", ["max", "mean"])
def test_a_score_of_exactly_0_or_1_stays_finite(make_run, rule):
    """A float32 softmax reaches both."""
    unit, _ = fragments_of([make_run(rule).rules], scored(*unit_of([[(1, 0.0)], [(1, 1.0)]])))
    assert np.isfinite(unit["log_odds"]).all()
    assert unit["log_odds"][0] < 0 < unit["log_odds"][1]


def cut(table, borders):
    """The units of one whole run when it is cut before the fragments at ``borders``."""
    ends = np.cumsum(table.fragments["num_rows"])
    bounds = [0, *sorted(set(borders)), len(table.fragments)]
    begins = np.searchsorted(table.fragments["sequence"], table.sequences["number"])
    units = []
    for start, stop in itertools.pairwise(bounds):
        first_row, stop_row = (int(ends[at - 1]) if at else 0 for at in (start, stop))
        last = stop == bounds[-1]
        begun = (begins >= start) & ((begins < stop) | last)
        units.append(
            replace(
                table,
                sequences=table.sequences[begun],
                names=table.names.take(np.flatnonzero(begun)),
                fragments=table.fragments[start:stop],
                rows=table.rows[first_row:stop_row],
                first_row=first_row,
                nucleotides=NOTHING,
                proteins=NOTHING,
                pieces=NOTHING,
                piece_sequences=np.zeros(0, dtype=np.int64),
            )
        )
    return units


def stored(run, table, scores, units):
    """Write units and the scores of the rows that are their own source; return the index."""
    indexed, num_begun = [], 0
    for number, unit in enumerate(units):
        digest = store.write_unit(run.dir.unit(number), unit)
        rows = np.arange(unit.first_row, unit.first_row + len(unit.rows))
        own = unit.rows["source"] == rows
        store.write_arrays(run.dir.scores(number), "scores", {"scores": scores[rows[own]]}, {"unit_digest": digest})
        first, num_begun = num_begun, num_begun + len(unit.sequences)
        indexed.append(IndexedUnit(unit.first_row, len(unit.rows), int(own.sum()), first, num_begun, 0))
    num_bases = int(table.sequences["length"].sum())
    item = IndexedInput("in.fasta", "in", "fasta", "none", "0" * 64, 0, len(table.sequences), num_bases)
    return Index((item,), tuple(indexed), len(table.fragments))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One real unit with duplicates, sequences without rows and an empty one; and seeded scores."""
    records = mixed_records(14, seed=3)
    records |= {"empty": "", "closed": "TAATTAATTAA" * 30, "again": records["seq_2"], "short": "AC"}
    fasta = write_fasta(tmp_path_factory.mktemp("whole") / "in.fasta", records)
    (table,) = Extraction([str(fasta)], fragment_length=300, min_length=10, unit_rows=10**6).units()
    virus = np.random.default_rng(4).random(len(table.rows), dtype=np.float32)
    scores = np.stack([1 - virus, virus], axis=1)
    assert (table.rows["source"] != np.arange(len(table.rows))).any()
    assert (table.fragments["num_rows"] == 0).any()
    return table, scores


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), rule=st.sampled_from(["max", "mean"]))
def test_tables_do_not_depend_on_the_cut_into_units(make_run, whole, data, rule):
    """To the last bit, wherever the borders are, with duplicates of rows in other units."""
    table, scores = whole
    borders = data.draw(st.sets(st.integers(1, len(table.fragments) - 1), max_size=5))
    one, many = make_run(rule), make_run(rule)
    expected = tabulated(one, stored(one, table, scores, [table]))
    found = tabulated(many, stored(many, table, scores, cut(table, borders)))
    assert found.sequences.tobytes() == expected.sequences.tobytes()
    assert found.fragments.tobytes() == expected.fragments.tobytes()
    assert found.names.to_bytes() == expected.names.to_bytes()
    assert not many.dir.row_scores.exists()


@pytest.mark.parametrize("rule", ["max", "mean"])
def test_sums_are_those_of_the_fragments(make_run, whole, rule):
    """Fragment by fragment in plain Python; a fragment without rows is NaN and is not counted as scored."""
    table, scores = whole
    run = make_run(rule)
    found = tabulated(run, stored(run, table, scores, [table]))
    added = sums(found)
    scores = scores[table.rows["source"]]
    expected = {number: [0.0, 0, 0, 0, 0] for number in range(len(table.sequences))}
    row = 0
    for sequence, _, start, stop, num_rows, *_ in table.fragments.tolist():
        lines = scores[row : row + num_rows]
        row += num_rows
        log_odds = joined_slowly(lines.tolist(), lines, rule)
        total = expected[sequence]
        total[1] += 1
        if num_rows:
            position = min(max((stop - start - 100) / 200, 0), 1)
            total[0] += (0.5 + 0.5 * position) * log_odds - 1.0 + 1.5 * position
            total[2] += 1
            total[3] += num_rows
            total[4] += 1
    np.testing.assert_allclose(added["log_odds"], [total[0] for total in expected.values()], rtol=1e-6)
    counts = (added[name].tolist() for name in ("num_scored", "num_rows", "num_open"))
    lines = zip(found.sequences["num_fragments"].tolist(), *counts, strict=True)
    assert [list(line) for line in lines] == [total[1:] for total in expected.values()]
    assert found.sequences["status"].tolist() == table.sequences["status"].tolist()


def test_a_fragment_without_rows_is_nan_and_not_counted(make_run):
    """A sequence is the mean of the fragments that have a score."""
    run = make_run("max", Calibration((300,), (1.0,), (0.0,), 0.0))
    table, scores = unit_of([[], [(1, 0.9)], [], [(2, 0.6), (0, 0.7)]])
    found = tabulated(run, stored(run, table, scores, [table]))
    assert np.isnan(found.fragments["log_odds"]).tolist() == [True, False, True, False]
    (added,) = sums(found)
    assert (added["num_scored"], added["num_open"], added["num_rows"]) == (2, 2, 2)
    mean = np.mean([math.log(0.9 / 0.1), math.log(0.7 / 0.4)])
    np.testing.assert_allclose(call_sequences(found, Calling())[0]["p_virus"], 1 / (1 + math.exp(-mean)), rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    log_odds=st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0, math.nan]), min_size=1, max_size=12),
    data=st.data(),
)
def test_the_top_is_the_first_of_the_highest_fragments(make_run, log_odds, data):
    """Wherever the units are cut."""
    run = make_run("max", Calibration((300,), (1.0,), (0.0,), 0.5))
    parts = [[] if math.isnan(odds) else [(1, 1 / (1 + math.exp(-odds)))] for odds in log_odds]
    table, scores = unit_of(parts)
    borders = data.draw(st.sets(st.integers(1, len(parts)), max_size=3)) - {len(parts)}
    (added,) = sums(tabulated(run, stored(run, table, scores, cut(table, borders))))
    known = [odds for odds in log_odds if not math.isnan(odds)]
    assert added["top"] == (log_odds.index(max(known)) if known else -1)
    assert added["num_scored"] == len(known)


@pytest.mark.parametrize("rule", ["max", "mean"])
def test_rows_that_failed_are_left_out_of_their_fragment(make_run, rule):
    """The others make it, as if it had no more; a fragment of which none is left is not scored."""
    rules = make_run(rule).rules
    table, scores = unit_of([[(1, 0.9), (2, 0.2), (3, 0.7)], [(1, 0.4)], [(0, 0.6)]])
    scores[[1, 3]] = np.nan
    unit, num_failed = fragments_of([rules], scored(table, scores))
    fewer, _ = fragments_of([rules], scored(*unit_of([[(1, 0.9), (3, 0.7)], [], [(0, 0.6)]])))
    assert unit["log_odds"].tolist()[::2] == fewer["log_odds"].tolist()[::2]
    assert np.isnan(unit["log_odds"]).tolist() == [False, True, False]
    assert (num_failed.tolist(), unit["num_open"].tolist()) == ([1, 1, 0], [3, 1, 0])


def test_rows_that_failed_are_counted_a_sequence(make_run):
    """Duplicates of a failed row failed too."""
    run = make_run(frameless="score")
    table, scores = unit_of([[(1, 0.9), (2, 0.2)], [(1, 0.9)], [(0, 0.6)]])
    table.rows["source"][2] = 0
    scores[0] = np.nan
    found = tabulated(run, stored(run, table, scores, cut(table, {1})))
    (added,) = sums(found)
    assert found.sequences["num_failed"].tolist() == [2]
    counts = {name: int(added[name]) for name in ("num_rows", "num_frameless", "num_scored", "num_open")}
    assert counts == {"num_rows": 3, "num_frameless": 1, "num_scored": 2, "num_open": 1}


def test_a_unit_without_any_row_is_tabulated(make_run):
    """All its fragments are there, none is scored."""
    run = make_run()
    table, scores = unit_of([[], []])
    found = tabulated(run, stored(run, table, scores, [table]))
    (added,) = sums(found)
    assert (found.sequences["num_fragments"].tolist(), added["num_scored"], added["log_odds"]) == ([2], 0, 0.0)
    calls = call_sequences(found, Calling())[0]
    assert calls["call"].tolist() == [Call.NO_CALL]
    assert np.isnan(calls["p_virus"]).all()


def test_rows_in_are_scores_out(make_run, whole):
    """A row too few or too many is an error and never a shift."""
    table, scores = whole
    run = make_run()
    index = stored(run, table, scores, [table])
    for wrong in (scores[:-1], np.concatenate([scores, scores])):
        store.write_arrays(run.dir.scores(0), "scores", {"scores": wrong}, {"unit_digest": "x"})
        with pytest.raises(CountError, match="scores came out"):
            tabulated(run, index)
        assert not run.dir.row_scores.exists()


def test_fragments_cut_are_fragments_counted(make_run, whole):
    """A unit that is not in the index is missed."""
    table, scores = whole
    run = make_run()
    index = stored(run, table, scores, cut(table, {10}))
    with pytest.raises(CountError, match="were cut"):
        tabulated(run, replace(index, units=index.units[:1]))


def test_a_run_without_sequences_has_an_empty_table(make_run):
    """And leaves no scores behind."""
    run = make_run()
    item = IndexedInput("in.fasta", "in", "empty", "none", "0" * 64, 0, 0, 0)
    assert len(tabulated(run, Index((item,), (), 0))) == 0
    assert not run.dir.row_scores.exists()


def test_an_input_has_its_own_rows_though_their_sources_lie_in_others(make_run, whole):
    """Scores of all units before are there, from whichever unit is asked first."""
    table, scores = whole
    run = make_run()
    twin = int(np.searchsorted(table.fragments["sequence"], table.names.to_bytes().index(b"again")))
    index = stored(run, table, scores, cut(table, {5, twin}))
    with StoredScores(run.dir, run.rules, index) as stored_scores:
        last = stored_scores.unit(len(index.units) - 1)
    rows = last.table.rows
    assert (rows["source"] < last.table.first_row).any()
    assert last.scores.tobytes() == scores[rows["source"]].tobytes()
