"""Settings, in three kinds, and the file they may be read from.

- *Science* changes numbers: pinned by the manifest, part of the run's identity.
- *Layout* changes how a run is cut into units: pinned by the manifest.
- *Runtime* changes neither and may be another one when the run goes on.

A settings file (``--config``) is YAML with the same names as the options below their kind::

    science: {fragment_length: 300}
    runtime: {device: cpu, threads: 4}

An option on the command line wins over the file.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from virnucpro.errors import UsageError

DTYPES = ("auto", "float32", "bfloat16", "float16", "int8", "fp8")
TableFormat = Literal["tsv", "parquet", "jsonl"]
TABLE_FORMATS: tuple[TableFormat, ...] = ("tsv", "parquet", "jsonl")
CompileChoice = Literal["auto", "always", "never"]
COMPILE_CHOICES: tuple[CompileChoice, ...] = ("auto", "always", "never")
PRESETS = ("sensitive", "balanced", "strict")
_WAYS_TO_CALL = {"science.preset", "science.threshold", "science.fdr"}
"""Settings of which one decides."""


@dataclass(frozen=True)
class ScienceConfig:
    """What changes numbers.

    Attributes:
        model: bundle name or folder.
        fragment_length: nt; 0 takes the bundle's.
        dtype: type the encoders compute in; auto is float32 on the CPU, bfloat16 on a GPU (float16 before Ampere). int8
            (CPU) and fp8 (CUDA) compute the linear layers of transformers in 8 bits and all else in bfloat16.
        preset: sensitive, balanced or strict; empty takes balanced.
        threshold: p_virus, at ``prevalence``, from which a sequence is called virus, and below which it is not;
            negative takes the preset.
        fdr: highest false discovery rate of what is called virus; negative takes the preset.
        prevalence: expected share of viral sequences.
        cascade: let a small model look at everything first, and ``model`` only at what that is not sure of.
        cascade_low: p_virus of the small model, at equal prevalence, below which it is sure; negative takes the
            bundle's.
        cascade_high: p_virus above which it is sure.

    Preset, threshold, fdr and prevalence decide on calls alone. These are made anew at the end of every run from stored
    scores, so the manifest does not pin them.
    """

    model: str = "lite"
    fragment_length: int = 0
    dtype: str = "auto"
    preset: str = ""
    threshold: float = -1.0
    fdr: float = -1.0
    prevalence: float = 0.5
    cascade: bool = False
    cascade_low: float = -1.0
    cascade_high: float = -1.0


@dataclass(frozen=True)
class LayoutConfig:
    """How a run is cut.

    Attributes:
        unit_rows: most rows in a unit.
    """

    unit_rows: int = 16_384


@dataclass(frozen=True)
class RuntimeConfig:
    """What may differ when a run goes on.

    Attributes:
        device: auto, cpu, cuda, cuda:N or mps.
        gpus: physical GPU numbers, ``0,1``; empty for what ``device`` says.
        parallel: several worker processes on a machine without a GPU.
        threads: CPU threads in all; 0 takes the CPUs this process may use.
        loader_workers: processes a worker that read and tokenise ahead; negative chooses.
        merge_threads: processes that merge; 0 takes ``threads`` with ``parallel``, else one.
        token_budget: most tokens in a packed batch; 0 chooses.
        batch_size: rows the head scores at a time: the fewer, the more of them stay in the CPU's cache.
        compile: auto, always or never compile the layers of transformers; auto does on a GPU where the rows repay it.
    """

    device: str = "auto"
    gpus: str = ""
    parallel: bool = False
    threads: int = 0
    loader_workers: int = -1
    merge_threads: int = 0
    token_budget: int = 0
    batch_size: int = 1024
    compile: CompileChoice = "auto"


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    science: ScienceConfig = ScienceConfig()
    layout: LayoutConfig = LayoutConfig()
    runtime: RuntimeConfig = RuntimeConfig()


def make_config(path: Path | None, options: dict[str, Any]) -> Config:
    """Settings from defaults, then a file, then options.

    Args:
        path: YAML settings file, or None.
        options: dotted name (``runtime.threads``) to value; None means not given.

    Raises:
        UsageError: an unknown name, or a value that makes no sense.
    """
    given = _read(path) if path is not None else {}
    chosen = {name: value for name, value in options.items() if value is not None}
    if chosen.keys() & _WAYS_TO_CALL:  # an option wins over the file, whichever of the ways that names
        given = {name: value for name, value in given.items() if name not in _WAYS_TO_CALL}
    given |= chosen
    config = Config()
    known = {f"{kind.name}.{field.name}" for kind in fields(Config) for field in fields(getattr(config, kind.name))}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(f"unknown setting {name}" + (f"; did you mean {near[0]}?" if near else "."))
        kind, _, key = name.partition(".")
        settings = getattr(config, kind)
        wanted = type(getattr(settings, key))
        if wanted is float and type(value) is int:
            value = float(value)  # noqa: PLW2901 - YAML writes 1.0 as 1
        if type(value) is not wanted:
            raise UsageError(f"setting {name}: expected {wanted.__name__}, got {value!r}.")
        config = replace(config, **{kind: replace(settings, **{key: value})})
    _check(config)
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not YAML ({error}).") from error
    if not isinstance(content, dict) or not all(isinstance(part, dict) for part in content.values()):
        raise UsageError(f"{path}: expected 'science:', 'layout:' and 'runtime:', each with its settings below.")
    return {f"{kind}.{key}": value for kind, part in content.items() for key, value in part.items()}


def _check(config: Config) -> None:
    science, layout, runtime = config.science, config.layout, config.runtime
    rules = [
        (science.fragment_length == 0 or science.fragment_length >= 3, "science.fragment_length: at least 3 bases."),
        (science.dtype in DTYPES, f"science.dtype: one of {', '.join(DTYPES)}."),
        (science.preset in ("", *PRESETS), f"science.preset: one of {', '.join(PRESETS)}."),
        (science.threshold <= 1, "science.threshold: a probability from 0 to 1."),
        (science.fdr <= 1, "science.fdr: a share from 0 to 1."),
        (0 < science.prevalence < 1, "science.prevalence: a share between 0 and 1."),
        (
            (science.preset != "") + (science.threshold >= 0) + (science.fdr >= 0) <= 1,
            "science.preset, science.threshold and science.fdr are three ways to call: give one.",
        ),
        (
            max(science.cascade_low, science.cascade_high) < 0 or 0 <= science.cascade_low <= science.cascade_high <= 1,
            "science.cascade_low and science.cascade_high: two ascending probabilities.",
        ),
        (
            science.cascade or max(science.cascade_low, science.cascade_high) < 0,
            "science.cascade_low and science.cascade_high are limits of a cascade: ask for one (--cascade).",
        ),
        (layout.unit_rows >= 1, "layout.unit_rows: at least 1."),
        (runtime.threads >= 0, "runtime.threads: 0 (all) or more."),
        (runtime.merge_threads >= 0, "runtime.merge_threads: 0 (all) or more."),
        (runtime.token_budget >= 0, "runtime.token_budget: 0 (chosen) or more."),
        (runtime.batch_size >= 1, "runtime.batch_size: at least 1."),
        (runtime.compile in COMPILE_CHOICES, f"runtime.compile: one of {', '.join(COMPILE_CHOICES)}."),
    ]
    for holds, rule in rules:
        if not holds:
            raise UsageError(rule)
