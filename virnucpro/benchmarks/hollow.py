"""A model with next to no arithmetic: what a run with it takes is what the program takes beside its encoders.

Every stage does its work on every row: strings are read, tokenised, packed and embedded, shards and scores written,
tables made. So ten million reads show time and memory of the host at a cost that a small machine can pay. What it
calls means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml

from virnucpro.encoders import save_encoder
from virnucpro.encoders.residue_conv import ResidueConvEncoder, ResidueConvNetwork, ResidueConvShape
from virnucpro.heads import MLPHead, save_head

HOLLOW = "hollow"
_SHAPE = ResidueConvShape(width=1, ngram_width=1, tower_channels=(1, 1), tower_kernels=(1,))
_ROLES = {"nucleotide": "nt", "protein": "aa"}  # A C G T are residues too, so one kind reads both


@contextmanager
def model_named(name: str, seed: int) -> Iterator[str]:
    """What ``--model`` of ``predict`` takes for the name given to a benchmark: itself, or a hollow model just made."""
    if name != HOLLOW:
        yield name
        return
    with TemporaryDirectory(prefix="virnucpro-benchmark-") as folder:
        yield str(write_hollow(Path(folder), seed))


def write_hollow(folder: Path, seed: int) -> Path:
    """Write the bundle: encoders of one number a row, with the rules by which ``lite`` cuts and scores."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for role, alphabet in _ROLES.items():
            encoder = ResidueConvEncoder(ResidueConvNetwork(_SHAPE))
            config = encoder.config() | {"alphabet": alphabet}
            save_encoder(folder / f"{role}.safetensors", config, encoder.stored_tensors())
        save_head(folder / "head.safetensors", MLPHead(len(_ROLES) * _SHAPE.width, 1), {})
    settings = {
        "schema": 1,
        "name": HOLLOW,
        "fragment_length": 500,
        "min_length": 100,
        "frameless": "score",
        "rows": "mean",
        **{role: f"{role}.safetensors" for role in (*_ROLES, "head")},
        "threshold": 0.5,
        "calibration": {"lengths": [500], "slope": [1.0], "intercept": [0.0], "exponent": 0.5},
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder
