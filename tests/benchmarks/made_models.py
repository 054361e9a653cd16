"""Models made on the spot, with random weights. What they call means nothing.

``hollow`` has next to no arithmetic: what a run with it takes is what the program takes beside its encoders. Every
stage does its work on every row: strings are read, tokenised, packed and embedded, shards and scores written, tables
made. So ten million reads show time and memory of the host at a cost that a small machine can pay.

``random-8M`` is the opposite: the encoders take nearly all the time, as those of the published models do. They are of
the published kinds, DNABERT-S of one layer and the smallest ESM-2, so that a small machine is done in minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from benchmarks import inputs
from virnucpro.encoders import save_encoder
from virnucpro.encoders.residue_conv import ResidueConvEncoder, ResidueConvNetwork, ResidueConvShape
from virnucpro.heads import MLPHead, save_head

HOLLOW = "hollow"
RANDOM_8M = "random-8M"
_SHAPE = ResidueConvShape(width=1, ngram_width=1, tower_channels=(1, 1), tower_kernels=(1,))
_ROLES = {"nucleotide": "nt", "protein": "aa"}  # A C G T are residues too, so one kind reads both
_NUM_DNABERT_LAYERS = 1
_HIDDEN_WIDTH = 512


@contextmanager
def model_named(name: str, seed: int) -> Iterator[str]:
    """What ``--model`` of ``predict`` takes for the name given to a benchmark: itself, or a model just made."""
    if name not in MADE_MODELS:
        yield name
        return
    with TemporaryDirectory(prefix="virnucpro-benchmark-") as folder:
        yield str(MADE_MODELS[name](Path(folder), seed))


def write_hollow(folder: Path, seed: int) -> Path:
    """Write a bundle with encoders of one number a row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for role, alphabet in _ROLES.items():
            encoder = ResidueConvEncoder(ResidueConvNetwork(_SHAPE))
            config = encoder.config() | {"alphabet": alphabet}
            save_encoder(folder / f"{role}.safetensors", config, encoder.stored_tensors())
        head = MLPHead(len(_ROLES) * _SHAPE.width, 1)
    return _write_bundle(folder, HOLLOW, head)


def write_random_8m(folder: Path, seed: int) -> Path:
    """Write a bundle with encoders of the published kinds."""
    encoders = {
        "nucleotide": inputs.dnabert_s_weights(_NUM_DNABERT_LAYERS, seed),
        "protein": inputs.esm2_weights("8M", seed),
    }
    return write_bundle(folder, RANDOM_8M, encoders, seed)


def write_bundle(
    folder: Path,
    name: str,
    encoders: Mapping[str, tuple[dict[str, Any], dict[str, torch.Tensor]]],
    seed: int = 1,
    fragment_length: int = 500,
) -> Path:
    """Write a bundle of DNABERT-S and ESM-2 with a random head.

    Args:
        folder: made if it is not there.
        name: of the bundle.
        encoders: config and tensors of each role.
        seed: of the head and the tokenizer.
        fragment_length: nt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for role, (config, tensors) in encoders.items():
        tokenizer = inputs.byte_pairs(seed) if role == "nucleotide" else None
        save_encoder(folder / f"{role}.safetensors", config, tensors, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = MLPHead(sum(config["width"] for config, _ in encoders.values()), _HIDDEN_WIDTH)
    return _write_bundle(folder, name, head, fragment_length)


MADE_MODELS: dict[str, Callable[[Path, int], Path]] = {HOLLOW: write_hollow, RANDOM_8M: write_random_8m}
"""Name to what writes the bundle into a folder, from a seed."""


def _write_bundle(folder: Path, name: str, head: MLPHead, fragment_length: int = 500) -> Path:
    """Add a head, and the rules by which ``lite`` cuts and scores, to encoders that are there."""
    save_head(folder / "head.safetensors", head, {})
    settings = {
        "schema": 1,
        "name": name,
        "fragment_length": fragment_length,
        "min_length": 100,
        "frameless": "score",
        "rows": "mean",
        **{role: f"{role}.safetensors" for role in (*_ROLES, "head")},
        "threshold": 0.5,
        "calibration": {"lengths": [fragment_length], "slope": [1.0], "intercept": [0.0], "exponent": 0.5},
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder
