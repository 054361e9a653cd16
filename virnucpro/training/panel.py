"""A panel of sequences of no organism, and how many of them a bundle calls virus.

A metagenome holds more than organisms: adapters, low complexity, artefacts of sequencing and of assembly. None of it is
viral, whatever its composition. The panel has kinds that training never shows beside some that resemble those of
``sampling.synthesise``, which has generators and seeds of its own.

Whole cloning vectors are not made: no vector is among the data of the project. ``vector_parts`` joins short elements
that such vectors share (promoters, primer sites, a polylinker, tags, recombination sites) by random spacers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.encoders.codons import CODON_RESIDUES, STOP
from virnucpro.results.called import InputResults
from virnucpro.results.calls import Call, Calling
from virnucpro.training.genomes import LETTERS, VIRUS, Genomes, base_codes
from virnucpro.training.records import Score
from virnucpro.training.sampling import Pool, host_pool, merge_pools, reverse_complement, sample_fragments, virus_pool

LENGTHS = (150, 300, 500, 1000, 2000, 3000)
HIGHEST_SHARE = 0.005
"""Goal: the largest share of the panel that preset ``balanced`` may call virus."""

Codes = NDArray[np.uint8]
Maker = Callable[[Codes, np.random.Generator], Codes]
"""From (n, length) originals to as many sequences of no organism."""

_ADAPTERS = (
    "AGATCGGAAGAGCACACGTCTGAACTCCAGTCA",  # TruSeq, read 1
    "AGATCGGAAGAGCGTCGTGTAGGGAAAGAGTGT",  # TruSeq, read 2
    "CTGTCTCTTATACACATCT",  # Nextera
    "AATGATACGGCGACCACCGAGATCTACAC",  # P5
    "CAAGCAGAAGACGGCATACGAGAT",  # P7
)
_VECTOR_PARTS = (
    "TAATACGACTCACTATAGGG",  # T7 promoter
    "ATTTAGGTGACACTATAG",  # SP6 promoter
    "AATTAACCCTCACTAAAGGG",  # T3 promoter
    "GTAAAACGACGGCCAGT",  # M13 forward primer
    "CAGGAAACAGCTATGAC",  # M13 reverse primer
    "TTGTGAGCGGATAACAA",  # lac operator
    "GAATTCGAGCTCGGTACCCGGGGATCCTCTAGAGTCGACCTGCAGGCATGCAAGCTT",  # polylinker of pUC19
    "CATCATCACCATCACCAC",  # histidine tag
    "ATAACTTCGTATAGCATACATTATACGAAGTTAT",  # loxP
    "GAAGTTCCTATTCTCTAGAAAGTATAGGAACTTC",  # FRT
)
_A, _C, _G, _T = range(4)
_NUM_LETTERS = 5


def random_of_gc(share: float) -> Maker:
    """Independent bases with this share of G and C."""

    def make(originals: Codes, generator: np.random.Generator) -> Codes:
        weights = [(1 - share) / 2, share / 2, share / 2, (1 - share) / 2]
        return generator.choice(4, size=originals.shape, p=weights).astype(np.uint8)

    return make


def open_random(originals: Codes, generator: np.random.Generator) -> Codes:
    """Random bases, each stop codon of the first frame drawn again until there is none; either strand."""
    count, length = originals.shape
    gc = generator.uniform(0.3, 0.7, size=(count, 1, 1))

    def draw(shape: tuple[int, ...], share: NDArray[np.float64]) -> Codes:
        is_gc = generator.random(shape) < share
        second = generator.random(shape) < 0.5
        return np.where(is_gc, np.where(second, _C, _G), np.where(second, _A, _T)).astype(np.uint8)

    codons = draw((count, -(-length // 3), 3), gc)
    while (is_stop := CODON_RESIDUES[codons @ (16, 4, 1)] == STOP).any():
        sequence = np.nonzero(is_stop)[0]
        codons[is_stop] = draw((len(sequence), 3), gc[sequence, :, 0])
    return _either_strand(codons.reshape(count, -1)[:, :length], generator)


def shuffled(word: int) -> Maker:
    """The original, its words of ``word`` bases as often as before."""
    return lambda originals, generator: np.stack([shuffle_words(codes, word, generator) for codes in originals])


def one_by_one(make: Callable[[int, np.random.Generator], NDArray[np.integer]]) -> Maker:
    """A maker by a function that draws base codes, at least as many as it is asked for, whatever the originals are."""

    def make_all(originals: Codes, generator: np.random.Generator) -> Codes:
        length = originals.shape[1]
        return np.stack([make(length, generator)[:length].astype(np.uint8) for _ in originals])

    return make_all


@one_by_one
def homopolymers(length: int, generator: np.random.Generator) -> NDArray[np.integer]:
    """Runs of one base, 10 to 80 long, end to end."""
    runs = generator.integers(10, 81, size=length // 10 + 1)
    return np.repeat(generator.integers(0, 4, size=len(runs)), runs)


@one_by_one
def two_letters(length: int, generator: np.random.Generator) -> NDArray[np.integer]:
    """Random sequences of two bases with one other in 20."""
    pair = generator.permutation(4)[:2]
    row = pair[(generator.random(length) < generator.uniform(0.2, 0.8)).astype(np.int64)]
    return _replaced(row, 0.05, generator)


def repeats_of(shortest: int, longest: int) -> Maker:
    """A tandem repeat of one unit of ``shortest`` to ``longest`` bases, up to a tenth of the bases replaced."""

    @one_by_one
    def make(length: int, generator: np.random.Generator) -> NDArray[np.integer]:
        unit = generator.integers(0, 4, size=generator.integers(shortest, longest + 1))
        return _replaced(np.resize(unit, length), generator.uniform(0, 0.1), generator)

    return make


@one_by_one
def adapter_concatemers(length: int, generator: np.random.Generator) -> NDArray[np.integer]:
    """Illumina adapters of either strand end to end, one base in a hundred wrong."""
    return _replaced(_join(_ADAPTERS, length, 0, generator), 0.01, generator)


def adapter_poly_g(originals: Codes, generator: np.random.Generator) -> Codes:
    """Adapters, then the G of cycles without a signal (two-colour chemistry), one base in fifty wrong."""
    made = adapter_concatemers(originals, generator)
    for row in made:
        row[int(generator.integers(20, 131)) :] = _G
        row[:] = _replaced(row, 0.02, generator)
    return made


@one_by_one
def vector_parts(length: int, generator: np.random.Generator) -> NDArray[np.integer]:
    """Elements of cloning vectors, with random spacers of up to 60 bases."""
    return _join(_VECTOR_PARTS, length, 60, generator)


KINDS: dict[str, Maker] = {
    **{f"random_gc{percent}": random_of_gc(percent / 100) for percent in (25, 40, 50, 60, 75)},
    "open_random": open_random,
    **{
        f"shuffled_{name}_{source}": shuffled(word)
        for word, name in enumerate(("mono", "di", "tri"), 1)
        for source in ("virus", "host")
    },
    "homopolymers": homopolymers,
    "two_letters": two_letters,
    "microsatellite": repeats_of(2, 6),
    "tandem_repeat": repeats_of(7, 120),
    "adapter_concatemers": adapter_concatemers,
    "adapter_poly_g": adapter_poly_g,
    "vector_parts": vector_parts,
}
"""What makes the sequences of each kind; originals are dev viruses where the name ends so, else dev hosts."""


def draw_panel(genomes: Genomes, seed: int, num_each: int = 15) -> dict[int, Codes]:
    """Length to (n, length) base codes 0..3: ``num_each`` of each of ``KINDS``, in their order."""
    pools = _pools(genomes)
    longest = min(int(genomes.lengths[pool.records].max(initial=0)) for pool in pools.values())
    parts = {}
    for length in (length for length in LENGTHS if length <= longest):
        made = []
        for number, (kind, make) in enumerate(KINDS.items()):
            generator = np.random.default_rng([seed, length, number, 0xF0E])
            pool = pools["virus" if kind.endswith("_virus") else "host"]
            made.append(make(sample_fragments(genomes, pool, length, num_each, generator)[0], generator))
        parts[length] = np.concatenate(made)
    return parts


def measure_panel(score: Score, panel: Mapping[int, Codes]) -> dict[str, Any]:
    """The share of the panel that each preset calls virus, in all, by kind and by length.

    A bundle without presets has its threshold.
    """
    kinds = np.concatenate([np.repeat(list(KINDS), len(part) // len(KINDS)) for part in panel.values()])
    lengths = np.repeat(list(panel), list(map(len, panel.values())))
    letters = (LETTERS[codes].tobytes() for part in panel.values() for codes in part)
    table = score((b"%d" % number, bases) for number, bases in enumerate(letters))
    presets = {}
    for preset in table.rules[0].presets or ("threshold",):
        calling = Calling(preset) if table.rules[0].presets else Calling()
        is_virus = InputResults.of(table, calling).calls["call"] == Call.VIRUS
        presets[preset] = {
            "called_virus": _share(is_virus),
            "by_kind": {kind: _share(is_virus[kinds == kind]) for kind in KINDS},
            "by_length": {str(length): _share(is_virus[lengths == length]) for length in panel},
        }
    return {
        "num_sequences": len(kinds),
        "lengths_nt": list(panel),
        "goal": {"preset": "balanced", "highest_share": HIGHEST_SHARE},
        "presets": presets,
    }


def _pools(genomes: Genomes) -> dict[str, Pool]:
    hosts = sorted(set(genomes.classes.tolist()) - {VIRUS})
    viruses = [virus_pool(genomes, split) for split in sorted(set(genomes.splits[genomes.classes == VIRUS].tolist()))]
    return {
        "host": merge_pools([host_pool(genomes, name) for name in hosts], [1.0] * len(hosts)),
        "virus": merge_pools(viruses, [1.0] * len(viruses)),
    }


def shuffle_words(codes: NDArray[np.uint8], word: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Shuffle one sequence; every word of ``word`` bases occurs as often as before.

    A sequence is a walk over its words of ``word - 1`` bases, so another walk over the same edges has the same words of
    ``word`` bases. The last edge out of each node is that of a random tree towards the last node (Wilson 1996), all
    others are shuffled: all such walks are equally likely (Altschul and Erickson 1985; Jiang et al. 2008).

    Args:
        codes: (L,) base codes 0..4.
        word: length of the words that are kept, 1 or more.
        generator: of everything random.
    """
    if word == 1 or len(codes) <= word:
        return generator.permutation(codes) if word == 1 else codes.copy()
    nodes = _numbers(codes, word - 1)
    successors: dict[int, list[int]] = {}
    for node, following in zip(nodes[:-1].tolist(), nodes[1:].tolist(), strict=True):
        successors.setdefault(node, []).append(following)
    last_edges = _random_tree(successors, int(nodes[-1]), generator)
    for node, following in successors.items():
        if node in last_edges:
            following.remove(last_edges[node])
        shuffled = [following[i] for i in generator.permutation(len(following))]
        successors[node] = [last_edges[node], *shuffled[::-1]] if node in last_edges else shuffled
    walk = [int(nodes[0])]
    while successors.get(walk[-1]):
        walk.append(successors[walk[-1]].pop())
    ends = np.array(walk[1:], dtype=np.int64) % _NUM_LETTERS
    return np.concatenate([codes[: word - 1], ends.astype(np.uint8)])


def _numbers(codes: NDArray[np.uint8], word: int) -> NDArray[np.int64]:
    """(L - word + 1,) number of the word at each place."""
    windows = np.lib.stride_tricks.sliding_window_view(codes.astype(np.int64), word)
    return np.asarray(windows @ _NUM_LETTERS ** np.arange(word)[::-1], dtype=np.int64)


def _random_tree(successors: dict[int, list[int]], root: int, generator: np.random.Generator) -> dict[int, int]:
    """The edge out of each node but ``root``, so that all lead there: Wilson's loop-erased walks."""
    edges: dict[int, int] = {}
    reached = {root}
    for start in successors:
        node = start
        while node not in reached:
            edges[node] = successors[node][int(generator.integers(len(successors[node])))]
            node = edges[node]
        node = start
        while node not in reached:
            reached.add(node)
            node = edges[node]
    return edges


def _either_strand(codes: Codes, generator: np.random.Generator) -> Codes:
    made = codes.copy()
    is_reverse = generator.random(len(made)) < 0.5
    made[is_reverse] = reverse_complement(made[is_reverse])
    return made


def _replaced(row: NDArray[np.integer], rate: float, generator: np.random.Generator) -> NDArray[np.integer]:
    places = np.flatnonzero(generator.random(len(row)) < rate)
    row[places] = generator.integers(0, 4, size=len(places))
    return row


def _join(elements: tuple[str, ...], length: int, longest_spacer: int, generator: np.random.Generator) -> Codes:
    """Random elements on either strand with random bases between them, ``length`` bases in all."""
    pieces: list[Codes] = []
    while sum(map(len, pieces)) < length:
        letters = elements[int(generator.integers(len(elements)))].encode()
        codes = base_codes(np.frombuffer(letters, dtype=np.uint8))
        pieces.append(_either_strand(codes[None], generator)[0])
        pieces.append(generator.integers(0, 4, size=generator.integers(longest_spacer + 1)).astype(np.uint8))
    return np.concatenate(pieces)[:length]


def _share(chosen: NDArray[np.bool_]) -> float:
    return round(float(chosen.mean()), 4)
