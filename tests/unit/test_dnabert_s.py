"""DNABERT-S must be the reference implementation's, however its input is packed."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from virnucpro.encoders import load_encoder, load_tokenizer, save_encoder
from virnucpro.encoders.attention import AlibiBias, alibi_slopes
from virnucpro.encoders.dnabert_s import DnabertS, DnabertSTokenizer
from virnucpro.engine.batch import collate
from virnucpro.engine.packing import GreedyPacker
from virnucpro.errors import ModelError
from virnucpro.sequence.ragged import Ragged, offsets_of

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = GOLDEN / "dnabert_s_tiny.safetensors"
NUM_SEQUENCES = 6


def tiny_config():
    with safe_open(WEIGHTS, "pt") as file:
        published = json.loads(file.metadata()["config"])
    return {**published, "kind": "dnabert_s", "alphabet": "nt", "width": published["hidden_size"]}


def make_tokenizer_json(*, adds_ends):
    """A small byte-pair tokenizer of the published shape."""
    tokens = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "A", "C", "G", "T", "AC", "GT", "ACGT"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = Tokenizer(models.BPE(vocabulary, [("A", "C"), ("G", "T"), ("AC", "GT")], unk_token="[UNK]"))
    pairs.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_ends:
        pairs.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    pairs.enable_truncation(6)
    pairs.enable_padding(pad_id=3, pad_token="[PAD]")
    return pairs.to_str()


@pytest.fixture(scope="module")
def expected():
    return np.load(GOLDEN / "dnabert_s_tiny_expected.npz")


@pytest.fixture(scope="module")
def tokens(expected):
    ids = [expected[f"input_ids_{number}"] for number in range(NUM_SEQUENCES)]
    return Ragged(np.concatenate(ids).astype(np.int32), offsets_of(np.array([len(item) for item in ids])))


@pytest.fixture(scope="module")
def encoder():
    return DnabertS.from_tensors(tiny_config(), load_file(WEIGHTS), None)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("budget", [1, 40, 100_000])
def test_equals_the_reference_single_batched_and_packed(encoder, tokens, expected, budget, copies):
    many = Ragged.concatenate([tokens] * copies)
    seen = []
    for batch in collate(many, GreedyPacker(budget)(many.lengths)):
        states, embeddings = encoder.token_states(batch).split(batch.lengths), encoder.embed(batch)
        for row, state, embedding in zip(batch.rows, states, embeddings, strict=True):
            number = row % NUM_SEQUENCES
            assert np.abs(state.numpy() - expected[f"token_states_{number}"]).max() <= 1e-5
            assert np.abs(embedding.numpy() - expected[f"mean_{number}"]).max() <= 1e-5
            seen.append(row)
    assert sorted(seen) == list(range(len(many)))


def test_bfloat16_stays_close_to_float32(encoder, tokens, tmp_path):
    save_encoder(tmp_path / "tiny", tiny_config(), load_file(WEIGHTS), make_tokenizer_json(adds_ends=True))
    narrow = load_encoder(tmp_path / "tiny", torch.device("cpu"), torch.bfloat16)
    batch = next(iter(collate(tokens, [GreedyPacker(100_000)(tokens.lengths)[0]])))
    assert narrow.token_states(batch).dtype == torch.bfloat16
    assert torch.cosine_similarity(narrow.embed(batch), encoder.embed(batch)).min() >= 0.999
    assert load_tokenizer(tmp_path / "tiny")(Ragged.from_bytes([b"ACGT"])).values.tolist() == [1, 11, 2]


def test_names_with_the_bert_prefix_are_the_same_weights(encoder, tokens):
    prefixed = {f"bert.{name}": tensor for name, tensor in load_file(WEIGHTS).items()}
    batch = next(iter(collate(tokens, [np.array([4, 0])])))
    other = DnabertS.from_tensors(tiny_config(), prefixed, None)
    assert torch.equal(other.embed(batch), encoder.embed(batch))


def test_slopes_of_twelve_heads_are_those_of_eight_then_every_other_of_sixteen():
    assert alibi_slopes(8) == [2.0**-n for n in range(1, 9)]
    assert alibi_slopes(12) == alibi_slopes(8) + alibi_slopes(16)[0:8:2]


@pytest.mark.parametrize("length", [1, 2, 63, 100, 1025])
def test_the_bias_of_any_length_is_the_distance_times_the_slope(length):
    bias, like = AlibiBias(12), torch.zeros(1)
    bias(70, like)
    place = torch.arange(length)
    distance = (place[:, None] - place).abs().float()
    assert torch.equal(bias(length, like)[0], -torch.tensor(alibi_slopes(12))[:, None, None] * distance)


@pytest.mark.parametrize("adds_ends", [True, False])
def test_tokens_stand_between_cls_and_sep_uncut_in_the_worker_too(adds_ends):
    tokenizer = DnabertSTokenizer(make_tokenizer_json(adds_ends=adds_ends))
    sequences = Ragged.from_bytes([b"ACGTACGTAAGTACGTACGTN", b"A", b""])
    for made in (tokenizer(sequences), pickle.loads(pickle.dumps(tokenizer))(sequences)):  # noqa: S301  (our own)
        assert made.values.dtype == np.int32
        assert [item.tolist() for item in made] == [[1, 11, 11, 5, 5, 10, 11, 11, 0, 2], [1, 5, 2], [1, 2]]


def test_a_missing_or_unreadable_tokenizer_is_a_model_error():
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        DnabertS.tokenizer_from({}, None)
    with pytest.raises(ModelError, match="cannot be read"):
        DnabertSTokenizer("{}")


def test_a_config_without_depth_is_a_model_error():
    config = tiny_config()
    del config["num_hidden_layers"]
    with pytest.raises(ModelError, match="num_hidden_layers"):
        DnabertS.from_tensors(config, load_file(WEIGHTS), None)
