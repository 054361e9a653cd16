"""What repeats itself is found; what does not is left alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from conftest import write_fasta
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.sequence.complexity import WORD_NT, are_repetitive, codes_of_each, mean_dust, repeated_share
from virnucpro.sequence.extract import Extraction
from virnucpro.sequence.table import Status

COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")


def letters(text: bytes) -> np.ndarray:
    return np.frombuffer(text, dtype=np.uint8)


def random_bases(length: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).choice(letters(b"ACGT"), length).tobytes()


def is_repetitive(text: bytes) -> bool:
    return bool(are_repetitive(letters(text), np.array([0]), np.array([len(text)]))[0])


def laid_out(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Letters, starts and stops."""
    ends = np.cumsum([0, *map(len, texts)])
    return letters(b"".join(texts)), ends[:-1], ends[1:]


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


several = st.lists(texts.filter(lambda text: len(text) >= WORD_NT), min_size=1, max_size=4)


@settings(deadline=None)
@given(several)
def test_the_share_of_words_that_recur_is_that_of_a_plain_count(items):
    """On either strand, each stretch by itself."""
    all_letters, starts, stops = laid_out(items)
    shares = repeated_share(codes_of_each(all_letters, starts, stops - starts))
    assert shares.tolist() == pytest.approx(list(map(plainly_repeated, items)))


@settings(deadline=None)
@given(several)
def test_the_complexity_is_that_of_a_plain_count(items):
    """Words with other letters than A, C, G and T are not counted."""
    all_letters, starts, stops = laid_out(items)
    lengths = stops - starts
    assert mean_dust(codes_of_each(all_letters, starts, lengths), lengths).tolist() == pytest.approx(
        list(map(plain_dust, items))
    )


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


def test_each_of_many_is_judged_by_itself():
    """Whatever else is looked at with it."""
    same = random_bases(300, seed=4)
    items = [same, same, b"A" * 400, random_bases(1000, seed=5), same, b"", same * 2, *[random_bases(400, 6)] * 900]
    assert are_repetitive(*laid_out(items)).tolist() == [False, False, True, False, False, False, True, *[False] * 900]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([b"ACGTTGCAAGGCTA", b"T" * 25, b"ACGT"]) | st.integers(0, 9), min_size=3, max_size=9))
def test_what_is_looked_at_beside_changes_nothing(parts):
    """One alone, many of its length and many of others are judged alike."""
    text = b"".join(part if isinstance(part, bytes) else random_bases(60, part) for part in parts)
    alone = is_repetitive(text)
    assert are_repetitive(*laid_out([text] * 40)).tolist() == [alone] * 40
    others = [random_bases(len(text) + i, i) for i in range(20)]
    assert are_repetitive(*laid_out([*others, text])).tolist()[-1] == alone


def test_records_are_marked_where_the_model_asks_for_it(tmp_path):
    """In any case of letters; a record that is too short is that in the first place."""
    records = {"open": random_bases(300), "poly": b"a" * 300, "short": b"A" * 50}
    fasta = write_fasta(tmp_path / "in.fasta", {name: text.decode() for name, text in records.items()})
    for find, expected in ((False, [Status.OK, Status.OK]), (True, [Status.OK, Status.REPETITIVE])):
        units = Extraction([str(fasta)], 300, 100, 64, find_repetitive=find, score_frameless=True).units()
        assert [status for unit in units for status in unit.sequences["status"]] == [*expected, Status.TOO_SHORT]
