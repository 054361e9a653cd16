"""ESM-2 (Lin et al., Science 379, 2023) of any size, on packed tokens.

Tensor names are those of the fair-esm checkpoints. The contact and language-model heads are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch.nn.functional import embedding

from virnucpro.encoders.attention import packed_attention
from virnucpro.encoders.base import Alphabet
from virnucpro.encoders.compiled_layers import LayerSteps, count_layer_weights
from virnucpro.encoders.layers import LayerNorm, Linear, linear_from, mean_over_tokens
from virnucpro.encoders.weights import HasShape, StoredTensor, check_tensors, current_name, setting
from virnucpro.engine.batch import PackedBatch
from virnucpro.errors import ModelError
from virnucpro.sequence.ragged import Ragged, offsets_of

CLS, PAD, EOS, UNKNOWN, MASK = 0, 1, 2, 3, 32
RESIDUES = b"LAGVSERTIDPKQNFYMHWCXBUZO.-"  # tokens 4 to 30
NUM_TOKENS = 33

# Training masks 80 % of a chosen 15 % of the tokens; at inference, when nothing is masked, fair-esm scales the
# embeddings down by the share that was left ("token dropout").
_TOKEN_DROPOUT_SCALE = 1 - 0.15 * 0.8
_NORM_EPS = 1e-5
_HEADS_OF_WIDTH = {320: 20, 480: 20, 640: 20, 1280: 20, 2560: 40, 5120: 40}  # the published sizes
_OUR_NAME = {  # Hugging Face's name of a part of a layer, to fair-esm's
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "LayerNorm": "final_layer_norm",
}
_UNUSED = ("contact_head.", "lm_head.", "rot_emb.inv_freq")
_FUSED = "layers.{}.self_attn.qkv_proj.{}"
_OF_ESM_1 = ("embed_positions.", "emb_layer_norm_before.")
_TensorT = TypeVar("_TensorT", bound=HasShape)


class Esm2Tokenizer:
    """``<cls> residues <eos>``, one token a residue; letters outside the alphabet become ``<unk>``.

    Args:
        max_residues: longer proteins are cut after this many residues, as published.
    """

    def __init__(self, max_residues: int) -> None:
        self.max_residues = max_residues
        self._token_of = np.full(256, UNKNOWN, dtype=np.int32)
        self._token_of[np.frombuffer(RESIDUES, dtype=np.uint8)] = np.arange(4, 4 + len(RESIDUES))

    def __call__(self, sequences: Ragged) -> Ragged:
        """Tokenise; the result has int32 values."""
        lengths = np.minimum(sequences.lengths, self.max_residues)
        within = np.arange(len(sequences.values)) - np.repeat(sequences.offsets[:-1], sequences.lengths)
        offsets = offsets_of(lengths + 2)
        values = np.empty(offsets[-1], dtype=np.int32)
        is_residue = np.ones(len(values), dtype=bool)
        for places, token in ((offsets[:-1], CLS), (offsets[1:] - 1, EOS)):
            values[places] = token
            is_residue[places] = False
        values[is_residue] = self._token_of[sequences.values[within < self.max_residues]]
        return Ragged(values, offsets)


@dataclass(frozen=True)
class _Layer:
    attention_norm: LayerNorm
    qkv: Linear
    output: Linear
    mlp_norm: LayerNorm
    up: Linear
    down: Linear


class Esm2:
    """ESM-2 with its weights on one device.

    Config: ``width``, ``num_layers``, ``attention_heads``; optional ``repr_layer`` (the last, after the final
    LayerNorm), ``max_residues`` (1024), ``token_dropout`` (true). Tensors as :func:`convert_checkpoint` names them,
    with or without :func:`fuse_attention`.
    """

    kind = "esm2"
    alphabet: Alphabet = "aa"
    cpu_token_budget = 1_024

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        self.width: int = setting(config, "width")
        self._num_heads: int = setting(config, "attention_heads")
        num_layers: int = setting(config, "num_layers")
        repr_layer: int = setting(config, "repr_layer", num_layers)
        self._scale = _TOKEN_DROPOUT_SCALE if setting(config, "token_dropout", True) else 1.0
        expected = _expected_shapes(self.width, num_layers)
        if _FUSED.format(0, "weight") in tensors:
            expected = _fused_shapes(expected, self.width, num_layers)
        check_tensors(tensors, expected, _UNUSED)
        self.tokenizer = self.tokenizer_from(config, None)
        self._embeddings = tensors["embed_tokens.weight"]
        self._layers = [_layer_from(tensors, f"layers.{number}") for number in range(repr_layer)]
        self._final_norm = (
            LayerNorm.from_tensors(tensors, "emb_layer_norm_after", _NORM_EPS) if repr_layer == num_layers else None
        )
        self._rotary = _RotaryTables(self.width // self._num_heads)
        self.steps = LayerSteps("ESM-2", count_layer_weights(tensors, "layers."))

    @classmethod
    def from_tensors(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        tokenizer_json: str | None = None,  # noqa: ARG003  (the alphabet is fixed)
    ) -> Self:
        """Build from tensors under fair-esm's names.

        Raises:
            ModelError: a name or shape does not fit the config.
        """
        return cls(config, tensors)

    @classmethod
    def tokenizer_from(cls, config: Mapping[str, Any], tokenizer_json: str | None = None) -> Esm2Tokenizer:  # noqa: ARG003
        """Build the tokenizer."""
        return Esm2Tokenizer(setting(config, "max_residues", 1024))

    @torch.inference_mode()
    def embed(self, batch: PackedBatch) -> torch.Tensor:
        """Average the states of the residues, ``<cls>`` and ``<eos>`` left out: (S, width) float32."""
        return mean_over_tokens(self.token_states(batch), batch, special_tokens=False)

    @torch.inference_mode()
    def token_states(self, batch: PackedBatch) -> torch.Tensor:
        """Return (T, width) in the compute dtype."""
        states = embedding(batch.input_ids, self._embeddings) * self._scale
        rotary = self._rotary(batch)
        for layer in self._layers:
            states = self._apply(layer, states, rotary, batch)
        return states if self._final_norm is None else self._final_norm(states)

    def _apply(
        self, layer: _Layer, states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], batch: PackedBatch
    ) -> torch.Tensor:
        attended = packed_attention(*self.steps(_project, layer, states, *rotary, self._num_heads), batch)
        return self.steps(_finish, layer, states, attended)


def convert_checkpoint(
    tensors: Mapping[str, _TensorT], attention_heads: int | None = None
) -> tuple[dict[str, Any], dict[str, _TensorT]]:
    """Turn the tensors of a fair-esm (``model`` of the ``.pt``) or Hugging Face ``facebook/esm2_*`` file into ours.

    Args:
        tensors: under either family's names; none is read.
        attention_heads: needed where the width is not one of the published sizes.

    Returns:
        Config and tensors for :func:`~virnucpro.encoders.save_encoder`; heads that make no embedding are left out.

    Raises:
        ModelError: these are not the tensors of an ESM-2.
    """
    renamed = {_fair_esm_name(name): tensor for name, tensor in tensors.items()}
    numbers = [name.split(".")[1] for name in renamed if name.startswith("layers.")]
    layers = [int(number) for number in numbers if number.isdecimal()]  # transformers 5 writes one of "layer.*" too
    embeddings = renamed.get("embed_tokens.weight")
    if embeddings is None or not layers:
        raise ModelError("these are not the tensors of an ESM-2 checkpoint: no token embeddings or no layers.")
    older = [name for name in renamed if name.startswith(_OF_ESM_1)]
    if older:
        raise ModelError(f"this is not ESM-2 but an older ESM: it holds {older[0]}.")
    width, num_layers = embeddings.shape[-1], max(layers) + 1
    heads = attention_heads or _HEADS_OF_WIDTH.get(width)
    if heads is None:
        raise ModelError(f"an ESM-2 of width {width} is not a published size: give the number of attention heads.")
    expected = _expected_shapes(width, num_layers)
    kept = {name: tensor for name, tensor in renamed.items() if name in expected}
    check_tensors(kept, expected)
    config = {"kind": Esm2.kind, "alphabet": Esm2.alphabet, "width": width}
    return config | {"num_layers": num_layers, "attention_heads": heads}, kept


def read_settings(values: Mapping[str, object]) -> tuple[int | None, bool]:
    """Find what the tensors do not say: the number of attention heads (None where unsaid), and token dropout.

    Args:
        values: entries of a ``config.json``, or of the namespace in a ``.pt`` under dotted names.

    Raises:
        ModelError: they describe another architecture.
    """
    said = {name.removeprefix("cfg.model.").removeprefix("args."): value for name, value in values.items()}
    other = said.get("position_embedding_type", "rotary") != "rotary" or said.get("emb_layer_norm_before")
    if other or said.get("model_type", "esm") != "esm" or said.get("layer_norm_eps", _NORM_EPS) != _NORM_EPS:
        raise ModelError("its config describes no ESM-2 (rotary positions, no LayerNorm before the layers, eps 1e-5).")
    names = ("encoder_attention_heads", "num_attention_heads", "attention_heads")
    heads = next((said[name] for name in names if name in said), None)
    if heads is not None and (not isinstance(heads, int) or heads < 1):
        raise ModelError(f"its config says {heads!r} attention heads.")
    return heads, said.get("token_dropout", True) is not False


def fuse_attention(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Put query, key and value of each layer into one tensor: it is then used where it lies in the mapped file.

    Joined when loading they are a copy, a quarter of the weights, beside what is mapped.
    """
    fused = {name: stored for name, stored in tensors.items() if not _is_projection(name)}
    num_layers = sum(name.endswith(".q_proj.weight") for name in tensors)
    for number in range(num_layers):
        for kind in ("weight", "bias"):
            parts = [tensors[f"layers.{number}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
            fused[_FUSED.format(number, kind)] = StoredTensor(shape, parts[0].dtype, partial(_read_joined, parts))
    return fused


def _is_projection(name: str) -> bool:
    return any(f".self_attn.{part}_proj." in name for part in "qkv")


def _read_joined(parts: list[StoredTensor]) -> torch.Tensor:
    return torch.cat([part.read() for part in parts])


def _fair_esm_name(name: str) -> str:
    name = current_name(name)
    for prefix in ("encoder.sentence_encoder.", "esm."):
        name = name.removeprefix(prefix)
    if name == "embeddings.word_embeddings.weight":
        return "embed_tokens.weight"
    name = name.removeprefix("encoder.")
    if name.startswith("layer."):
        _, number, rest = name.split(".", 2)
        part, _, end = rest.rpartition(".")
        return f"layers.{number}.{_OUR_NAME.get(part, part)}.{end}"
    return name


class _RotaryTables:
    """Cosines and sines of the rotary positions (Su et al. 2021), float32 whatever the weights are.

    Rounding them to bfloat16 costs accuracy: cosine to float32 embeddings 0.996 instead of 0.9997, measured on ESM-2.
    """

    def __init__(self, depth: int) -> None:
        self._inverse_frequency = 1.0 / (10000 ** (torch.arange(0, depth, 2).float() / depth))
        self._tables: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines (T, 1, 1, depth / 2), positions counted from 0 in each sequence."""
        device = batch.input_ids.device
        tables = self._table(max(256, 1 << (batch.max_seqlen - 1).bit_length()), device)
        pieces = [torch.arange(length, device=device).repeat(count) for length, count in batch.runs()]
        positions = torch.cat(pieces)
        cosine, sine = (table[positions][:, None, None] for table in tables)
        return cosine, sine

    def _table(self, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if (size, device) not in self._tables:
            angles = torch.outer(torch.arange(size, dtype=torch.float32), self._inverse_frequency)
            self._tables[size, device] = (angles.cos().to(device), angles.sin().to(device))
        return self._tables[size, device]


def _project(
    layer: _Layer, states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, num_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From states to query, key and value (T, H, D): what comes before attention."""
    qkv = layer.qkv(layer.attention_norm(states)).view(len(states), 3, num_heads, -1)
    query, key = _rotate(qkv[:, :2], cosine, sine).unbind(1)
    return query, key, qkv[:, 2]


def _finish(layer: _Layer, states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """From what was attended to (T, H, D) to the states of the next layer."""
    states = layer.output.onto(states, attended.reshape(len(states), -1))
    return layer.up.feed_forward(layer.down, states, layer.mlp_norm(states))


def _rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotate the halves of the last dimension of (T, 2, H, D) against each other."""
    first, second = x.chunk(2, dim=-1)
    halves = torch.addcmul(first * cosine, second, sine, value=-1), torch.addcmul(second * cosine, first, sine)
    return torch.cat(halves, dim=-1).to(x.dtype)


def _layer_from(tensors: Mapping[str, torch.Tensor], name: str) -> _Layer:
    attention = f"{name}.self_attn"
    joined = {
        kind: tensors[f"{attention}.qkv_proj.{kind}"]
        if f"{attention}.qkv_proj.{kind}" in tensors
        else torch.cat([tensors[f"{attention}.{part}_proj.{kind}"] for part in "qkv"])
        for kind in ("weight", "bias")
    }
    return _Layer(
        attention_norm=LayerNorm.from_tensors(tensors, f"{name}.self_attn_layer_norm", _NORM_EPS),
        qkv=Linear(joined["weight"], joined["bias"]),
        output=linear_from(tensors, f"{attention}.out_proj"),
        mlp_norm=LayerNorm.from_tensors(tensors, f"{name}.final_layer_norm", _NORM_EPS),
        up=linear_from(tensors, f"{name}.fc1"),
        down=linear_from(tensors, f"{name}.fc2"),
    )


def _expected_shapes(width: int, num_layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (NUM_TOKENS, width)}
    shapes |= {f"emb_layer_norm_after.{part}": (width,) for part in ("weight", "bias")}
    parts = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
    parts |= {"fc1": (4 * width, width), "fc2": (width, 4 * width)}
    for number in range(num_layers):
        for part, shape in parts.items():
            shapes[f"layers.{number}.{part}.weight"] = shape
            shapes[f"layers.{number}.{part}.bias"] = shape[:1]
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"layers.{number}.{norm}.{part}": (width,) for part in ("weight", "bias")}
    return shapes


def _fused_shapes(shapes: Mapping[str, tuple[int, ...]], width: int, num_layers: int) -> dict[str, tuple[int, ...]]:
    fused = {name: shape for name, shape in shapes.items() if not _is_projection(name)}
    for number in range(num_layers):
        fused[_FUSED.format(number, "weight")] = (3 * width, width)
        fused[_FUSED.format(number, "bias")] = (3 * width,)
    return fused
