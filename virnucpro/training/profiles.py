"""Profiles of classes and conservation of stretches, and the network that weighs them (``encoders/profiles.py``).

A network that sees its own counts learns to trust them: of a fragment's own family the tables know everything, of a new
family nothing. So the groups (families of viruses, genera of hosts) are dealt into ``NUM_FOLDS`` folds, and a training
fragment is measured with tables from which its whole fold is missing (stacked generalisation; Wolpert 1992). What is
stored counts all groups, since a new genome is in none.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from virnucpro.encoders.codons import CODON_RESIDUES, table_sizes
from virnucpro.encoders.indices import index_bags
from virnucpro.encoders.profiles import (
    NUM_STRETCH_GROUPS,
    NUM_STRETCHES,
    STRETCH,
    STRETCH_RESIDUES,
    STRETCHES_A_BYTE,
    ProfiledShape,
    ProfileNetwork,
)
from virnucpro.heads import MLPHead
from virnucpro.progress import Reporter
from virnucpro.training.composition import count_ngrams, open_codons, words
from virnucpro.training.genomes import VIRUS, Genomes
from virnucpro.training.sampling import Pool, prefetch, sample_fragments, synthesise

_LOG = logging.getLogger(__name__)

NUM_FOLDS = 4
MIN_RUN = 40
"""Codons of a stop-free stretch whose residues count: shorter ones are mostly no genes."""
MERGED_CLASSES = {"plasmid": "bacteria"}
"""Classes that share a profile with another: plasmids are written as their bacteria are."""
SMOOTHING = {"ngrams": 0.3, "classes": 0.1, "pairs": 0.02, "kmers": 0.05}
"""Share of the background that is added to a class, by table: more where most n-grams are rare."""
LARGEST_WEIGHT = 3e6
"""N-grams of a group beyond which it weighs no more; below, it weighs by their square root."""
FEWEST_NGRAMS = 500
"""A group with fewer is not counted."""

_EDGES = (-1.2, -0.3, 0.3)
"""Log-ratios between the four levels of conservation."""
_MOST_FAMILIES, _MOST_GENERA = 12, 25


@dataclass(frozen=True)
class ProfileRecipe:
    """What decides the evidence, beside the data."""

    # that the network is trained on; with five times as many it knows the groups by heart again
    fragments: int = 600_000
    batch: int = 512  # fragments a step, half of them viral
    lengths: tuple[int, ...] = (150, 300, 500, 500)  # in bases, each as likely as a length between 100 and 500
    learning_rate: float = 2e-3  # highest rate of AdamW; falls as a cosine
    weight_decay: float = 0.02  # of AdamW
    synthetic: float = 0.06  # share of the host half that is of no organism
    label_smoothing: float = 0.01  # labels are this and 1 less this
    network_weight: float = 0.4  # of the network's log-odds in the evidence; chosen on the dev part
    conservation_weight: float = 6.0  # of the mean conservation in it; chosen on the dev part


@dataclass(frozen=True)
class Groups:
    """Families of viruses and genera of hosts."""

    members: NDArray[np.int64]  # (records,) number of the group of each record
    classes: NDArray[np.int64]  # (groups,) number of the profile of each
    are_viral: NDArray[np.bool_]  # (groups,) whether each is a family of viruses
    folds: NDArray[np.int64]  # (groups,) 0..NUM_FOLDS - 1
    num_profiles: int  # how many classes there are; the last one is that of viruses


def group_records(genomes: Genomes, seed: int) -> Groups:
    """Groups of the records, those of each class dealt into folds, the largest first."""
    merged = [MERGED_CLASSES.get(kind, kind) for kind in genomes.classes.tolist()]
    names, members = np.unique(
        [f"{kind}\t{group}" for kind, group in zip(merged, genomes.groups.tolist(), strict=True)], return_inverse=True
    )
    kinds = [str(name).partition("\t")[0] for name in names]
    profiles = [*sorted(set(kinds) - {VIRUS}), VIRUS]
    bases = np.bincount(members, weights=genomes.lengths)
    generator = np.random.default_rng([seed, 0xF01D])
    folds = np.zeros(len(names), dtype=np.int64)
    for kind in sorted(set(kinds)):
        of_kind = np.flatnonzero([other == kind for other in kinds])
        order = of_kind[np.argsort(-bases[of_kind], kind="stable")]
        folds[order] = (np.arange(len(order)) + generator.integers(NUM_FOLDS)) % NUM_FOLDS
    return Groups(
        members,
        np.array([profiles.index(kind) for kind in kinds]),
        np.array([kind == VIRUS for kind in kinds]),
        folds,
        len(profiles),
    )


@dataclass(frozen=True)
class Tables:
    """What is known with some groups left out."""

    profiles: dict[str, NDArray[np.float32]]  # table to (n-grams, profiles) float32 log-ratios to the background
    stretches: NDArray[np.uint8]  # (NUM_STRETCHES / 4,) uint8, two bits a stretch

    def give(self, network: ProfileNetwork) -> None:
        """Make them the tables of a network."""
        with torch.no_grad():
            for name, table in self.profiles.items():
                getattr(network, name).weight.copy_(torch.from_numpy(table))
            network.stretches.copy_(torch.from_numpy(self.stretches))


def count_tables(genomes: Genomes, groups: Groups) -> list[Tables]:
    """Tables without each fold, and at the end those of all groups."""
    counts = dict(zip(table_sizes(), count_ngrams(genomes, groups.members, len(groups.folds)), strict=True))
    families, genera = _count_stretches(genomes, groups)
    tables = []
    for left_out in range(NUM_FOLDS + 1):
        kept = [fold for fold in range(NUM_FOLDS) if fold != left_out]
        profiles = {
            name: _log_ratios(counts[name], groups, groups.folds != left_out, SMOOTHING[name]) for name in counts
        }
        sums = (sum(stretches[fold].astype(np.uint16) for fold in kept) for stretches in (families, genera))
        tables.append(Tables(profiles, _conservation(*sums)))
    return tables


def _log_ratios(
    counts: NDArray[np.float32], groups: Groups, is_counted: NDArray[np.bool_], smoothing: float
) -> NDArray[np.float32]:
    """(n-grams, profiles): how often each class uses an n-gram, to how often viruses and hosts do on average."""
    totals = counts.sum(axis=1, dtype=np.float64)
    weights = np.where(is_counted & (totals > FEWEST_NGRAMS), np.sqrt(np.minimum(totals, LARGEST_WEIGHT)), 0.0)
    shares = np.zeros((groups.num_profiles, counts.shape[1]), dtype=np.float64)
    for profile in range(groups.num_profiles):
        of_profile = np.flatnonzero((groups.classes == profile) & (weights > 0))
        if len(of_profile):
            parts = weights[of_profile] / weights[of_profile].sum() / totals[of_profile]
            shares[profile] = parts @ counts[of_profile]
    background = (shares[:-1].mean(axis=0) + shares[-1]) / 2
    logs = np.log((shares + smoothing * background + 1e-12) / ((1 + smoothing) * background + 1e-12))
    logs[:, 0] = 0
    return np.ascontiguousarray(logs.T, dtype=np.float32)


def _conservation(families: NDArray[np.uint16], genera: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Levels of all stretches, four a byte, from how many families and genera have each."""
    ratios = np.log(2 * np.arange(_MOST_FAMILIES + 1)[:, None] + 1) - np.log(np.arange(_MOST_GENERA + 1) + 1)
    by_count = np.digitize(ratios, _EDGES).astype(np.uint8)
    levels = by_count[np.minimum(families, _MOST_FAMILIES), np.minimum(genera, _MOST_GENERA)]
    quarters = levels.reshape(-1, STRETCHES_A_BYTE)
    packed: NDArray[np.uint8] = quarters[:, 0] | quarters[:, 1] << 2 | quarters[:, 2] << 4 | quarters[:, 3] << 6
    return packed


def _count_stretches(genomes: Genomes, groups: Groups) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(folds, stretches) uint8: in how many families of viruses and genera of hosts of each fold a stretch occurs."""
    families, genera = (np.zeros((NUM_FOLDS, NUM_STRETCHES), dtype=np.uint8) for _ in range(2))
    last = np.full(NUM_STRETCHES, -1, dtype=np.int32)  # group that was met last
    letters = STRETCH_RESIDUES[CODON_RESIDUES].astype(np.uint8)
    for record in np.argsort(groups.members, kind="stable").tolist():
        group = groups.members[record]
        table = (families if groups.are_viral[group] else genera)[groups.folds[group]]
        found = words(letters[open_codons(genomes[record], MIN_RUN)], NUM_STRETCH_GROUPS, STRETCH)
        found = found[last[found] != group]
        last[found] = group
        table[found] = np.minimum(table[found], 254) + 1  # once, however often a stretch is among them
    return families, genera


@dataclass(frozen=True)
class _Measured:
    """A batch as the network sees it: frames, 8-mers, length and labels."""

    frames: torch.Tensor
    kmers: torch.Tensor
    length_nt: int
    labels: torch.Tensor


class ProfileFit:
    """One training of the evidence; the same seed and data give the same weights."""

    def __init__(
        self, recipe: ProfileRecipe, genomes: Genomes, pools: tuple[Pool, Pool], seed: int, num_fragments: int = 0
    ) -> None:
        torch.manual_seed(seed)
        self.recipe = recipe
        self._genomes, self._pools, self._seed = genomes, pools, seed
        self._num_steps = max(1, (num_fragments or recipe.fragments) // recipe.batch)
        self._groups = group_records(genomes, seed)
        self.shape = ProfiledShape(num_profiles=self._groups.num_profiles)
        *left_out, whole = count_tables(genomes, self._groups)
        self.network = ProfileNetwork(self.shape)
        self._measures = []
        for tables in left_out:
            measure = ProfileNetwork(self.shape).eval()
            tables.give(measure)
            self._measures.append(measure)
        whole.give(self.network)
        self.network.weights.copy_(torch.tensor([recipe.network_weight, recipe.conservation_weight]))

    @property
    def num_fragments(self) -> int:
        """Fragments that it is trained on."""
        return self._num_steps * self.recipe.batch

    def run(self, reporter: Reporter | None = None) -> ProfileNetwork:
        """Train to the end."""
        self._fit_scales()
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        recipe = self.recipe
        optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self._num_steps)
        self.network.train()
        with (reporter or Reporter(bars=False)).stage("profiles", self.num_fragments, "fragments") as advance:
            for step, batch in zip(range(self._num_steps), prefetch(self._measure, 0), strict=False):
                torch.manual_seed(self._seed * 1_000_003 + step)
                log_odds = self.network.weigh(batch.frames, batch.kmers, batch.length_nt)
                loss = binary_cross_entropy_with_logits(log_odds, batch.labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                advance(recipe.batch)
                if step % 200 == 0:
                    _LOG.info("profiles: step %d of %d, loss %.4f", step, self._num_steps, float(loss.detach()))
        return self.network.eval()

    def _fit_scales(self, num_batches: int = 6) -> None:
        """Mean and deviation of what is measured, from a few batches."""
        few = [self._measure(step) for step in range(num_batches)]
        frames = torch.cat([batch.frames.flatten(0, 1) for batch in few])
        kmers = torch.cat([batch.kmers for batch in few])
        self.network.frame_mean.copy_(frames.mean(dim=0))
        self.network.frame_scale.copy_(frames.std(dim=0) + 1e-4)
        self.network.kmer_mean.copy_(kmers.mean(dim=0))
        self.network.kmer_scale.copy_(kmers.std(dim=0) + 1e-4)

    def _measure(self, step: int) -> _Measured:
        """Fragments of a step, each measured without its fold."""
        recipe = self.recipe
        generator = np.random.default_rng([self._seed, 0xE71D, step])
        length_nt = int(generator.choice(np.array([*recipe.lengths, generator.integers(100, 501)])))
        half = recipe.batch // 2
        drawn = [sample_fragments(self._genomes, pool, length_nt, half, generator) for pool in self._pools]
        codes = np.concatenate([part for part, _ in drawn])
        folds = self._groups.folds[self._groups.members[np.concatenate([records for _, records in drawn])]]
        num_synthetic = round(half * recipe.synthetic)
        if num_synthetic:
            codes[-num_synthetic:] = synthesise(codes[generator.integers(0, 2 * half, size=num_synthetic)], generator)
            folds[-num_synthetic:] = generator.integers(0, NUM_FOLDS, size=num_synthetic)
        parts = []
        with torch.no_grad():
            for fold, network in enumerate(self._measures):
                mine = np.flatnonzero(folds == fold)
                if len(mine):
                    bags, residues = index_bags(codes[mine], 1.0, step)
                    parts.append(network.measure(bags, residues.flatten(0, 1))[:2])
        labels = torch.full((2 * half,), recipe.label_smoothing)
        labels[torch.from_numpy(np.argsort(folds, kind="stable") < half)] = 1 - recipe.label_smoothing
        frames, kmers = map(torch.cat, zip(*parts, strict=True))
        return _Measured(frames, kmers, length_nt, labels)


def add_evidence(head: MLPHead, column: int, largest: float) -> MLPHead:
    """A head that adds the number in a new column of its feature to its log-odds of virus.

    One more hidden unit carries it: raised by ``largest``, it is never cut by the ReLU.

    Args:
        head: of the features without it.
        column: where it stands in the new feature.
        largest: absolute value that it does not exceed.
    """
    width, hidden = head.input_width, head.hidden_layer.out_features
    state = dict(head.state_dict())
    weight = torch.zeros(hidden + 1, width + 1)
    weight[:hidden, _all_but(column, width + 1)] = state["hidden_layer.weight"]
    weight[hidden, column] = 1.0
    of_unit = dict(zip(_OF_UNIT, (largest, 1.0, 0.0, 0.0, 1.0 - head.bn1.eps), strict=True))
    halves = torch.tensor([-0.5, 0.5])
    state |= {name: torch.cat([state[name], torch.tensor([value])]) for name, value in of_unit.items()}
    state["hidden_layer.weight"] = weight
    state["output_layer.weight"] = torch.cat([state["output_layer.weight"], halves[:, None]], dim=1)
    state["output_layer.bias"] = state["output_layer.bias"] - halves * largest
    grown = MLPHead(width + 1, hidden + 1)
    grown.load_state_dict(state)
    return grown.eval()


def drop_evidence(head: MLPHead, column: int) -> MLPHead:
    """Undo ``add_evidence``."""
    width, hidden = head.input_width - 1, head.hidden_layer.out_features - 1
    state = dict(head.state_dict())
    carried = state["output_layer.weight"][:, hidden] * state["hidden_layer.bias"][hidden]
    state |= {name: state[name][:hidden] for name in _OF_UNIT}
    state["hidden_layer.weight"] = state["hidden_layer.weight"][:hidden, _all_but(column, width + 1)]
    state["output_layer.weight"] = state["output_layer.weight"][:, :hidden]
    state["output_layer.bias"] = state["output_layer.bias"] + carried
    shrunk = MLPHead(width, hidden)
    shrunk.load_state_dict(state)
    return shrunk.eval()


_OF_UNIT = ("hidden_layer.bias", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var")
"""Tensors of a head with one number for each hidden unit."""


def _all_but(column: int, width: int) -> list[int]:
    return [other for other in range(width) if other != column]
