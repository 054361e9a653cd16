"""The loader: the same units with and without workers, in order, each distinct string once."""

import pickle
from dataclasses import dataclass
from itertools import count
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch

from virnucpro.encoders.esm2 import Esm2Tokenizer
from virnucpro.engine.batch import collate
from virnucpro.engine.loader import unit_loader
from virnucpro.engine.packing import GreedyPacker
from virnucpro.errors import StoreError
from virnucpro.sequence.ragged import Ragged


def proteins_of(unit):
    """Some proteins, with repeats and empty ones; unit 3 has nothing but empty ones, unit 4 nothing."""
    if unit >= 3:
        return [b""] * (5 if unit == 3 else 0)
    rng = np.random.default_rng(unit)
    distinct = [bytes(rng.choice(list(b"LAGVSERTIDPK"), n).astype(np.uint8)) for n in rng.integers(0, 60, 40)]
    return [distinct[i] for i in rng.integers(0, len(distinct), 150)] + [b""]


@dataclass(frozen=True)
class Proteins:
    """A picklable source."""

    broken_unit: int | None = None

    def __call__(self, unit):
        if unit == self.broken_unit:
            raise StoreError(Path("units/unit-00002.h5"), "its digest does not match")
        return Ragged.from_bytes(proteins_of(unit))


def load(units, num_workers, source=Proteins()):
    return unit_loader(source, Esm2Tokenizer(1024), GreedyPacker(256), units, num_workers=num_workers)


@pytest.fixture(scope="module")
def serial():
    return list(load(range(5), 0))


def test_two_workers_give_the_same_units_in_the_same_order(serial):
    parallel = list(load(iter([0, 1, 2, 3, 4]), 2))
    assert [unit.unit for unit in parallel] == [0, 1, 2, 3, 4]
    for one, other in zip(serial, parallel, strict=True):
        assert (one.num_rows, one.num_tokens) == (other.num_rows, other.num_tokens)
        assert np.array_equal(one.inverse, other.inverse)
        for a, b in zip(one.batches, other.batches, strict=True):
            assert np.array_equal(a.rows, b.rows)
            assert a.lengths == b.lengths
            assert a.input_ids.tolist() == b.input_ids.tolist()
            assert a.cu_seqlens.tolist() == b.cu_seqlens.tolist()


def test_each_distinct_string_is_tokenised_once_and_empty_ones_never(serial):
    for unit in serial:
        strings = proteins_of(unit.unit)
        assert unit.num_rows == len(strings)
        assert unit.num_tokens == sum(len(string) + 2 for string in set(strings) - {b""})
        tokens = {}
        for batch in unit.batches:
            for row, ids in zip(batch.rows, batch.input_ids.split(batch.lengths), strict=True):
                assert int(row) not in tokens
                tokens[int(row)] = ids.tolist()
        for string, group in zip(strings, unit.inverse.tolist(), strict=True):
            expected = Esm2Tokenizer(1024)(Ragged.from_bytes([string])).values.tolist() if string else None
            assert tokens.get(group) == expected


def test_units_may_be_endless_and_are_read_only_as_far_as_needed():
    taken = []

    def units():
        for unit in count():
            taken.append(unit)
            yield unit

    loader = iter(load(units(), 0))
    assert [next(loader).unit for _ in range(3)] == [0, 1, 2]
    assert len(taken) <= 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_ours_in_a_worker_surfaces_as_itself(num_workers):
    loader = iter(load(range(5), num_workers, Proteins(broken_unit=1)))
    assert next(loader).unit == 0
    with pytest.raises(StoreError) as caught:
        next(loader)
    assert caught.value.problem == "its digest does not match"


@pytest.mark.parametrize("largest", [40, 70_000])
def test_units_cross_processes_without_shared_memory(largest):
    """Plain arrays, two bytes a token while that suffices: a container has little /dev/shm, and loaders hung on it."""
    tokens = Ragged(np.array([1, largest, 3], dtype=np.int32), np.array([0, 2, 3]))
    packing = collate(tokens, [np.array([1, 0])])
    assert packing.input_ids.dtype == (np.uint16 if largest < 65_536 else np.int32)
    crossed = ForkingPickler.dumps(packing)
    assert not any(isinstance(part, torch.Tensor) for part in vars(packing).values())
    (batch,) = pickle.loads(crossed)  # noqa: S301 - what DataLoader does
    assert batch.input_ids.tolist() == [3, 1, largest]
    assert batch.input_ids.dtype == torch.int64
    assert batch.cu_seqlens.tolist() == [0, 1, 3]
