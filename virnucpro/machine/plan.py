"""Rows, time, memory and disk of a run that has not begun."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from virnucpro.bundles import Bundle
from virnucpro.bundles.cascade import Limits
from virnucpro.config import LayoutConfig
from virnucpro.encoders import load_encoder, read_config
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.device import float_dtype
from virnucpro.encoders.weights import stored_tensors
from virnucpro.engine.threads import use_threads
from virnucpro.errors import ResourceError
from virnucpro.machine import profiles
from virnucpro.machine.arithmetic import transformer_shape
from virnucpro.machine.budgets import usual_budget
from virnucpro.machine.first_look import Place, count_going_on
from virnucpro.machine.forecast import Amounts, Counted, Range, count_sample, foresee
from virnucpro.machine.machine import peak_memory_bytes
from virnucpro.machine.sampling import SampledInput, sample_input
from virnucpro.machine.speed import RowCosts, RunProgram, embed_rate, row_costs, run_on_one_read, sampled_strings
from virnucpro.machine.text import size
from virnucpro.progress import Reporter
from virnucpro.registry.checkup import free_memory_bytes
from virnucpro.run_dir import RunDir
from virnucpro.stages.base import ROLES, Run
from virnucpro.stages.cascade import FirstModel
from virnucpro.stages.consensus import SUM_DTYPE
from virnucpro.stages.embed import UNITS_ON_DISK

_log = logging.getLogger(__name__)

Program = Callable[[Limits | None], RunProgram]
"""The program as it is planned; a cascade with these limits where there are some."""

_FLOAT32_COPIES, _KEPT_COPIES = 4, 2
"""Embeddings of whole units in memory: one that is made, three that wait to be written; and the image of one file."""

_SCORE_BYTES, _SLOT_BYTES, _MOST_SLOTS = 8, 24, 1 << 22
_MEMORY_MARGIN = 1.25
_EXTRACT_MARGIN = 1.5
"""Extraction takes so little that its figures are rough: writing units waits for the disk."""


@dataclass(frozen=True)
class PlanSettings:
    """The run that is planned.

    Attributes:
        inputs: paths.
        bundle: the model.
        devices: torch's names of them, at least one.
        dtype: torch's name of the float type.
        threads: CPU threads in all.
        output: where results would go; its disk is looked at.
        sample_bytes: text to take of each input.
        import_seconds: that the program took to start.
        first: the model that looks first; None without ``--cascade``.
    """

    inputs: tuple[str, ...]
    bundle: Bundle
    devices: tuple[str, ...]
    dtype: str
    threads: int
    output: Path
    sample_bytes: int
    import_seconds: float
    first: FirstModel | None = None


@dataclass(frozen=True)
class Seconds:
    """Wall time.

    Attributes:
        start: libraries, model, and all that is done once.
        extract: reading, cutting and translating.
        embed: both encoders.
        rest: merging, the head, tables.
    """

    start: Range
    extract: Range
    embed: Range
    rest: Range

    @property
    def total(self) -> Range:
        """All of it."""
        return self.start + self.extract + self.embed + self.rest


@dataclass(frozen=True)
class Need:
    """Bytes that are needed, and those that can be had.

    Attributes:
        needed: foreseen.
        free: now; None where it cannot be told.
    """

    needed: Range
    free: int | None

    @property
    def verdict(self) -> str:
        """Whether it will fit, in words."""
        if self.free is None:
            return "free amount unknown"
        if self.needed.high <= self.free:
            return "fits"
        return "may not fit" if self.needed.likely <= self.free else "does not fit"


@dataclass(frozen=True)
class FirstPlan:
    """What is foreseen of the model that looks first in a cascade, beside what ``Plan`` holds of both.

    Attributes:
        model: name of the bundle.
        low: p_virus below which it is sure.
        high: and above which.
        share: of all sequences that go on to the model asked for, as it decided on the sample.
        amounts: of all inputs, as cut for it.
        rows_per_second: through its encoders, on all devices together.
        embed_seconds: of its encoders; they are in those of the plan.
        weights_bytes: of both of its encoders.
    """

    model: str
    low: float
    high: float
    share: Range
    amounts: Amounts
    rows_per_second: Range
    embed_seconds: Range
    weights_bytes: int


@dataclass(frozen=True)
class Plan:
    """What is foreseen. Amounts and rate of a cascade are those of the model asked for: of what goes on to it.

    Attributes:
        model: name of the bundle.
        devices: torch's names.
        dtype: torch's name of the float type.
        sampled: share of each input's text that was read.
        amounts: of all inputs.
        rows_per_second: through the encoders, on all devices together.
        seconds: of the stages, of all models.
        weights_bytes: of both encoders in the float type of the run, by their files' headers.
        memory: of the host, largest process.
        device_memory: of each GPU; None on the CPU.
        disk: while it runs.
        disk_after: of results and stored run.
        disk_kept: the same with ``--keep-embeddings``.
        first: the model that looks first; None without ``--cascade``.
    """

    model: str
    devices: tuple[str, ...]
    dtype: str
    sampled: tuple[float, ...]
    amounts: Amounts
    rows_per_second: Range
    seconds: Seconds
    weights_bytes: int
    memory: Need
    device_memory: Need | None
    disk: Need
    disk_after: Need
    disk_kept: Need
    first: FirstPlan | None = None


@dataclass(frozen=True)
class _EncoderFigures:
    """What the encoders did with sampled rows.

    Attributes:
        rows_per_second: on all devices together.
        batch_bytes: that a full batch takes more than those that were measured.
        device_memory: of the first device, where it is a GPU.
    """

    rows_per_second: Range
    batch_bytes: float
    device_memory: Need | None


@dataclass(frozen=True)
class _Model:
    """What is known of one model of the run.

    Attributes:
        settings: the run, as if this model were alone.
        weights_bytes: of both encoders.
        counted: what it has to look at, in the sample.
        amounts: and in all.
        encoders: how fast it is.
    """

    settings: PlanSettings
    weights_bytes: int
    counted: Counted
    amounts: Amounts
    encoders: _EncoderFigures

    @property
    def embed_seconds(self) -> Range:
        """Of its encoders, on all devices together."""
        rows, rates = self.amounts.num_computed, self.encoders.rows_per_second
        if not rates.likely:
            return Range.exactly(0.0)
        return Range(rows.low / rates.high, rows.likely / rates.likely, rows.high / rates.low)


def make_plan(settings: PlanSettings, program: Program) -> Plan:
    """Take samples, measure, and scale up.

    Raises:
        InputError: an input is stdin or a pipe, or cannot be read as nucleotide sequences.
        ModelError: an encoder cannot be loaded.
        ResourceError: the model alone does not fit the memory.
    """
    of_models = [*([] if settings.first is None else [_alone(settings, settings.first)]), settings]
    for of_model in of_models:
        _check_room(of_model, _all_weights_bytes(of_model))
    for caution in settings.first.cautions if settings.first is not None else ():
        _log.warning("%s", caution)
    use_threads(settings.threads)
    with TemporaryDirectory(prefix="virnucpro-plan-") as name:
        folder = Path(name)
        inputs = [
            sample_input(number, source, settings.sample_bytes, folder) for number, source in enumerate(settings.inputs)
        ]
        # First, since kernels are cold but once. Both models of a cascade look at this read, so that both are loaded.
        one = run_on_one_read(program(None if settings.first is None else Limits(0, 1)), settings.bundle, folder)
        models: list[_Model] = []
        for of_model in of_models:
            if models and settings.first is not None:
                counted = _count_going_on(
                    of_models[0], settings, settings.first, models[0].counted, folder / "going-on"
                )
            else:
                counted = count_sample(inputs, of_model.bundle, LayoutConfig().unit_rows, folder / "counted")
            amounts = foresee(inputs, counted)
            encoders = _measure_encoders(of_model, counted, amounts)
            models.append(_Model(of_model, _all_weights_bytes(of_model), counted, amounts, encoders))
        seen = models[0].counted
        run_program = program(None if settings.first is None else settings.first.limits)
        costs = row_costs(run_program, one, seen, _rows_per_second(models), folder)
    asked = models[-1]
    during, after, kept = _disk(models, costs)
    free = shutil.disk_usage(_existing(settings.output)).free
    return Plan(
        model=settings.bundle.name,
        devices=settings.devices,
        dtype=settings.dtype,
        sampled=tuple(1 / sampled.factor for sampled in inputs),
        amounts=asked.amounts,
        rows_per_second=asked.encoders.rows_per_second,
        seconds=_seconds(settings.import_seconds + one.total_seconds, inputs, models, costs),
        weights_bytes=asked.weights_bytes,
        memory=Need(_largest([_memory(model) for model in models]), free_memory_bytes()),
        device_memory=_larger_need([model.encoders.device_memory for model in models]),
        disk=Need(during, free),
        disk_after=Need(after, free),
        disk_kept=Need(kept, free),
        first=None if settings.first is None else _first_plan(settings.first, models[0], asked),
    )


def _alone(settings: PlanSettings, first: FirstModel) -> PlanSettings:
    """The run that the first model of a cascade does."""
    dtype = str(float_dtype(getattr(torch, settings.dtype))).removeprefix("torch.")
    return replace(settings, bundle=first.bundle, dtype=dtype, first=None)


def _count_going_on(
    of_first: PlanSettings, settings: PlanSettings, first: FirstModel, looked_at: Counted, folder: Path
) -> Counted:
    """What the model asked for has to look at in the sample."""
    asked = Run(
        dir=RunDir(folder),
        inputs=(),
        bundle=settings.bundle,
        fragment_length=settings.bundle.fragment_length,
        unit_rows=LayoutConfig().unit_rows,
        dtype=settings.dtype,
        reporter=Reporter(bars=False),
    )
    return count_going_on(looked_at, first, asked, Place(settings.devices[0], of_first.dtype, settings.threads))


def _first_plan(first: FirstModel, model: _Model, asked: _Model) -> FirstPlan:
    everything, going_on = model.amounts.num_sequences, asked.amounts.num_sequences
    of = max(1.0, everything.likely)
    return FirstPlan(
        model=first.bundle.name,
        low=first.limits.low,
        high=first.limits.high,
        share=Range(*(min(1.0, amount / of) for amount in (going_on.low, going_on.likely, going_on.high))),
        amounts=model.amounts,
        rows_per_second=model.encoders.rows_per_second,
        embed_seconds=model.embed_seconds,
        weights_bytes=model.weights_bytes,
    )


def _rows_per_second(models: Sequence[_Model]) -> float:
    """Of all encoders, counted in rows of the model that looks at everything."""
    seconds = sum(model.embed_seconds.likely for model in models)
    return models[0].amounts.num_computed.likely / seconds if seconds else 0.0


def _largest(amounts: Sequence[Range]) -> Range:
    """Of what is needed at different times."""
    return Range(*(max(getattr(amount, name) for amount in amounts) for name in ("low", "likely", "high")))


def _larger_need(needs: Sequence[Need | None]) -> Need | None:
    return max((need for need in needs if need is not None), key=lambda need: need.needed.likely, default=None)


def _all_weights_bytes(settings: PlanSettings) -> int:
    return sum(weights_bytes(settings.bundle.encoder(role), settings.dtype) for role in ROLES)


def weights_bytes(path: Path, dtype: str) -> int:
    """Memory of an encoder's weights: matrices in ``dtype``, vectors and unpacked 8-bit tables in float32, bits packed.

    Raises:
        ModelError: the file is missing or damaged.
    """
    return sum(
        prod(tensor.shape) * _item_bytes(len(tensor.shape), tensor.dtype, dtype)
        for tensor in stored_tensors(path).values()
    )


def _item_bytes(num_dimensions: int, stored: str, dtype: str) -> int:
    """Bytes of a number in memory that is ``stored`` so in the file."""
    if stored == "uint8":
        return 1
    return int(getattr(torch, dtype).itemsize) if num_dimensions > 1 and "float" in stored else 4


def _check_room(settings: PlanSettings, weights: int) -> None:
    if settings.devices[0].startswith("cuda"):
        free: int | None = torch.cuda.mem_get_info(settings.devices[0])[0]
    else:
        free = free_memory_bytes()
    if free is not None and weights > free:
        raise ResourceError(
            f"model {settings.bundle.name} takes {size(weights)} in {settings.dtype}, but only {size(free)} of memory "
            f"is free on {settings.devices[0]}: it will not run there. Take a smaller model or another --device."
        )


def _measure_encoders(settings: PlanSettings, counted: Counted, amounts: Amounts) -> _EncoderFigures:
    device = torch.device(settings.devices[0])
    strings = sampled_strings(counted)
    if not len(strings[ROLES[0]]):
        return _EncoderFigures(Range.exactly(0.0), 0.0, None)
    dtype = getattr(torch, settings.dtype)
    encoders = {role: load_encoder(settings.bundle.encoder(role), device, dtype) for role in ROLES}
    budgets = _token_budgets(settings, encoders, device)
    rates, num_rows = embed_rate(strings, encoders, budgets, device)
    in_unit = min(LayoutConfig().unit_rows, amounts.num_computed.likely)
    grown = 0.0
    for role in ROLES:
        shape = transformer_shape(read_config(settings.bundle.encoder(role)))
        if shape is not None:
            a_row = float(encoders[role].tokenizer(strings[role]).lengths.mean())
            more_tokens = min(budgets[role], a_row * in_unit) - min(budgets[role], a_row * num_rows)
            grown = max(grown, shape.batch_bytes(more_tokens, float_dtype(dtype).itemsize))
    return _EncoderFigures(rates * Range.exactly(len(settings.devices)), grown, _device_memory(device, grown))


def _device_memory(device: torch.device, grown: float) -> Need | None:
    if device.type != "cuda":
        return None
    used = float(torch.cuda.max_memory_reserved(device))
    free, _ = torch.cuda.mem_get_info(device)
    needed = Range(used, used + grown, (used + grown) * _MEMORY_MARGIN)
    return Need(needed, free + torch.cuda.memory_reserved(device))


def _token_budgets(settings: PlanSettings, encoders: Mapping[str, Encoder], device: torch.device) -> dict[str, int]:
    """Those of the run: from a profile, else what suits."""
    profile = profiles.find(settings.bundle, settings.devices[0], settings.dtype)
    if profile is not None:
        return profile.token_budgets
    return {role: usual_budget(encoder, device) for role, encoder in encoders.items()}


def _seconds(start: float, inputs: Sequence[SampledInput], models: Sequence[_Model], costs: RowCosts) -> Seconds:
    everything = models[0]
    a_base = sum(model.counted.seconds for model in models) / max(1, everything.counted.num_bases)
    unpack = sum(sampled.unpack_seconds * sampled.factor for sampled in inputs)
    margin = Range(1 / _EXTRACT_MARGIN, 1.0, _EXTRACT_MARGIN)
    return Seconds(
        start=Range(start / _EXTRACT_MARGIN, start, start * _EXTRACT_MARGIN),
        extract=(everything.amounts.num_bases * Range.exactly(a_base) + Range.exactly(unpack)) * margin,
        embed=sum((model.embed_seconds for model in models), Range.exactly(0.0)),
        rest=everything.amounts.num_rows * costs.rest_seconds,
    )


def _memory(model: _Model) -> Range:
    """The peak of this process, which did all that a run does with fewer rows, and what full units and batches add."""
    counted, amounts = model.counted, model.amounts
    width, kept_bytes = _feature(model.settings)
    unit_rows = min(LayoutConfig().unit_rows, amounts.num_computed.likely)
    buffers = unit_rows * width * (_FLOAT32_COPIES * 4 + _KEPT_COPIES * kept_bytes)
    strings = 2 * unit_rows * counted.unit_bytes / max(1, counted.num_rows)
    tables = sum(_table_bytes(amount.likely) for amount in (amounts.num_sequences, amounts.num_rows))
    measured = float(peak_memory_bytes())
    batches = model.encoders.batch_bytes if model.settings.devices[0] == "cpu" else 0.0
    likely = measured + batches + buffers + strings + tables
    return Range(measured, likely, likely * _MEMORY_MARGIN)


def _disk(models: Sequence[_Model], costs: RowCosts) -> tuple[Range, Range, Range]:
    """While the run goes, afterwards, and afterwards with embeddings.

    Both models of a cascade store their units and scores; the embeddings of one are gone when the other begins.
    """
    nothing = Range.exactly(0.0)
    stored = sum((_stored(model) for model in models), nothing)
    after = stored + models[0].amounts.num_rows * costs.result_bytes
    shards = {model.settings.bundle.fingerprint: _shards(model) for model in models}
    # Embeddings that are kept are there twice: in their shards, and merged.
    embedded = sum((of_model * Range.exactly(2) for of_model in shards.values()), nothing)
    alive = _largest([_alive(model, shards[model.settings.bundle.fingerprint]) for model in models])
    sums = sum((_sums(model.amounts) for model in models), nothing)
    return after + alive + sums, after, after + embedded


def _stored(model: _Model) -> Range:
    """Units and scores."""
    a_unit_row = Range.exactly(model.counted.unit_bytes / max(1, model.counted.num_rows))
    return model.amounts.num_rows * a_unit_row + model.amounts.num_computed * Range.exactly(_SCORE_BYTES)


def _shards(model: _Model) -> Range:
    """All embeddings."""
    width, kept_bytes = _feature(model.settings)
    return model.amounts.num_computed * Range.exactly(width * kept_bytes)


def _alive(model: _Model, shards: Range) -> Range:
    """Embeddings that are there at the same time."""
    width, kept_bytes = _feature(model.settings)
    num_workers = len(model.settings.devices)
    most = 1.0 * width * kept_bytes * UNITS_ON_DISK * num_workers * LayoutConfig().unit_rows
    return Range(min(shards.low, most), min(shards.likely, most), min(shards.high, most))


def _sums(amounts: Amounts) -> Range:
    """Of sequences and rows, while results are made."""
    a_sequence, a_row = Range.exactly(SUM_DTYPE.itemsize), Range.exactly(_SCORE_BYTES)
    return amounts.num_sequences * a_sequence + amounts.num_rows * a_row


def _feature(settings: PlanSettings) -> tuple[int, int]:
    """Width of a feature, and bytes of a number of it on disk."""
    width = sum(read_config(settings.bundle.encoder(role)).width for role in ROLES)
    return width, np.dtype(np.float32 if settings.dtype == "float32" else np.float16).itemsize


def _table_bytes(num_entries: float) -> int:
    """Memory of the table that finds duplicates: slots double up to the most, and are three quarters full."""
    slots = 1 << 12
    while slots < _MOST_SLOTS and slots * 3 / 4 < num_entries:
        slots *= 2
    return slots * _SLOT_BYTES


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
