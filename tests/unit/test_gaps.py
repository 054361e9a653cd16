"""A gap changes nothing that a record is judged by, and everything is said on the record as it was given."""

import itertools
import re

import numpy as np
import pytest
from conftest import random_dna, write_fasta
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.gaps import SHORTEST_GAP_NT, Gaps, others_of, without_gaps
from virnucpro.sequence.table import Mask, Status

LENGTH = 120
SAID = ("sequence", "fragment", "frame", "source")
"""What of a row does not tell where it lies."""

stretches = st.sampled_from(["A", "CG", "N", "X" * 9, "N" * 10, "NRX" * 8])
records = st.lists(st.lists(stretches, max_size=8).map("".join), max_size=5)


def letters_of(*bases: str) -> np.ndarray:
    return np.frombuffer("".join(bases).encode(), dtype=np.uint8)


def cut(path, sequences, **options):
    """All units of some records."""
    fasta = write_fasta(path / "in.fa", sequences)
    asked = {"unit_rows": 7, "score_frameless": True, "find_repetitive": True, "close_gaps": True} | options
    return list(Extraction([str(fasta)], LENGTH, 50, **asked).units())


def columns(units, part, names):
    return [line for unit in units for line in getattr(unit, part)[list(names)].tolist()]


@given(records)
def test_gaps_are_the_runs_of_ten_of_each_record(sequences):
    """However records lie end to end."""
    offsets = np.cumsum([0, *map(len, sequences)])
    found = Gaps.among(others_of(letters_of(*sequences)), offsets)
    expected = [
        (offset + match.start(), offset + match.end())
        for offset, bases in zip(offsets.tolist(), sequences, strict=False)
        for match in re.finditer("[NRX]{10,}", bases)
    ]
    assert list(zip(found.starts.tolist(), found.stops.tolist(), strict=True)) == expected
    closed = [re.sub("[NRX]{10,}", "", bases) for bases in sequences]
    assert found.close(letters_of(*sequences)).tobytes().decode() == "".join(closed)
    assert found.closed(offsets).tolist() == [0, *np.cumsum([*map(len, closed)]).tolist()]


@given(records.map("".join))
def test_places_come_back(bases):
    """What is not a gap has its place on the closed letters; a stretch of these ends where its bases do."""
    gaps = Gaps.among(others_of(letters_of(bases)), np.array([0, len(bases)]))
    of_letter = [place for place in range(len(bases)) if not ((gaps.starts <= place) & (place < gaps.stops)).any()]
    assert gaps.closed(np.array(of_letter, dtype=np.int64)).tolist() == list(range(len(of_letter)))
    for start in range(len(of_letter)):
        stops = np.arange(start + 1, len(of_letter) + 1)
        firsts, lasts = gaps.opened(np.full(len(stops), start), stops)
        assert set(firsts.tolist()) <= {of_letter[start]}
        assert lasts.tolist() == [place + 1 for place in of_letter[start:]]
        assert gaps.closed(lasts).tolist() == stops.tolist()


@settings(deadline=None)
@given(st.data(), st.integers(1, 2))
def test_a_record_with_gaps_gives_the_rows_of_the_record_without(tmp_path_factory, data, num_gaps):
    """The same strings, masks and duplicates in the same units; bounds hold the same bases, on the record as given."""
    folder = tmp_path_factory.mktemp("cut")
    plain = {f"r{size}": random_dna(size, seed=size) for size in (40, 119, 121, 700)}
    plain |= {"repeat": "TTAGGG" * 60, "same": plain["r700"]}
    gapped = {}
    for name, bases in plain.items():
        places = data.draw(st.lists(st.integers(0, len(bases)), min_size=num_gaps, max_size=num_gaps, unique=True))
        gap = data.draw(st.sampled_from(["n", "N", "X", "Nr"])) * data.draw(st.integers(10, 700))
        bounds = itertools.pairwise([0, *sorted(places), len(bases)])
        gapped[name] = gap.join(bases[start:stop] for start, stop in bounds)
    then, now = cut(folder, plain), cut(folder, gapped)
    for names, part in ((SAID, "rows"), (("sequence", "index", "num_rows", "masked", "length"), "fragments")):
        assert columns(now, part, names) == columns(then, part, names)
    for unit, with_gaps in zip(then, now, strict=True):
        assert with_gaps.nucleotides.to_bytes() == unit.nucleotides.to_bytes()
        assert with_gaps.proteins.to_bytes() == unit.proteins.to_bytes()
        assert (with_gaps.sequences["length"] >= unit.sequences["length"] + 10).all()
    for part in ("rows", "fragments"):
        places = ("sequence", "start", "stop")
        of_pairs = zip(columns(then, part, places), columns(now, part, places), strict=True)
        for (number, *bounds), (_, *on_given) in of_pairs:
            name = [*plain][number]
            found = gapped[name][slice(*on_given)]
            assert without_gaps(found.encode()) == plain[name][slice(*bounds)].encode()
            assert {found[0], found[-1]} <= set("ACGT")
    gaps = [(number, *span) for number, bases in enumerate(gapped.values()) for span in spans(bases)]
    assert columns(now, "gaps", ("sequence", "start", "stop")) == gaps
    rejoined = [b""] * len(gapped)
    for unit in now:
        for number, piece in zip(unit.piece_sequences.tolist(), unit.pieces.to_bytes(), strict=True):
            rejoined[number] += piece
    assert rejoined == [bases.encode() for bases in gapped.values()]


def spans(bases):
    return [match.span() for match in re.finditer("[nNXr]{10,}", bases)]


@pytest.mark.parametrize("num", [SHORTEST_GAP_NT - 1, SHORTEST_GAP_NT])
def test_fewer_than_ten_are_ambiguous_bases(tmp_path, num):
    """They stay, and take their room in a fragment."""
    bases = random_dna(100, seed=3)
    (unit,) = cut(tmp_path, {"a": bases[:50] + "N" * num + bases[50:]})
    assert unit.fragments["length"].tolist() == [100 + num % SHORTEST_GAP_NT]


@pytest.mark.parametrize(("num", "is_masked"), [(12, False), (13, True)])
def test_a_fragment_with_many_ambiguous_bases_is_masked(tmp_path, num, is_masked):
    """More than a tenth: frames go on through them, so that all looks coding."""
    bases = "".join(
        "R" if place % 9 == 0 and place < 9 * num else base for place, base in enumerate(random_dna(120, 2))
    )
    (unit,) = cut(tmp_path, {"a": bases})
    assert (unit.fragments["masked"] == Mask.FEW_BASES).tolist() == [is_masked]


@pytest.mark.parametrize(("piece_nt", "is_masked"), [(20, True), (30, False)])
def test_a_fragment_sewn_together_of_tiny_pieces_is_masked(tmp_path, piece_nt, is_masked):
    """Less than 25 bases on average."""
    bases = random_dna(120, seed=2)
    pieces = [bases[start : start + piece_nt] for start in range(0, 120, piece_nt)]
    (unit,) = cut(tmp_path, {"a": ("N" * 40).join(pieces)})
    assert unit.fragments["length"].tolist() == [120]
    assert (unit.fragments["masked"] == Mask.FEW_BASES).tolist() == [is_masked]


def test_the_published_method_cuts_records_as_they_are(tmp_path):
    """Its heads were trained so; where the gaps are is known all the same."""
    bases = random_dna(60, seed=3) + "N" * 400 + random_dna(60, seed=4)
    (unit,) = cut(tmp_path, {"a": bases}, close_gaps=False, unit_rows=999)
    assert (unit.fragments["stop"] - unit.fragments["start"]).tolist() == unit.fragments["length"].tolist()
    assert unit.fragments["stop"].max() == len(bases)
    assert unit.gaps.tolist() == [(0, 60, 460)]


def test_nothing_but_gaps_is_no_sequence_to_call(tmp_path):
    """Its length is its own, its status says why, and it has no fragment."""
    records = {"n": "N" * 700, "some": random_dna(49, seed=1) + "N" * 700, "short": "n" * 20, "none": ""}
    (unit,) = cut(tmp_path, records)
    assert unit.sequences["length"].tolist() == [700, 749, 20, 0]
    expected = [Status.AMBIGUOUS, Status.AMBIGUOUS, Status.TOO_SHORT, Status.EMPTY]
    assert unit.sequences["status"].tolist() == expected
    assert unit.fragments[["sequence", "masked"]].tolist() == [(1, Mask.FEW_BASES)]
    assert [piece.decode() for piece in unit.pieces.to_bytes()] == list(records.values())
