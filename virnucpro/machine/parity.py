"""The gate before 8 bits: a model computes in them only where its answers stay what they are.

A fixed set of rows, open coding DNA of the model's fragment length, is embedded in 8 bits and in the float type that
the device would be given otherwise. The mean cosine says that an encoder is the same encoder; it alone could hide
single rows that went astray, and these show in their labels.

The verdict is kept beside the profiles of ``virnucpro profile``, one JSON file for each model, device, dtype and torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.bundles import Bundle
from virnucpro.bundles.bundle import cache_dir
from virnucpro.encoders import check_low_bit, load_encoder, read_config
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.device import default_dtype, is_low_bit
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.loader import pack_unit
from virnucpro.engine.packing import GreedyPacker
from virnucpro.engine.threads import use_threads
from virnucpro.errors import UsageError
from virnucpro.heads import load_head
from virnucpro.machine.machine import device_name
from virnucpro.run_dir import write_json
from virnucpro.sequence.ragged import Ragged
from virnucpro.stages.base import ROLES

SCHEMA = 1
NUM_ROWS = 512  # the fewest whose labels can tell 99.8 %: one of them may differ
LEAST_COSINE = 0.999
LEAST_AGREEMENT = 0.998
_FEW_OF_A_LABEL = 0.05
"""Share of the rows below which the rarer label is so rare that agreement says little."""
_log = logging.getLogger(__name__)

_Embeddings = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ParityKey:
    """What a verdict holds for, and for nothing else.

    Attributes:
        fingerprint: of the bundle.
        device: model of the GPU or of the processor.
        dtype: torch's name of the 8-bit type.
        torch_version: with its build.
    """

    fingerprint: str
    device: str
    dtype: str
    torch_version: str


@dataclass(frozen=True)
class Verdict:
    """How far answers in 8 bits are from those in a float type.

    Attributes:
        key: what it holds for.
        reference: torch's name of the float type.
        num_rows: compared.
        cosines: role to the mean over rows of the cosine between the two embeddings.
        lowest_cosines: role to the lowest of them.
        label_agreement: share of rows with the same label, virus or not.
        num_virus: rows that the float type labels virus; where these are none or all, labels hardly can differ.
        largest_score_difference: of a row's score for virus; it tells something whatever the labels are.
    """

    key: ParityKey
    reference: str
    num_rows: int
    cosines: dict[str, float]
    lowest_cosines: dict[str, float]
    label_agreement: float
    num_virus: int
    largest_score_difference: float

    @property
    def tells_by_labels(self) -> bool:
        """Whether both labels are common enough for their agreement to mean something."""
        return min(self.num_virus, self.num_rows - self.num_virus) >= _FEW_OF_A_LABEL * self.num_rows

    @property
    def holds(self) -> bool:
        """Whether the model may compute in 8 bits."""
        return min(self.cosines.values()) >= LEAST_COSINE and self.label_agreement >= LEAST_AGREEMENT

    def __str__(self) -> str:
        cosines = ", ".join(
            f"{role} {mean:.5f} (lowest {self.lowest_cosines[role]:.5f})" for role, mean in self.cosines.items()
        )
        return (
            f"against {self.reference}, {self.num_rows} rows: mean cosine {cosines}, needed {LEAST_COSINE}; "
            f"labels agree for {self.label_agreement:.2%}, needed {LEAST_AGREEMENT:.1%} ({self.num_virus} are virus); "
            f"scores differ by at most {self.largest_score_difference:.4f}"
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any], key: ParityKey) -> Self:
        """The verdict in a file.

        Raises:
            KeyError: something is missing.
            TypeError: something is unknown.
            ValueError: it is of another schema or key, or no numbers.
        """
        if content["schema"] != SCHEMA or content["key"] != asdict(key):
            raise ValueError("it is about something else")
        parts = {name: value for name, value in content.items() if name not in ("schema", "key")}
        verdict = cls(key, **parts)
        figures = [*verdict.cosines.values(), *verdict.lowest_cosines.values(), verdict.label_agreement]
        figures.append(verdict.largest_score_difference)
        if set(verdict.cosines) != set(ROLES) or not all(isinstance(figure, float) for figure in figures):
            raise ValueError("its figures make no sense")
        return verdict


def check_kinds(bundle: Bundle, dtype: str) -> None:
    """Refuse 8 bits for a model whose encoders have no linear layers to compute in them.

    Args:
        bundle: the model.
        dtype: torch's name of the type.

    Raises:
        UsageError: it is such a model.
    """
    for role in ROLES:
        check_low_bit(read_config(bundle.encoder(role)), dtype)


def require(bundle: Bundle, device: str, dtype: str, threads: int) -> Verdict | None:
    """Hold a model to its answers in a float type, once; None where ``dtype`` is one.

    Args:
        bundle: the model.
        device: torch's name of it.
        dtype: torch's name of the type.
        threads: for the CPU.

    Raises:
        UsageError: in 8 bits it does not give them.
    """
    if not is_low_bit(getattr(torch, dtype)):
        return None
    key = ParityKey(bundle.fingerprint, device_name(torch.device(device)), dtype, str(torch.__version__))
    verdict = find(key)
    if verdict is None:
        _log.info("comparing %d rows in %s and in a float type, once for this model and device", NUM_ROWS, dtype)
        use_threads(threads)
        verdict = compare(bundle, torch.device(device), key)
        write_json(path_of(key), {"schema": SCHEMA, **asdict(verdict)})
    if not verdict.holds:
        raise UsageError(
            f"model {bundle.name} does not keep its answers in {dtype} on this device ({verdict}). "
            "Use --dtype bfloat16."
        )
    _log.info("%s %s", dtype, verdict)
    if not verdict.tells_by_labels:
        _log.warning(
            "%s: %d of the %d rows compared are labelled virus, so that their labels say little of this model; check "
            "calls on sequences of your own against --dtype bfloat16",
            dtype,
            verdict.num_virus,
            verdict.num_rows,
        )
    return verdict


def path_of(key: ParityKey) -> Path:
    """Where the verdict of ``key`` is kept."""
    text = json.dumps(asdict(key), sort_keys=True)
    return cache_dir() / "parity" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def find(key: ParityKey) -> Verdict | None:
    """The verdict of an earlier run; None where there is none that can be used."""
    path = path_of(key)
    try:
        return Verdict.from_json(json.loads(path.read_text(encoding="utf-8")), key)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("%s: is not used (%s); it is made anew", path, error)
        return None


def compare(bundle: Bundle, device: torch.device, key: ParityKey) -> Verdict:
    """Embed the fixed rows in both types, one encoder in memory at a time."""
    from virnucpro.machine.sample_units import draw_strings  # noqa: PLC0415 - a run in a float type need not wait for it

    with TemporaryDirectory(prefix="virnucpro-parity-") as folder:
        strings = draw_strings(Path(folder), bundle, NUM_ROWS)
    reference = default_dtype(device)
    wide = _embed(bundle, strings, device, reference)
    narrow = _embed(bundle, strings, device, getattr(torch, key.dtype))
    cosines = {role: _cosines(wide[role], narrow[role]) for role in ROLES}
    head = load_head(bundle.head)
    features = [np.hstack([found[role] for role in ROLES]) for found in (wide, narrow)]
    scores = [head.scores(torch.from_numpy(of_type)) for of_type in features]
    labels = [of_type.argmax(dim=1) for of_type in scores]
    return Verdict(
        key,
        str(reference).removeprefix("torch."),
        num_rows=len(labels[0]),
        cosines={role: float(found.mean()) for role, found in cosines.items()},
        lowest_cosines={role: float(found.min()) for role, found in cosines.items()},
        label_agreement=float((labels[0] == labels[1]).double().mean()),
        num_virus=int(labels[0].sum()),
        largest_score_difference=float((scores[0] - scores[1]).abs().max()),
    )


def _embed(bundle: Bundle, strings: Mapping[str, Ragged], device: torch.device, dtype: torch.dtype) -> _Embeddings:
    from virnucpro.stages.embed import usual_token_budget  # noqa: PLC0415 - a run in a float type need not wait for it

    found = {}
    for role in ROLES:
        path = bundle.encoder(role)

        def load(device: torch.device, dtype: torch.dtype, path: Path = path) -> Encoder:
            return load_encoder(path, device, dtype)

        encoder = load(device, dtype)
        budget = usual_token_budget(encoder, device, str(dtype).removeprefix("torch."))
        unit = pack_unit(0, strings[role], encoder.tokenizer, GreedyPacker(budget))
        ((_, found[role]),) = AsyncInferenceRunner(encoder, device, load).embeddings([unit])
        del encoder
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def _cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of the rows; 1 for two rows of zeros, which is what an empty string has."""
    lengths = np.linalg.norm(one.astype(np.float64), axis=1) * np.linalg.norm(other.astype(np.float64), axis=1)
    products = (one.astype(np.float64) * other).sum(axis=1)
    both_empty = ~one.any(axis=1) & ~other.any(axis=1)
    return np.where(both_empty, 1.0, products / np.where(lengths == 0, 1.0, lengths))
