"""Kept frames agree with the slow oracle and with Biopython."""

import numpy as np
import pytest
from Bio.Seq import Seq
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_extraction import keep_frames as keep_frames_slowly
from oracle_extraction import reverse_complement

from virnucpro.sequence.frames import find_frames, normalise

any_bases = st.text("ACGT", max_size=120) | st.text("ACGTUNRYSWKMBDHVXacgtunryswkmbdhvx", max_size=60)
sense_codons = st.sampled_from([a + b + c for a in "ACG" for b in "ACGT" for c in "ACGT"])


def find_rows(fragment, score_frameless=False, before="", after=""):
    record = normalise(np.frombuffer((before + fragment + after).encode(), dtype=np.uint8))
    start = len(before)
    bounds = np.array([[start], [start + len(fragment)]])
    kept = find_frames(record, *bounds, score_frameless=score_frameless)
    assert kept.counts.tolist() == [len(kept.frames)]
    strings = [[item.decode() for item in items] for items in (kept.nucleotides, kept.proteins.to_bytes())]
    places = [(items - start).tolist() for items in (kept.starts, kept.stops)]
    return list(zip(kept.frames.tolist(), *strings, *places, strict=True))


@settings(deadline=None)
@given(any_bases, st.text("ACGT", max_size=9), st.text("ACGT", max_size=9))
def test_frames_agree_with_oracle(fragment, before, after):
    """Frames, strings and coordinates are those of the plain rule, whatever stands around the fragment."""
    assert find_rows(fragment, before=before, after=after) == keep_frames_slowly(fragment)


@settings(deadline=None)
@given(st.lists(sense_codons, min_size=1, max_size=40).map("".join), st.integers(0, 2))
def test_frames_agree_with_biopython(fragment, cut):
    """On A C G T a kept protein is what Biopython translates, and a frame with a stop codon is not kept."""
    fragment = fragment[cut:]
    kept = {frame: protein for frame, _, protein, _, _ in find_rows(fragment)}
    for frame in (1, 2, 3, -1, -2, -3):
        strand = Seq(fragment) if frame > 0 else Seq(fragment).reverse_complement()
        codons = strand[abs(frame) - 1 :]
        protein = str(codons[: len(codons) // 3 * 3].translate())
        assert kept.get(frame, "") == ("" if "*" in protein else protein)


@settings(deadline=None)
@given(st.text("ACGTN", min_size=3, max_size=100))
def test_coordinates_give_the_string(fragment):
    """Cutting the fragment at start:stop, on the frame's strand, gives the kept nucleotide string."""
    for frame, nucleotide, _, start, stop in find_rows(fragment):
        cut = fragment[start:stop]
        assert (cut if frame > 0 else reverse_complement(cut)) == nucleotide


@pytest.mark.parametrize("fragment", ["TTAACTAGTTAACTAG" * 3, "", "A", "NN", "NNNNNN"])
def test_frameless_fragment_gives_one_row_when_asked(fragment):
    """A fragment without a kept frame gives one row of frame 0: all of it, and no protein."""
    fragment = fragment.lower().replace("t", "u")
    assert keep_frames_slowly(fragment) == []
    assert find_rows(fragment) == []
    whole = fragment.upper().replace("U", "T")
    assert find_rows(fragment, score_frameless=True) == [(0, whole, "", 0, len(fragment))]


def test_codon_with_other_letter_yields_nothing():
    """The protein closes up over an ambiguous codon and the kept string is one base more than its codons."""
    assert find_rows("ATGNNNGCCGCC")[0] == (1, "ATGNNNGCCG", "MAA", 0, 10)


def test_normalise():
    """Letters become upper case and U becomes T; nothing else changes."""
    letters = bytes(range(65, 91)) + bytes(range(97, 123))
    expected = letters.upper().replace(b"U", b"T")
    assert normalise(np.frombuffer(letters, dtype=np.uint8)).tobytes() == expected
