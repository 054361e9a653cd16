"""On a CPU every bit of a row's embeddings and scores is its own: no batch, token budget or neighbour changes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import write_tiny_bundle

from virnucpro.bundles import load_bundle
from virnucpro.encoders import TRANSFORMER_KINDS, load_encoder, read_config
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.loader import pack_unit
from virnucpro.engine.packing import GreedyPacker
from virnucpro.heads import PackedHead, load_head
from virnucpro.sequence.ragged import Ragged

CPU = torch.device("cpu")
LETTERS = {"nucleotide": b"ACGT", "protein": b"ACDEFGHIKLMNPQRSTVWY"}
LENGTHS_NT = [500] * 40 + [300] * 20 + list(range(90, 140))
ROWS = {"all": range(110), "every seventh": range(0, 110, 7), "one": [3], "two": [5, 6], "three": [0, 50, 80]}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    tiny = write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")
    return {"tiny": load_bundle(str(tiny)), "lite": load_bundle("lite")}


def strings_of(role):
    rng = np.random.default_rng(5)
    letters = np.frombuffer(LETTERS[role], dtype=np.uint8)
    lengths = LENGTHS_NT if role == "nucleotide" else [length // 3 for length in LENGTHS_NT]
    return [bytes(rng.choice(letters, size=length)) for length in lengths]


def embedded(encoder, strings, token_budget):
    unit = pack_unit(0, Ragged.from_bytes(strings), encoder.tokenizer, GreedyPacker(token_budget))
    ((_, embeddings),) = AsyncInferenceRunner(encoder, CPU).embeddings([unit])
    return embeddings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("role", LETTERS)
@pytest.mark.parametrize("name", ["tiny", "lite"])
def test_an_embedding_does_not_depend_on_its_batch(bundles, name, role, dtype):
    """Alone, with two or three others, or among all; in batches of one row, of a few and of as many as there are."""
    path = bundles[name].encoder(role)
    if dtype == torch.bfloat16 and read_config(path).kind not in TRANSFORMER_KINDS:
        pytest.skip("the small encoders compute in float32 alone")
    encoder, strings = load_encoder(path, CPU, dtype), strings_of(role)
    expected = embedded(encoder, strings, 1024)
    for token_budget in (1, 512, 100_000):
        for rows in ROWS.values():
            found = embedded(encoder, [strings[row] for row in rows], token_budget)
            assert np.array_equal(found, expected[list(rows)]), (token_budget, rows)


@pytest.mark.parametrize("name", ["tiny", "lite"])
def test_a_score_does_not_depend_on_its_batch(bundles, name):
    """Of every size from one row to seventy, at several places of a large one."""
    bundle = bundles[name]
    widths = [read_config(bundle.encoder(role)).width for role in LETTERS]
    head = PackedHead(load_head(bundle.head), widths)
    torch.manual_seed(1)
    parts = [torch.randn(1100, width) for width in widths]
    expected = head.scores(*parts)
    for count in [*range(1, 71), 128, 300, 1000]:
        for start in (0, 3, 17):
            rows = slice(start, start + count)
            assert torch.equal(head.scores(*(part[rows] for part in parts)), expected[rows]), (count, start)
