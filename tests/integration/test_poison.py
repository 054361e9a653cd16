"""Rows that make the encoder raise or kill its process: found by halving, listed, and the rest is finished."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from conftest import mixed_records, open_dna, read_tsv, result_bytes, write_fasta
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import write_tiny_bundle
from work_samples import DiesAtRows

from virnucpro import store
from virnucpro.errors import WorkerError
from virnucpro.executors.base import Outcome, UnitDone, UnitFailed, Worker
from virnucpro.executors.local import LocalExecutor
from virnucpro.run_dir import RunDir
from virnucpro.stages import poison

POISON = "ACGTACGTACGTACGTACGTACGT"
"""Its own reverse complement, so that every frame that covers it holds it."""


@given(
    st.integers(0, 300).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(0, n - 1)), max_size=20)))
)
def test_halving_finds_the_rows_that_fail_and_no_others(drawn):
    """Whatever their number and place; a unit without rows has none."""
    num_rows, bad = drawn
    bad = {row for row in bad if row < num_rows}

    def attempt(parts: tuple[range, ...]) -> Iterator[Outcome]:
        for number, part in enumerate(parts):
            assert len(part)
            yield UnitFailed(number, f"{part.start}") if bad & set(part) else UnitDone(number, len(part))

    assert poison.find(num_rows, attempt) == {row: str(row) for row in bad}


def test_a_unit_in_which_everything_fails_is_no_matter_of_single_rows():
    """It ends soon, with the reason, and not after sixteen thousand attempts."""
    attempts = []

    def attempt(parts: tuple[range, ...]) -> Iterator[Outcome]:
        attempts.extend(parts)
        yield from (UnitFailed(number, "the model is broken") for number in range(len(parts)))

    with pytest.raises(WorkerError, match="the model is broken"):
        poison.find(16_384, attempt)
    assert len(attempts) < 300


def test_rows_that_kill_their_process_are_found_too():
    """As a fault in a kernel, or the system out of memory, would: no exception tells which row it was."""
    bad = frozenset({2, 7})
    with LocalExecutor([Worker(index, "cpu", 1) for index in range(2)]) as executor:
        found = poison.find(8, lambda parts: executor.run(DiesAtRows(parts, bad), range(len(parts))))
    assert set(found) == bad
    assert all("killed" in reason for reason in found.values())


@pytest.fixture(scope="module")
def poisoned_bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("poisoned") / "bundle", poison=POISON)


def records():
    """Twenty-four good ones, and two of which some rows are poisonous."""
    named = mixed_records(24, seed=3)
    names = list(named)
    half = POISON + open_dna(276, seed=50)[len(POISON) :]
    return {
        **{name: named[name] for name in names[:12]},
        "bad_all": half,
        **{name: named[name] for name in names[12:]},
        "bad_part": open_dna(600, seed=51) + half,
    }


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="serial"),
        pytest.param(("--parallel", "--threads", 2), id="parallel", marks=pytest.mark.slow),
    ],
)
def test_poisonous_rows_are_listed_and_all_others_are_scored(
    virnucpro, tmp_path, poisoned_bundle, tiny_bundle, options
):
    """Exit 5; every other row has the score it has without them; the same command again computes nothing anew."""
    fasta = write_fasta(tmp_path / "in.fasta", records())
    common = ("predict", fasta, "--keep-intermediate", "--no-progress", "--unit-rows", 9)
    ended = virnucpro(*common, "-o", tmp_path / "out", "--model", poisoned_bundle, *options)
    assert ended.code == 5, ended.err
    assert "in.failed.tsv" in ended.err
    failed = read_tsv(tmp_path / "out/in.failed.tsv")
    rows = read_tsv(tmp_path / "out/in.rows.tsv.gz")
    poisonous = [row["name"] for row in rows if POISON in row["nucleotide"]]
    assert {line["name"] for line in failed} == {"bad_all", "bad_part"}
    assert len(failed) == len(poisonous) >= 2
    assert virnucpro(*common, "-o", tmp_path / "good", "--model", tiny_bundle).code == 0
    expected = {row["name"]: row for row in read_tsv(tmp_path / "good/in.rows.tsv.gz")}
    for row in rows:
        if row["name"] in poisonous:
            assert (row["score_other"], row["score_virus"]) == ("NA", "NA")
        else:
            assert row == expected[row["name"]]
    assert len(rows) == len(expected)
    _check_sequences(tmp_path)
    again = virnucpro(*common, "-o", tmp_path / "out", "--model", poisoned_bundle, *options)
    assert again.code == 5
    assert "embed:" not in again.err


def _check_sequences(folder):
    sequences = {line["name"]: line for line in read_tsv(folder / "out/in.sequences.tsv")}
    expected = {line["name"]: line for line in read_tsv(folder / "good/in.sequences.tsv")}
    assert sequences["bad_all"]["status"] == sequences["bad_part"]["status"] == "failed"
    assert sequences["bad_all"]["call"] == "no_call"
    assert sequences["bad_part"]["call"] != "no_call"
    assert "could not be computed" in sequences["bad_part"]["reason"]
    for name, line in sequences.items():
        if not name.startswith("bad"):
            assert line["p_virus"] == expected[name]["p_virus"]


def test_verify_tells_of_failed_rows_and_repair_tries_them_again(virnucpro, tmp_path, poisoned_bundle):
    """Exit 5 with the unit named; repair ends with exit 5 while the rows still fail."""
    fasta = write_fasta(
        tmp_path / "in.fasta", {"bad": POISON + open_dna(276, seed=50)[len(POISON) :], **mixed_records(4)}
    )
    out = tmp_path / "out"
    assert virnucpro("predict", fasta, "-o", out, "--model", poisoned_bundle, "--no-progress").code == 5
    before = result_bytes(out, "in", "failed.tsv")
    listed = poison.read(RunDir(out).failed(0))
    scores = store.read_arrays(RunDir(out).scores(0), "scores", "scores")["scores"]
    assert set(listed) == set(np.flatnonzero(np.isnan(scores).any(axis=1)).tolist())
    assert all("out of range" in reason for reason in listed.values())
    ended = virnucpro("verify", out)
    assert ended.code == 5
    assert "failed" in ended.out
    assert virnucpro("verify", out, "--repair").code == 5
    assert result_bytes(out, "in", "failed.tsv") == before
