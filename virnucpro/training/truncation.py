"""Encoders cut after one of their first layers: earlier states cost less, and at times tell more."""

from __future__ import annotations

import re
from pathlib import Path

from virnucpro.encoders.weights import EncoderConfig, read_config, stored_tensors, write_encoder
from virnucpro.errors import UsageError

_LAYER_OF_KIND = {"esm2": r"layers\.(\d+)\.", "dnabert_s": r"encoder\.layer\.(\d+)\."}
_DEPTH_OF_KIND = {"esm2": "num_layers", "dnabert_s": "num_hidden_layers"}


def depth_of(config: EncoderConfig) -> int:
    """Layers of an encoder; 0 for a kind that cannot be cut."""
    setting = _DEPTH_OF_KIND.get(config.kind)
    return int(config.settings[setting]) if setting else 0


def write_truncated(source: Path, layer: int, output: Path) -> None:
    """Write the encoder at ``source`` so that it gives its states after ``layer`` layers.

    Of ESM-2 one layer more is kept than is computed: its final LayerNorm belongs to the last layer alone, and is left
    out where ``repr_layer`` is below ``num_layers``, as fair-esm does.

    Raises:
        UsageError: the encoder has fewer layers, or is of a kind without.
    """
    config = read_config(source)
    depth = depth_of(config)
    if not 1 <= layer <= depth:
        what = f"has {depth} layers" if depth else f"is of kind {config.kind}, which cannot be cut"
        raise UsageError(f"--layer {layer}: {source} {what}.")
    settings = dict(config.settings)
    num_kept = min(layer + 1, depth) if config.kind == "esm2" else layer
    settings[_DEPTH_OF_KIND[config.kind]] = num_kept
    if config.kind == "esm2":
        settings["repr_layer"] = layer
    pattern = re.compile(_LAYER_OF_KIND[config.kind])
    tensors = {
        name: tensor
        for name, tensor in stored_tensors(source).items()
        if not (found := pattern.match(name)) or int(found[1]) < num_kept
    }
    write_encoder(output, settings, tensors, config.tokenizer_json)
