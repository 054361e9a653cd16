"""The published models: found, converted, assembled, and answering as the published program does."""

from __future__ import annotations

import atexit
import csv
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import mixed_records, open_dna, random_dna, write_fasta
from oracle_extraction import extract
from safetensors.torch import save_file
from test_foreign import SAVE_AS_PUBLISHED
from tiny_models import DNABERT_S, byte_pair_tokenizer, dnabert_s_tensors, random_esm2, random_head, write_fair_esm
from tokenizers import Tokenizer
from torch.nn.functional import gelu, layer_norm, linear

from virnucpro import store
from virnucpro.bundles import load_bundle
from virnucpro.bundles.checkpoints import find_checkpoint, open_checkpoint
from virnucpro.bundles.published import convert_encoder, make_bundle
from virnucpro.encoders import load_encoder, read_config
from virnucpro.engine.batch import collate
from virnucpro.errors import ModelError, ResourceError
from virnucpro.heads import save_head
from virnucpro.run_dir import RunDir
from virnucpro.sequence.ragged import Ragged

SHIFT = "-2.52"
"""Added to the logit of virus, so that the random head calls some frames virus and some not."""
WIDTHS = DNABERT_S["width"] + 32


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Caches of this test alone."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, folder in (("VIRNUCPRO_CACHE", "cache"), ("HF_HOME", "hf"), ("TORCH_HOME", "torch")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    return tmp_path


def converted(name, checkpoint):
    """Convert a checkpoint once it is brought to its place in the cache."""
    place = Path(os.environ["VIRNUCPRO_CACHE"]) / "downloads" / name
    shutil.rmtree(place, ignore_errors=True)
    if checkpoint.is_dir():
        shutil.copytree(checkpoint, place)
    else:
        place.mkdir(parents=True)
        shutil.copy(checkpoint, place / f"{name}.pt")
    return convert_encoder(name)


def snapshot(places, repository, revision="abc", *, is_main=True):
    """A folder of the hub's cache."""
    root = places / "hf" / "hub" / f"models--{repository.replace('/', '--')}"
    (root / "snapshots" / revision).mkdir(parents=True)
    if is_main:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(revision)
    return root / "snapshots" / revision


def write_dnabert_s(folder, config=DNABERT_S, *, form="bin"):
    """The checkpoint as it lies on the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dnabert_s_tensors(config, seed=1)
    published = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    if form == "old names":  # of the first BERT, which transformers 5 writes again
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        published = {
            next((name.replace(a, b) for a, b in old.items() if name.endswith(a)), name): tensor
            for name, tensor in published.items()
        }
    published["bert.pooler.dense.weight"] = torch.zeros(config["hidden_size"], config["hidden_size"])
    published["cls.predictions.bias"] = torch.zeros(3)
    if form != "safetensors":
        torch.save(published, folder / "pytorch_model.bin")
    else:
        save_file(published, folder / "model.safetensors")
    ours = ("kind", "alphabet", "width")
    text = json.dumps({name: value for name, value in config.items() if name not in ours})
    (folder / "config.json").write_text(text)
    (folder / "tokenizer.json").write_text(byte_pair_tokenizer())
    return tensors


def make_esm2(layers=2, width=32, heads=4):
    return random_esm2(layers, width, heads, seed=2)


def write_head(path, width=WIDTHS):
    """A whole-module pickle made by a program of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = made_heads(width)
    shutil.copyfile(folder / "module.pth", path)
    return torch.load(folder / "state.pth", weights_only=True)["state"]


@cache
def made_heads(width):
    """What the program writes, once for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="heads-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run([sys.executable, "-c", SAVE_AS_PUBLISHED, str(width), str(folder), SHIFT], check=True)
    return folder


def write_published(places):
    """All that ``--model 500`` needs, each where its own program caches it."""
    nucleotide = write_dnabert_s(snapshot(places, "zhihan1996/DNABERT-S"))
    protein = make_esm2()
    write_fair_esm(places / "torch" / "hub" / "checkpoints" / "esm2_t36_3B_UR50D.pt", protein.state_dict())
    head = write_head(places / "cache" / "downloads" / "500_model" / "500_model.pth")
    return nucleotide, protein, head


def plain_dnabert_s(tensors, config, ids):
    """Mean over all token states of one sequence, from METHOD.md: no packing, no batching."""

    def of(name, x):
        return linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm(name, x):
        return layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], config["layer_norm_eps"])

    heads = config["num_attention_heads"]
    slopes = [2.0 ** -(8 * n / 8) for n in range(1, 9)] + [2.0 ** -(8 * n / 16) for n in range(1, 9, 2)]
    place = torch.arange(len(ids))
    bias = -torch.tensor(slopes[:heads])[:, None, None] * (place[:, None] - place).abs()
    x = tensors["embeddings.word_embeddings.weight"][ids] + tensors["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x)
    for number in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{number}"
        q, k, v = of(f"{name}.attention.self.Wqkv", x).view(len(ids), 3, heads, -1).permute(1, 2, 0, 3)
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
        attended = (weights @ v).transpose(0, 1).reshape(len(ids), -1)
        x = norm(f"{name}.attention.output.LayerNorm", of(f"{name}.attention.output.dense", attended) + x)
        gate, content = of(f"{name}.mlp.gated_layers", x).chunk(2, dim=-1)
        x = norm(f"{name}.mlp.layernorm", of(f"{name}.mlp.wo", gelu(gate) * content) + x)
    return x.mean(0)


def plain_esm2(model, protein):
    _, _, tokens = model.alphabet.get_batch_converter(1024)([("", protein)])
    states = model(tokens, repr_layers=[model.num_layers])["representations"][model.num_layers]
    return states[0, 1 : len(protein) + 1].mean(0)


def plain_scores(head, feature):
    hidden = linear(feature, head["hidden_layer.weight"], head["hidden_layer.bias"])
    hidden = (hidden - head["bn1.running_mean"]) / torch.sqrt(head["bn1.running_var"] + 1e-5)
    hidden = (hidden * head["bn1.weight"] + head["bn1.bias"]).relu()
    return linear(hidden, head["output_layer.weight"], head["output_layer.bias"]).softmax(-1)


@torch.inference_mode()
def published_rule(records, length, nucleotide, protein, head):
    """Lines of the published program: (frame, prediction, scores), then the call of each window."""
    pairs = Tokenizer.from_str(byte_pair_tokenizer())
    names = list(records)
    lines, best = [], {}
    for sequence, index, frame, _, _, _, nt, aa in extract(list(records.items()), length)[1]:
        window = f"{names[sequence]}_chunk_{index + 1}"
        feature = torch.cat(
            [plain_dnabert_s(nucleotide, DNABERT_S, torch.tensor(pairs.encode(nt).ids)), plain_esm2(protein, aa)]
        )
        other, virus = plain_scores(head, feature).tolist()
        lines.append((f"{window}{'F' if frame > 0 else 'R'}{abs(frame)}", other, virus))
        old = best.get(window, (0.0, 0.0))
        best[window] = (max(old[0], other), max(old[1], virus))
    return lines, {window: virus >= other for window, (other, virus) in best.items()}


def test_legacy_output_is_the_published_rule_end_to_end(virnucpro, places):
    """Checkpoints in their published forms to the published program's files: one sequence at a time, plainly."""
    parts = write_published(places)
    records = mixed_records(24) | {"odd": open_dna(700, 77) + "N" + random_dna(50, 7), "short": open_dna(200, 3)}
    fasta = write_fasta(places / "in.fasta", records)
    ended = virnucpro("predict", fasta, "-o", places / "out", "--model", 500, "--legacy-output", "--device", "cpu")
    assert ended.code == 0, ended.err
    lines, calls = published_rule(records, 500, *parts)
    text = (places / "out" / "in_merged" / "prediction_results.txt").read_text()
    found = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
    assert [row["Sequence_ID"] for row in found] == [name for name, _, _ in lines]
    assert len(lines) > 30
    for row, (_, other, virus) in zip(found, lines, strict=True):
        assert abs(float(row["score1"]) - other) <= 1e-5
        assert abs(float(row["score2"]) - virus) <= 1e-5
        assert row["Prediction"] == ("virus" if virus > other else "others")
    assert {row["Prediction"] for row in found} == {"virus", "others"}
    text = (places / "out" / "in_merged" / "prediction_results_highestscore.csv").read_text()
    highest = {
        row["Modified_ID"]: row["Is_Virus"] == "True" for row in csv.DictReader(io.StringIO(text), delimiter="\t")
    }
    assert highest == calls
    assert set(calls.values()) == {True, False}


def test_the_same_in_16_bit_stays_close(virnucpro, places):
    """bfloat16 moves no score of the tiny model by more than a tenth, and few by more than a hundredth."""
    write_published(places)
    fasta = write_fasta(places / "in.fasta", mixed_records(6))
    scores = {}
    for dtype in ("bfloat16", "float32"):
        out = places / dtype
        ended = virnucpro(
            "predict", fasta, "-o", out, "--model", 500, "--legacy-output", "--device", "cpu", "--dtype", dtype
        )
        assert ended.code == 0, ended.err
        lines = (out / "in_merged" / "prediction_results.txt").read_text().splitlines()[1:]
        scores[dtype] = np.array([float(line.split("\t")[3]) for line in lines])
    difference = np.abs(scores["float32"] - scores["bfloat16"])
    assert difference.max() < 0.1
    assert np.median(difference) < 0.01
    kept = {path.name for path in (places / "cache" / "encoders").glob("*.safetensors")}
    assert kept == {f"{n}-{d}.safetensors" for n in ("DNABERT-S", "esm2_t36_3B_UR50D") for d in ("float32", "bfloat16")}


def test_a_bundle_is_made_once_and_needs_no_checkpoint_afterwards(places):
    write_published(places)
    bundle = load_bundle("500")
    assert (bundle.fragment_length, bundle.min_length, bundle.row_rule, bundle.scores_frameless) == (
        500,
        0,
        "max",
        False,
    )
    log_odds = np.array([-2.0, 0.0, 3.0])
    assert np.array_equal(bundle.calibration.fragment_log_odds(log_odds, np.array([60, 300, 500])), log_odds)
    assert np.array_equal(bundle.calibration.sequence_log_odds(log_odds, np.array([1, 5, 900])), log_odds)
    for path in (*places.glob("torch/hub/checkpoints/*"), *places.glob("cache/downloads/*/*.pth")):
        path.unlink()
    assert load_bundle("500") == bundle
    for role in ("nucleotide", "protein", "head"):
        with (bundle.folder / f"{role}.safetensors").open("rb") as stream:
            assert bundle.digests[role] == hashlib.file_digest(stream, "sha256").hexdigest()


def test_a_weight_changed_after_it_was_recorded_changes_the_fingerprint(places):
    """The record of a large file's digest holds only as long as its size and time do."""
    write_published(places)
    before = load_bundle("500")
    content = bytearray(before.protein.read_bytes())
    content[-1] ^= 1
    before.protein.write_bytes(content)
    assert load_bundle("500").fingerprint != before.fingerprint


def test_a_bundle_is_whole_where_hard_links_cannot_be_made(places, monkeypatch):
    def refuse(source, place):
        raise OSError(source, place)

    write_published(places)
    monkeypatch.setattr(os, "link", refuse)
    assert read_config(load_bundle("500").protein).width == 32


def test_what_is_missing_is_named_with_its_source_and_every_place_searched(virnucpro, places):
    fasta = write_fasta(places / "in.fasta", {"a": open_dna(600, 1)})
    write_head(places / "cache" / "downloads" / "500_model" / "500_model.pth")
    incomplete = snapshot(places, "zhihan1996/DNABERT-S")
    write_dnabert_s(incomplete)
    (incomplete / "tokenizer.json").unlink()
    ended = virnucpro("predict", fasta, "-o", places / "out", "--model", "500")
    assert ended.code == 6
    for part in (
        "DNABERT-S is not on this machine",
        "https://huggingface.co/zhihan1996/DNABERT-S",
        str(places / "cache" / "downloads" / "DNABERT-S"),
        f"{incomplete} (lacks tokenizer.json)",
        "virnucpro models fetch DNABERT-S",
        "--model lite",
    ):
        assert part in ended.err
    assert not (places / "out").exists()
    with pytest.raises(ModelError, match=r"500_model\.pth|300_model\.pth"):
        load_bundle("300")
    with pytest.raises(ModelError) as caught:
        find_checkpoint("esm2_t6_8M_UR50D")
    assert str(places / "torch" / "hub" / "checkpoints") in str(caught.value)
    assert "https://dl.fbaipublicfiles.com/fair-esm/models/esm2_t6_8M_UR50D.pt" in str(caught.value)


def test_a_checkpoint_is_found_where_its_programs_keep_it(places, monkeypatch):
    name = "esm2_t6_8M_UR50D"
    in_torch = places / "torch" / "hub" / "checkpoints" / f"{name}.pt"
    write_fair_esm(in_torch, make_esm2().state_dict())
    assert find_checkpoint(name) == in_torch
    older = snapshot(places, f"facebook/{name}", "older", is_main=False)
    newer = snapshot(places, f"facebook/{name}", "newer", is_main=False)
    for folder in (older, newer):
        write_hugging_face_esm2(folder, make_esm2(), "bin")
    os.utime(older, (1, 1))
    assert find_checkpoint(name) == newer
    (older.parent.parent / "refs").mkdir()
    (older.parent.parent / "refs" / "main").write_text("older\n")
    assert find_checkpoint(name) == older
    monkeypatch.setenv("HF_HUB_CACHE", str(places / "elsewhere"))
    assert find_checkpoint(name) == in_torch
    ours = places / "cache" / "downloads" / name
    write_hugging_face_esm2(ours, make_esm2(), "safetensors")
    assert find_checkpoint(name) == ours


def write_hugging_face_esm2(folder, model, form):
    """The same weights as ``facebook/esm2_*`` has them: names, config, in one part or several."""
    theirs = {
        "self_attn.q_proj": "attention.self.query",
        "self_attn.k_proj": "attention.self.key",
        "self_attn.v_proj": "attention.self.value",
        "self_attn.out_proj": "attention.output.dense",
        "self_attn_layer_norm": "attention.LayerNorm",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "final_layer_norm": "LayerNorm",
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            part, _, end = rest.rpartition(".")
            if part in theirs:
                tensors[f"esm.encoder.layer.{number}.{theirs[part]}.{end}"] = tensor.clone()
        elif name.startswith("emb_layer_norm_after"):
            tensors[f"esm.encoder.{name}"] = tensor.clone()
        elif name == "embed_tokens.weight":
            tensors["esm.embeddings.word_embeddings.weight"] = tensor.clone()
    tensors["lm_head.bias"] = torch.zeros(33)
    tensors["esm.embeddings.position_ids"] = torch.arange(9)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "model_type": "esm",
        "num_attention_heads": model.attention_heads,
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "emb_layer_norm_before": False,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    kind = "safetensors" if "safetensors" in form else "bin"
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = sorted(tensors)
    parts = [names[::2], names[1::2]] if "sharded" in form else [names]
    files = [
        f"{stem}-{i + 1:05}-of-{len(parts):05}.{kind}" if len(parts) > 1 else f"{stem}.{kind}"
        for i in range(len(parts))
    ]
    for file, part in zip(files, parts, strict=True):
        (save_file if kind == "safetensors" else torch.save)({name: tensors[name] for name in part}, folder / file)
    if len(parts) > 1:
        weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("form", ["bin", "safetensors", "sharded bin", "sharded safetensors"])
def test_every_form_of_esm2_converts_to_the_same_bytes(places, form):
    """Depth, width and heads come from the checkpoint: nothing is said of 48 wide and 3 layers anywhere else."""
    model = make_esm2(3, 48, 4)
    name = "esm2_t6_8M_UR50D"
    write_fair_esm(places / "here" / f"{name}.pt", model.state_dict())
    write_hugging_face_esm2(places / "there", model, form)
    expected = converted(name, places / "here")
    content = expected.read_bytes()
    expected.unlink()
    assert converted(name, places / "there").read_bytes() == content
    encoder = load_encoder(expected, torch.device("cpu"), torch.float32)
    assert (encoder.width, read_config(expected).settings["attention_heads"]) == (48, 4)


def test_what_transformers_saves_is_the_same_model(places):
    """Files, names and config as the library itself writes them, in several parts."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.EsmConfig(
        vocab_size=33,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
        layer_norm_eps=1e-5,
        mask_token_id=32,
        pad_token_id=1,
    )
    original = transformers.EsmForMaskedLM(config).eval()
    original.save_pretrained(places / "saved", max_shard_size="100KB")
    assert (places / "saved" / "model.safetensors.index.json").is_file()
    made = converted("esm2_t6_8M_UR50D", places / "saved")
    encoder = load_encoder(made, torch.device("cpu"), torch.float32)
    batch = next(iter(collate(encoder.tokenizer(Ragged.from_bytes([b"MKVLAXGTR" * 9])), [np.array([0])])))
    with torch.inference_mode():
        ids = batch.input_ids[None]
        states = original.esm(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    assert (encoder.token_states(batch) - states).abs().max() <= 1e-5


@pytest.mark.parametrize("form", ["bin", "safetensors", "old names"])
def test_every_form_of_dnabert_s_converts_to_the_same_bytes(places, form):
    write_dnabert_s(places / "one", form="bin")
    write_dnabert_s(places / "two", form=form)
    made = converted("DNABERT-S", places / "one")
    content = made.read_bytes()
    made.unlink()
    assert converted("DNABERT-S", places / "two").read_bytes() == content
    assert not [name for name in read_config(made).settings if name == "hidden_size"]


def test_a_checkpoint_with_a_part_missing_or_outside_is_refused(places):
    folder = places / "there"
    write_hugging_face_esm2(folder, make_esm2(), "sharded bin")
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ModelError, match=r"names pytorch_model-00002-of-00002\.bin, which is missing"):
        open_checkpoint(folder)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../pytorch_model-00001-of-00002.bin"}}))
    with pytest.raises(ModelError, match="outside its folder"):
        open_checkpoint(folder)
    for content in ("{}", "[]", "{"):
        index.write_text(content)
        with pytest.raises(ModelError, match="index"):
            open_checkpoint(folder)


def test_what_is_no_esm2_is_refused(places):
    name = "esm2_t6_8M_UR50D"
    for change, problem in (
        ({"position_embedding_type": "absolute"}, "describes no ESM-2"),
        ({"model_type": "bert"}, "describes no ESM-2"),
        ({"num_attention_heads": "many"}, "'many' attention heads"),
    ):
        write_hugging_face_esm2(places / "x", make_esm2(), "bin")
        config = places / "x" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
        with pytest.raises(ModelError, match=problem):
            converted(name, places / "x")
    state = make_esm2().state_dict() | {"embed_positions.weight": torch.zeros(9, 32)}
    torch.save({"model": state, "args": Namespace(encoder_attention_heads=4)}, places / "old.pt")
    with pytest.raises(ModelError, match="older ESM"):
        converted(name, places / "old.pt")
    assert not list((places / "cache").rglob("*.safetensors"))


def test_a_full_disk_is_told_before_the_conversion(places, monkeypatch):
    import shutil

    write_published(places)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))  # noqa: SLF001
    with pytest.raises(ResourceError, match="VIRNUCPRO_CACHE"):
        make_bundle("500")


WIDE = DNABERT_S | {"width": 768, "hidden_size": 768, "num_hidden_layers": 1, "intermediate_size": 16}


def write_wide(places):
    """Encoders of released widths: 768 and, for ESM-2 8M, 320."""
    write_dnabert_s(places / "cache" / "downloads" / "DNABERT-S", WIDE)
    write_fair_esm(
        places / "torch" / "hub" / "checkpoints" / "esm2_t6_8M_UR50D.pt", make_esm2(1, 320, 20).state_dict(), 20
    )


def test_a_head_of_ones_own_takes_the_esm2_that_its_width_asks_for(virnucpro, places):
    write_wide(places)
    write_head(places / "my_head.pth", 768 + 320)
    fasta = write_fasta(places / "in.fasta", {"a": open_dna(600, 1)})
    base = ("predict", fasta, "-o", places / "out", "--model-type", "custom", "--model-path", places / "my_head.pth")
    ended = virnucpro(*base)
    assert ended.code == 6
    assert "--expected-length" in ended.err
    ended = virnucpro(*base, "--expected-length", 450)
    assert ended.code == 0, ended.err
    record = json.loads((places / "out" / "in.run.json").read_text())
    assert (record["model"]["name"], record["parameters"]["fragment_length"]) == ("my_head", 450)
    assert record["warnings"] == []
    (folder,) = (places / "cache" / "bundles").glob("custom-*-450-float32")
    assert yaml.safe_load((folder / "bundle.yaml").read_text())["provenance"]["encoders"][1] == "esm2_t6_8M_UR50D"


def test_a_head_in_safetensors_says_itself_what_it_was_trained_on(places):
    write_wide(places)
    save_head(places / "h.safetensors", random_head(768 + 320, 8, seed=1), {"fragment_length": 400})
    assert load_bundle(str(places / "h.safetensors")).fragment_length == 400
    assert load_bundle(str(places / "h.safetensors"), fragment_length=300).fragment_length == 400
    save_head(places / "odd.safetensors", random_head(768 + 321, 8, seed=1), {"fragment_length": 400})
    with pytest.raises(ModelError, match=r"1089 wide.*1088 \(esm2_t6_8M_UR50D\)"):
        load_bundle(str(places / "odd.safetensors"))


def test_a_head_that_does_not_fit_the_encoders_is_refused_before_any_work(virnucpro, places):
    write_published(places)
    write_head(places / "cache" / "downloads" / "300_model" / "300_model.pth", 57)
    fasta = write_fasta(places / "in.fasta", mixed_records(1))
    ended = virnucpro("predict", fasta, "-o", places / "out", "--model", 300)
    assert ended.code == 6
    assert "57 wide" in ended.err
    assert "give 56" in ended.err


def test_another_fragment_length_must_be_insisted_on_and_is_warned_of(virnucpro, places):
    """In the log, on the terminal and in the run record."""
    write_published(places)
    fasta = write_fasta(places / "in.fasta", {"a": open_dna(900, 1)})
    base = ("predict", fasta, "-o", places / "out", "--model", 500)
    ended = virnucpro(*base, "--fragment-length", 300)
    assert ended.code == 6
    assert "insist: --expected-length 300" in ended.err
    assert virnucpro(*base, "--fragment-length", 300, "--expected-length", 400).code == 2
    ended = virnucpro(*base, "--expected-length", 300)
    assert ended.code == 0, ended.err
    (warning,) = json.loads((places / "out" / "in.run.json").read_text())["warnings"]
    assert "trained on 500" in warning
    assert warning in (places / "out" / "in.log").read_text()
    assert virnucpro("predict", fasta, "-o", places / "lite", "--fragment-length", 300).code == 0


def test_reads_of_150_bases_are_warned_of_and_lite_is_named(virnucpro, places):
    write_published(places)
    fasta = write_fasta(places / "in.fasta", {f"r{i}": open_dna(150, i) for i in range(5)})
    assert virnucpro("predict", fasta, "-o", places / "out", "--model", 500).code == 0
    (warning,) = json.loads((places / "out" / "in.run.json").read_text())["warnings"]
    assert "close to chance" in warning
    assert "--model lite" in warning


KNOWN = {  # frame of golden/published_weights_input.fasta, with the 500 head: score not virus, score virus
    "synthetic_seq_1_chunk_1R1": (0.12100612, 0.8789939),
    "synthetic_seq_1_chunk_1R2": (0.00115957, 0.9988405),
    "synthetic_seq_2_chunk_1R1": (0.5501341, 0.4498659),
    "synthetic_seq_2_chunk_1R2": (0.06045397, 0.93954605),
}
KNOWN_FIGURES = {  # the beginning of both embeddings of the first of these frames, by place in the feature
    0: (-0.07058205, 0.0671213, 0.02816012, -0.29251966),
    768: (0.069515, -0.12609334, -0.05360897, -0.02103789),
}
KNOWN_RECORDS = {
    "synthetic_seq_1": "ATGGCTAGCAAAGGTAAACGTATTGCAGAACTGAAAGAAGCGATTGAAAAACGTGCAGAACTGGCAGAAGCGATTAAAAAAGCGGCGGAAGCG"
    "ATGGCGGCGAAAGGTAAAGCGATTGAAGCGGCGAAAGAAGCGATTGCGGAACTGAAAGCGGCGAAAGAAGCGGCGAAATAA",
    "synthetic_seq_2": "ATGAAACGTGCAGAACTGGCAGAAGCGATTAAAAAAGCGGCGGAAGCGATGGCGGCGAAAGGTAAAGCGATTGAAGCGGCGAAAGAAGCGATT"
    "GCGGAACTGAAAGCGGCGAAAGAAGCGGCGAAAGGTAAACGTATTGCAGAACTGAAAGAAGCGATTGAAAAACGTTGA",
}

REAL = {name: os.environ.get(name) for name in ("HOME", "VIRNUCPRO_CACHE", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME")}


@pytest.mark.weights
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 5e-2)])
def test_the_known_answers_hold_with_the_real_weights(virnucpro, tmp_path, monkeypatch, dtype, tolerance):
    """Four frames of the reference program; needs DNABERT-S, ESM-2 3B and the 500 head in the user's caches."""
    for name, value in REAL.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    fasta = write_fasta(tmp_path / "known.fasta", KNOWN_RECORDS)
    out = tmp_path / "out"
    ended = virnucpro(
        "predict", fasta, "-o", out, "--model", 500, "--legacy-output", "--dtype", dtype, "--keep-embeddings"
    )
    assert ended.code == 0, ended.err
    lines = (out / "known_merged" / "prediction_results.txt").read_text().splitlines()[1:]
    found = {name: (float(other), float(virus)) for name, _, other, virus in (line.split("\t") for line in lines)}
    assert found.keys() == KNOWN.keys()
    for name, scores in KNOWN.items():
        assert np.abs(np.subtract(found[name], scores)).max() <= tolerance, name
    feature = store.read_arrays(RunDir(out).merged(0), "merged", "feature")["feature"]
    assert feature.shape == (4, 768 + 2560)
    for start, figures in KNOWN_FIGURES.items():
        assert np.abs(feature[0, start : start + 4] - figures).max() <= tolerance
