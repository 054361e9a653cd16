"""A bundle is a folder: ``bundle.yaml`` beside its safetensors files.

::

    schema: 1
    name: lite
    fragment_length: 500      # the head was trained on fragments of at most this many bases
    min_length: 100           # shorter sequences get no call
    frameless: score          # fragments without an open frame: score (from nucleotides alone) or skip
    rows: mean                # rows of a fragment: mean of log-odds, or max (the published rule)
    nucleotide: nucleotide.safetensors
    protein: protein.safetensors
    head: head.safetensors
    threshold: 0.5            # p_virus from which a sequence is called virus
    calibration:              # p = sigmoid(slope * log_odds + intercept), linear between lengths (nt)
      lengths: [150, 300, 500]
      slope: [1, 1, 1]
      intercept: [0, 0, 0]
      exponent: 0.5           # a sequence of n fragments: mean log-odds * n ** exponent
    provenance: {...}         # free: what it was trained on
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from virnucpro.encoders import read_config
from virnucpro.errors import ModelError

SCHEMA = 1
BUNDLED = ("lite",)
PUBLISHED = ("300", "500")


@dataclass(frozen=True)
class Calibration:
    """From a head's log-odds to a probability at equal prevalence.

    Attributes:
        lengths: fragment lengths (nt) the line was fitted at, ascending.
        slope: one for each length.
        intercept: one for each length.
        exponent: how the evidence of ``n`` fragments grows: ``n ** exponent`` times their mean.
    """

    lengths: tuple[float, ...]
    slope: tuple[float, ...]
    intercept: tuple[float, ...]
    exponent: float

    def fragment_log_odds(self, log_odds: NDArray[np.float64], lengths_nt: NDArray[np.int64]) -> NDArray[np.float64]:
        """Calibrated log-odds of fragments; both arguments (n,)."""
        slope = np.interp(lengths_nt, self.lengths, self.slope)
        return slope * log_odds + np.interp(lengths_nt, self.lengths, self.intercept)

    def sequence_log_odds(self, mean: NDArray[np.float64], num_fragments: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-odds of sequences from the mean calibrated log-odds of their fragments."""
        return mean * np.power(np.maximum(num_fragments, 1), self.exponent)


@dataclass(frozen=True)
class Bundle:
    """A model, ready to be loaded by any process.

    Attributes:
        name: what the user calls it.
        folder: where its files are.
        fragment_length: nt.
        min_length: nt; shorter sequences get no call.
        scores_frameless: whether fragments without an open frame are scored from nucleotides alone.
        row_rule: how rows make a fragment.
        nucleotide: safetensors file of the nucleotide encoder.
        protein: safetensors file of the protein encoder.
        head: safetensors file of the head.
        threshold: p_virus from which a sequence is called virus.
        calibration: from log-odds to probability.
        digests: role (nucleotide, protein, head) to SHA-256 of its file.
        fingerprint: SHA-256 over the settings and those digests.
    """

    name: str
    folder: Path
    fragment_length: int
    min_length: int
    scores_frameless: bool
    row_rule: Literal["mean", "max"]
    nucleotide: Path
    protein: Path
    head: Path
    threshold: float
    calibration: Calibration
    digests: dict[str, str]
    fingerprint: str

    def encoder(self, role: str) -> Path:
        """Checkpoint of the encoder of ``role`` nucleotide or protein."""
        return self.nucleotide if role == "nucleotide" else self.protein


def load_bundle(model: str) -> Bundle:
    """Find a bundle by name or folder and check that its files are there.

    Args:
        model: ``lite`` (bundled), ``300`` or ``500`` (published; in ``VIRNUCPRO_CACHE``), or a folder.

    Raises:
        ModelError: it cannot be found, lacks a file or makes no sense.
    """
    folder = find_bundle(model)
    path = folder / "bundle.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        settings: dict[str, Any] = yaml.safe_load(text)
        if settings["schema"] != SCHEMA:
            raise ModelError(f"{path}: schema {settings['schema']}; this program reads {SCHEMA}.")
        if settings["frameless"] not in ("score", "skip") or settings["rows"] not in ("mean", "max"):
            raise ModelError(f"{path}: 'frameless' is score or skip, 'rows' is mean or max.")
        files = {role: folder / settings[role] for role in ("nucleotide", "protein", "head")}
        line = settings["calibration"]
        calibration = Calibration(
            tuple(line["lengths"]), tuple(line["slope"]), tuple(line["intercept"]), float(line["exponent"])
        )
        for file in files.values():
            if not file.is_file():
                raise ModelError(f"model {settings['name']}: {file} is missing. Bring the whole bundle folder.")
        _check_widths(settings["name"], files)
        digests = {role: _file_digest(file) for role, file in files.items()}
        return Bundle(
            name=str(settings["name"]),
            folder=folder,
            fragment_length=int(settings["fragment_length"]),
            min_length=int(settings["min_length"]),
            scores_frameless=settings["frameless"] == "score",
            row_rule=settings["rows"],
            threshold=float(settings["threshold"]),
            calibration=calibration,
            digests=digests,
            fingerprint=_fingerprint(settings, digests),
            **files,
        )
    except FileNotFoundError as error:
        raise ModelError(f"model {model}: {path} is missing.") from error
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ModelError(f"{path}: cannot be understood ({type(error).__name__}: {error}).") from error


def find_bundle(model: str) -> Path:
    """The folder of a bundle.

    Raises:
        ModelError: there is none.
    """
    if model in BUNDLED:
        return Path(__file__).parent / model
    if model in PUBLISHED:
        folder = cache_dir() / "bundles" / model
        if not folder.is_dir():
            raise ModelError(
                f"model {model} is not on this machine: {folder} is missing. Put the bundle folder (bundle.yaml, "
                "nucleotide, protein and head as safetensors) there, or use the bundled model: --model lite."
            )
        return folder
    folder = Path(model)
    if not folder.is_dir():
        known = ", ".join((*BUNDLED, *PUBLISHED))
        raise ModelError(f"model {model!r} is neither one of {known} nor a folder.")
    return folder


def cache_dir() -> Path:
    """Where models are kept: ``VIRNUCPRO_CACHE``, else the user's cache folder."""
    place = os.environ.get("VIRNUCPRO_CACHE")
    if place:
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "virnucpro"


def _check_widths(name: str, files: dict[str, Path]) -> None:
    """Hold encoders and head against each other, from the headers of their files alone."""
    widths = {}
    for role, alphabet in (("nucleotide", "nt"), ("protein", "aa")):
        config = read_config(files[role])
        if config.alphabet != alphabet:
            raise ModelError(f"model {name}: {files[role]} reads {config.alphabet}, its place is for {alphabet}.")
        widths[role] = config.width
    try:
        with safe_open(files["head"], framework="numpy") as head:
            width = head.get_slice("hidden_layer.weight").get_shape()[1]
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model {name}: {files['head']} is no readable head ({error}).") from error
    if width != sum(widths.values()):
        parts = " + ".join(f"{role} {number}" for role, number in widths.items())
        raise ModelError(f"model {name}: its head takes features {width} wide, its encoders give {parts}.")


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fingerprint(settings: dict[str, Any], digests: dict[str, str]) -> str:
    """Identity of all that changes a score; prose (provenance, name) does not."""
    keys = ("schema", "fragment_length", "min_length", "frameless", "rows", "calibration")
    lines = [f"{key}={settings[key]!r}\n" for key in keys] + [f"{role}={digests[role]}\n" for role in sorted(digests)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
