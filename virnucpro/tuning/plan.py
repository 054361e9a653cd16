"""Rows, time, memory and disk of a run that has not begun."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from virnucpro.batching.threads import use_threads
from virnucpro.bundles import Bundle
from virnucpro.config import LayoutConfig
from virnucpro.encoders import load_encoder, read_config
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.device import float_dtype
from virnucpro.encoders.weights import stored_tensors
from virnucpro.errors import ResourceError
from virnucpro.models.checkup import free_memory_bytes
from virnucpro.stages.base import ROLES
from virnucpro.stages.consensus import SUM_DTYPE
from virnucpro.stages.embed import UNITS_ON_DISK
from virnucpro.tuning import profiles
from virnucpro.tuning.arithmetic import transformer_shape
from virnucpro.tuning.budgets import usual_budget
from virnucpro.tuning.forecast import Amounts, Counted, Range, count_sample, foresee
from virnucpro.tuning.machine import peak_memory_bytes
from virnucpro.tuning.sampling import SampledInput, sample_input
from virnucpro.tuning.speed import RowCosts, RunProgram, embed_rate, row_costs, run_on_one_read, sampled_strings
from virnucpro.tuning.text import size

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
    """

    inputs: tuple[str, ...]
    bundle: Bundle
    devices: tuple[str, ...]
    dtype: str
    threads: int
    output: Path
    sample_bytes: int
    import_seconds: float


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
class Plan:
    """What is foreseen.

    Attributes:
        model: name of the bundle.
        devices: torch's names.
        dtype: torch's name of the float type.
        sampled: share of each input's text that was read.
        amounts: of all inputs.
        rows_per_second: through the encoders, on all devices together.
        seconds: of the stages.
        weights_bytes: of both encoders in the float type of the run, by their files' headers.
        memory: of the host, largest process.
        device_memory: of each GPU; None on the CPU.
        disk: while it runs.
        disk_after: of results and stored run.
        disk_kept: the same with ``--keep-embeddings``.
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


def make_plan(settings: PlanSettings, run_program: RunProgram) -> Plan:
    """Take samples, measure, and scale up.

    Raises:
        InputError: an input is stdin or a pipe, or cannot be read as nucleotide sequences.
        ModelError: an encoder cannot be loaded.
        ResourceError: the model alone does not fit the memory.
    """
    weights = sum(weights_bytes(settings.bundle.encoder(role), settings.dtype) for role in ROLES)
    _check_room(settings, weights)
    use_threads(settings.threads)
    with TemporaryDirectory(prefix="virnucpro-plan-") as name:
        folder = Path(name)
        inputs = [
            sample_input(number, source, settings.sample_bytes, folder) for number, source in enumerate(settings.inputs)
        ]
        one = run_on_one_read(run_program, settings.bundle, folder)  # first, since kernels are cold but once
        counted = count_sample(inputs, settings.bundle, LayoutConfig().unit_rows, folder / "counted")
        amounts = foresee(inputs, counted)
        encoders = _measure_encoders(settings, counted, amounts)
        costs = row_costs(run_program, one, counted, encoders.rows_per_second.likely, folder)
    start_seconds = settings.import_seconds + one.total_seconds
    seconds = _seconds(start_seconds, inputs, counted, amounts, encoders.rows_per_second, costs)
    during, after, kept = _disk(settings, counted, amounts, costs)
    free = shutil.disk_usage(_existing(settings.output)).free
    return Plan(
        model=settings.bundle.name,
        devices=settings.devices,
        dtype=settings.dtype,
        sampled=tuple(1 / sampled.factor for sampled in inputs),
        amounts=amounts,
        rows_per_second=encoders.rows_per_second,
        seconds=seconds,
        weights_bytes=weights,
        memory=Need(_memory(settings, counted, amounts, encoders.batch_bytes), free_memory_bytes()),
        device_memory=encoders.device_memory,
        disk=Need(during, free),
        disk_after=Need(after, free),
        disk_kept=Need(kept, free),
    )


def weights_bytes(path: Path, dtype: str) -> int:
    """Memory of an encoder's weights: matrices in ``dtype``, vectors and unpacked 8-bit tables in float32.

    Raises:
        ModelError: the file is missing or damaged.
    """
    item_bytes = getattr(torch, dtype).itemsize
    return sum(
        prod(tensor.shape) * (item_bytes if len(tensor.shape) > 1 and "float" in tensor.dtype else 4)
        for tensor in stored_tensors(path).values()
    )


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


def _seconds(
    start: float,
    inputs: Sequence[SampledInput],
    counted: Counted,
    amounts: Amounts,
    rows_per_second: Range,
    costs: RowCosts,
) -> Seconds:
    a_base = counted.seconds / max(1, counted.num_bases)
    unpack = sum(sampled.unpack_seconds * sampled.factor for sampled in inputs)
    rows, rates = amounts.num_computed, rows_per_second
    margin = Range(1 / _EXTRACT_MARGIN, 1.0, _EXTRACT_MARGIN)
    return Seconds(
        start=Range(start / _EXTRACT_MARGIN, start, start * _EXTRACT_MARGIN),
        extract=(amounts.num_bases * Range.exactly(a_base) + Range.exactly(unpack)) * margin,
        embed=Range(rows.low / rates.high, rows.likely / rates.likely, rows.high / rates.low)
        if rates.likely
        else Range.exactly(0.0),
        rest=amounts.num_rows * costs.rest_seconds,
    )


def _memory(settings: PlanSettings, counted: Counted, amounts: Amounts, batch_bytes: float) -> Range:
    """The peak of this process, which did all that a run does with fewer rows, and what full units and batches add."""
    width, kept_bytes = _feature(settings)
    unit_rows = min(LayoutConfig().unit_rows, amounts.num_computed.likely)
    buffers = unit_rows * width * (_FLOAT32_COPIES * 4 + _KEPT_COPIES * kept_bytes)
    strings = 2 * unit_rows * counted.unit_bytes / max(1, counted.num_rows)
    tables = sum(_table_bytes(amount.likely) for amount in (amounts.num_sequences, amounts.num_rows))
    measured = float(peak_memory_bytes())
    batches = batch_bytes if settings.devices[0] == "cpu" else 0.0
    likely = measured + batches + buffers + strings + tables
    return Range(measured, likely, likely * _MEMORY_MARGIN)


def _disk(settings: PlanSettings, counted: Counted, amounts: Amounts, costs: RowCosts) -> tuple[Range, Range, Range]:
    """While the run goes, afterwards, and afterwards with embeddings."""
    width, kept_bytes = _feature(settings)
    a_unit_row = Range.exactly(counted.unit_bytes / max(1, counted.num_rows))
    stored = amounts.num_rows * a_unit_row + amounts.num_computed * Range.exactly(_SCORE_BYTES)
    results = amounts.num_rows * costs.result_bytes
    after = stored + results
    shards = amounts.num_computed * Range.exactly(width * kept_bytes)
    embedded = shards * Range.exactly(2)  # embeddings that are kept are there twice: in their shards, and merged
    most = 1.0 * width * kept_bytes * UNITS_ON_DISK * len(settings.devices) * LayoutConfig().unit_rows
    alive = Range(min(shards.low, most), min(shards.likely, most), min(shards.high, most))
    sums = amounts.num_sequences * Range.exactly(SUM_DTYPE.itemsize) + amounts.num_rows * Range.exactly(_SCORE_BYTES)
    return after + alive + sums, after, after + embedded


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
