"""Released checkpoints on this machine: where they may lie, and what is in their files.

Nothing here touches the network and nothing imports torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro.bundles.bundle import cache_dir
from virnucpro.bundles.catalogue import PARTS, HubSource, Part
from virnucpro.bundles.foreign import read_foreign
from virnucpro.encoders.weights import StoredTensor, stored_tensors
from virnucpro.errors import ModelError

_WEIGHTS = (  # best first
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose tensors are known and not yet read."""

    path: Path  # its file or folder
    tensors: dict[str, StoredTensor]  # under the names of the file; those of a fair-esm ``.pt`` without ``model.``
    settings: dict[str, Any]  # of ``config.json``, or of the namespace in a ``.pt`` under dotted names
    tokenizer_json: str | None  # content of ``tokenizer.json`` where there is one


def find_checkpoint(name: str) -> Path:
    """Find a checkpoint of the catalogue: a single file, or a folder in the form of the Hugging Face hub.

    Raises:
        ModelError: it is in none of the places, which are named, with where it comes from.
    """
    part, searched = PARTS[name], ""
    for folder in _places(part):
        found, lacks = _checkpoint_in(folder, part)
        if found is not None:
            return found
        searched += f"  {folder}{lacks}\n"
    raise ModelError(
        f"{name} is not on this machine. It comes from {part.addresses}. Searched, without the network:\n{searched}"
        f"Fetch it with 'virnucpro models fetch {name}', or bring {part.files} to {cache_dir() / 'downloads' / name}. "
        "The bundled model needs nothing: --model lite."
    )


def open_checkpoint(path: Path) -> Opened:
    """Read the names and shapes of a checkpoint: file or folder, safetensors or pickle, in one part or several.

    Raises:
        ModelError: a file is missing, damaged or refused.
    """
    if path.is_file():
        if path.suffix == ".safetensors":
            return Opened(path, stored_tensors(path), {}, None)
        content = read_foreign(path)
        tensors = {name.removeprefix("model."): stored for name, stored in content.tensors.items()}
        return Opened(path, tensors, dict(content.values), None)
    weights = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if weights is None:
        raise ModelError(f"{path}: holds no weights ({', '.join(_WEIGHTS)}).")
    tensors = {}
    for file in _parts(weights):
        tensors |= stored_tensors(file) if file.suffix == ".safetensors" else read_foreign(file).tensors
    tokenizer = path / "tokenizer.json"
    text = tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else None
    return Opened(path, tensors, _read_object(path / "config.json"), text)


def _places(part: Part) -> Iterator[Path]:
    """Folders that may hold a checkpoint, best first."""
    cache = cache_dir()
    yield from (cache / "downloads" / part.name, cache / part.name, cache)
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - raises nothing without a home
    if part.repo is not None:
        hub = Path(
            os.environ.get("HF_HUB_CACHE")
            or os.environ.get("HUGGINGFACE_HUB_CACHE")
            or Path(os.environ.get("HF_HOME") or home / "huggingface") / "hub"
        )
        yield from _snapshots(hub / f"models--{part.repo.replace('/', '--')}")
    if part.role == "protein":
        yield Path(os.environ.get("TORCH_HOME") or home / "torch") / "hub" / "checkpoints"


def _snapshots(repository: Path) -> list[Path]:
    """Snapshots of a repository in the hub's cache: the one ``main`` points at, then the newest."""
    snapshots = repository / "snapshots"
    there = sorted(snapshots.glob("*/"), key=lambda path: path.stat().st_mtime, reverse=True)
    main = repository / "refs" / "main"
    if main.is_file():
        current = main.read_text(encoding="utf-8").strip()
        there.sort(key=lambda path: path.name != current)
    return there or [snapshots]


def _checkpoint_in(folder: Path, part: Part) -> tuple[Path | None, str]:
    """The checkpoint in a folder; else what an incomplete one lacks."""
    for suffix in (".pt", ".pth", ".safetensors"):
        if (folder / f"{part.name}{suffix}").is_file():
            return folder / f"{part.name}{suffix}", ""
    if part.repo is None or folder == cache_dir() or not any((folder / file).is_file() for file in _WEIGHTS):
        return None, ""
    needed = [name for source in part.sources if isinstance(source, HubSource) for name in source.needed]
    missing = [name for name in needed if not (folder / name).is_file()]
    return (None, f" (lacks {', '.join(missing)})") if missing else (folder, "")


def _parts(weights: Path) -> list[Path]:
    """Files of a checkpoint, from its index where it is in several parts."""
    if weights.suffix != ".json":
        return [weights]
    index = _read_object(weights).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise ModelError(f"{weights}: names no parts.")
    names = sorted(set(map(str, index.values())))
    if any(Path(name).name != name for name in names):
        raise ModelError(f"{weights}: refused: it names a part outside its folder.")
    missing = [name for name in names if not (weights.parent / name).is_file()]
    if missing:
        raise ModelError(f"{weights}: names {missing[0]}, which is missing. Fetch the checkpoint again.")
    return [weights.parent / name for name in names]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}). Fetch it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: is not a JSON object. Fetch it again.")
    return content
