"""``virnucpro train``: what each preset does with a data set, from records to a calibrated bundle."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from virnucpro.atomic import file_digest, read_json, write_json
from virnucpro.bundles import Bundle, load_bundle
from virnucpro.bundles.bundle import cache_dir
from virnucpro.bundles.catalogue import NUCLEOTIDE, PROTEIN_OF_WIDTH
from virnucpro.bundles.published import convert_encoder, convert_esm2_file
from virnucpro.encoders import read_config, save_encoder
from virnucpro.encoders.profiles import LARGEST_EVIDENCE, ProfiledEncoder, ProfiledNetwork
from virnucpro.encoders.residue_conv import ResidueConvEncoder
from virnucpro.encoders.weights import EncoderConfig, stored_tensors, write_encoder
from virnucpro.errors import RunMismatchError, UsageError
from virnucpro.heads import MLPHead, save_head
from virnucpro.progress import Reporter
from virnucpro.training.calibration import calibrate_bundle, read_settings, write_settings
from virnucpro.training.datasets import Dataset
from virnucpro.training.dev import FRAGMENT_LENGTH, DevSize
from virnucpro.training.evaluation import Figures
from virnucpro.training.fit import Fit, LiteNetwork, Recipe, take_weights, training_pools
from virnucpro.training.genomes import Genomes
from virnucpro.training.head import (
    FRAGMENTS_A_CHUNK,
    PUBLISHED,
    Drawing,
    Examples,
    HeadFit,
    HeadRecipe,
    Rows,
    draw_rows,
    embed_rows,
    hold_out,
)
from virnucpro.training.profiles import ProfileFit, ProfileRecipe, add_evidence

HEAD_FRAGMENTS = 40_960
REPORT = "training.json"
_REQUEST = "training-request.json"
_LAYERS_OF_KIND = {
    "esm2": ("num_layers", r"layers\.(\d+)\."),
    "dnabert_s": ("num_hidden_layers", r"encoder\.layer\.(\d+)\."),
}
"""Of encoders that can be cut: the setting that holds their depth, and names of the tensors of a layer."""
_LOG = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.safetensors"
_PARTS = ("nucleotide", "protein", "head")


@dataclass(frozen=True)
class Request:
    """What was asked of a training; the same request resumes where it was stopped."""

    preset: Literal["lite", "profiles", "nearest", "head", "published"] = "lite"  # the recipe
    encoders: tuple[str, ...] = ()  # bundles, encoders by name, or their files, for ``head`` and ``published``
    layer: int | None = None  # after how many layers to cut encoders that have more; None leaves them whole
    start: str | None = None  # bundle whose weights come first (``lite``) or are kept (``profiles``, ``nearest``)
    learning_rate: float | None = None  # the highest (``lite``); None for the recipe's own
    fragments: int | None = None  # to train on; None for the preset's own number
    minutes: float | None = None  # train about so long instead (``lite``)
    fragment_length: int = 500  # nt (``head`` and ``published``)
    seed: int = 1  # of everything random
    dev_share: float = 1.0  # share of the dev protocol's sequences
    device: str = "cpu"  # torch device name of the encoders

    def check(self) -> None:
        """Raise UsageError for options that do not go together."""
        is_head = self.preset in ("head", "published")
        if not is_head and (self.encoders or self.layer):
            raise UsageError("--encoder and --layer are for --preset head or published: lite trains its own encoders.")
        if is_head and not self.encoders:
            raise UsageError(f"--preset {self.preset} needs --encoder: a bundle, or two encoders.")
        if self.preset != "lite" and self.minutes is not None:
            raise UsageError("--minutes is for --preset lite; give --fragments.")
        if is_head and (self.start or self.learning_rate):
            raise UsageError("--start and --learning-rate are for --preset lite.")


def start_over(output: Path) -> None:
    """Delete the training that is in ``output``, its bundle included; other files stay."""
    if not (output / _REQUEST).exists():
        return
    parts = (f"{part}.safetensors" for part in _PARTS)
    for name in (REPORT, CHECKPOINT, "bundle.yaml", *parts, _REQUEST):
        (output / name).unlink(missing_ok=True)


def train(dataset: Dataset, output: Path, request: Request, reporter: Reporter) -> Figures:
    """Train, write the bundle folder ``output`` with a report, and return its dev figures; what is done is not redone.

    Raises:
        RunMismatchError: ``output`` holds a training of another request or other data.
        UsageError: options do not go together, or ``output`` holds something else.
    """
    request.check()
    _agree(dataset, output, request)
    if (output / REPORT).exists():
        stored: Figures = read_json(output / REPORT)["dev"]
        return stored
    size = DevSize().scaled(request.dev_share)
    preset = {"lite": _train_lite, "profiles": _train_profiles}.get(request.preset, _train_head)
    figures, described = preset(dataset, output, request, size, reporter)
    write_json(output / REPORT, {"request": asdict(request), "recipe": described, "dev": figures})
    return figures


def _train_lite(
    dataset: Dataset, output: Path, request: Request, size: DevSize, reporter: Reporter
) -> tuple[Figures, dict[str, Any]]:
    """Train everything, from scratch or from the weights of a bundle."""
    begun = time.monotonic()
    start = load_bundle(request.start) if request.start else None
    recipe = Recipe(seed=request.seed, start=start.fingerprint if start else "")
    recipe = replace(
        recipe,
        fragments=request.fragments or recipe.fragments,
        learning_rate=request.learning_rate or recipe.learning_rate,
    )
    checkpoint = output / CHECKPOINT
    fit = Fit(recipe, dataset.train, checkpoint, request.minutes, start)
    network = fit.run(reporter)
    num_fragments, seconds = fit.step * recipe.batch, time.monotonic() - begun
    _LOG.info("trained on %d fragments in %.0f s", num_fragments, seconds)
    provenance: dict[str, object] = {
        "fragments": num_fragments,
        "seed": recipe.seed,
        "threads": torch.get_num_threads(),
        "training_seconds": round(seconds),
    }
    if start is not None:
        provenance["started_from"] = {"fingerprint": start.fingerprint, **_history(start)}
    pools = (fit.batches.viruses, fit.batches.hosts)
    most = min(recipe.profiles.fragments, max(num_fragments, recipe.batch))
    fitted = ProfileFit(recipe.profiles, dataset.train, pools, recipe.seed, most)
    figures = write_lite(network, fitted, dataset.dev, output, size, provenance, reporter)
    checkpoint.unlink(missing_ok=True)
    return figures, asdict(recipe)


def _train_profiles(
    dataset: Dataset, output: Path, request: Request, size: DevSize, reporter: Reporter
) -> tuple[Figures, dict[str, Any]]:
    """Train the evidence alone, beside the parts of a bundle that ``lite`` has trained."""
    start = load_bundle(request.start or "lite")
    profiles = ProfileRecipe(fragments=request.fragments) if request.fragments else ProfileRecipe()
    network = LiteNetwork(replace(Recipe(seed=request.seed), profiles=profiles), 1)
    take_weights(network, start)
    fitted = ProfileFit(profiles, dataset.train, training_pools(dataset.train), request.seed)
    return write_lite(network, fitted, dataset.dev, output, size, _history(start), reporter), asdict(profiles)


def _history(start: Bundle) -> dict[str, object]:
    """How the bundle that a training starts from was trained itself."""
    told = read_settings(start.folder).get("provenance") or {}
    return {key: told[key] for key in ("fragments", "seed", "training_seconds", "started_from") if key in told}


def _train_head(
    dataset: Dataset, output: Path, request: Request, size: DevSize, reporter: Reporter
) -> tuple[Figures, dict[str, Any]]:
    is_published = request.preset == "published"
    recipe = replace(PUBLISHED if is_published else HeadRecipe(), seed=request.seed)
    drawing = Drawing(request.fragment_length, seed=request.seed)
    if is_published:
        drawing = drawing.as_published()
    encoders = place_encoders(request.encoders, request.layer or 0, output)
    digests = {role: file_digest(path) for role, path in encoders.items()}
    pools = training_pools(dataset.train)
    num_chunks = max(1, -(-(request.fragments or HEAD_FRAGMENTS) // FRAGMENTS_A_CHUNK))
    with reporter.stage("draw", num_chunks, "chunks") as advance:
        chunks = []
        for chunk in range(num_chunks):
            chunks.append(draw_rows(dataset.train, pools, drawing, chunk, dataset.proteins))
            advance(1)
    rows = Rows.concatenate(chunks)
    device = torch.device(request.device)
    features = torch.from_numpy(embed_rows(chunks, encoders, digests, device, cache_dir() / "features", reporter))
    examples = Examples(features, torch.from_numpy(rows.labels), torch.from_numpy(rows.weights))
    is_held_out = hold_out(rows.records, dataset.train, recipe)
    identity = f"{json.dumps(asdict(drawing), sort_keys=True)} {num_chunks} {sorted(digests.items())}"
    checkpoint = output / CHECKPOINT
    fit = HeadFit(
        recipe,
        examples.take(np.flatnonzero(~is_held_out)),
        examples.take(np.flatnonzero(is_held_out)),
        checkpoint,
        identity,
    )
    figures = write_bundle(
        output,
        output.absolute().name,
        fit.run(reporter),
        dataset.dev,
        size,
        fragment_length=request.fragment_length,
        scores_frameless=drawing.scores_frameless,  # where the head has seen such windows
        doubts_repetitive=not is_published,
        provenance={"preset": request.preset, "encoders": list(request.encoders), "seed": request.seed},
    )
    checkpoint.unlink(missing_ok=True)
    stopped = {"epochs_taken": fit.epoch, "best_epoch": fit.best_epoch, "held_out_loss": round(fit.best_loss, 6)}
    return figures, {"head": asdict(recipe), "drawing": asdict(drawing), "num_rows": len(examples), **stopped}


def write_lite(
    network: LiteNetwork,
    evidence: ProfileFit,
    dev_genomes: Genomes,
    output: Path,
    size: DevSize,
    provenance: Mapping[str, object],
    reporter: Reporter | None = None,
) -> Figures:
    """Train the evidence, store the encoders and the head, and make a calibrated bundle of them."""
    profiles = evidence.run(reporter)
    shape = replace(evidence.shape, **{**asdict(network.nucleotide.shape), "width": network.nucleotide.shape.width + 1})
    profiled = ProfiledNetwork(shape)
    profiled.six_frame, profiled.profiles = network.nucleotide, profiles
    nucleotide, protein = ProfiledEncoder(profiled), ResidueConvEncoder(network.protein)
    save_encoder(output / "nucleotide.safetensors", nucleotide.config(), nucleotide.stored_tensors())
    save_encoder(output / "protein.safetensors", protein.config(), protein.stored_tensors())
    return write_bundle(
        output,
        "lite",
        add_evidence(network.head, shape.width - 1, LARGEST_EVIDENCE),
        dev_genomes,
        size,
        fragment_length=FRAGMENT_LENGTH,
        provenance={**provenance, "evidence_fragments": evidence.num_fragments},
    )


def write_bundle(
    output: Path,
    name: str,
    head: MLPHead,
    dev_genomes: Genomes,
    size: DevSize,
    *,
    fragment_length: int,
    scores_frameless: bool = True,
    doubts_repetitive: bool = True,
    provenance: Mapping[str, object],
) -> Figures:
    """Store the head and ``bundle.yaml`` beside the encoders, which are there, and calibrate what was stored on dev."""
    save_head(output / "head.safetensors", head, {"classes": ["not_virus", "virus"]})
    settings: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "fragment_length": fragment_length,
        "min_length": 100,
        "frameless": "score" if scores_frameless else "skip",
        **({"repetitive": "doubt"} if doubts_repetitive else {}),
        "rows": "mean",
        **{part: f"{part}.safetensors" for part in _PARTS},
        "threshold": 0.5,
        "calibration": {"lengths": [fragment_length], "slope": [1.0], "intercept": [0.0], "exponent": 0.5},
        "provenance": {**provenance, "date": datetime.now(tz=UTC).date().isoformat()},
    }
    write_settings(output, settings)
    for part in _PARTS:
        (output / settings[part]).chmod(0o644)  # safetensors writes files that only their owner may read
    return calibrate_bundle(dev_genomes, output, size)


def place_encoders(names: Sequence[str], layer: int, output: Path) -> dict[str, Path]:
    """Put the two encoders into the bundle folder, cut where asked; returns role to file.

    Args:
        names: bundles, encoder files, names of released encoders or fair-esm files; of several for one role the last
            counts.
        layer: encoders with more layers are cut after this many; 0 cuts none.
        output: the bundle folder.

    Raises:
        UsageError: a role has no encoder, or ``layer`` cuts none.
    """
    sources = _encoder_files(names)
    is_cut = {role: 0 < layer < depth_of(read_config(path)) for role, path in sources.items()}
    if layer and not any(is_cut.values()):
        raise UsageError(f"--layer {layer}: no encoder has more layers than that.")
    placed = {}
    for role, source in sources.items():
        placed[role] = output / f"{role}.safetensors"
        if is_cut[role]:
            write_truncated(source, layer, placed[role])
        elif not (placed[role].exists() and placed[role].samefile(source)):
            shutil.copyfile(source, placed[role])
    return placed


def _encoder_files(names: Sequence[str]) -> dict[str, Path]:
    roles = {"nt": "nucleotide", "aa": "protein"}
    found: dict[str, Path] = {}
    for name in names:
        path = Path(name)
        if name in (NUCLEOTIDE, *PROTEIN_OF_WIDTH.values()):
            path = convert_encoder(name)
        elif path.is_file() and path.suffix == ".pt":
            path = convert_esm2_file(path)
        if path.is_file() and path.suffix == ".safetensors":
            found[roles[read_config(path).alphabet]] = path
        else:
            bundle = load_bundle(name)
            found |= {"nucleotide": bundle.nucleotide, "protein": bundle.protein}
    missing = sorted({"nucleotide", "protein"} - found.keys())
    if missing:
        raise UsageError(
            f"--encoder: no {missing[0]} encoder among {', '.join(names)}; give a second encoder, or a bundle."
        )
    return dict(sorted(found.items()))


def depth_of(config: EncoderConfig) -> int:
    """Layers of an encoder; 0 for a kind that cannot be cut."""
    return int(config.settings[_LAYERS_OF_KIND[config.kind][0]]) if config.kind in _LAYERS_OF_KIND else 0


def write_truncated(source: Path, layer: int, output: Path) -> None:
    """Write the encoder at ``source`` so that it gives its states after ``layer`` layers.

    Of ESM-2 one layer more is kept than is computed: its final LayerNorm belongs to the last layer alone, and is left
    out where ``repr_layer`` is below ``num_layers``, as fair-esm does.

    Raises:
        UsageError: the encoder has fewer layers, or is of a kind without.
    """
    config = read_config(source)
    depth = depth_of(config)
    if not 1 <= layer <= depth:
        what = f"has {depth} layers" if depth else f"is of kind {config.kind}, which cannot be cut"
        raise UsageError(f"--layer {layer}: {source} {what}.")
    setting, pattern = _LAYERS_OF_KIND[config.kind]
    num_kept, more = (min(layer + 1, depth), {"repr_layer": layer}) if config.kind == "esm2" else (layer, {})
    tensors = {
        name: tensor
        for name, tensor in stored_tensors(source).items()
        if not (found := re.match(pattern, name)) or int(found[1]) < num_kept
    }
    write_encoder(output, dict(config.settings) | {setting: num_kept} | more, tensors, config.tokenizer_json)


def _agree(dataset: Dataset, output: Path, request: Request) -> None:
    """Write the request into ``output``, or hold this one against that of the training that is there."""
    path = output / _REQUEST
    asked: Mapping[str, Any] = {**asdict(request), "encoders": list(request.encoders), "data": _data_digest(dataset)}
    if not path.exists():
        if (output / "bundle.yaml").exists():
            raise UsageError(f"{output} holds a bundle already. Name another --output.")
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, asked)
        return
    then = read_json(path)
    differences = [(name, then.get(name), value) for name, value in asked.items() if then.get(name) != value]
    if differences:
        raise RunMismatchError(output, differences)


def _data_digest(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for part in (dataset.train, dataset.dev):
        digest.update(part.codes.tobytes() + part.offsets.tobytes())
        for column in (part.classes, part.groups, part.splits, part.ids):
            digest.update("\n".join(column.tolist()).encode() + b"\n")
    return digest.hexdigest()[:16]
