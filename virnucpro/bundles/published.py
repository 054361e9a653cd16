"""Bundles made on this machine from released checkpoints and heads, with the published rules.

Converted encoders lie in ``encoders/`` of the cache, one file an encoder and dtype, each beside a ``.json`` that holds
its digest and what it was made from. Bundles lie in ``bundles/`` and share those files.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from virnucpro.atomic import atomic_write, file_digest, write_json
from virnucpro.bundles.bundle import SCHEMA, cache_dir, record_digest
from virnucpro.bundles.catalogue import MODELS, NUCLEOTIDE, NUCLEOTIDE_WIDTH, PROTEIN_OF_WIDTH, PUBLISHED_PROTEIN
from virnucpro.bundles.checkpoints import Opened, find_checkpoint, open_checkpoint
from virnucpro.bundles.foreign import read_foreign
from virnucpro.encoders import dnabert_s, esm2
from virnucpro.encoders.weights import StoredTensor, read_config, write_encoder
from virnucpro.errors import ModelError
from virnucpro.heads import MLPHead, head_from_tensors, load_head, save_head
from virnucpro.resources import check_room

_log = logging.getLogger(__name__)

_WEAK_BELOW_NT = 200  # the published heads on 150-base reads: accuracy 0.53, AUROC 0.56
_PUBLISHED_HEADS = tuple(f"{model}_model.pth" for model in MODELS)
_BATCH_NORM_EPS = 1e-5
_DTYPES = ("float32", "bfloat16", "float16")


def make_bundle(model: str, *, fragment_length: int | None = None, dtype: str = "float32") -> Path:
    """Make the bundle of a published model or of a head of the user's own; one that is there is not made again.

    Args:
        model: ``300``, ``500``, or a head file (``.pth``, ``.safetensors``).
        fragment_length: nt the head was trained on, where neither its name nor the file says; None for not given.
        dtype: in which the encoders' matrices are kept.

    Returns:
        The bundle's folder.

    Raises:
        ModelError: a checkpoint is missing, damaged, refused or does not fit.
        ResourceError: the disk has no room for it.
    """
    if dtype not in _DTYPES:
        raise ModelError(f"encoders are kept in {', '.join(_DTYPES)}, not in {dtype}.")
    bundles = cache_dir() / "bundles"
    if model in MODELS:
        made = [bundles / f"{model}-{dtype}", bundles / model]
        there = next((folder for folder in made if (folder / "bundle.yaml").is_file()), None)
        if there is not None:
            return there
        folder = made[dtype == "float32"]
        return _assemble(folder, model, find_checkpoint(f"{model}_model"), int(model), dtype, PUBLISHED_PROTEIN)
    path = Path(model)
    length = _stated_length(path) or fragment_length
    if not length:
        raise ModelError(
            f"{path}: does not say on fragments of which length it was trained. Say so: --expected-length 500, say."
        )
    folder = bundles / f"custom-{file_digest(path)[:12]}-{length}-{dtype}"
    return folder if (folder / "bundle.yaml").is_file() else _assemble(folder, path.stem, path, length, dtype)


def convert_encoder(name: str, dtype: str = "float32") -> Path:
    """Convert a released encoder to an encoder file in the cache, once; tensors go through memory one at a time.

    Args:
        name: ``DNABERT-S`` or ``esm2_...``.
        dtype: of the matrices; vectors stay in float32.

    Returns:
        The file, which all processes map.

    Raises:
        ModelError: the checkpoint is missing, damaged, refused or not what its name says.
        ResourceError: the disk has no room for it.
    """
    return _convert(name, f"{name}-{dtype}", lambda: find_checkpoint(name), dtype)


def convert_esm2_file(path: Path) -> Path:
    """Convert an ESM-2 in the form of fair-esm (``.pt``), of the user's own too, to a file of the cache, once.

    Args:
        path: the file; the one in the cache goes by its content, for a name may stand for other weights tomorrow.

    Returns:
        The file.

    Raises:
        ModelError: it is damaged, refused or no ESM-2.
        ResourceError: the disk has no room for it.
    """
    return _convert(path.stem, f"{path.stem}-{file_digest(path)[:12]}-float32", lambda: path, "float32")


def _convert(name: str, stem: str, find: Callable[[], Path], dtype: str) -> Path:
    """Write the encoder file and its record, unless both are there."""
    target = cache_dir() / "encoders" / f"{stem}.safetensors"
    if target.is_file() and target.with_suffix(".json").is_file():
        return target
    source = open_checkpoint(find())
    try:
        config, tensors = _converted(name, source)
    except ModelError as error:
        raise ModelError(f"{source.path}: {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    num_bytes = sum(prod(stored.shape) for stored in tensors.values()) * (4 if dtype == "float32" else 2)
    check_room(target.parent, num_bytes * 1.01, "Make room, or name another place in VIRNUCPRO_CACHE.")
    _log.info("converting %s to %s, once: %.1f GB in %s", source.path, dtype, num_bytes / 1e9, target)
    tokenizer = source.tokenizer_json if name == NUCLEOTIDE else None
    digest = write_encoder(target, config, tensors, tokenizer, dtype)
    write_json(
        target.with_suffix(".json"),
        {"digest": record_digest(target, digest), "made_from": str(source.path.resolve()), "dtype": dtype},
    )
    return target


def import_head(path: Path) -> MLPHead:
    """Read a head from safetensors, or from a pickle of a whole module or of its state, of which nothing is run.

    Raises:
        ModelError: it is missing, damaged, refused, or no head of the published shape.
    """
    if not path.is_file():
        raise ModelError(f"{path}: there is no such head.")
    if path.suffix == ".safetensors":
        return load_head(path)
    content = read_foreign(path)
    first = next((name for name in content.tensors if name.endswith("hidden_layer.weight")), "hidden_layer.weight")
    prefix = first.removesuffix("hidden_layer.weight")
    if content.values.get(f"{prefix}bn1.eps", _BATCH_NORM_EPS) != _BATCH_NORM_EPS:
        raise ModelError(f"{path}: its batch norm is not the published one (eps {content.values[f'{prefix}bn1.eps']}).")
    tensors = {
        name.removeprefix(prefix): stored.read().clone()
        for name, stored in content.tensors.items()
        if name.startswith(prefix)
    }
    return head_from_tensors(path, tensors)


def _converted(name: str, source: Opened) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    if name == NUCLEOTIDE:
        if source.tokenizer_json is None:
            raise ModelError("has no tokenizer.json next to it.")
        dnabert_s.DnabertSTokenizer(source.tokenizer_json)
        return dnabert_s.convert_checkpoint(source.tensors, source.settings)
    heads, has_token_dropout = esm2.read_settings(source.settings)
    config, tensors = esm2.convert_checkpoint(source.tensors, heads)
    return config | {"token_dropout": has_token_dropout}, esm2.fuse_attention(tensors)


def _assemble(folder: Path, name: str, head_file: Path, length: int, dtype: str, protein: str | None = None) -> Path:
    """Write a bundle folder; ``bundle.yaml`` comes last, so that a folder without it is begun again.

    Args:
        folder: where.
        name: of the bundle.
        head_file: as it was published.
        length: nt, what the head was trained on.
        dtype: of the encoders.
        protein: name of the ESM-2; None takes the one whose width fits.
    """
    head = import_head(head_file)
    protein = protein or PROTEIN_OF_WIDTH.get(head.input_width - NUCLEOTIDE_WIDTH)
    if protein is None:
        fitting = ", ".join(f"{NUCLEOTIDE_WIDTH + width} ({esm})" for width, esm in PROTEIN_OF_WIDTH.items())
        raise ModelError(
            f"{head_file}: takes features {head.input_width} wide, which no released ESM-2 gives: {fitting}."
        )
    files = {"nucleotide": convert_encoder(NUCLEOTIDE, dtype), "protein": convert_encoder(protein, dtype)}
    width = sum(read_config(file).width for file in files.values())
    if width != head.input_width:
        raise ModelError(
            f"{head_file}: takes features {head.input_width} wide, but {files['nucleotide']} and {files['protein']} "
            f"give {width}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    recorded = {}
    for role, file in files.items():
        _share(file, folder / f"{role}.safetensors")
        recorded[role] = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["digest"]
    with atomic_write(folder / "head.safetensors") as part:
        save_head(part, head, {"fragment_length": length})
    settings = {
        "schema": SCHEMA,
        "name": name,
        "fragment_length": length,
        "min_length": 0,
        "frameless": "skip",
        "rows": "max",
        "weak_below": _WEAK_BELOW_NT if head_file.name in _PUBLISHED_HEADS else 0,
        "nucleotide": "nucleotide.safetensors",
        "protein": "protein.safetensors",
        "head": "head.safetensors",
        "threshold": 0.5,
        # The published program calls windows by the raw scores.
        "calibration": {"lengths": [length], "slope": [1.0], "intercept": [0.0], "exponent": 0.0},
        "recorded": recorded,
        "provenance": {
            "head": {"file": head_file.name, "sha256": file_digest(head_file)},
            "encoders": [NUCLEOTIDE, protein],
            "method": "Li et al., Briefings in Bioinformatics 26(3), bbaf224, 2025",
        },
    }
    with atomic_write(folder / "bundle.yaml") as part:
        part.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return folder


def _share(file: Path, place: Path) -> None:
    """Let a second name stand for a file, so that bundles are whole and weights lie on the disk once."""
    place.unlink(missing_ok=True)
    try:
        os.link(file, place)
    except OSError:  # a file system without hard links
        place.symlink_to(file.resolve())


def _stated_length(path: Path) -> int:
    """Fragment length that a head's file says it was trained on; 0 where it does not."""
    if path.name in _PUBLISHED_HEADS:
        return int(path.name.removesuffix("_model.pth"))
    if path.suffix != ".safetensors":
        return 0
    try:
        with safe_open(path, framework="numpy") as file:
            stated = json.loads((file.metadata() or {}).get("head", "{}")).get("fragment_length", 0)
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: is not a readable head ({error}).") from error
    return stated if isinstance(stated, int) and stated > 0 else 0
