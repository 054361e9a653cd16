"""The call of a longer record: its fragments and genes together; and how whole records are measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_tables import RULES, line, table_of, with_genes

from virnucpro.bundles.rules import GENE_CLASSES, RecordWeights
from virnucpro.errors import InputError
from virnucpro.results.called import InputResults
from virnucpro.results.calls import NUM_CLASSES, Call, Calling, call_sequences, evidence_of, record_features
from virnucpro.results.counts import overview
from virnucpro.results.figures import gene_maps, map_figure, map_text
from virnucpro.results.regions import proviruses
from virnucpro.sequence.table import Status
from virnucpro.stored_json import convert
from virnucpro.training.records import Labelled, fit, measure, measure_communities, measure_curated, read_curated

WEIGHTS = RecordWeights((500.0, 5_000.0), (0.0, 0.0), (1.0, 1.0), (0.0, -2.0, -4.0, -2.0, 0.0, 3.0, 6.0))
HOST, VIRUS = 0.05, 0.95
CHROMOSOME = [HOST] * 40 + [VIRUS] * 20 + [HOST] * 40


def made(*lines, weights=WEIGHTS):
    return with_genes(table_of(lines, replace(RULES, records=weights)))


def test_a_record_with_a_provirus_is_called_by_its_host_part():
    table = made(line("chromosome", 50_000, CHROMOSOME), line("host", 40_000, HOST), line("phage", 30_000, VIRUS))
    results = InputResults.of(table, Calling())
    assert results.calls["call"].tolist() == [Call.NOT_VIRUS, Call.NOT_VIRUS, Call.VIRUS]
    assert results.proviruses[["sequence", "start", "stop"]].tolist() == [(0, 20_000, 30_000)]
    evidence = evidence_of(table, results.proviruses)
    assert evidence[0] == pytest.approx(evidence[1], abs=1e-5)
    assert evidence_of(table)[0] > evidence[0]


def test_features_are_bounded_means_and_shares():
    table = made(line("phage", 30_000, VIRUS), line("short", 700, VIRUS), line("empty", 0, VIRUS, Status.EMPTY))
    features, lengths = record_features(table, proviruses(table), WEIGHTS)
    assert lengths.tolist() == [30_000, 700, 0]
    assert features.shape == (3, 1 + NUM_CLASSES) == (3, 1 + len(GENE_CLASSES))
    assert features[0, 0] == pytest.approx(np.log(VIRUS / (1 - VIRUS)) * np.sqrt(20))
    assert features[1, 0] == pytest.approx(np.log(VIRUS / (1 - VIRUS)) * np.sqrt(1.4))
    assert features[0, 1:].tolist() == [0.0] * (NUM_CLASSES - 1) + [pytest.approx(np.sqrt(30))]
    assert np.isnan(features[2]).all()


def test_single_fragments_and_other_models_are_called_by_fragments_alone():
    lines = [line("short", 500, 0.7), line("long", 5_000, 0.7)]
    with_weights, without = (evidence_of(made(*lines, weights=weights)) for weights in (WEIGHTS, None))
    assert with_weights[0] == without[0] == pytest.approx(np.log(0.7 / 0.3), rel=1e-5)
    assert with_weights[1] > without[1]


def test_nothing_depends_on_how_a_table_is_taken_apart():
    lines = [line(f"r{place}", 1_000 + 700 * place, HOST if place % 3 else VIRUS) for place in range(40)]
    lines.insert(17, line("chromosome", 50_000, CHROMOSOME))
    table = made(*lines)
    whole = InputResults.of(table, Calling())
    for start, stop in ((0, 13), (13, 18), (18, 41)):
        part = InputResults.of(table.slice(start, stop), Calling())
        assert part.calls["p_virus"].tolist() == whole.calls["p_virus"][start:stop].tolist()
    assert call_sequences(table, Calling())[0]["p_virus"].tolist() != whole.calls["p_virus"].tolist()


def test_weights_are_linear_in_the_logarithm_of_the_length_and_constant_beyond():
    weights = RecordWeights((500.0, 5_000.0), (0.0, 1.0), (2.0, 1.0), (0.0,) * 7)
    lengths = np.array([100, 500, 1_581, 5_000, 90_000.0])
    assert weights.at(weights.intercept, lengths) == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-3)
    assert weights.at(weights.fragments, lengths) == pytest.approx([2, 2, 1.5, 1, 1], abs=1e-3)


def test_weights_that_make_no_sense_are_refused():
    good = {"lengths": [500, 5000], "intercept": [0, 0], "fragments": [1, 1], "genes": [0] * 7}
    assert convert(good, RecordWeights).most_genes == 30
    for wrong, sentence in (
        ({"genes": [1, 2]}, "7 weights"),
        ({"fragments": [1]}, "lists of one length"),
        ({"lengths": [5000, 500]}, "ascend"),
        ({"lengths": [0, 500]}, "above zero"),
    ):
        with pytest.raises(ValueError, match=sentence):
            convert(good | wrong, RecordWeights)
    with pytest.raises(ValueError, match="other is not known"):
        convert(good | {"other": 1}, RecordWeights)


def test_maps_show_viruses_and_proviruses_and_no_foreign_text_as_it_is():
    table = made(line("chromosome", 50_000, CHROMOSOME), line("phage", 30_000, VIRUS), line("short", 900, VIRUS))
    table = replace(table, organisms={7: ("<b>phage</b>", "Made & co")})
    results = InputResults.of(table, Calling())
    provirus, phage = gene_maps(results, overview(results))
    assert (provirus.name, provirus.region) == (b"chromosome", (20_000, 30_000))
    assert (phage.name, phage.region, len(phage.genes)) == (b"phage", None, 60)
    assert {*provirus.kinds} == {"virus", "cell"}
    assert {*phage.kinds} == {"virus"}
    assert "Provirus 20,001 to 30,000: 20 genes, 20 nearer to viruses" in map_text(provirus)
    svg = map_figure(phage).svg()
    assert svg.count("<path") >= 60
    assert "<b>" not in svg
    assert "&lt;b&gt;phage&lt;/b&gt; (Made &amp; co)" in svg


def labelled(num=400, seed=3):
    gen = np.random.default_rng(seed)
    lines, classes = [], []
    for place in range(num):
        is_virus = bool(gen.random() < 0.5)
        p = 1 / (1 + np.exp(-gen.normal(1.5 if is_virus else -1.5, 1.2, 8)))
        lines.append(line(f"r{place}", 4_000, p.tolist()))
        classes.append("virus" if is_virus else "bacteria")
    return Labelled(made(*lines, weights=None), np.array(classes), np.array(["made"] * num))


def test_fitted_weights_tell_viruses_from_hosts_and_are_calibrated():
    records = labelled()
    weights = fit(records)
    assert min(weights.fragments) > 0
    assert weights.genes[-1] > weights.genes[2]
    table = replace(records.table, rules=(replace(RULES, records=weights),))
    evidence = evidence_of(table, proviruses(table))
    assert ((evidence > 0) == records.is_virus).mean() > 0.95
    sure = Labelled(table, records.classes, records.groups)
    found = measure(sure, Calling())
    assert found["by_length"]["3000-10000"]["auroc"] > 0.99
    assert found["long_hosts"] == {"num": 0, "called_virus": 0}
    for share, community in measure_communities(sure).items():
        if community["fdr_true"] is not None and float(share) > 0:
            assert abs(community["fdr_said"] - community["fdr_true"]) < 0.05
            assert community["low"] <= community["prevalence"] <= community["high"]


def test_curated_proviruses_are_counted_by_half_their_bases():
    table = made(line("made|ACC1.2", 50_000, CHROMOSOME), line("other", 50_000, CHROMOSOME))
    found = measure_curated(table, {"ACC1": [(20_000, 32_000), (5_000, 6_000)], "ACC9": [(0, 10)]})
    assert (found["curated"], found["found"], found["regions"], found["elsewhere"]) == (2, 1, 1, 0)
    assert found["base_recall"] == round(10_000 / 13_000, 4)
    assert found["base_precision"] == 1.0


def test_tables_of_curated_proviruses_are_checked(tmp_path):
    path = tmp_path / "prophages.tsv"
    path.write_text("accession\tstart\tstop\nACC1.2\t11\t90\nACC1.2\t100\t200\n")
    assert read_curated(path) == {"ACC1": [(10, 90), (99, 200)]}
    for text, problem in (
        ("accession\tstart\nx\t1\n", "no column stop"),
        ("accession\tstart\tstop\nx\ta\t9\n", "line 2"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=problem):
            read_curated(path)
