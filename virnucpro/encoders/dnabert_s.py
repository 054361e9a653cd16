"""DNABERT-S (Zhou et al. 2024; MosaicBERT family), on packed tokens.

Post-LayerNorm, ALiBi instead of positions, gated feed-forward. Tensor names are those of the checkpoint
``zhihan1996/DNABERT-S``, with or without its ``bert.`` prefix; the pooler is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer as BytePairs
from torch.nn.functional import embedding

from virnucpro.encoders.attention import AlibiBias, packed_attention
from virnucpro.encoders.base import Alphabet
from virnucpro.encoders.compiled_layers import LayerSteps, count_layer_weights
from virnucpro.encoders.layers import LayerNorm, Linear, linear_from, mean_over_tokens
from virnucpro.encoders.weights import HasShape, check_tensors, current_name, setting
from virnucpro.engine.batch import PackedBatch
from virnucpro.errors import ModelError
from virnucpro.sequence.ragged import Ragged, offsets_of

_UNUSED = ("pooler.", "cls.", "position_ids")
_SETTINGS = (
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "type_vocab_size",
    "layer_norm_eps",
)
_TensorT = TypeVar("_TensorT", bound=HasShape)
_SEQUENCES_A_CALL = 1024  # an Encoding object holds far more than its ids


class DnabertSTokenizer:
    """Byte pairs between ``[CLS]`` and ``[SEP]``; nothing is cut.

    Raises:
        ModelError: the JSON is no tokenizer, or lacks the two special tokens.
    """

    def __init__(self, tokenizer_json: str) -> None:
        self._json = tokenizer_json
        try:
            self._pairs = BytePairs.from_str(tokenizer_json)
        except Exception as error:  # the library raises plain Exception
            raise ModelError(f"the tokenizer cannot be read ({error}).") from error
        self._pairs.no_truncation()
        self._pairs.no_padding()
        first, last = self._pairs.token_to_id("[CLS]"), self._pairs.token_to_id("[SEP]")
        if first is None or last is None:
            raise ModelError("the tokenizer has no [CLS] or no [SEP] token.")
        has_post_processor = self._pairs.encode("").ids == [first, last]
        self._ends: tuple[list[int], list[int]] = ([], []) if has_post_processor else ([first], [last])

    def __reduce__(self) -> tuple[type[DnabertSTokenizer], tuple[str]]:
        return type(self), (self._json,)

    def __call__(self, sequences: Ragged) -> Ragged:
        """Tokenise; the result has int32 values."""
        first, last = self._ends
        texts = [text.decode("ascii") for text in sequences.to_bytes()]
        ids: list[list[int]] = []
        for start in range(0, len(texts), _SEQUENCES_A_CALL):
            encodings = self._pairs.encode_batch_fast(texts[start : start + _SEQUENCES_A_CALL])
            ids += [[*first, *encoding.ids, *last] for encoding in encodings]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        offsets = offsets_of(lengths)
        return Ragged(np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(offsets[-1])), offsets)


@dataclass(frozen=True)
class _Layer:
    qkv: Linear
    output: Linear
    attention_norm: LayerNorm
    gated: Linear
    down: Linear
    mlp_norm: LayerNorm


class DnabertS:
    """DNABERT-S with its weights on one device.

    Config: ``width`` and, under the checkpoint's own names, ``num_hidden_layers``, ``num_attention_heads``,
    ``intermediate_size``, ``vocab_size``, ``type_vocab_size``, ``layer_norm_eps``.
    """

    kind = "dnabert_s"
    alphabet: Alphabet = "nt"
    cpu_token_budget = 1_024

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        tokenizer_json: str | None,
    ) -> None:
        tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
        check_tensors(tensors, _expected_shapes(config), _UNUSED)
        self.width: int = setting(config, "width")
        self._config, self._tokenizer_json = config, tokenizer_json
        self._num_heads: int = setting(config, "num_attention_heads")
        eps: float = setting(config, "layer_norm_eps")
        self._embeddings = tensors["embeddings.word_embeddings.weight"]
        self._token_type = tensors["embeddings.token_type_embeddings.weight"][0]
        self._embedding_norm = LayerNorm.from_tensors(tensors, "embeddings.LayerNorm", eps)
        self._layers = [
            _layer_from(tensors, f"encoder.layer.{number}", eps) for number in range(config["num_hidden_layers"])
        ]
        self._bias = AlibiBias(self._num_heads)
        self.steps = LayerSteps("DNABERT-S", count_layer_weights(tensors, "encoder.layer."))

    @property
    def tokenizer(self) -> DnabertSTokenizer:
        """The tokenizer that makes this checkpoint's tokens."""
        return self.tokenizer_from(self._config, self._tokenizer_json)

    @classmethod
    def from_tensors(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        tokenizer_json: str | None,
    ) -> Self:
        """Build from tensors under the checkpoint's names.

        Raises:
            ModelError: a name or shape does not fit the config.
        """
        return cls(config, tensors, tokenizer_json)

    @classmethod
    def tokenizer_from(
        cls,
        config: Mapping[str, Any],  # noqa: ARG003  (all of it is in the JSON)
        tokenizer_json: str | None,
    ) -> DnabertSTokenizer:
        """Build the tokenizer.

        Raises:
            ModelError: there is none in the file.
        """
        if tokenizer_json is None:
            raise ModelError("the file holds no tokenizer; DNABERT-S needs its tokenizer.json.")
        return DnabertSTokenizer(tokenizer_json)

    @torch.inference_mode()
    def embed(self, batch: PackedBatch) -> torch.Tensor:
        """Average all token states, ``[CLS]`` and ``[SEP]`` included, as published: (S, width) float32."""
        return mean_over_tokens(self.token_states(batch), batch, special_tokens=True)

    @torch.inference_mode()
    def token_states(self, batch: PackedBatch) -> torch.Tensor:
        """Return (T, width) in the compute dtype."""
        states = self._embedding_norm(embedding(batch.input_ids, self._embeddings) + self._token_type)
        for layer in self._layers:
            states = self._apply(layer, states, batch)
        return states

    def _apply(self, layer: _Layer, states: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        attended = packed_attention(*self.steps(_project, layer, states, self._num_heads), batch, self._bias)
        return self.steps(_finish, layer, states, attended)


def convert_checkpoint(
    tensors: Mapping[str, _TensorT], published: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, _TensorT]]:
    """Turn the tensors and the ``config.json`` of the checkpoint into ours; no tensor is read.

    Returns:
        Config and tensors for :func:`~virnucpro.encoders.save_encoder`; the pooler is left out.

    Raises:
        ModelError: these are not the tensors of a DNABERT-S, or do not fit its config.
    """
    config = {"kind": DnabertS.kind, "alphabet": DnabertS.alphabet, "width": setting(published, "hidden_size")}
    config |= {name: setting(published, name) for name in _SETTINGS}
    renamed = {current_name(name.removeprefix("bert.")): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in renamed.items() if not name.startswith(_UNUSED)}
    kept = {name: tensor for name, tensor in kept.items() if not name.endswith(_UNUSED)}
    words = kept.get("embeddings.word_embeddings.weight")
    if words is not None:
        config["vocab_size"] = words.shape[0]  # padded beyond the tokenizer's in models of this family
    check_tensors(kept, _expected_shapes(config))
    return config, kept


def _project(layer: _Layer, states: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From states to query, key and value (T, H, D): what comes before attention."""
    query, key, value = layer.qkv(states).view(len(states), 3, num_heads, -1).unbind(1)
    return query, key, value


def _finish(layer: _Layer, states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """From what was attended to (T, H, D) to the states of the next layer."""
    states = layer.attention_norm(layer.output.onto(states, attended.reshape(len(states), -1)))
    return layer.mlp_norm(layer.gated.gated_feed_forward(layer.down, states, states))


def _layer_from(tensors: Mapping[str, torch.Tensor], name: str, eps: float) -> _Layer:
    return _Layer(
        qkv=linear_from(tensors, f"{name}.attention.self.Wqkv"),
        output=linear_from(tensors, f"{name}.attention.output.dense"),
        attention_norm=LayerNorm.from_tensors(tensors, f"{name}.attention.output.LayerNorm", eps),
        gated=linear_from(tensors, f"{name}.mlp.gated_layers"),
        down=linear_from(tensors, f"{name}.mlp.wo"),
        mlp_norm=LayerNorm.from_tensors(tensors, f"{name}.mlp.layernorm", eps),
    )


def _expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner = setting(config, "width"), setting(config, "intermediate_size")
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (setting(config, "vocab_size"), width),
        "embeddings.token_type_embeddings.weight": (setting(config, "type_vocab_size"), width),
    }
    norms = ["embeddings.LayerNorm"]
    for number in range(setting(config, "num_hidden_layers")):
        layer = f"encoder.layer.{number}"
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.mlp.layernorm"]
        shapes |= {
            f"{layer}.attention.self.Wqkv.weight": (3 * width, width),
            f"{layer}.attention.self.Wqkv.bias": (3 * width,),
            f"{layer}.attention.output.dense.weight": (width, width),
            f"{layer}.attention.output.dense.bias": (width,),
            f"{layer}.mlp.gated_layers.weight": (2 * inner, width),
            f"{layer}.mlp.wo.weight": (width, inner),
            f"{layer}.mlp.wo.bias": (width,),
        }
    return shapes | {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
