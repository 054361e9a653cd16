"""Peers of the encoders: fair-esm as the published scripts call it, Hugging Face's ESM-2, plain layers of DNABERT-S.

A peer in bfloat16 is its module cast as a whole, as users do. That rounds the frequencies of the rotary positions too,
which ours keeps in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn.functional import gelu, layer_norm, linear

from virnucpro.encoders.esm2 import CLS, EOS, MASK, NUM_TOKENS, PAD, RESIDUES, convert_checkpoint

_TOKENS_A_BATCH = 2048  # of the published scripts
_MAX_RESIDUES = 1024


def is_installed(module: str) -> bool:
    """Whether a peer's module can be imported."""
    return find_spec(module) is not None


class FairEsm:
    """ESM-2 of the ``fair-esm`` package.

    Args:
        config: of our encoder.
        tensors: the same weights; the head for masked tokens, which fair-esm always runs, keeps its own.
        dtype: that the module is cast to.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        self._esm = import_module("esm")
        self._num_layers = config["num_layers"]
        self._model = self._esm.ESM2(self._num_layers, config["width"], config["attention_heads"]).eval()
        self._model.load_state_dict(tensors, strict=False)
        self._model.to(dtype)
        self._alphabet = self._esm.Alphabet.from_architecture("ESM-1b")

    @torch.inference_mode()
    def embed(self, proteins: list[str], *, one_at_a_time: bool) -> tuple[int, torch.Tensor]:
        """Number of tokens without padding, and the means over residues (n, width) in the order given."""
        dataset = self._esm.FastaBatchedDataset([str(i) for i in range(len(proteins))], proteins)
        batches = [[i] for i in range(len(proteins))]
        if not one_at_a_time:
            batches = dataset.get_batch_indices(_TOKENS_A_BATCH, extra_toks_per_seq=1)  # sorted by length
        to_batch = self._alphabet.get_batch_converter(_MAX_RESIDUES)
        means: dict[int, torch.Tensor] = {}
        for batch in batches:
            labels, strings, tokens = to_batch([dataset[i] for i in batch])
            states = self._model(tokens, repr_layers=[self._num_layers])["representations"][self._num_layers]
            for i, (label, string) in enumerate(zip(labels, strings, strict=True)):
                means[int(label)] = states[i, 1 : len(string) + 1].mean(dim=0)
        return _in_order(proteins, means)


class HuggingFaceEsm:
    """``EsmModel`` of the ``transformers`` package with its own tokenizer: padded batches, sorted by length.

    Nothing is fetched: the model is made from its config, the tokenizer from the letters of ESM-2.

    Args:
        config: of our encoder.
        tensors: the same weights.
        dtype: that the module is cast to.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        transformers = import_module("transformers")
        settings = transformers.EsmConfig(
            vocab_size=NUM_TOKENS,
            mask_token_id=MASK,
            pad_token_id=PAD,
            bos_token_id=CLS,
            eos_token_id=EOS,
            hidden_size=config["width"],
            num_hidden_layers=config["num_layers"],
            num_attention_heads=config["attention_heads"],
            intermediate_size=4 * config["width"],
            layer_norm_eps=1e-5,
            position_embedding_type="rotary",
            emb_layer_norm_before=False,
            token_dropout=True,
        )
        self._model = transformers.EsmModel(settings, add_pooling_layer=False).eval()
        _, parameters = convert_checkpoint(self._model.state_dict(), config["attention_heads"])
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])  # a state dict holds the parameters themselves
        self._model.to(dtype)
        words = ("<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES.decode(), "<null_1>", "<mask>")
        with TemporaryDirectory(prefix="virnucpro-benchmark-") as folder:
            vocabulary = Path(folder) / "vocab.txt"
            vocabulary.write_text("\n".join(words), encoding="ascii")
            self._tokenizer = transformers.EsmTokenizer(str(vocabulary))

    @torch.inference_mode()
    def embed(self, proteins: list[str]) -> tuple[int, torch.Tensor]:
        """Number of tokens without padding, and the means over residues (n, width) in the order given."""
        means: dict[int, torch.Tensor] = {}
        for batch in _padded_batches([len(protein) + 2 for protein in proteins]):
            tokens = self._tokenizer([proteins[i] for i in batch], padding=True, return_tensors="pt")
            states = self._model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
            for i, row in zip(batch, states, strict=True):
                means[i] = row[1 : len(proteins[i]) + 1].mean(dim=0)
        return _in_order(proteins, means)


def _padded_batches(lengths_tokens: list[int]) -> list[list[int]]:
    """Numbers of strings, short ones first, as many to a batch as fair-esm takes: padding counts."""
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(lengths_tokens)), key=lengths_tokens.__getitem__):
        if batches[-1] and (len(batches[-1]) + 1) * lengths_tokens[i] > _TOKENS_A_BATCH:
            batches.append([])
        batches[-1].append(i)
    return batches


def _in_order(proteins: list[str], means: Mapping[int, torch.Tensor]) -> tuple[int, torch.Tensor]:
    num_tokens = sum(len(protein) + 2 for protein in proteins)
    return num_tokens, torch.stack([means[i] for i in range(len(proteins))])


class PlainDnabertS:
    """The layers of DNABERT-S in float32, one sequence at a time, as the published scripts call them.

    Source: the published method; attention bias from Press et al. 2022.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], tokenizer_json: str) -> None:
        self._tensors = tensors
        self._num_layers: int = config["num_hidden_layers"]
        self._num_heads: int = config["num_attention_heads"]
        self._eps: float = config["layer_norm_eps"]
        self._pairs = import_module("tokenizers").Tokenizer.from_str(tokenizer_json)
        eight, sixteen = ([2.0 ** (-8 * (i + 1) / n) for i in range(n)] for n in (8, 16))
        self._slopes = torch.tensor(eight + sixteen[::2][:4])

    @torch.inference_mode()
    def embed(self, sequences: list[str]) -> tuple[int, torch.Tensor]:
        """Number of tokens, and the means over all tokens (n, width)."""
        num_tokens = 0
        means = []
        for sequence in sequences:
            ids = torch.tensor(self._pairs.encode(sequence).ids)
            num_tokens += len(ids)
            means.append(self._states(ids).mean(dim=0))
        return num_tokens, torch.stack(means)

    def _states(self, ids: torch.Tensor) -> torch.Tensor:
        tensors = self._tensors
        place = torch.arange(len(ids))
        bias = -self._slopes[:, None, None] * (place[:, None] - place[None, :]).abs()
        states = tensors["embeddings.word_embeddings.weight"][ids]
        states = self._norm(states + tensors["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for number in range(self._num_layers):
            name = f"encoder.layer.{number}"
            attended = self._linear(self._attend(states, bias, name), f"{name}.attention.output.dense")
            states = self._norm(attended + states, f"{name}.attention.output.LayerNorm")
            gate, value = linear(states, tensors[f"{name}.mlp.gated_layers.weight"]).chunk(2, dim=-1)
            states = self._norm(self._linear(gelu(gate) * value, f"{name}.mlp.wo") + states, f"{name}.mlp.layernorm")
        return states

    def _attend(self, states: torch.Tensor, bias: torch.Tensor, name: str) -> torch.Tensor:
        length, width = states.shape
        qkv = self._linear(states, f"{name}.attention.self.Wqkv").view(length, 3, self._num_heads, -1)
        query, key, value = qkv.permute(1, 2, 0, 3)
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5 + bias
        attended: torch.Tensor = scores.softmax(dim=-1) @ value
        return attended.transpose(0, 1).reshape(length, width)

    def _linear(self, states: torch.Tensor, name: str) -> torch.Tensor:
        return linear(states, self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"])

    def _norm(self, states: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return layer_norm(states, weight.shape, weight, bias, self._eps)
