"""What repeats itself is found; what does not is left alone."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from conftest import write_fasta
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.sequence.complexity import LONGEST_NT, WORD_NT, are_repetitive, mean_dust, repeated_share
from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.table import Status

COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")


def letters(text: bytes) -> np.ndarray:
    return np.frombuffer(text, dtype=np.uint8)


def random_bases(length: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).choice(letters(b"ACGT"), length).tobytes()


def is_repetitive(text: bytes) -> bool:
    return bool(are_repetitive(letters(text), np.array([0, len(text)]))[0])


def plainly_repeated(text: bytes) -> float:
    """The share of words seen more than once, with a dictionary."""
    words = [text[i : i + WORD_NT] for i in range(len(text) - WORD_NT + 1)]
    words = [min(word, word.translate(COMPLEMENT)[::-1]) for word in words if b"N" not in word]
    counts = Counter(words)
    return sum(counts[word] > 1 for word in words) / max(len(words), 1)


def plain_dust(text: bytes) -> float:
    """Mean over windows of 64 triplets, half of each in the next, of sum(c * (c - 1) / 2) / (number - 1)."""
    scores = []
    for start in range(0, max(len(text) - 66, 0) + 1, 32):
        window = text[start : start + 66]
        triplets = [window[i : i + 3] for i in range(len(window) - 2)]
        counts = Counter(triplet for triplet in triplets if b"N" not in triplet)
        scores.append(sum(c * (c - 1) / 2 for c in counts.values()) / max(sum(counts.values()) - 1, 1))
    return sum(scores) / len(scores)


texts = st.lists(
    st.one_of(st.text("ACGTN", max_size=80), st.sampled_from(["ACGTTGCAAGGCTA", "TAGCCTTGCAACGT"])), max_size=8
).map(lambda parts: "".join(parts).encode())


@settings(deadline=None)
@given(texts)
def test_the_share_of_words_that_recur_is_that_of_a_plain_count(text):
    """On either strand."""
    assert repeated_share(letters(text)) == pytest.approx(plainly_repeated(text))


@settings(deadline=None)
@given(texts)
def test_the_complexity_is_that_of_a_plain_count(text):
    """Words with other letters than A, C, G and T are no words."""
    assert mean_dust(letters(text)) == pytest.approx(plain_dust(text))


@pytest.mark.parametrize(
    "text",
    [b"A" * 150, b"AT" * 100, b"ACGGT" * 60, random_bases(90) * 5, random_bases(200) + random_bases(200)],
    ids=["homopolymer", "two letters", "microsatellite", "tandem repeat", "twice"],
)
def test_what_repeats_itself_is_found(text):
    """On the other strand too."""
    assert is_repetitive(text)
    assert is_repetitive(text.translate(COMPLEMENT)[::-1])


@pytest.mark.parametrize("length", [0, 5, WORD_NT, 150, 3000, 40_000])
def test_random_bases_do_not_repeat_themselves(length):
    """Of any length."""
    assert not is_repetitive(random_bases(length, seed=length))


def test_a_chromosome_is_not_looked_at():
    """Half of a plant's is repeats."""
    text = random_bases(500) * (LONGEST_NT // 500)
    assert is_repetitive(text)
    assert not is_repetitive(text + b"A")


def test_each_of_many_is_judged_by_itself():
    """What one holds is forgotten before the next."""
    same = random_bases(300, seed=4)
    items = [same, same, b"A" * 400, random_bases(1000, seed=5), same, b"", same * 2]
    offsets = np.cumsum([0, *map(len, items)])
    assert are_repetitive(letters(b"".join(items)), offsets).tolist() == [False, False, True, False, False, False, True]
    assert [is_repetitive(items[i]) for i, _ in enumerate(pairwise(offsets))][2] is True


def test_records_are_marked_where_the_model_asks_for_it(tmp_path):
    """In any case of letters; a record that is too short is that in the first place."""
    records = {"open": random_bases(300), "poly": b"a" * 300, "short": b"A" * 50}
    fasta = write_fasta(tmp_path / "in.fasta", {name: text.decode() for name, text in records.items()})
    for find, expected in ((False, [Status.OK, Status.OK]), (True, [Status.OK, Status.REPETITIVE])):
        units = Extraction([str(fasta)], 300, 100, 64, find_repetitive=find, score_frameless=True).units()
        assert [status for unit in units for status in unit.sequences["status"]] == [*expected, Status.TOO_SHORT]
