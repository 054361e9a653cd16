"""ESM-2 must be fair-esm's ESM-2, however its input is packed."""

import numpy as np
import pytest
import torch
from tiny_models import random_esm2

from virnucpro.encoders import load_encoder, load_tokenizer, read_config, save_encoder
from virnucpro.encoders.esm2 import Esm2, Esm2Tokenizer, convert_checkpoint
from virnucpro.engine.batch import collate
from virnucpro.engine.packing import GreedyPacker
from virnucpro.errors import ModelError, UsageError
from virnucpro.sequence.ragged import Ragged

pytest.importorskip("esm", reason="the package itself is the oracle")

SHAPES = [(3, 64, 4), (6, 320, 20)]
LETTERS = list("LAGVSERTIDPKQNFYMHWCXBUZO.-")


def make_original(shape):
    return random_esm2(*shape, seed=7)


def config_of(shape):
    layers, width, heads = shape
    return {"kind": "esm2", "alphabet": "aa", "width": width, "num_layers": layers, "attention_heads": heads}


def random_proteins():
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(LETTERS, n)) for n in (100, 1, 5, 30, 167, 5, 30, 166, 30, 2)]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def pair(request):
    original = make_original(request.param)
    return original, Esm2.from_tensors(config_of(request.param), original.state_dict()), request.param


def original_states(model, proteins, layer):
    """Padded (B, L, width) states of the reference."""
    _, _, tokens = model.alphabet.get_batch_converter()([("", protein) for protein in proteins])
    with torch.inference_mode():
        return tokens, model(tokens, repr_layers=[layer])["representations"][layer]


@pytest.mark.parametrize("budget", [1, 64, 400, 100_000])
def test_equals_fair_esm_single_and_packed(pair, budget):
    original, encoder, (layers, _, _) = pair
    proteins = random_proteins()
    tokens = encoder.tokenizer(Ragged.from_bytes(p.encode() for p in proteins))
    _, padded = original_states(original, proteins, layers)
    seen = []
    for batch in collate(tokens, GreedyPacker(budget)(tokens.lengths)):
        states, embeddings = encoder.token_states(batch).split(batch.lengths), encoder.embed(batch)
        for row, length, state, embedding in zip(batch.rows, batch.lengths, states, embeddings, strict=True):
            assert (state - padded[row, :length]).abs().max() <= 1e-5
            assert (embedding - padded[row, 1 : length - 1].mean(0)).abs().max() <= 1e-5
            alone = original_states(original, [proteins[row]], layers)[1][0]
            assert (state - alone).abs().max() <= 1e-5
            seen.append(row)
    assert sorted(seen) == list(range(len(proteins)))


def test_an_inner_layer_can_be_the_representation(pair):
    original, _, shape = pair
    encoder = Esm2.from_tensors({**config_of(shape), "repr_layer": 2}, original.state_dict())
    tokens = encoder.tokenizer(Ragged.from_bytes([b"MKVLA"]))
    states = encoder.token_states(next(iter(collate(tokens, [np.array([0])]))))
    assert (states - original_states(original, ["MKVLA"], 2)[1][0]).abs().max() <= 1e-5


def test_bfloat16_stays_close_to_float32(pair, tmp_path):
    original, encoder, shape = pair
    wanted = {name for name in original.state_dict() if not name.startswith(("contact_head", "lm_head"))}
    tensors = {name: tensor for name, tensor in original.state_dict().items() if name in wanted}
    save_encoder(tmp_path / "esm2", config_of(shape), tensors)
    narrow = load_encoder(tmp_path / "esm2", torch.device("cpu"), torch.bfloat16)
    tokens = encoder.tokenizer(Ragged.from_bytes(p.encode() for p in random_proteins()))
    batch = next(iter(collate(tokens, [GreedyPacker(100_000)(tokens.lengths)[0]])))
    embeddings = narrow.embed(batch)
    assert embeddings.dtype == torch.float32
    assert narrow.token_states(batch).dtype == torch.bfloat16
    assert torch.cosine_similarity(embeddings, encoder.embed(batch)).min() >= 0.999


def test_the_tokenizer_is_fair_esms():
    _, _, tokens = make_original((1, 16, 2)).alphabet.get_batch_converter()([("", "".join(LETTERS))])
    assert Esm2Tokenizer(1024)(Ragged.from_bytes(["".join(LETTERS).encode()])).values.tolist() == tokens[0].tolist()


def test_a_hugging_face_checkpoint_is_the_same_model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.EsmConfig(
        vocab_size=33,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
        layer_norm_eps=1e-5,
        mask_token_id=32,
        pad_token_id=1,
    )
    original = transformers.EsmModel(config).eval()
    settings, tensors = convert_checkpoint(original.state_dict(), attention_heads=4)
    assert settings == config_of((3, 64, 4))
    encoder = Esm2.from_tensors(settings, tensors)
    batch = next(iter(collate(encoder.tokenizer(Ragged.from_bytes([b"MKVLAXGTR" * 9])), [np.array([0])])))
    with torch.inference_mode():
        ids = batch.input_ids[None]
        states = original(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    assert (encoder.token_states(batch) - states).abs().max() <= 1e-5


def test_a_fair_esm_checkpoint_keeps_only_what_makes_the_embedding(tmp_path):
    state = make_original((2, 320, 20)).state_dict()
    stored = {f"encoder.sentence_encoder.{name}": tensor for name, tensor in state.items()}
    settings, tensors = convert_checkpoint(stored)
    assert settings == config_of((2, 320, 20))
    assert not [name for name in tensors if "head" in name]
    save_encoder(tmp_path / "esm2", settings, tensors)
    load_encoder(tmp_path / "esm2", torch.device("cpu"), torch.float32)
    for tensors, heads, problem in (({}, None, "not the tensors"), (make_small_tensors(), 4, "not the tensors")):
        with pytest.raises(ModelError, match=problem):
            convert_checkpoint(tensors, heads)
    with pytest.raises(ModelError, match="number of attention heads"):
        convert_checkpoint(make_original(SHAPES[0]).state_dict())


def test_a_letter_outside_the_alphabet_is_unknown_and_long_proteins_are_cut():
    tokens = Esm2Tokenizer(4)(Ragged.from_bytes([b"AJ*", b"", b"LLLLLLLL", b"LLLL"]))
    assert [item.tolist() for item in tokens] == [[0, 5, 3, 3, 2], [0, 2], [0, 4, 4, 4, 4, 2], [0, 4, 4, 4, 4, 2]]
    assert tokens.values.dtype == np.int32


def test_a_saved_encoder_is_the_same_bytes_each_time_and_reads_back(tmp_path):
    original = make_original(SHAPES[0])
    tensors = original.state_dict()
    tensors.pop("lm_head.weight")  # shares memory with the embeddings
    files = [tmp_path / f"{number}.safetensors" for number in range(6)]
    for path in files:
        save_encoder(path, config_of(SHAPES[0]), tensors, tokenizer='{"é": "\\n/"}')
    assert len({path.read_bytes() for path in files}) == 1
    config = read_config(files[0])
    assert (config.kind, config.alphabet, config.width, config.tokenizer_json) == ("esm2", "aa", 64, '{"é": "\\n/"}')
    assert load_tokenizer(files[0])(Ragged.from_bytes([b"A"])).values.tolist() == [0, 5, 2]
    batch = next(iter(collate(Ragged(np.array([0, 5, 6, 2], dtype=np.int32), np.array([0, 4])), [np.array([0])])))
    encoder = load_encoder(files[0], torch.device("cpu"), torch.float32)
    assert torch.equal(encoder.embed(batch), Esm2.from_tensors(config_of(SHAPES[0]), tensors).embed(batch))
    with pytest.raises(UsageError, match="bfloat16"):
        load_encoder(files[0], torch.device("cpu"), torch.float16)


def test_a_file_that_does_not_fit_is_named_with_what_is_wrong(tmp_path):
    tensors = dict(make_original(SHAPES[0]).state_dict())
    del tensors["lm_head.weight"], tensors["layers.1.fc1.bias"]
    tensors["layers.9.fc1.bias"] = torch.zeros(3)
    tensors["layers.0.fc2.weight"] = torch.zeros(3, 3)
    path = tmp_path / "broken.safetensors"
    save_encoder(path, config_of(SHAPES[0]), tensors)
    with pytest.raises(ModelError) as caught:
        load_encoder(path, torch.device("cpu"), torch.float32)
    for part in (
        str(path),
        "layers.1.fc1.bias is missing",
        "layers.9.fc1.bias is not",
        "is (3, 3), should be (64, 256)",
    ):
        assert part in str(caught.value)


def test_missing_damaged_and_foreign_files_are_model_errors(tmp_path):
    with pytest.raises(ModelError, match=r"none\.safetensors.*No such file"):
        read_config(tmp_path / "none.safetensors")
    for content in (b"", b"hello", b"\xff" * 100, (20).to_bytes(8, "little") + b"[1]".ljust(20)):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match=r"bad\.safetensors"):
            read_config(tmp_path / "bad.safetensors")
    save_encoder(tmp_path / "odd.safetensors", {"kind": "odd", "alphabet": "aa", "width": 1}, {"x": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"odd\.safetensors: unknown encoder kind 'odd'"):
        load_tokenizer(tmp_path / "odd.safetensors")
    with pytest.raises(ModelError, match="must name alphabet, kind"):
        save_encoder(tmp_path / "x", {"width": 1}, {})
    save_encoder(tmp_path / "cut.safetensors", config_of(SHAPES[0]), make_small_tensors())
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=r"cut\.safetensors"):
        load_encoder(tmp_path / "cut.safetensors", torch.device("cpu"), torch.float32)


def make_small_tensors():
    return {"embed_tokens.weight": torch.zeros(33, 64)}
