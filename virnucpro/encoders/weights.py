"""The file an encoder lives in: safetensors, with its config and tokenizer in the metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from virnucpro.atomic import atomic_write
from virnucpro.errors import ModelError

if TYPE_CHECKING:
    import torch

    from virnucpro.encoders.base import Alphabet

_ABSENT = object()
_CODES = {  # torch's name of a dtype, to its code in safetensors and its size in bytes
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
_NORM_PARTS = {"gamma": "weight", "beta": "bias"}
_DTYPES = {code: dtype for dtype, (code, _) in _CODES.items()}


class HasShape(Protocol):
    """A tensor, read or not."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that stays in its file until it is read; a file of any size costs no memory."""

    shape: tuple[int, ...]  # its shape
    dtype: str  # torch's name of its dtype, ``float32``
    read: Callable[[], torch.Tensor]  # maps the part of the file that holds it; the mapping goes with the tensor


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder file says of itself before any weight is read."""

    path: Path
    kind: str  # registry key
    alphabet: Alphabet  # what it reads, ``nt`` or ``aa``
    width: int  # length of an embedding
    settings: Mapping[str, Any]  # the whole config as stored, ``kind``, ``alphabet`` and ``width`` included
    tokenizer_json: str | None  # the tokenizer where the encoder needs one


def read_config(path: Path) -> EncoderConfig:
    """Read the header of the encoder file at ``path``; no weight is read and torch is not imported.

    Raises:
        ModelError: the file is missing, is not safetensors, or its metadata holds no usable ``config``.
    """
    with _opened(path, "numpy") as file:
        metadata = file.metadata() or {}
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

    On a CPU a matrix stored in ``dtype`` is not copied: it is a view of the mapped file, which all processes share.
    Any other goes through a mapping of its own, let go at once, so that a 3 B model is never in memory twice.

    Raises:
        ModelError: the file is missing or damaged.
    """
    torch_ = import_module("torch")
    tensors: dict[str, torch.Tensor] = {}
    with _opened(path, "pt") as file:
        for name, stored in stored_tensors(path).items():
            kept_as = _kept_as(stored, dtype)
            if device.type == "cpu" and stored.dtype == kept_as:
                tensors[name] = file.get_tensor(name)
            else:
                tensors[name] = stored.read().to(device, getattr(torch_, kept_as))
    return tensors


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of a safetensors file; none is read.

    Raises:
        ModelError: the file is missing or damaged, or a dtype is not known here.
    """
    tensors = {}
    with _opened(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            tensor = file.get_slice(name)
            if tensor.get_dtype() not in _DTYPES:
                raise ModelError(f"{path}: {name} is of type {tensor.get_dtype()}, which is not read here.")
            dtype, shape = _DTYPES[tensor.get_dtype()], tuple(tensor.get_shape())
            tensors[name] = StoredTensor(shape, dtype, partial(_read, path, name))
    return tensors


def _read(path: Path, name: str) -> torch.Tensor:
    """One tensor, through a mapping of its own, which goes with it."""
    with _opened(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    """A safetensors file; the library checks that its tensors lie next to each other and within it.

    Raises:
        ModelError: it is missing or damaged.
    """
    safetensors = import_module("safetensors")
    try:
        with safetensors.safe_open(path, framework=framework) as file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors ({error}). Fetch or convert it again.") from error


def save_encoder(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], tokenizer: str | None = None
) -> None:
    """Write an encoder file; it appears at ``path`` complete or not at all.

    Raises:
        ModelError: the config lacks a mandatory entry.
    """
    stored = {
        name: StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.detach().cpu)
        for name, tensor in tensors.items()
    }
    write_encoder(path, config, stored, tokenizer)


def write_encoder(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    tokenizer: str | None = None,
    dtype: str | None = None,
) -> str:
    """Write an encoder file tensor by tensor: one of them is in memory at a time.

    The same encoder gives the same bytes (the digest is its identity), which the safetensors library, whose
    metadata come in random order, does not promise.

    Args:
        path: where to write; it appears complete or not at all.
        config: JSON-able; ``kind``, ``alphabet`` and ``width`` are mandatory.
        tensors: name to tensor, as the encoder's ``from_tensors`` expects them.
        tokenizer: tokenizer JSON, for encoders that have one.
        dtype: matrices are written in this one and vectors in float32; None writes all as they are.

    Returns:
        SHA-256 of the file.

    Raises:
        ModelError: the config lacks a mandatory entry, or a dtype cannot be written.
    """
    missing = {"kind", "alphabet", "width"} - set(config)
    if missing:
        raise ModelError(f"{path}: an encoder config must name {', '.join(sorted(missing))}.")
    metadata = {"config": json.dumps(dict(config), sort_keys=True)}
    if tokenizer is not None:
        metadata["tokenizer"] = tokenizer
    torch_ = import_module("torch")
    kept = {name: stored.dtype if dtype is None else _kept_as(stored, dtype) for name, stored in tensors.items()}
    foreign = sorted(set(kept.values()) - _CODES.keys())
    if foreign:
        raise ModelError(f"{path}: tensors of type {', '.join(foreign)} cannot be written.")
    order = sorted(tensors, key=lambda name: (-_CODES[kept[name]][1], name))  # wide ones first keeps all aligned
    digest = hashlib.sha256()
    with atomic_write(path) as part, part.open("wb") as file:
        for piece in _header_of(order, tensors, kept, metadata):
            digest.update(piece)
            file.write(piece)
        for name in order:
            tensor = tensors[name].read().to(getattr(torch_, kept[name]))
            content = tensor.contiguous().reshape(-1).view(torch_.uint8).numpy().data
            digest.update(content)
            file.write(content)
            del tensor, content  # before the next is read
    return digest.hexdigest()


def setting(config: Mapping[str, Any], name: str, default: object = _ABSENT) -> Any:  # noqa: ANN401  (JSON)
    """Return one entry of an encoder config.

    Raises:
        ModelError: it is absent and has no default.
    """
    value = config.get(name, default)
    if value is _ABSENT:
        raise ModelError(f"the encoder config does not say {name!r}.")
    return value


def current_name(name: str) -> str:
    """Name of a tensor as torch has it: ``LayerNorm.gamma`` of the first BERT, which transformers 5 writes again."""
    stem, _, end = name.rpartition(".")
    return f"{stem}.{_NORM_PARTS[end]}" if end in _NORM_PARTS else name


def check_tensors(
    tensors: Mapping[str, HasShape], expected: Mapping[str, tuple[int, ...]], ignored: Iterable[str] = ()
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


def _kept_as(stored: StoredTensor, dtype: object) -> str:
    """Dtype in which an encoder keeps a tensor: matrices as asked, vectors in float32, numbers as they are."""
    if "float" not in stored.dtype:
        return stored.dtype
    return str(dtype).removeprefix("torch.") if len(stored.shape) > 1 else "float32"


def _header_of(
    order: list[str], tensors: Mapping[str, StoredTensor], kept: Mapping[str, str], metadata: dict[str, str]
) -> tuple[bytes, bytes]:
    """Length and text of the header, as the safetensors format has them."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    stop = 0
    for name in order:
        code, num_bytes = _CODES[kept[name]]
        start, stop = stop, stop + prod(tensors[name].shape) * num_bytes
        header[name] = {"dtype": code, "shape": list(tensors[name].shape), "data_offsets": [start, stop]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-(len(text) + 8) // 64) * 64 - 8)  # the data begin at a multiple of 64 bytes
    return len(text).to_bytes(8, "little"), text
