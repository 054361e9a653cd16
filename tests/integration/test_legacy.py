"""The published program's two files, against its rule written plainly and against the encoders run by hand."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mixed_records
from hypothesis import given
from hypothesis import strategies as st
from oracle_extraction import extract

from virnucpro.bundles import load_bundle
from virnucpro.encoders import load_encoder
from virnucpro.engine.batch import collate
from virnucpro.heads import load_head, save_head
from virnucpro.results.formats import lines
from virnucpro.results.schema import LEGACY_HIGHEST, LEGACY_RESULTS
from virnucpro.results.tables import legacy_row_cells, legacy_window_cells
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import FRAME_NAMES

RESULTS = "in_merged/prediction_results.txt"
ROLES = ("nucleotide", "protein")
HIGHEST = "in_merged/prediction_results_highestscore.csv"


def published_results(rows):
    """Lines of ``prediction_results.txt`` of (name, score1, score2)."""
    lines = []
    for name, score1, score2 in rows:
        prediction = "virus" if score2 > score1 else "others"
        lines.append("\t".join((name, prediction, str(np.float32(score1)), str(np.float32(score2)))))
    return lines


def published_highest(rows):
    """Lines of ``prediction_results_highestscore.csv`` of (name, score1, score2)."""
    groups = {}
    for name, score1, score2 in rows:
        groups.setdefault(name[:-2], []).append((score1, score2))
    lines = []
    for name in sorted(groups):
        largest_other = max(score1 for score1, _ in groups[name])
        largest_virus = max(score2 for _, score2 in groups[name])
        shown = '"' + name.replace('"', '""') + '"' if '"' in name else name
        lines.append(f"{shown}\t{largest_virus >= largest_other}")
    return lines


def encoded(rows):
    """Names and scores as the report takes them."""
    scores = np.array([(score1, score2) for _, score1, score2 in rows], dtype=np.float32).reshape(-1, 2)
    return [name.encode() for name, _, _ in rows], scores


# Few names and few scores, so that names fall together and scores are equal.
some_scores = st.sampled_from([0.0, 1e-8, 0.25, 0.5, 0.5000001, 0.75, 1.0]) | st.floats(0, 1, width=32)
some_names = st.text('ab"é 1', min_size=1, max_size=3)
some_rows = st.lists(st.tuples(st.builds("{}_chunk_1F1".format, some_names), some_scores, some_scores), max_size=12)


@given(some_rows)
def test_a_row_is_virus_when_its_second_score_is_larger(rows):
    """Of two equal scores the first wins; scores are the text of a float32."""
    assert lines(legacy_row_cells(*encoded(rows))).decode().splitlines() == published_results(rows)


@given(some_rows, st.lists(st.integers(0, 12)))
def test_a_window_is_virus_when_its_largest_virus_score_is_not_smaller(rows, borders):
    """The largest over rows of one name, wherever they stand, and however they come."""
    bounds = [0, *sorted(min(border, len(rows)) for border in borders), len(rows)]
    highest = legacy_window_cells(encoded(rows[start:stop]) for start, stop in pairwise(bounds))
    rows = [(name, np.float32(score1), np.float32(score2)) for name, score1, score2 in rows]
    assert lines(highest).decode().splitlines() == published_highest(rows)


def test_scores_are_written_as_numpy_writes_a_float32():
    """The shortest text that reads back as the same number."""
    scores = np.array([[0.1, 0.9], [1e-8, 1.0], [1.2345679e-05, 0.99998766], [0.5, 0.5]], dtype=np.float32)
    assert lines(legacy_row_cells([b"a", b"b", b"c", b"d"], scores)).decode().splitlines() == [
        "a\tvirus\t0.1\t0.9",
        "b\tvirus\t1e-08\t1.0",
        "c\tvirus\t1.2345679e-05\t0.99998766",
        "d\tothers\t0.5\t0.5",
    ]


def test_names_are_quoted_where_a_csv_needs_it_and_nowhere_else():
    """A double quote is doubled; bytes that are no UTF-8 pass through."""
    names = [b'he"llo_chunk_1F1', b"plain,comma;'1'_chunk_1F1", b"\xff_chunk_1R2", b'"_chunk_10F3']
    highest = legacy_window_cells([(names, np.array([[0.5, 0.5]] * 4, dtype=np.float32))])
    assert lines(highest).splitlines() == [
        b'"""_chunk_10"\tTrue',
        b'"he""llo_chunk_1"\tTrue',
        b"plain,comma;'1'_chunk_1\tTrue",
        b"\xff_chunk_1\tTrue",
    ]


def embed_alone(encoder, string):
    """One string in a batch of its own."""
    tokens = encoder.tokenizer(Ragged.from_bytes([string.encode()]))
    with torch.inference_mode():
        return encoder.embed(next(iter(collate(tokens, [np.array([0])]))))


@pytest.fixture(scope="module")
def by_hand(tiny_bundle, tmp_path_factory):
    """A text of FASTA, a bundle, and (name, score1, score2) of each row, embedded one at a time."""
    mixed = list(mixed_records(8, seed=5).items())
    records = [
        *mixed[:3],
        ('quo"ted', mixed[4][1]),
        ("twin", mixed[6][1]),
        *mixed[5:],
        ("twin", mixed[0][1][:700].lower()),
        ("z|ref=1,2;'3'", mixed[2][1][:301]),
        ("tiny", "ATGC"),
        ("none", "TAATTAATTAA"),
    ]
    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("balanced") / "tiny"))
    bundle = load_bundle(str(folder))
    nucleotide, protein = (load_encoder(bundle.encoder(role), torch.device("cpu"), torch.float32) for role in ROLES)
    kept = extract(records, 300)[1]
    features = [torch.cat([embed_alone(nucleotide, nt), embed_alone(protein, aa)], dim=1) for *_, nt, aa in kept]
    head = load_head(bundle.head)
    with torch.no_grad():  # half of the rows on either side, else random weights call all of them alike
        logits = head(torch.cat(features))
        head.output_layer.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    save_head(bundle.head, head, {})
    rows = []
    for (number, index, frame, *_), feature in zip(kept, features, strict=True):
        score1, score2 = head.scores(feature)[0].tolist()
        rows.append((f"{records[number][0]}_chunk_{index + 1}{FRAME_NAMES[frame]}", score1, score2))
    return "".join(f">{name} described\n{bases}\n" for name, bases in records), folder, rows


@pytest.fixture(params=[(), ("--unit-rows", 3, "--token-budget", 500)], ids=["one unit", "many units"])
def legacy_lines(request, virnucpro, tmp_path, by_hand):
    """Lines of both files as the command line writes them."""
    (tmp_path / "in.fasta").write_text(by_hand[0])
    options = ("--model", by_hand[1], "--legacy-output", "--threads", 1, *request.param)
    ended = virnucpro("predict", tmp_path / "in.fasta", "-o", tmp_path / "out", *options)
    assert ended.code == 0, ended.err
    return [(tmp_path / "out" / name).read_text().splitlines() for name in (RESULTS, HIGHEST)]


def test_the_program_writes_the_published_files(legacy_lines, by_hand):
    """Rows, order, form and scores of a program that does one row at a time; calls by the published rule."""
    (header, *result_lines), (highest_header, *highest_lines) = legacy_lines
    assert tuple(header.split("\t")) == LEGACY_RESULTS.header == ("Sequence_ID", "Prediction", "score1", "score2")
    assert tuple(highest_header.split("\t")) == LEGACY_HIGHEST.header == ("Modified_ID", "Is_Virus")
    written = [line.split("\t") for line in result_lines]
    rows = [(name, np.float32(score1), np.float32(score2)) for name, _, score1, score2 in written]
    expected = by_hand[2]
    assert [name for name, _, _ in rows] == [name for name, _, _ in expected]
    difference = np.array([row[1:] for row in rows]) - np.array([row[1:] for row in expected])
    assert np.abs(difference).max() < 1e-5
    assert result_lines == published_results(rows)
    assert highest_lines == published_highest(rows)


def test_the_example_holds_what_the_rule_is_about(by_hand):
    """Both calls, windows of several frames, two records of one name, a name to be quoted."""
    rows = by_hand[2]
    calls = {line.split("\t")[1] for line in published_results(rows)}
    assert calls == {"virus", "others"}
    windows = published_highest(rows)
    assert len(windows) < len(rows)
    assert {line.split("\t")[1] for line in windows} == {"True", "False"}
    assert any(line.startswith('"quo""ted') for line in windows)
    names = [name for name, _, _ in rows]
    assert len(set(names)) < len(names)


def test_nothing_is_written_where_it_is_not_asked_for(virnucpro, tmp_path, by_hand):
    """And the two files are no part of an ordinary run."""
    (tmp_path / "in.fasta").write_text(by_hand[0])
    assert virnucpro("predict", tmp_path / "in.fasta", "-o", tmp_path / "out", "--model", by_hand[1]).code == 0
    assert not list((tmp_path / "out").rglob("prediction_results*"))
