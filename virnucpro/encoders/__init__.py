"""Encoders, and the registry that finds one by the ``kind`` its file names.

Importing this package imports no torch: a header can be read without waiting for it.

Encoders of other packages are found through the entry points in the group ``virnucpro.encoders``::

    [project.entry-points."virnucpro.encoders"]
    my_kind = "my_package:MyEncoder"      # a class of the shape of EncoderClass: for files whose kind is my_kind
    my_encoder = "my_package:load"        # a function (device, dtype) -> Encoder: asked for by this name

The function carries attributes: ``alphabet`` (``nt`` or ``aa``), ``width``, and where they are known ``max_letters``
and ``fingerprint`` (identity of its weights, without which embeddings are not cached).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from virnucpro.encoders.weights import EncoderConfig, read_config, read_tensors, save_encoder
from virnucpro.errors import ModelError

if TYPE_CHECKING:
    import torch

    from virnucpro.encoders.base import Encoder, Tokenizer

__all__ = [
    "REGISTRY",
    "EncoderConfig",
    "load_encoder",
    "load_tokenizer",
    "read_config",
    "save_encoder",
]

REGISTRY: dict[str, str] = {
    "dnabert_s": "virnucpro.encoders.dnabert_s:DnabertS",
    "esm2": "virnucpro.encoders.esm2:Esm2",
    "residue_conv": "virnucpro.encoders.residue_conv:ResidueConvEncoder",
    "six_frame_profiles": "virnucpro.encoders.profiles:ProfiledEncoder",
}
"""``kind`` to ``module:Class``; the class is imported when it is first asked for."""

TRANSFORMER_KINDS = ("dnabert_s", "esm2")
"""Encoders made of matrices: only these compute in 16 bits."""
GROUP = "virnucpro.encoders"


class EncoderClass(Protocol):
    """What a registered class offers beside the :class:`~virnucpro.encoders.base.Encoder` methods."""

    @classmethod
    def from_tensors(
        cls, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], tokenizer_json: str | None
    ) -> Self:
        """Build from tensors that lie on the device already: matrices in the compute dtype, vectors in float32."""
        ...

    @classmethod
    def tokenizer_from(cls, config: Mapping[str, Any], tokenizer_json: str | None) -> Tokenizer:
        """Build the weight-free tokenizer."""
        ...


def plugin_names() -> list[str]:
    """Names of all plug-ins, sorted; none is imported."""
    return sorted(entry_points(group=GROUP).names)


def plugin(name: str) -> Any | None:  # noqa: ANN401 - a class or a function of somebody else's
    """Import a plug-in; None if there is none of that name.

    Raises:
        ModelError: it cannot be imported.
    """
    for entry in entry_points(group=GROUP, name=name):
        try:
            return entry.load()
        except Exception as error:
            raise ModelError(f"plug-in {name} ({entry.value}) cannot be imported: {error}") from error
    return None


def load_encoder(path: Path, device: torch.device, dtype: torch.dtype) -> Encoder:
    """Load the encoder in the file at ``path`` onto ``device``, the matrices of a transformer in ``dtype``.

    Raises:
        ModelError: the file is missing or damaged, its kind is unknown, or its tensors do not fit its config.
        UsageError: the device cannot compute in ``dtype``.
    """
    import torch  # noqa: PLC0415  (a header can be read without waiting for it)

    from virnucpro.encoders.device import check_dtype  # noqa: PLC0415

    check_dtype(device, dtype)
    config = read_config(path)
    found = _class_of(config)
    tensors = read_tensors(path, device, dtype if config.kind in TRANSFORMER_KINDS else torch.float32)
    try:
        return cast("Encoder", found.from_tensors(config.settings, tensors, config.tokenizer_json))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def load_tokenizer(path: Path) -> Tokenizer:
    """Build the tokenizer of the encoder in the file at ``path``, reading only the file's header.

    Raises:
        ModelError: the file is missing or damaged, or its kind is unknown.
    """
    config = read_config(path)
    try:
        return _class_of(config).tokenizer_from(config.settings, config.tokenizer_json)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _class_of(config: EncoderConfig) -> type[EncoderClass]:
    if config.kind not in REGISTRY:
        plugged_in = plugin(config.kind)
        if isinstance(plugged_in, type):
            return plugged_in
        raise ModelError(f"{config.path}: unknown encoder kind {config.kind!r}; known kinds: {', '.join(REGISTRY)}.")
    module, _, name = REGISTRY[config.kind].partition(":")
    found: type[EncoderClass] = getattr(import_module(module), name)
    return found
