"""Tiny encoders of the real architectures with seeded random weights, as bundle folders."""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from virnucpro.bundles import load_bundle
from virnucpro.encoders import save_encoder
from virnucpro.heads import MLPHead, save_head
from virnucpro.nearest.table import load_table

if TYPE_CHECKING:
    import esm

DNABERT_S = {
    "kind": "dnabert_s",
    "alphabet": "nt",
    "width": 24,
    "vocab_size": 64,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
}


def byte_pair_tokenizer(seed: int = 0, vocab_size: int = 64) -> str:
    """A real byte-pair tokenizer of the published form, trained on random DNA, as JSON."""
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(("".join(rng.choices("ACGT", k=200)) for _ in range(50)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return str(tokenizer.to_str())


def dnabert_s_tensors(config: dict[str, object], seed: int) -> dict[str, torch.Tensor]:
    """Random weights under the names of the checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])  # type: ignore[call-overload]

    def random_(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": 1 + random_(width), f"{name}.bias": random_(width)}

    tensors = {
        "embeddings.word_embeddings.weight": random_(int(config["vocab_size"]), width),  # type: ignore[call-overload]
        "embeddings.token_type_embeddings.weight": random_(2, width),
        **norm("embeddings.LayerNorm"),
    }
    for layer in range(int(config["num_hidden_layers"])):  # type: ignore[call-overload]
        name = f"encoder.layer.{layer}"
        tensors |= {
            f"{name}.attention.self.Wqkv.weight": random_(3 * width, width),
            f"{name}.attention.self.Wqkv.bias": random_(3 * width),
            f"{name}.attention.output.dense.weight": random_(width, width),
            f"{name}.attention.output.dense.bias": random_(width),
            **norm(f"{name}.attention.output.LayerNorm"),
            f"{name}.mlp.gated_layers.weight": random_(2 * inner, width),
            f"{name}.mlp.wo.weight": random_(width, inner),
            f"{name}.mlp.wo.bias": random_(width),
            **norm(f"{name}.mlp.layernorm"),
        }
    return tensors


def random_esm2(layers: int, width: int, heads: int, seed: int) -> esm.ESM2:
    """The network of the fair-esm package with random weights, its norms too."""
    import esm  # not on every machine that runs some of the tests

    torch.manual_seed(seed)
    model = esm.ESM2(layers, width, heads).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=0.2)
    return model


def write_fair_esm(path: Path, state: dict[str, torch.Tensor], heads: int = 4) -> None:
    """The ``.pt`` file of the fair-esm package: names, and a namespace of settings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = Namespace(
        encoder_layers=sum(name.endswith(".fc1.weight") for name in state),
        encoder_embed_dim=state["embed_tokens.weight"].shape[1],
        encoder_attention_heads=heads,
        token_dropout=True,
        arch="roberta_large",
    )
    named = {f"encoder.sentence_encoder.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": named, "cfg": {"model": settings, "_name": None}}, path)


def random_head(input_width: int, hidden_width: int, seed: int) -> MLPHead:
    """A head whose batch norm has real running statistics."""
    torch.manual_seed(seed)
    head = MLPHead(input_width, hidden_width)
    with torch.no_grad():
        head.bn1.running_mean.normal_(0, 0.3)
        head.bn1.running_var.uniform_(0.5, 1.5)
        head.output_layer.weight.mul_(4)
    return head.eval()


def write_tiny_bundle(
    folder: Path,
    *,
    frameless: str = "skip",
    min_length: int = 0,
    num_layers: int = 2,
    protein_width: int = 32,
    poison: str = "",
) -> Path:
    """A bundle of tiny published architectures; fragments of 300 bases.

    A row whose nucleotides hold ``poison`` makes the encoder raise: it is a token without an embedding.
    """
    tokenizer = byte_pair_tokenizer()
    if poison:
        tokens = Tokenizer.from_str(tokenizer)
        tokens.add_tokens([poison])
        tokenizer = tokens.to_str()
    save_encoder(folder / "nucleotide.safetensors", DNABERT_S, dnabert_s_tensors(DNABERT_S, seed=1), tokenizer)
    import esm  # as above

    torch.manual_seed(2)
    model = esm.ESM2(num_layers=num_layers, embed_dim=protein_width, attention_heads=4)
    config = {
        "kind": "esm2",
        "alphabet": "aa",
        "width": protein_width,
        "num_layers": num_layers,
        "attention_heads": 4,
    }
    unused = ("lm_head", "contact_head")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(unused)}
    save_encoder(folder / "protein.safetensors", config, tensors, None)
    save_head(folder / "head.safetensors", random_head(24 + protein_width, 16, seed=3), {})
    settings = {
        "schema": 1,
        "name": "tiny",
        "fragment_length": 300,
        "min_length": min_length,
        "frameless": frameless,
        "rows": "max",
        "nucleotide": "nucleotide.safetensors",
        "protein": "protein.safetensors",
        "head": "head.safetensors",
        "threshold": 0.5,
        "calibration": {"lengths": [300], "slope": [1.0], "intercept": [0.0], "exponent": 0.5},
        "provenance": {"weights": "random"},
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(settings))
    return folder


@cache
def small_lite() -> Path:
    """The bundled model with one protein in 400 of its table, for tests that are not about its answers.

    Each unit of rows is searched for in the whole table, which is most of what a small run with the real one costs.
    """
    lite = load_bundle("lite").folder
    folder = Path(tempfile.mkdtemp(prefix="small-lite-"))
    folder.chmod(0o755)  # for tests that become another user
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("nucleotide.safetensors", "protein.safetensors", "head.safetensors", "bundle.yaml"):
        shutil.copyfile(lite / name, folder / name)
    table = load_table(lite / "nearest.npz.zst")
    table.only(np.arange(len(table)) % 400 == 0).save(folder / "nearest.npz.zst")
    return folder
