"""A fragment that says nothing is masked; what is unusual about the ends of a record is not."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import random_dna, write_fasta
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.fragments import windows, windows_of
from virnucpro.sequence.gaps import Records
from virnucpro.sequence.masks import Masking, mask_windows, terminal_repeat_length
from virnucpro.sequence.table import Mask, Status

LENGTH = 500
COMPLEMENT = str.maketrans("ACGT", "TGCA")


def masked(*records: str) -> tuple[list[int], list[int]]:
    """Masks of all windows and statuses of all records, by the rules of the bundled model."""
    letters = np.frombuffer("".join(records).encode(), dtype=np.uint8)
    offsets = np.cumsum([0, *map(len, records)])
    mask, status = mask_windows(Records.of(letters, offsets), LENGTH, Masking(100, find_repetitive=True))
    return mask.tolist(), status.tolist()


def turned(bases: str) -> str:
    return bases.translate(COMPLEMENT)[::-1]


@settings(deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=8), st.integers(3, 700))
def test_windows_of_many_records_are_those_of_each(lengths, fragment_length):
    """The closed form and the loop agree."""
    num_windows, starts, stops = windows_of(np.array(lengths, dtype=np.int64), fragment_length)
    each = [windows(length, fragment_length) for length in lengths]
    assert num_windows.tolist() == list(map(len, each))
    assert np.column_stack([starts, stops]).tolist() == [bounds for part in each for bounds in part.tolist()]


@settings(deadline=None)
@given(st.integers(0, 4000), st.integers(10, 10_000), st.sampled_from("NXR"))
def test_a_gap_masks_what_it_fills_and_nothing_else(place, gap, letter):
    """A window needs a hundred bases of A C G T, and half of its own; the record keeps its status."""
    host = random_dna(4000, seed=3)
    mask, (status,) = masked(host[:place] + letter * gap + host[place:])
    bounds = windows(4000 + gap, LENGTH)
    for (start, stop), kind in zip(bounds.tolist(), mask, strict=True):
        num_clear = max(0, min(stop, place) - start) + max(0, stop - max(start, place + gap))
        has_few = num_clear < 100 or 2 * num_clear < stop - start
        assert kind == (Mask.FEW_BASES if has_few else Mask.NONE)
    assert status == Status.OK


@pytest.mark.parametrize("unit", ["TTAGGG", "CCCTAA", "TTTAGGG", "A", "AT", random_dna(60, seed=8)])
def test_a_tandem_repeat_masks_the_fragments_it_fills(unit):
    """Eight thousand bases of it inside a host contig, which stays fit to be called by the rest."""
    left, right = random_dna(12_000, seed=1), random_dna(12_000, seed=2)
    mask, (status,) = masked(left + (unit * 8000)[:8000] + right)
    for (start, stop), kind in zip(windows(32_000, LENGTH).tolist(), mask, strict=True):
        repeated = min(stop, 20_000) - max(start, 12_000)
        if repeated >= 0.4 * LENGTH or repeated <= 0:
            assert kind == (Mask.REPETITIVE if repeated > 0 else Mask.NONE)
    assert status == Status.OK


def test_a_record_of_repeats_is_repetitive():
    """Also one that is longer than any virus, and one whose gaps leave nothing but repeats."""
    telomere = "TTAGGG" * 20_000
    for record in (telomere, telomere[:900], "N" * 3000 + telomere[:3000], telomere[:3000] + random_dna(2000, seed=4)):
        assert masked(record)[1] == [Status.REPETITIVE]
    assert masked(telomere[:2000] + random_dna(3000, seed=4))[1] == [Status.OK]


@settings(deadline=None)
@given(
    st.text("ACN", max_size=9) | st.text("ACGT", max_size=20),
    st.text("ACGT", max_size=9),
    st.sampled_from([str, turned]),
)
def test_the_length_of_terminal_repeats_is_that_of_the_plain_rule(repeat, inner, strand):
    """The longest that fits twice, on either strand."""
    record = repeat + inner + strand(repeat)
    lengths = range(1, len(record) // 2 + 1)
    plain = [n for n in lengths if record[:n] in (record[-n:], turned(record)[:n])]
    assert terminal_repeat_length(record.encode()) == max(plain, default=0)


@pytest.mark.parametrize("length", [300, 480, 500, 501, 900, 3000])
def test_terminal_repeats_are_not_repetitive(length):
    """Direct, as circular contigs have them, or inverted, as linear viruses do; a dimer is one too."""
    repeat = random_dna(127, seed=5)
    inner = random_dna(length - 254, seed=6)
    monomer = random_dna(length // 2, seed=7)
    for record in (repeat + inner + repeat, repeat + inner + turned(repeat), monomer + monomer):
        mask, (status,) = masked(record)
        assert status == Status.OK, record
        assert set(mask) == {Mask.NONE}
    assert terminal_repeat_length((repeat + inner + repeat).encode()) >= 127
    assert masked("ACGGT" * (length // 5))[1] == [Status.REPETITIVE]


@pytest.mark.parametrize(
    ("record", "status"),
    [
        (random_dna(99, seed=1), Status.TOO_SHORT),
        ("N" * 700, Status.AMBIGUOUS),
        (random_dna(80, seed=1) + "N" * 2000, Status.AMBIGUOUS),
        ((random_dna(60, seed=1) + "N" * 440) * 6, Status.AMBIGUOUS),
    ],
)
def test_what_gets_no_call_has_no_fragment_to_score(tmp_path, record, status):
    """Nothing is embedded for it."""
    fasta = write_fasta(tmp_path / "in.fa", {"a": record, "b": random_dna(600, seed=2)})
    (unit,) = Extraction([str(fasta)], LENGTH, 100, 64, score_frameless=True, find_repetitive=True).units()
    assert unit.sequences["status"].tolist() == [status, Status.OK]
    is_first = unit.fragments["sequence"] == 0
    assert (unit.fragments["masked"] > 0).tolist() == is_first.tolist()
    assert (unit.fragments["num_rows"] == 0).tolist() == is_first.tolist()
    assert set(unit.rows["sequence"].tolist()) == {1}


def test_no_unit_spans_two_inputs(tmp_path):
    """However much room is left."""
    paths = [write_fasta(tmp_path / f"{i}.fa", {f"r{i}": random_dna(120, seed=i)}) for i in range(3)]
    paths.insert(1, write_fasta(tmp_path / "empty.fa", {}))
    extraction = Extraction(list(map(str, paths)), LENGTH, 100, 4096, score_frameless=True)
    assert [unit.sequences["number"].tolist() for unit in extraction.units()] == [[0], [1], [2]]
    assert [item.first_sequence for item in extraction.inputs] == [0, 1, 1, 2]
