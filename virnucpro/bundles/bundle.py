"""A bundle is a folder: ``bundle.yaml`` beside its safetensors files.

::

    schema: 1
    name: lite
    fragment_length: 500      # the head was trained on fragments of at most this many bases
    min_length: 100           # shorter sequences get no call
    frameless: score          # fragments without an open frame: score (from nucleotides alone) or skip
    repetitive: doubt         # optional: sequences that repeat themselves are uncertain where they would be virus
    rows: mean                # rows of a fragment: mean of log-odds, or max (the published rule)
    nucleotide: nucleotide.safetensors
    protein: protein.safetensors
    head: head.safetensors
    nearest: nearest.npz.zst  # optional: table of proteins (``nearest/table.py``); fragments are searched in it, and
    evidence: {...}           # what it finds is weighed by this (``nearest/evidence.py``) and added to their log-odds
    threshold: 0.5            # p_virus from which a sequence is called virus where there are no presets
    presets:                  # optional: p_virus at equal prevalence; below the first not virus, from the second virus
      sensitive: [0.5, 0.7]
      balanced: [0.6, 0.9]
      strict: [0.9, 0.99]
    calibration:              # p = sigmoid(slope * log_odds + intercept), linear between lengths (nt)
      lengths: [150, 300, 500]
      slope: [1, 1, 1]
      intercept: [0, 0, 0]
      exponent: 0.5           # a sequence of n fragments: mean log-odds * n ** exponent
      bends: [[[-3, 3], [-0.1, 0.2]], ...]  # optional: what a length adds to its line, at some log-odds
    records: {...}            # optional: fragments and genes to the call of a longer record (``RecordWeights``)
    provenance: {...}         # free: what it was trained on
    weak_below: 200           # optional: a warning where sequences are shorter than this on average (nt)
    recorded: {...}           # optional: role to digest, size and time of a large file, which is then not read for it
    cascade:                  # optional: with ``--cascade`` another model looks first
      first: lite
      first_fingerprint: ...  # of the very one that the limits were found with
      low: 0.01               # surely not viral below, surely viral above, as the first model sees it: its p_virus at
      high: 0.99              #   equal prevalence
      agreement: 0.99         # share of sequences with the same call as of this model alone, at the worst length
      share: 0.4              # of sequences that this model still has to look at
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open

from virnucpro.atomic import file_digest
from virnucpro.bundles.catalogue import MODELS
from virnucpro.bundles.rules import DEFAULT_FIRST, Calibration, Cascade, RecordWeights, RowRule, Rules, Thresholds
from virnucpro.encoders import read_config
from virnucpro.errors import ModelError
from virnucpro.nearest.evidence import Evidence, read_evidence
from virnucpro.stored_json import Limits, convert

SCHEMA = 1
BUNDLED = ("lite",)
_MAX_BYTES = 1 << 20

Length = Annotated[int, Limits(ge=0, le=1 << 31)]
"""nt"""


@dataclass(frozen=True, kw_only=True)
class Bundle(Rules):
    """A model, ready to be loaded by any process: rules, and what gives the scores that they turn into calls.

    Attributes:
        folder: where its files are.
        doubts_repetitive: whether sequences that repeat themselves are not called virus.
        nucleotide: safetensors file of the nucleotide encoder.
        protein: safetensors file of the protein encoder.
        head: safetensors file of the head.
        weak_below: nt; on shorter sequences the scores say little.
        digests: role (nucleotide, protein, head, nearest) to SHA-256 of its file.
        cascade: which model may look first, and when it is sure; None where nothing is known of that.
        nearest: table of proteins that fragments and genes are searched in; None if there is none.
        evidence: how what is found there is weighed; there where ``nearest`` is.
    """

    folder: Path
    doubts_repetitive: bool
    nucleotide: Path
    protein: Path
    head: Path
    weak_below: int
    digests: dict[str, str]
    cascade: Cascade | None = None
    nearest: Path | None = None
    evidence: Evidence | None = None

    @property
    def rules(self) -> Rules:
        """What turns its scores into calls, without the rest."""
        return Rules(**{field.name: getattr(self, field.name) for field in fields(Rules)})

    @property
    def closes_gaps(self) -> bool:
        """Whether records are cut as if they had no gaps; the published method cuts them as they are."""
        return self.doubts_repetitive

    @property
    def first_model(self) -> str:
        """The model that looks at everything first where this one is asked for with ``--cascade``."""
        return self.cascade.first if self.cascade is not None else DEFAULT_FIRST

    def encoder(self, role: str) -> Path:
        """Checkpoint of the encoder of ``role`` nucleotide or protein."""
        return self.nucleotide if role == "nucleotide" else self.protein

    def check_fragment_length(self, length_nt: int, *, is_meant: bool) -> None:
        """Hold a fragment length against those the head was trained on.

        Args:
            length_nt: of the run.
            is_meant: the user said ``--expected-length``.

        Raises:
            ModelError: it is another one, and not meant.
        """
        if not (is_meant or self._is_trained_on(length_nt)):
            raise ModelError(
                f"model {self.name} was trained on fragments of {self.fragment_length} bases, not of {length_nt}. "
                f"Leave the length out, or insist: --expected-length {length_nt}."
            )

    def cautions(self, length_nt: int, mean_length_nt: float) -> list[str]:
        """What a user should know of a run before trusting its scores."""
        found = []
        if not self._is_trained_on(length_nt):
            found.append(
                f"fragments of {length_nt} bases, but model {self.name} was trained on {self.fragment_length}: its "
                "scores may be off"
            )
        shorter = min(float(length_nt), mean_length_nt)
        if shorter < self.weak_below:
            found.append(
                f"sequences of about {shorter:.0f} bases: model {self.name} performs close to chance at this "
                "length (published heads on 150-base reads: accuracy 0.53, AUROC 0.56); --model lite is made for them"
            )
        return found

    def _is_trained_on(self, length_nt: int) -> bool:
        return length_nt in (self.fragment_length, *self.calibration.lengths)


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """``bundle.yaml`` as it stands; see the module's text."""

    schema: int
    name: str | int
    fragment_length: Annotated[int, Limits(ge=3, le=1 << 31)]
    min_length: Length
    frameless: Literal["score", "skip"]
    rows: RowRule
    nucleotide: str
    protein: str
    head: str
    threshold: Annotated[float, Limits(ge=0, le=1)]
    calibration: Calibration
    presets: dict[str, Thresholds] | None = None
    weak_below: Length = 0
    repetitive: Literal["doubt"] | None = None
    nearest: str | None = None
    evidence: Any = None
    cascade: Cascade | None = None
    records: Any = None
    recorded: dict[str, dict[str, Any]] | None = None
    provenance: Any = None


_AS_WRITTEN = ("fragment_length", "min_length", "threshold", "calibration", "weak_below", "cascade")


def load_bundle(model: str, *, fragment_length: int | None = None, dtype: str = "float32") -> Bundle:
    """Find a bundle by name or folder and check that its files are there.

    Args:
        model: ``lite`` (bundled), ``300`` or ``500`` (published), a folder, the name of one in
            ``VIRNUCPRO_CACHE``, or a head file (``.pth``,
            ``.safetensors``). Of the published ones and of a head the bundle is made once, from the checkpoints on
            this machine, and kept in ``VIRNUCPRO_CACHE``.
        fragment_length: nt; for a head file that does not say what it was trained on.
        dtype: in which encoders are kept that have to be converted first.

    Raises:
        ModelError: it cannot be found, lacks a file or makes no sense.
        ResourceError: the disk has no room for the converted encoders.
    """
    if model in MODELS or (model not in BUNDLED and Path(model).is_file()):
        from virnucpro.bundles.published import make_bundle  # noqa: PLC0415 - imports torch

        model = str(make_bundle(model, fragment_length=fragment_length, dtype=dtype))
    folder = find_bundle(model)
    path = folder / "bundle.yaml"
    try:
        content: dict[str, Any] = yaml.safe_load(_read_text(path))
        if content["schema"] != SCHEMA:
            raise ModelError(f"{path}: schema {content['schema']}; this program reads {SCHEMA}.")
        settings = convert(content, _Settings)
        roles = [role for role in ("nucleotide", "protein", "head", "nearest") if getattr(settings, role) is not None]
        files: dict[str, Any] = {role: folder / _plain_name(getattr(settings, role)) for role in roles}
        for file in files.values():
            if not file.is_file():
                raise ModelError(f"model {settings.name}: {file} is missing. Bring the whole bundle folder.")
        _check_widths(str(settings.name), files)
        recorded = settings.recorded or {}
        digests = {role: _file_digest(file, recorded.get(role)) for role, file in files.items()}
        return Bundle(
            **{name: getattr(settings, name) for name in _AS_WRITTEN},
            **files,
            name=str(settings.name),
            folder=folder,
            scores_frameless=settings.frameless == "score",
            doubts_repetitive=settings.repetitive is not None,
            row_rule=settings.rows,
            presets=settings.presets or {},
            digests=digests,
            fingerprint=_fingerprint(content, digests),
            records=None if settings.records is None else convert(settings.records, RecordWeights),
            adds_nearest="nearest" in files,
            evidence=read_evidence(settings.evidence) if "nearest" in files else None,
        )
    except OSError as error:
        raise ModelError(f"model {model}: {path} cannot be read ({error.strerror}).") from error
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ModelError(f"{path}: cannot be understood ({type(error).__name__}: {error}).") from error


def find_bundle(model: str) -> Path:
    """The folder of a bundle; that of a published model may not have been made yet.

    Raises:
        ModelError: there is none.
    """
    if model in BUNDLED:
        return Path(__file__).parent / model
    if model in MODELS:
        return cache_dir() / "bundles" / model
    kept = cache_dir() / "bundles" / model
    for folder in (Path(model), kept):
        if folder.is_dir():
            return folder
    known = ", ".join((*BUNDLED, *MODELS))
    raise ModelError(
        f"model {model!r} is neither one of {known}, nor a bundle folder, a head file or a name in {kept.parent}."
    )


def cache_dir() -> Path:
    """Where models are kept: ``VIRNUCPRO_CACHE``, otherwise ``virnucpro`` in the user's cache folder."""
    place = os.environ.get("VIRNUCPRO_CACHE")
    return Path(place) if place else user_cache_dir() / "virnucpro"


def user_cache_dir() -> Path:
    """The user's cache folder. Of a user without a home, as in many containers, a folder that does not exist."""
    try:
        found = user_cache_path()
    except RuntimeError:  # how platformdirs says it since 4.14; before, the path began with ~
        return Path("/nonexistent")
    return found if found.is_absolute() else Path("/nonexistent")


def _read_text(path: Path) -> str:
    """Raises ValueError for what is not a plain file of a sensible size."""
    if not path.is_file() and path.exists():
        raise ValueError("it is not a plain file")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
    return path.read_text(encoding="utf-8")


def _plain_name(name: str) -> str:
    """A file next to ``bundle.yaml``; a bundle from elsewhere must not point out of its folder."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is not a plain file name")
    return name


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
        raise ModelError(f"model {name}: {files['head']} is not a readable head ({error}).") from error
    if width != sum(widths.values()):
        parts = " + ".join(f"{role} {number}" for role, number in widths.items())
        raise ModelError(f"model {name}: its head takes features {width} wide, its encoders give {parts}.")


def record_digest(path: Path, sha256: str) -> dict[str, Any]:
    """What ``recorded`` says of a file: its digest, and how to tell that it is still the same file."""
    state = path.stat()
    return {"sha256": sha256, "num_bytes": state.st_size, "modified_ns": state.st_mtime_ns}


def _file_digest(path: Path, recorded: dict[str, Any] | None) -> str:
    # Reading 11 GB takes as long as loading them: what was hashed when it was written is not hashed again.
    if recorded is not None and recorded == record_digest(path, str(recorded.get("sha256"))):
        return str(recorded["sha256"])
    return file_digest(path)


def _fingerprint(settings: dict[str, Any], digests: dict[str, str]) -> str:
    """Identity of all that changes a score; thresholds, limits of a cascade and prose (provenance, name) do not."""
    keys = ("schema", "fragment_length", "min_length", "frameless", "rows", "calibration", "repetitive", "evidence")
    lines = [f"{key}={settings[key]!r}\n" for key in keys if key in settings]
    lines += [f"{role}={digests[role]}\n" for role in sorted(digests)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
