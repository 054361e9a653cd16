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
from virnucpro.bundles.foreign import read_foreign
from virnucpro.encoders.weights import StoredTensor, stored_tensors
from virnucpro.errors import ModelError

NUCLEOTIDE = "DNABERT-S"
NUCLEOTIDE_WIDTH = 768
PROTEIN_OF_WIDTH = {
    320: "esm2_t6_8M_UR50D",
    480: "esm2_t12_35M_UR50D",
    640: "esm2_t30_150M_UR50D",
    1280: "esm2_t33_650M_UR50D",
    2560: "esm2_t36_3B_UR50D",
    5120: "esm2_t48_15B_UR50D",
}
PUBLISHED_PROTEIN = PROTEIN_OF_WIDTH[2560]
HEADS = ("300_model", "500_model")

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


def find_checkpoint(name: str, given: Path | None = None) -> Path:
    """Find a checkpoint: a single file, or a folder in the form of the Hugging Face hub.

    Raises:
        ModelError: it is in none of the places, which are named, with where it comes from.
    """
    if given is not None and given.is_file():
        return given
    searched: list[str] = []
    for folder in _places(name, given):
        found, lacks = _checkpoint_in(folder, name)
        if found is not None:
            return found
        searched.append(f"  {folder}{lacks}")
    source, by_hand = _sources(name)
    raise ModelError(
        f"{name} is not on this machine. It comes from {source}. Searched, without the network:\n"
        + "\n".join(searched)
        + f"\nFetch it with 'virnucpro models fetch {name}', or bring {by_hand} to {cache_dir() / 'downloads' / name}. "
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


def _places(name: str, given: Path | None) -> Iterator[Path]:
    """Folders that may hold a checkpoint, best first."""
    if given is not None:
        yield given
    cache = cache_dir()
    yield from (cache / "downloads" / name, cache / name, cache)
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - raises nothing without a home
    repository = _repository(name)
    if repository is not None:
        hub = Path(
            os.environ.get("HF_HUB_CACHE")
            or os.environ.get("HUGGINGFACE_HUB_CACHE")
            or Path(os.environ.get("HF_HOME") or home / "huggingface") / "hub"
        )
        yield from _snapshots(hub / f"models--{repository.replace('/', '--')}")
    if name.startswith("esm2_"):
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


def _checkpoint_in(folder: Path, name: str) -> tuple[Path | None, str]:
    """The checkpoint in a folder; else what an incomplete one lacks."""
    for suffix in (".pt", ".pth", ".safetensors"):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}", ""
    if name in HEADS or folder == cache_dir() or not any((folder / file).is_file() for file in _WEIGHTS):
        return None, ""
    needed = ("config.json", "tokenizer.json") if name == NUCLEOTIDE else ("config.json",)
    missing = [file for file in needed if not (folder / file).is_file()]
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


def _repository(name: str) -> str | None:
    if name == NUCLEOTIDE:
        return "zhihan1996/DNABERT-S"
    return f"facebook/{name}" if name.startswith("esm2_") else None


def _sources(name: str) -> tuple[str, str]:
    """Where a checkpoint comes from, and which files to carry by hand."""
    repository = _repository(name)
    if repository is None:
        return f"https://github.com/Li-Jing-1997/VirNucPro ({name}.pth)", f"{name}.pth"
    hub = f"https://huggingface.co/{repository}"
    if name == NUCLEOTIDE:
        return hub, "config.json, tokenizer.json and pytorch_model.bin (or model.safetensors)"
    url = f"https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt"
    return f"{hub} or {url}", f"{name}.pt (or config.json and the weights of the hub)"
