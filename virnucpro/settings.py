"""Settings, in three kinds, and the file they may be read from.

- *Science* changes numbers: pinned by the manifest, part of the run's identity.
- *Layout* changes how a run is cut into units: pinned by the manifest.
- *Runtime* changes neither and may differ when the run is resumed.

None stands for what was not given. A settings file (``--config``) is YAML with the same names as the options, below
their kind::

    science: {fragment_length: 300}
    runtime: {device: cpu, threads: 4}

An option on the command line wins over the file.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from virnucpro.errors import UsageError
from virnucpro.resources import available_cpus
from virnucpro.stored_json import read_given

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = ("auto", "float32", "bfloat16", "float16")
TableFormat = Literal["tsv", "parquet", "jsonl"]
TABLE_FORMATS: tuple[TableFormat, ...] = ("tsv", "parquet", "jsonl")
CompileChoice = Literal["auto", "always", "never"]
Preset = Literal["sensitive", "balanced", "strict"]
PRESETS: tuple[Preset, ...] = ("sensitive", "balanced", "strict")

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]

CALL_SETTINGS = ("preset", "threshold", "fdr", "prevalence")
"""Of ``Science``, those that decide on calls alone."""
_WAYS_TO_CALL = {f"science.{name}" for name in CALL_SETTINGS[:3]}
"""Settings of which one decides."""


@dataclass(frozen=True)
class Science:
    """What changes numbers.

    Attributes:
        model: bundle name or folder.
        fragment_length: nt; None takes the bundle's.
        dtype: type the encoders compute in; auto is float32 on the CPU, bfloat16 on a GPU (float16 before Ampere).
        preset: None takes balanced, unless there is a threshold or an fdr.
        threshold: p_virus, at ``prevalence``, from which a sequence is called virus, and below which it is not.
        fdr: highest false discovery rate of what is called virus.
        prevalence: expected share of viral sequences; auto estimates it from the scores of each input.
        cascade: screen everything with a small model, and run ``model`` only where that is unsure.
        cascade_low: p_virus of the small model, at equal prevalence, below which it is sure; None takes the bundle's.
        cascade_high: p_virus above which it is sure.

    Preset, threshold, fdr and prevalence decide on calls alone. Calls are made at the end of every run from stored
    scores, so the manifest does not pin these.
    """

    model: str = "lite"
    fragment_length: Annotated[int, msgspec.Meta(ge=3, le=1 << 31)] | None = None
    dtype: Dtype = "auto"
    preset: Preset | None = None
    threshold: Share | None = None
    fdr: Share | None = None
    prevalence: Annotated[float, msgspec.Meta(gt=0, lt=1)] | Literal["auto"] = "auto"
    cascade: bool = False
    cascade_low: Share | None = None
    cascade_high: Share | None = None


@dataclass(frozen=True)
class Layout:
    """How a run is cut.

    Attributes:
        unit_rows: most rows in a unit.
    """

    unit_rows: Positive = 8_192


@dataclass(frozen=True)
class Runtime:
    """What may differ when a run is resumed.

    Attributes:
        device: auto, cpu, cuda, cuda:N or mps.
        gpus: physical GPU numbers, ``0,1``; None for what ``device`` says.
        parallel: several worker processes on a machine without a GPU.
        threads: CPU threads in all; None takes the CPUs this process may use.
        loader_workers: processes a worker that read and tokenise ahead; None chooses.
        merge_threads: processes that merge the two shards of each unit before the head reads them; None merges only
            embeddings that are kept, in ``threads`` processes with ``parallel``, otherwise in one.
        token_budget: most tokens in a packed batch; None chooses.
        batch_size: rows the head scores at a time: the fewer, the more of them stay in the CPU's cache.
        compile: auto, always or never compile the layers of transformers; auto does on a GPU where the rows repay it.
    """

    device: str = "auto"
    gpus: str | None = None
    parallel: bool = False
    threads: Positive | None = None
    loader_workers: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] | None = None
    merge_threads: Positive | None = None
    token_budget: Positive | None = None
    batch_size: Positive = 1024
    compile: CompileChoice = "auto"

    @property
    def num_threads(self) -> int:
        """CPU threads in all."""
        return self.threads or available_cpus()


@dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    science: Science = Science()
    layout: Layout = Layout()
    runtime: Runtime = Runtime()

    def changed(self, **values: Any) -> Settings:  # noqa: ANN401 - each has its own type
        """The same with other values, by the names of settings."""
        kinds: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            kinds.setdefault(PLACES[name].partition(".")[0], {})[name] = value
        return replace(self, **{kind: replace(getattr(self, kind), **part) for kind, part in kinds.items()})


PLACES = {
    item.name: f"{kind.name}.{item.name}"
    for kind in fields(Settings)
    for item in fields(getattr(Settings(), kind.name))
}
"""Name of each setting to the dotted one, with its kind."""


def make_settings(path: Path | None, options: Mapping[str, object]) -> Settings:
    """Settings from defaults, then a file, then options.

    Args:
        path: YAML settings file, or None.
        options: dotted name (``runtime.threads``) to value; None means not given.

    Raises:
        UsageError: an unknown name, or a value out of range or of the wrong type.
    """
    given = _read(path) if path is not None else {}
    chosen = {name: value for name, value in options.items() if value is not None}
    if chosen.keys() & _WAYS_TO_CALL:  # an option wins over the file, whichever of the ways that names
        given = {name: value for name, value in given.items() if name not in _WAYS_TO_CALL}
    given |= chosen
    kinds: dict[str, dict[str, object]] = {kind.name: {} for kind in fields(Settings)}
    for name, value in given.items():
        if name not in PLACES.values():
            near = difflib.get_close_matches(name, PLACES.values(), n=1)
            raise UsageError(f"unknown setting {name}" + (f"; did you mean {near[0]}?" if near else "."))
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name}: expected a number, got {value}.")
        kind, _, key = name.partition(".")
        kinds[kind][key] = value
    try:
        settings = msgspec.convert(kinds, Settings)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`")
        problem = problem[:1].lower() + problem[1:].replace("`", "")
        raise UsageError(f"{name}: {problem}, got {given.get(name)!r}.") from error
    _check(settings.science)
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_given(path, 1 << 20).decode()) or {}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: is not YAML ({error}).") from error
    if not isinstance(content, dict) or not all(isinstance(part, dict) for part in content.values()):
        raise UsageError(f"{path}: expected 'science:', 'layout:' and 'runtime:', each with its settings below.")
    return {f"{kind}.{key}": value for kind, part in content.items() for key, value in part.items()}


def _check(science: Science) -> None:
    """Rules that several settings take part in."""
    low, high = science.cascade_low, science.cascade_high
    if sum(way is not None for way in (science.preset, science.threshold, science.fdr)) > 1:
        raise UsageError("science.preset, science.threshold and science.fdr are three ways to call: give one.")
    if (low is None) != (high is None) or (low is not None and high is not None and low > high):
        raise UsageError("science.cascade_low and science.cascade_high: two ascending probabilities.")
    if low is not None and not science.cascade:
        raise UsageError(
            "science.cascade_low and science.cascade_high are limits of a cascade: ask for one (--cascade)."
        )
