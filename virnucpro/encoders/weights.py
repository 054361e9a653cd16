"""The file an encoder lives in: safetensors, with its config and tokenizer in the metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virnucpro.errors import ModelError

if TYPE_CHECKING:
    import torch

    from virnucpro.encoders.base import Alphabet

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
_ABSENT = object()


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder file says of itself before any weight is read.

    Attributes:
        path: the file.
        kind: registry key.
        alphabet: what it reads, ``nt`` or ``aa``.
        width: length of an embedding.
        settings: the whole config as stored, ``kind``, ``alphabet`` and ``width`` included.
        tokenizer_json: the tokenizer where the encoder needs one.
    """

    path: Path
    kind: str
    alphabet: Alphabet
    width: int
    settings: Mapping[str, Any]
    tokenizer_json: str | None


def read_config(path: Path) -> EncoderConfig:
    """Read the header of the encoder file at ``path``; no weight is read and torch is not imported.

    Raises:
        ModelError: the file is missing, is not safetensors, or its metadata holds no usable ``config``.
    """
    metadata = _read_header(path).get("__metadata__") or {}
    try:
        settings = json.loads(metadata["config"])
        kind, alphabet, width = settings["kind"], settings["alphabet"], settings["width"]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: its metadata holds no encoder config with kind, alphabet and width ({error!r}). "
            "Convert the checkpoint to an encoder file first."
        ) from error
    if alphabet not in ("nt", "aa") or not isinstance(width, int):
        raise ModelError(f"{path}: alphabet must be nt or aa and width a number, not {alphabet!r} and {width!r}.")
    return EncoderConfig(path, kind, alphabet, width, settings, metadata.get("tokenizer"))


def read_tensors(path: Path, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Read all tensors onto ``device``: matrices in ``dtype``, vectors (biases, LayerNorm) in float32.

    Raises:
        ModelError: the file is missing or damaged.
    """
    torch_, safetensors = import_module("torch"), import_module("safetensors")
    tensors: dict[str, torch.Tensor] = {}
    try:
        # One at a time, so that a 3 B model is never in memory twice.
        with safetensors.safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                tensor = file.get_tensor(name)
                if tensor.is_floating_point():
                    tensor = tensor.to(device, dtype if tensor.ndim > 1 else torch_.float32)
                tensors[name] = tensor.to(device)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors ({error}). Fetch or convert it again.") from error
    return tensors


def save_encoder(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], tokenizer: str | None = None
) -> None:
    """Write an encoder file; it appears at ``path`` complete or not at all.

    Args:
        path: where to write.
        config: JSON-able; ``kind``, ``alphabet`` and ``width`` are mandatory.
        tensors: name to tensor, as the encoder's ``from_tensors`` expects them.
        tokenizer: tokenizer JSON, for encoders that have one.

    Raises:
        ModelError: the config lacks a mandatory entry.
    """
    missing = {"kind", "alphabet", "width"} - set(config)
    if missing:
        raise ModelError(f"{path}: an encoder config must name {', '.join(sorted(missing))}.")
    metadata = {"config": json.dumps(dict(config), sort_keys=True)}
    if tokenizer is not None:
        metadata["tokenizer"] = tokenizer
    part = path.with_name(path.name + ".part")
    import_module("safetensors.torch").save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part, metadata=metadata
    )
    _sort_metadata(part)
    part.replace(path)


def setting(config: Mapping[str, Any], name: str, default: object = _ABSENT) -> Any:  # noqa: ANN401  (JSON)
    """Return one entry of an encoder config.

    Raises:
        ModelError: it is absent and has no default.
    """
    value = config.get(name, default)
    if value is _ABSENT:
        raise ModelError(f"the encoder config does not say {name!r}.")
    return value


def check_tensors(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], ignored: Iterable[str] = ()
) -> None:
    """Compare names and shapes with what the config asks for.

    Args:
        tensors: what the file holds.
        expected: name to shape.
        ignored: tensors whose name begins or ends with one of these may be there and are not used.

    Raises:
        ModelError: a tensor is missing, unexpected, or of another shape; the text names the first of each.
    """
    ignored = tuple(ignored)
    unused = {name for name in tensors if ignored and (name.startswith(ignored) or name.endswith(ignored))}
    problems = [
        *(f"{name} is missing" for name in sorted(expected.keys() - tensors.keys())),
        *(f"{name} is not expected" for name in sorted(tensors.keys() - expected.keys() - unused)),
        *(
            f"{name} is {tuple(tensors[name].shape)}, should be {shape}"
            for name, shape in expected.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ),
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(f"tensors do not fit the config: {'; '.join(problems[:3])}{more}.")


def _sort_metadata(path: Path) -> None:
    """Put the metadata in order of its keys, in place.

    The library writes them in random order, and the same encoder must be the same bytes (its digest is its identity).
    """
    header = _read_header(path)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    with path.open("r+b") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        if len(text) <= num_bytes:
            file.write(text.ljust(num_bytes))
        file.flush()
        os.fsync(file.fileno())


def _read_header(path: Path) -> dict[str, Any]:
    """Return the JSON header: eight bytes of length, little-endian, then the text (safetensors format)."""
    try:
        with path.open("rb") as file:
            num_bytes = int.from_bytes(file.read(8), "little")
            plausible = 2 <= num_bytes <= min(_MAX_HEADER_BYTES, path.stat().st_size - 8)
            header = json.loads(file.read(num_bytes) if plausible else b"")
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ModelError(f"{path}: is damaged or not a safetensors file ({error}). Fetch it again.") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path}: is not a safetensors file (its header is no object). Fetch it again.")
    return header
