"""Sequences of no organism: each kind is what its name says, and the panel counts calls."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import pytest
from test_training import write_data

from virnucpro.encoders.codons import BASE_CODES
from virnucpro.run.predict import score
from virnucpro.settings import make_settings
from virnucpro.training.genomes import LETTERS, load_genomes
from virnucpro.training.panel import (
    HIGHEST_SHARE,
    KINDS,
    LENGTHS,
    adapter_poly_g,
    draw_panel,
    homopolymers,
    measure_panel,
    open_random,
    random_of_gc,
    repeats_of,
    shuffle_words,
)
from virnucpro.training.sampling import reverse_complement

STOPS = ("TAA", "TAG", "TGA")


@pytest.fixture(scope="module")
def genomes(tmp_path_factory):
    return load_genomes(write_data(tmp_path_factory.mktemp("data")), "dev")


def words(codes, size):
    return Counter(bytes(codes[i : i + size]) for i in range(len(codes) - size + 1))


def generator():
    return np.random.default_rng(3)


BLANK = np.zeros((40, 600), dtype=np.uint8)


@pytest.mark.parametrize("word", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [3, 30, 700])
def test_a_shuffle_keeps_how_often_each_word_occurs(word, length):
    draw = generator()
    for _ in range(20):
        codes = draw.choice(5, size=length, p=[0.4, 0.2, 0.2, 0.19, 0.01]).astype(np.uint8)
        made = shuffle_words(codes, word, draw)
        assert words(made, word) == words(codes, word)
        assert length < 100 or word > 3 or (made != codes).mean() > 0.3


def test_all_walks_of_a_shuffle_are_about_as_likely():
    codes = BASE_CODES[np.frombuffer(b"ACATAGA", dtype=np.uint8)].astype(np.uint8)
    draw = generator()
    seen = Counter(bytes(shuffle_words(codes, 2, draw)) for _ in range(1200))
    assert len(seen) == 6  # C, T and G between the As in any order
    assert min(seen.values()) > 150


def test_open_random_has_a_frame_without_a_stop():
    for codes in open_random(BLANK, generator()):
        strands = (codes, reverse_complement(codes[None])[0])
        texts = [LETTERS[strand].tobytes().decode() for strand in strands]
        frames = [[text[i : i + 3] for i in range(0, 600, 3)] for text in texts]
        assert any(not set(frame) & set(STOPS) for frame in frames)


def test_gc_repeats_and_runs_are_as_asked_for():
    gc = np.isin(random_of_gc(0.75)(BLANK, generator()), (1, 2)).mean()
    assert gc == pytest.approx(0.75, abs=0.02)
    runs = homopolymers(BLANK, generator())
    assert (runs[:, 1:] != runs[:, :-1]).mean() < 0.1
    repeats = repeats_of(5, 5)(BLANK, generator())
    assert (repeats[:, 5:] == repeats[:, :-5]).mean() > 0.75
    tailed = adapter_poly_g(BLANK, generator())
    assert (tailed[:, 200:] == 2).mean() > 0.95


def test_the_panel_is_large_and_the_same_for_a_seed(genomes):
    panel = draw_panel(genomes, 1)
    assert tuple(panel) == LENGTHS
    assert sum(map(len, panel.values())) >= 1000
    assert all(part.shape == (15 * len(KINDS), length) for length, part in panel.items())
    assert all(part.max() <= 3 for part in panel.values())
    again, other = draw_panel(genomes, 1, 2)[300], draw_panel(genomes, 2, 2)[300]
    assert np.array_equal(again, draw_panel(genomes, 1, 2)[300])
    assert not np.array_equal(again, other)


def test_lengths_that_no_record_has_are_left_out(tmp_path):
    folder = write_data(tmp_path / "short", length=700)
    assert tuple(draw_panel(load_genomes(folder, "dev"), 1, 1)) == (150, 300, 500)


def scorer(model):
    settings = make_settings(None, {"science.model": str(model), "runtime.device": "cpu", "runtime.threads": 1})
    return partial(score, settings=settings)


def test_shares_of_the_panel_are_those_of_its_calls(genomes):
    """A stricter preset calls no more, and the whole is the mean of its kinds."""
    panel = draw_panel(genomes, 1, 2)
    found = measure_panel(scorer("lite"), {length: panel[length] for length in (150, 500)})
    assert found["goal"] == {"preset": "balanced", "highest_share": HIGHEST_SHARE}
    shares = [found["presets"][preset] for preset in ("strict", "balanced", "sensitive")]
    assert sorted(share["called_virus"] for share in shares) == [share["called_virus"] for share in shares]
    for share in shares:
        assert np.mean(list(share["by_kind"].values())) == pytest.approx(share["called_virus"], abs=1e-3)
        assert np.mean(list(share["by_length"].values())) == pytest.approx(share["called_virus"], abs=1e-3)
        assert share["by_kind"]["homopolymers"] == 0  # the bundle doubts what repeats itself


def test_a_bundle_without_presets_is_measured_at_its_threshold(genomes, tiny_bundle):
    found = measure_panel(scorer(tiny_bundle), {150: draw_panel(genomes, 1, 2)[150]})
    assert set(found["presets"]) == {"threshold"}
    assert 0 <= found["presets"]["threshold"]["called_virus"] <= 1
