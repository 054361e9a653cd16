"""Generated inputs: reads, proteins and random weights, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from virnucpro.encoders.esm2 import NUM_TOKENS, RESIDUES
from virnucpro.machine.reads import random_bases
from virnucpro.sequence.ragged import Ragged, offsets_of

DNABERT_S_VOCABULARY = 4096
ESM2_SIZES = {
    "8M": (6, 320, 20),
    "35M": (12, 480, 20),
    "150M": (30, 640, 20),
    "650M": (33, 1280, 20),
    "3B": (36, 2560, 40),
}
"""Layers, width and attention heads of the published sizes."""


def random_strings(rng: np.random.Generator, letters: bytes, lengths: NDArray[np.int64]) -> Ragged:
    """Strings of ``letters``, of the lengths given."""
    offsets = offsets_of(lengths)
    alphabet = np.frombuffer(letters, dtype=np.uint8)
    return Ragged(alphabet[rng.integers(0, len(alphabet), size=int(offsets[-1]))], offsets)


def frame_proteins(rng: np.random.Generator, num_proteins: int) -> Ragged:
    """Proteins as long as the frames of 300-base (100, 99, 99) and 500-base fragments (166)."""
    lengths = rng.choice(np.array([100, 99, 99, 166, 166, 166]), size=num_proteins)
    return random_strings(rng, RESIDUES[:20], lengths)


def fragments(rng: np.random.Generator, num_fragments: int) -> Ragged:
    """Fragments of 300 and of 500 bases."""
    return random_strings(rng, b"ACGT", rng.choice(np.array([300, 500]), size=num_fragments))


def esm2_weights(size: str, seed: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and random tensors of an ESM-2, under fair-esm's names."""
    num_layers, width, heads = ESM2_SIZES[size]
    matrix, vector = _random_tensors(seed)
    tensors = {"embed_tokens.weight": matrix(NUM_TOKENS, width), **_norm(vector, "emb_layer_norm_after", width)}
    parts = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
    parts |= {"fc1": (4 * width, width), "fc2": (width, 4 * width)}
    for layer in (f"layers.{number}" for number in range(num_layers)):
        for part, shape in parts.items():
            tensors |= {f"{layer}.{part}.weight": matrix(*shape), f"{layer}.{part}.bias": vector(shape[0])}
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            tensors |= _norm(vector, f"{layer}.{norm}", width)
    config = {"kind": "esm2", "alphabet": "aa", "width": width, "num_layers": num_layers, "attention_heads": heads}
    return config, tensors


def dnabert_s_weights(num_layers: int, seed: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and random tensors of DNABERT-S (768 wide, 12 heads), under the checkpoint's names."""
    width, inner = 768, 3072
    matrix, vector = _random_tensors(seed)
    tensors = {
        "embeddings.word_embeddings.weight": matrix(DNABERT_S_VOCABULARY, width),
        "embeddings.token_type_embeddings.weight": matrix(2, width),
        **_norm(vector, "embeddings.LayerNorm", width),
    }
    for layer in (f"encoder.layer.{number}" for number in range(num_layers)):
        tensors |= {
            f"{layer}.attention.self.Wqkv.weight": matrix(3 * width, width),
            f"{layer}.attention.self.Wqkv.bias": vector(3 * width),
            f"{layer}.attention.output.dense.weight": matrix(width, width),
            f"{layer}.attention.output.dense.bias": vector(width),
            **_norm(vector, f"{layer}.attention.output.LayerNorm", width),
            f"{layer}.mlp.gated_layers.weight": matrix(2 * inner, width),
            f"{layer}.mlp.wo.weight": matrix(width, inner),
            f"{layer}.mlp.wo.bias": vector(width),
            **_norm(vector, f"{layer}.mlp.layernorm", width),
        }
    config = {
        "kind": "dnabert_s",
        "alphabet": "nt",
        "width": width,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": 12,
        "num_hidden_layers": num_layers,
        "vocab_size": DNABERT_S_VOCABULARY,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    }
    return config, tensors


def byte_pairs(seed: int) -> str:
    """A byte-pair tokenizer of the checkpoint's form and size, trained on random DNA, as JSON."""
    rng = np.random.default_rng(seed)
    words = [bytes(row).decode() for row in random_bases(rng, 2000, 100, 0.0)]
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    trainer = trainers.BpeTrainer(vocab_size=DNABERT_S_VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return str(tokenizer.to_str())


def _random_tensors(seed: int) -> tuple[Callable[..., torch.Tensor], Callable[[int], torch.Tensor]]:
    """Makers of matrices that keep the size of what they are applied to, and of small vectors."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator).mul_(columns**-0.5)

    def vector(width: int) -> torch.Tensor:
        return torch.randn(width, generator=generator) * 0.02

    return matrix, vector


def _norm(vector: Callable[[int], torch.Tensor], name: str, width: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": 1 + vector(width), f"{name}.bias": vector(width)}
