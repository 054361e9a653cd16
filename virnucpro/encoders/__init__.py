"""Encoders, and the registry that finds one by the ``kind`` its file names.

Importing this package imports no torch: a header can be read without waiting for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from virnucpro.encoders.plugins import plugin
from virnucpro.encoders.weights import EncoderConfig, read_config, read_tensors, save_encoder
from virnucpro.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch

    from virnucpro.encoders.base import Encoder, Tokenizer
    from virnucpro.encoders.layers import LinearMaker

__all__ = [
    "LOW_BIT_DTYPES",
    "REGISTRY",
    "EncoderConfig",
    "check_low_bit",
    "load_encoder",
    "load_tokenizer",
    "read_config",
    "save_encoder",
]

REGISTRY: dict[str, str] = {
    "dnabert_s": "virnucpro.encoders.dnabert_s:DnabertS",
    "esm2": "virnucpro.encoders.esm2:Esm2",
    "residue_conv": "virnucpro.encoders.residue_conv:ResidueConvEncoder",
    "six_frame": "virnucpro.encoders.six_frame:SixFrameEncoder",
    "six_frame_profiles": "virnucpro.encoders.profiles:ProfiledEncoder",
}
"""``kind`` to ``module:Class``; the class is imported when it is first asked for."""

LOW_BIT_DTYPES = ("int8", "float8_e4m3fn")
"""Torch's names of the types in which linear layers alone are computed, all else in bfloat16."""
TRANSFORMER_KINDS = ("dnabert_s", "esm2")
"""Encoders made of linear layers: a :class:`TransformerClass`."""


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


class TransformerClass(Protocol):
    """What a registered class of ``TRANSFORMER_KINDS`` offers beside the methods of :class:`EncoderClass`."""

    @classmethod
    def from_tensors(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        tokenizer_json: str | None,
        linear: LinearMaker,
    ) -> Self:
        """Build with linear layers that ``linear`` makes."""
        ...


def check_low_bit(config: EncoderConfig, dtype: str) -> None:
    """Refuse 8 bits for an encoder that has no linear layers to compute in them.

    Args:
        config: of the encoder.
        dtype: torch's name of it.

    Raises:
        UsageError: it has none.
    """
    if dtype in LOW_BIT_DTYPES and config.kind not in TRANSFORMER_KINDS:
        raise UsageError(
            f"8 bits are for the linear layers of {' and '.join(TRANSFORMER_KINDS)}; {config.path} is of kind "
            f"{config.kind}. Choose --dtype auto, float32 or bfloat16."
        )


def load_encoder(path: Path, device: torch.device, dtype: torch.dtype) -> Encoder:
    """Load the encoder in the file at ``path`` onto ``device``, its matrices in ``dtype``.

    Raises:
        ModelError: the file is missing or damaged, its kind is unknown, or its tensors do not fit its config.
        UsageError: the device cannot compute in ``dtype``, or the encoder has no layers for it.
    """
    from virnucpro.encoders.device import check_dtype, float_dtype, is_low_bit  # noqa: PLC0415  (imports torch)

    check_dtype(device, dtype)
    config = read_config(path)
    check_low_bit(config, str(dtype).removeprefix("torch."))
    found = _class_of(config)
    tensors = read_tensors(path, device, float_dtype(dtype))
    try:
        if is_low_bit(dtype):
            from virnucpro.encoders.low_bit import linear_maker  # noqa: PLC0415  (imports torch and numba)

            transformer = cast("type[TransformerClass]", found)
            made = transformer.from_tensors(config.settings, tensors, config.tokenizer_json, linear_maker(dtype))
            return cast("Encoder", made)
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
