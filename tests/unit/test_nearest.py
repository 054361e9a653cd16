"""The nearest proteins are those of a plain search, whatever else is searched for at the same time."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import zstandard
from Bio.Align import substitution_matrices
from Bio.Seq import Seq
from hypothesis import given, settings
from hypothesis import strategies as st

import virnucpro.nearest.search as search_module
import virnucpro.nearest.seeds as seeds_module
from virnucpro.errors import ModelError
from virnucpro.nearest.fragments import NUM_FRAMES, open_frames
from virnucpro.nearest.kernels import DROP, LEAST_SCORE, SPAN
from virnucpro.nearest.residues import ALPHABET, BREAK, CODES, LETTERS, MASKED, mask
from virnucpro.nearest.search import CELL, VIRUS, search, search_codes
from virnucpro.nearest.seeds import LEAST_COST, PATTERN, SENSITIVE
from virnucpro.nearest.table import Table, load_table, make_table
from virnucpro.sequence.ragged import Ragged
from virnucpro.training.nearest import find_cellular

BLOSUM62 = substitution_matrices.load("BLOSUM62")
SHARES = dict(zip(ALPHABET, (0.110, 0.205, 0.013, 0.072, 0.022, 0.260, 0.082, 0.045, 0.122, 0.080), strict=True))
GROUP_OF = {letter: group for group in ALPHABET for letter in group}


def ragged(proteins: list[str]) -> Ragged:
    return Ragged.from_bytes([protein.encode() for protein in proteins])


def masked(protein: str) -> str:
    """Plainly: all windows of twelve amino acids of less than 2.2 bits each become ``X``."""
    hidden = set()
    for i in range(len(protein) - 11):
        window = protein[i : i + 12]
        entropy = -sum(n / 12 * math.log2(n / 12) for n in Counter(window).values())
        if all(letter in LETTERS for letter in window) and entropy < 2.2 - 1e-9:
            hidden |= set(range(i, i + 12))
    return "".join("X" if i in hidden else letter for i, letter in enumerate(protein))


def seed_at(protein: str, at: int, pattern: str) -> tuple[str, ...] | None:
    """The letters of the seed that begins there."""
    word = protein[at : at + SPAN]
    if len(word) < SPAN or not all(letter in LETTERS for letter in word):
        return None
    return tuple(GROUP_OF[letter] for letter, place in zip(word, pattern, strict=True) if place == "1")


def is_rare(seed: tuple[str, ...]) -> bool:
    return sum(round(-1000 * math.log2(SHARES[letter])) for letter in seed) >= LEAST_COST


def score_of(a: str, b: str) -> int:
    if "*" in (a, b):
        return -100
    return -1 if "X" in (a, b) else int(BLOSUM62[a][b])


def aligned(query: str, q: int, protein: str, t: int) -> tuple[int, int]:
    """Score of the alignment through the seed there, and one after the last place of the protein that was looked at."""
    query, protein = query + "*", protein + "*"
    total = best = sum(score_of(query[q + j], protein[t + j]) for j in range(SPAN))
    if best < LEAST_SCORE:
        return 0, 0
    right, left = SPAN, 1
    while total >= best - DROP:
        total += score_of(query[q + right], protein[t + right])
        best, right = max(best, total), right + 1
    total = best
    while total >= best - DROP:
        total += score_of(query[q - left] if q >= left else "*", protein[t - left] if t >= left else "*")
        best, left = max(best, total), left + 1
    return best, t + right - 1


def plainly_nearest(query: str, proteins: list[str], counted: list[bool], pattern: str) -> tuple[int, int]:
    """Score and number of the first best among the proteins that are counted."""
    query = masked(query)
    seeds = [seed_at(query, q, pattern) for q in range(len(query))]
    best, which = 0, -1
    for number, protein in enumerate(map(masked, proteins)):
        if not counted[number]:
            continue
        last = (0, -1)
        for t in range(len(protein)):
            seed = seed_at(protein, t, pattern)
            if seed is None or not is_rare(seed):
                continue
            for q, mine in enumerate(seeds):
                if mine != seed or (last[0] == t - q and t <= last[1]):
                    continue
                score, looked = aligned(query, q, protein, t)
                if score:
                    last = (t - q, looked)
                if score > best:
                    best, which = score, number
    return best, which


def made(seed: int, num_proteins: int = 12) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Proteins, half of them viral, of three groups on each side, with some likeness."""
    generator = np.random.default_rng(seed)
    letters = np.array(list(LETTERS))
    first = letters[generator.integers(0, 20, size=60)]
    proteins, whose = [], []
    for number in range(num_proteins):
        protein = letters[generator.integers(0, 20, size=int(generator.integers(5, 90)))]
        take = min(len(protein), len(first))
        is_alike = generator.random(take) < 0.6
        protein[:take][is_alike] = first[:take][is_alike]
        if number % 5 == 0:
            protein[10:24] = "Q"
        if number % 7 == 0 and len(protein) > 30:
            protein[30] = "*"
        proteins.append("".join(protein))
        kind = "virus" if number % 2 else "bacteria"
        whose.append((f"organism {number}", f"{kind} group {number % 3}", kind))
    return proteins, whose


@given(st.integers(0, 2**32), st.integers(-1, 5), st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=12, deadline=None)
def test_what_is_found_is_what_a_plain_search_finds(seed, left_out, sensitive):
    """Queries with seeds of either kind are searched for together."""
    proteins, whose = made(seed)
    queries, _ = made(seed, 4)
    queries = ["MK" + query[:40].replace("A", "S") + "X" + query[20:] for query in queries]
    table = make_table(ragged(proteins), whose)
    codes = Ragged(CODES[ragged(queries).values], ragged(queries).offsets)
    left = np.full(len(queries), left_out, dtype=np.int32)
    found = search_codes(table, codes, left_out=left, is_sensitive=np.array(sensitive))
    for number, query in enumerate(queries):
        for side, kind in ((VIRUS, "virus"), (CELL, "bacteria")):
            counted = [
                other[2] == kind and group != left_out
                for other, group in zip(whose, table.group_of_protein.tolist(), strict=True)
            ]
            pattern = SENSITIVE if sensitive[number] else PATTERN
            score, protein = plainly_nearest(query, proteins, counted, pattern)
            assert (found.scores[number, side], found.proteins[number, side]) == (score, protein)


def large(seed: int) -> tuple[Table, list[str]]:
    proteins, whose = [], []
    for part in range(6):
        more, names = made(seed + part, 30)
        proteins += more
        whose += names
    queries = [protein[3:] for part in range(4) for protein in made(seed + part, 40)[0]]
    return make_table(ragged(proteins), whose), queries


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("most", [1, 300, 10_000])
def test_neither_batch_nor_threads_change_a_number(monkeypatch, num_threads, most):
    table, queries = large(5)
    whole = search(table, ragged(queries))
    assert (whole.scores > 0).any(axis=0).all()
    monkeypatch.setattr(search_module, "MOST_POSITIONS", most)
    again = search(table, ragged(queries), num_threads=num_threads)
    np.testing.assert_array_equal(again.scores, whole.scores)
    np.testing.assert_array_equal(again.proteins, whole.proteins)
    alone = search(table, ragged(queries[7:8]), num_threads=num_threads)
    assert (alone.scores[0] == whole.scores[7]).all()


@pytest.mark.parametrize("bits_at_once", [1, 30])
def test_parts_of_the_index_and_chunks_that_do_not_fit_change_no_number(monkeypatch, bits_at_once):
    """Thousands of like reads find more alignments in a chunk of the table than there is room for."""
    table, queries = large(5)
    whole = search(table, ragged(queries))
    copies = search(table, ragged(queries[:4])).scores
    monkeypatch.setattr(seeds_module, "_BITS_OF_A_PART", 8)
    monkeypatch.setattr(seeds_module, "_BITS_AT_ONCE", bits_at_once)
    again = search(table, ragged(queries))
    np.testing.assert_array_equal(again.scores, whole.scores)
    np.testing.assert_array_equal(again.proteins, whole.proteins)
    many = search(table, ragged(queries[:4] * 4400), num_threads=2)
    np.testing.assert_array_equal(many.scores, np.tile(copies, (4400, 1)))


def test_proteins_of_the_querys_own_fold_do_not_count():
    table, queries = large(9)
    folds = np.arange(len(table), dtype=np.int32) % 3
    for fold in range(3):
        left_out = np.full(len(queries), fold, dtype=np.int32)
        found = search(table, ragged(queries), folds=folds, left_out=left_out)
        without = search(table.only(folds != fold), ragged(queries))
        np.testing.assert_array_equal(found.scores, without.scores)
        assert (folds[found.proteins[found.proteins >= 0]] != fold).all()


@given(st.text(alphabet="ACDEX*", max_size=80))
@settings(max_examples=50, deadline=None)
def test_low_complexity_is_masked_by_the_plain_rule(protein):
    codes = CODES[np.frombuffer(protein.encode(), dtype=np.uint8)]
    mask(codes)
    hidden = [letter == "X" for letter in "*".join(masked(part) for part in protein.split("*"))]
    assert (codes == MASKED).tolist() == hidden


def test_low_complexity_finds_nothing():
    repeats = "QN" * 40
    table = make_table(ragged([repeats, repeats]), [("a", "a", "virus"), ("b", "b", "bacteria")])
    assert not search(table, ragged([repeats, "MK" + repeats])).scores.any()


def test_a_table_comes_back_from_its_file_as_it_was(tmp_path):
    table, queries = large(2)
    table.save(tmp_path / "proteins.npz.zst")
    again = load_table(tmp_path / "proteins.npz.zst")
    np.testing.assert_array_equal(again.residues, table.residues)
    np.testing.assert_array_equal(search(again, ragged(queries)).scores, search(table, ragged(queries)).scores)
    assert [again.describe(i) for i in range(-1, len(again))] == [table.describe(i) for i in range(-1, len(table))]
    assert again.describe(1) == ("organism 1", "virus group 1", "virus")


@pytest.mark.parametrize("harm", ["missing", "cut", "flipped", "objects", "other"])
def test_a_damaged_table_is_one_clear_line(tmp_path: Path, harm: str):
    path = tmp_path / "proteins.npz.zst"
    if harm != "missing":
        large(2)[0].save(path)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-500])
    if harm in ("flipped", "objects"):
        content = bytearray(zstandard.decompress(path.read_bytes()))
        content[300] ^= 1
        if harm == "objects":
            file = io.BytesIO()
            np.savez(file, residues=np.array([None]))
            content = bytearray(file.getvalue())
        path.write_bytes(zstandard.compress(content))
    if harm == "other":
        path.write_bytes(b"no table at all")
    with pytest.raises(ModelError, match=r"proteins\.npz"):
        load_table(path)


def test_no_seed_holds_an_unknown_residue():
    """The hash of ``X`` and a letter would be that of two other letters."""
    table = make_table(ragged(["XCWMYPHEFKNRDWYPT"]), [("a", "a", "virus")])
    assert not search(table, ragged(["HGWMYPHEFKNRDWYPT"])).scores.any()
    assert search(table, ragged(["XCWMYPHEFKNRDWYPTMWYPHEFKNR"])).scores.max() == 0
    longer = make_table(ragged(["HCWMYPHEFKNRDWYPT"]), [("a", "a", "virus")])
    assert search(longer, ragged(["HCWMYPHEFKNRDWYPT"])).scores[0, VIRUS] > 90


def test_nothing_to_search_for_finds_nothing():
    table, _ = large(1)
    assert search(table, ragged([])).scores.shape == (0, 2)
    assert not search(table, ragged(["", "MKV"])).scores.any()
    assert (search(table, ragged([""])).bits == 0).all()


@given(st.lists(st.text(alphabet="ACGTN", min_size=0, max_size=90), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_the_most_open_frames_are_searched_with(fragments):
    frames = open_frames(ragged(fragments), num_threads=2)
    for number, fragment in enumerate(fragments):
        translated = []
        for strand in (Seq(fragment), Seq(fragment).reverse_complement()):
            for frame in range(3):
                codons = [str(strand[i : i + 3]) for i in range(frame, len(strand) - 2, 3)]
                translated.append("".join("X" if "N" in codon else str(Seq(codon).translate()) for codon in codons))
        runs = [max(map(len, frame.split("*"))) for frame in translated]
        order = sorted(range(6), key=lambda frame: -runs[frame])
        assert frames.open_runs[number].tolist() == [runs[frame] for frame in order]
        expected = "*".join(translated[frame] for frame in order[:NUM_FRAMES])
        found = frames.queries[number]
        assert found[: len(expected)].tolist() == CODES[np.frombuffer(expected.encode(), dtype=np.uint8)].tolist()
        assert (found[len(expected) :] == BREAK).all()
        clear = [base for base in fragment if base != "N"]
        assert frames.gc[number] == pytest.approx(sum(base in "GC" for base in clear) / max(len(clear), 1))


def test_a_fragment_finds_the_protein_it_codes_for_on_either_strand():
    proteins, whose = made(4)
    table = make_table(ragged(proteins), whose)
    codon = {str(Seq("".join(bases)).translate()): "".join(bases) for bases in product("ACGT", repeat=3)}
    longest = max(range(len(proteins)), key=lambda i: len(proteins[i].partition("*")[0]))
    coding = "".join(codon[letter] for letter in proteins[longest].partition("*")[0])
    for text in (coding, str(Seq(coding).reverse_complement())):
        found = search_codes(table, open_frames(ragged([text])).queries)
        assert longest in found.proteins[0]


def test_what_is_left_out_matches_nothing_and_keeps_its_number(tmp_path: Path):
    gen = np.random.default_rng(2)
    proteins = ["".join(gen.choice(list(LETTERS), 80)) for _ in range(4)]
    table = make_table(ragged(proteins), [(f"phage {i}", "made", "virus") for i in range(4)])
    left_out = table.without(np.array([False, True, False, False]))
    whole = replace(left_out, residues=table.residues)  # as of a file that was written before they were left out
    for place, made in enumerate((left_out, whole)):
        made.save(tmp_path / f"{place}.npz.zst")
        again = load_table(tmp_path / f"{place}.npz.zst")
        assert search(again, ragged(proteins)).proteins[:, VIRUS].tolist() == [0, -1, 2, 3]
        assert [again.describe(number)[0] for number in (0, 2, 3)] == ["phage 0", "phage 2", "phage 3"]


def test_genes_that_many_genera_of_cells_share_are_left_out_of_viruses():
    gen = np.random.default_rng(4)

    def changed(protein: str, share: float) -> str:
        return "".join(letter if gen.random() >= share else gen.choice(list(LETTERS)) for letter in protein)

    polymerase, kinase, transposase, *capsids = ("".join(gen.choice(list(LETTERS), 200)) for _ in range(16))
    proteins = [(changed(polymerase, 0.1), f"cell {i}", f"genus {i}", "bacteria") for i in range(12)]
    proteins += [(changed(kinase, 0.1), f"cell {i}", f"genus {i}", "bacteria") for i in range(2)]
    proteins += [(changed(transposase, 0.1), f"element {i}", f"fly {i}", "te") for i in range(12)]
    proteins += [(changed(polymerase, 0.3), "contig", "phages", "virus") for _ in range(3)]
    proteins += [(capsid, "contig", "phages", "virus") for capsid in capsids[:8]]
    proteins += [(changed(polymerase, 0.3), "phage", "phages", "virus")]
    proteins += [(protein, "phage", "phages", "virus") for protein in (kinase, transposase, *capsids[8:])]
    table = make_table(ragged([protein for protein, *_ in proteins]), [tuple(whose) for _, *whose in proteins])
    left_out = set(np.flatnonzero(find_cellular(table)).tolist())
    beside = set(range(29, 34))
    assert left_out == {26, 27, 28} | beside | {37}, "of the contig all that is beside; of the phage one"
