"""Rows to embeddings: both encoders, on whatever devices there are."""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import tee
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.atomic import read_json, write_json
from virnucpro.bundles import Bundle
from virnucpro.bundles.bundle import cache_dir
from virnucpro.encoders import load_encoder, load_tokenizer
from virnucpro.encoders.attention import attention_on
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.compiled_layers import compile_layers, should_compile, steps_of, warm_up
from virnucpro.encoders.device import describe, prepare
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.loader import PackedUnit, unit_loader
from virnucpro.engine.packing import GreedyPacker
from virnucpro.engine.threads import use_threads
from virnucpro.errors import CountError, WorkerError
from virnucpro.executors.base import Executor, UnitDone, UnitFailed, Worker
from virnucpro.progress import Advance
from virnucpro.run_dir import RunDir
from virnucpro.sequence.ragged import Ragged
from virnucpro.settings import CompileChoice
from virnucpro.stages import poison
from virnucpro.stages.base import ROLES, Index, Run, computed_rows, shard_made_from, unit_digest

_log = logging.getLogger(__name__)
GPU_TOKEN_BUDGET = 65_536
_LEAST_GPU_TOKEN_BUDGET = 1_024
_NUMBERS_A_TOKEN = 22
"""Numbers a token takes in a layer at once, in widths: four times the inner width, which is four widths, and six."""
_SIXTEEN_BIT = ("bfloat16", "float16")
_USABLE_SHARE = 0.8  # of free memory: it falls into pieces, and libraries want some
_KEPT_BYTES = 1 << 30  # embeddings on their way out
_TOKENS_A_BASE = {"aa": 1 / 3, "nt": 1 / 4.6}
_MAX_UNITS_TO_WRITE = 2
UNITS_ON_DISK = 4
"""Units of a worker whose embeddings are on disk at the same time: one just scored, the others on their way there."""
_TAIL_UNITS_A_WORKER = 4


@dataclass(frozen=True)
class EmbedSettings:
    """What decides how fast, and not what."""

    # role to most tokens in a batch; without one, what suits the encoder and the device
    token_budgets: Mapping[str, int]
    loader_workers: int  # processes that read, tokenise and pack ahead, for each encoder of each worker
    compile_layers: CompileChoice = "auto"  # auto compiles where the rows repay it
    rows_a_worker: float = 0  # that each worker has to embed, about; infinite where that is not known


Embedded = tuple[int, NDArray[np.floating]]
Source = Callable[[int], Ragged]
"""Reads the strings of a unit that are to be embedded; picklable."""


def read_strings(run_dir: RunDir, role: str, unit: int) -> Ragged:
    """An item for each row of a unit that the model computes."""
    names = {"nucleotide": "nucleotides", "protein": "proteins"}
    rows, first_row, strings = store.read_rows(run_dir.unit(unit), names[role])
    is_computed = computed_rows(run_dir, unit, rows, first_row)
    return strings if is_computed.all() else strings.take(np.flatnonzero(is_computed))


def _without(read: Source, left_out: Mapping[int, Sequence[int]], unit: int) -> Ragged:
    """The strings of a unit, those at the positions that are left out emptied."""
    strings = read(unit)
    kept = np.ones(len(strings), dtype=bool)
    kept[list(left_out.get(unit, ()))] = False
    return strings.keep(kept)


def _part(read: Source, unit: int, parts: tuple[range, ...], part: int) -> Ragged:
    """The strings of a unit, all but those of one part emptied, as if each part of it were a unit."""
    strings = read(unit)
    kept = np.zeros(len(strings), dtype=bool)
    kept[parts[part]] = True
    return strings.keep(kept)


@dataclass(frozen=True)
class EmbedWork:
    """Embeds units with both encoders of a bundle; see ``executors.base.Work``."""

    run_dir: RunDir  # where units are and shards go
    bundle: Bundle
    dtype: str  # float type the encoders compute in
    settings: EmbedSettings  # what decides how fast
    # unit to the positions of rows that are not computed; their embedding is stored as NaN
    left_out: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[UnitDone]:
        """Embed each unit; a thread writes, so that the device does not wait for the disk."""
        sources = {role: partial(read_strings, self.run_dir, role) for role in ROLES}
        if self.left_out:
            sources = {role: partial(_without, source, self.left_out) for role, source in sources.items()}
        writer = worker.kept.once("writer", lambda: worker.kept.enter_context(ThreadPoolExecutor(1)))
        writing: deque[Future[UnitDone]] = deque()
        for embedded in self.embeddings(units, sources, worker):
            writing.append(writer.submit(self._write, *embedded))
            while len(writing) > _MAX_UNITS_TO_WRITE or (writing and writing[0].done()):
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()

    def embeddings(
        self, units: Iterable[int], sources: Mapping[str, Source], worker: Worker
    ) -> Iterator[tuple[Embedded, ...]]:
        """Each unit's number and (rows, width) embeddings, a pair for each role.

        Weights are loaded, loader processes started and layers compiled before the first unit is asked for: all of it
        may go on while the units are made.
        """
        use_threads(worker.num_threads)
        device, kept = torch.device(worker.device), worker.kept
        kept.once("prepared", lambda: prepare(device))
        key = (self.bundle.fingerprint, self.dtype, self.settings.compile_layers)
        encoders = kept.once(("encoders", *key), lambda: self._load(device))
        # Reckoned once all weights are there, from the memory that they leave.
        budgets = kept.once(("budgets", *key), lambda: self._budgets(encoders, device))
        queues = zip(ROLES, tee(units, len(ROLES)), strict=True)
        packed = {role: self._packed(role, sources[role], queue, budgets[role], device) for role, queue in queues}
        kept.once(("ready", *key), lambda: self._make_ready(encoders, budgets, device))
        return zip(*(self._embeddings(role, encoders[role], packed[role], worker) for role in ROLES), strict=True)

    def _load(self, device: torch.device) -> dict[str, Encoder]:
        return {role: load_encoder(self.bundle.encoder(role), device, getattr(torch, self.dtype)) for role in ROLES}

    def _budgets(self, encoders: Mapping[str, Encoder], device: torch.device) -> dict[str, int]:
        given = self.settings.token_budgets
        return {
            role: given.get(role) or usual_token_budget(encoder, device, self.dtype)
            for role, encoder in encoders.items()
        }

    def _packed(
        self, role: str, source: Source, units: Iterable[int], token_budget: int, device: torch.device
    ) -> Iterator[PackedUnit]:
        """Units of one encoder in batches; its loader processes start now."""
        tokenizer, packer = load_tokenizer(self.bundle.encoder(role)), GreedyPacker(token_budget)
        workers, pins = self.settings.loader_workers, device.type == "cuda"
        return unit_loader(source, tokenizer, packer, units, workers, pin_memory=pins)

    def _make_ready(self, encoders: Mapping[str, Encoder], budgets: Mapping[str, int], device: torch.device) -> None:
        """Choose kernels, compile layers where that pays, and leave a note of how this worker computes."""
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))
        for encoder in encoders.values():
            warm_up(encoder, device)
            num_tokens = self.settings.rows_a_worker * self.bundle.fragment_length * _TOKENS_A_BASE[encoder.alphabet]
            if should_compile(self.settings.compile_layers, encoder, device, num_tokens):
                compile_layers(encoder, device)
        place = ", ".join(f"{name} {value}" for name, value in describe(device).items())
        parts = [f"{device} ({place}) in {self.dtype}" if place else f"{device} in {self.dtype}"]
        for role, encoder in encoders.items():
            steps = steps_of(encoder)
            layers = "" if steps is None else ", layers compiled" if steps.are_compiled else ", layers not compiled"
            parts.append(f"{role}: {encoder.kind}{layers}, batches of {budgets[role]:,} tokens")
        if any(steps_of(encoder) is not None for encoder in encoders.values()):
            parts.append(f"attention of mixed lengths: {attention_on(device)}")
        _log.info("%s", "; ".join(parts))
        host = socket.gethostname()
        path = self.run_dir.computed_on / f"{host}-{str(device).replace(':', '-')}.json"
        write_json(path, {"text": f"{host}, {'; '.join(parts)}"})

    def _embeddings(
        self, role: str, encoder: Encoder, units: Iterable[PackedUnit], worker: Worker
    ) -> Iterator[Embedded]:
        device, kept, load = torch.device(worker.device), worker.kept, partial(load_encoder, self.bundle.encoder(role))
        kept_as = torch.float32 if self.dtype == "float32" else torch.float16
        key = ("runner", id(encoder))  # the encoder is kept too, so nothing else gets this number
        runner = kept.once(key, lambda: kept.enter_context(AsyncInferenceRunner(encoder, device, load, kept_as)))
        return runner.embeddings(units, worker.advance)

    def _write(self, *embedded: Embedded) -> UnitDone:
        (unit, _), *_ = embedded
        digest = unit_digest(self.run_dir, unit)
        for role, (number, embedding) in zip(ROLES, embedded, strict=True):
            if number != unit:
                raise CountError(f"unit {unit} and unit {number} came out together")
            made = shard_made_from(self.bundle, role, self.dtype, digest)
            if unit in self.left_out:
                embedding[list(self.left_out[unit])] = np.nan
            store.write_arrays(self.run_dir.embedding(role, unit), "embedding", {"embedding": embedding}, made)
        return UnitDone(unit, len(embedded[0][1]))


@dataclass(frozen=True)
class ProbeWork:
    """Embeds parts of one unit and keeps nothing: does it go well? See ``executors.base.Work``."""

    embed: EmbedWork  # the work that failed
    unit: int  # on this unit
    parts: tuple[range, ...]  # positions of rows, for each part; parts are numbered as units are

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[UnitDone]:
        """Embed each part."""
        whole = {role: partial(read_strings, self.embed.run_dir, role) for role in ROLES}
        sources = {role: partial(_part, source, self.unit, self.parts) for role, source in whole.items()}
        for (part, _), *_ in self.embed.embeddings(units, sources, worker):
            yield UnitDone(part, len(self.parts[part]))


def settings_for(
    devices: Sequence[str],
    token_budgets: Mapping[str, int],
    loader_workers: int | None,
    compile_layers: CompileChoice = "auto",
) -> EmbedSettings:
    """Fill in how many processes read ahead where the user left it open (None)."""
    if loader_workers is None:
        # On the CPU tokenising would only compete with the encoder. For a GPU one process an encoder is enough (30,000
        # sequences a second), and each one more would take another unit ahead that a second GPU could do.
        loader_workers = 0 if devices[0] == "cpu" else 1
    return EmbedSettings(token_budgets, loader_workers, compile_layers)


def usual_token_budget(encoder: Encoder, device: torch.device, dtype: str) -> int:
    """The token budget where neither the user nor a profile names one.

    Args:
        encoder: on ``device``, with all else that is to stay there.
        device: where.
        dtype: it computes in.
    """
    if device.type == "cpu":
        return encoder.cpu_token_budget
    if device.type != "cuda":
        return GPU_TOKEN_BUDGET
    # Not what is free just now: the same input is cut into the same batches on every card of a kind.
    left = torch.cuda.get_device_properties(device).total_memory - torch.cuda.memory_allocated(device)
    return token_budget_for(left, encoder.width, 2 if dtype in _SIXTEEN_BIT else 4)


def token_budget_for(free_bytes: int, width: int, item_bytes: int) -> int:
    """The largest power of two tokens that fits, up to what keeps any GPU busy.

    Args:
        free_bytes: of the device's memory, all but what the weights take.
        width: of the token states of a transformer whose inner layers are four times as wide, gated or not.
        item_bytes: of a number in the compute dtype.
    """
    fitting = max(1, int((_USABLE_SHARE * free_bytes - _KEPT_BYTES) / (_NUMBERS_A_TOKEN * width * item_bytes)))
    power_of_two = 1 << (fitting.bit_length() - 1)
    return min(GPU_TOKEN_BUDGET, max(_LEAST_GPU_TOKEN_BUDGET, power_of_two))


def start(run: Run, executor: Executor, settings: EmbedSettings) -> None:
    """Let the workers of ``executor`` load what they need, beside what this process does, until ``run`` has units."""
    executor.start(EmbedWork(run.dir, run.bundle, run.dtype, settings))


def notes(run_dir: RunDir) -> list[str]:
    """How each worker computed: device, precision, kernels, batches.

    Raises:
        StoreError: a note is damaged.
    """
    return [read_json(path, _Note)["text"] for path in sorted(run_dir.computed_on.glob("*.json"))]


class _Note(TypedDict):
    text: str


def run(run: Run, index: Index, units: Sequence[int], executor: Executor, settings: EmbedSettings) -> Iterator[int]:
    """Yield each of ``units`` when its shards are there; those that are there already come first.

    Raises:
        WorkerError: a unit cannot be computed, and no single rows of it are to blame.
    """
    here = [unit for unit in units if _is_done(run, unit)]
    todo = sorted(set(units) - set(here))
    yield from here
    if not todo:
        return
    num_rows = [index.units[unit].num_sources for unit in todo]
    order = hand_out_order(todo, num_rows, _TAIL_UNITS_A_WORKER * executor.num_workers)
    yield from run.reporter.stream(
        "embed", sum(num_rows), "rows", lambda advance: _embed(run, index, order, executor, settings, advance)
    )


def hand_out_order(units: Sequence[int], num_rows: Sequence[int], tail: int) -> list[int]:
    """Units in order, but the last ``tail`` of them largest first, so that all workers end together."""
    size_of = dict(zip(units, num_rows, strict=True))
    middle = max(0, len(units) - tail)
    return [*units[:middle], *sorted(units[middle:], key=lambda unit: -size_of[unit])]


def _is_done(run: Run, unit: int) -> bool:
    return run.dir.merged(unit).exists() or all(run.dir.embedding(role, unit).exists() for role in ROLES)


def _embed(
    run: Run, index: Index, units: Sequence[int], executor: Executor, settings: EmbedSettings, advance: Advance
) -> Iterator[int]:
    bar = _Bar(advance)
    work = EmbedWork(run.dir, run.bundle, run.dtype, settings)
    failed: list[UnitFailed] = []
    for outcome in executor.run(work, units, bar.advance):
        if isinstance(outcome, UnitFailed):
            failed.append(outcome)
        else:
            bar.finish(outcome.unit, outcome.num_rows)
            yield outcome.unit
    for failure in failed:
        bar.finish(failure.unit, _embed_without_poison(work, failure, index, executor))
        yield failure.unit


def _embed_without_poison(work: EmbedWork, failure: UnitFailed, index: Index, executor: Executor) -> int:
    """Find the rows of a unit that cannot be computed, list them, and embed the rest; return the number of rows."""
    unit = failure.unit
    num_rows = index.units[unit].num_sources
    work = replace(work, settings=replace(work.settings, compile_layers="never"))  # for one unit it does not pay
    _log.warning("unit %d fails again and again; looking for the rows that make it fail:\n%s", unit, failure.reason)
    found = poison.find(num_rows, lambda parts: executor.run(ProbeWork(work, unit, parts), range(len(parts))))
    if found:
        _log.warning("unit %d: %d rows cannot be computed; the rest is", unit, len(found))
    poison.write(work.run_dir.failed(unit), found)
    without = EmbedWork(work.run_dir, work.bundle, work.dtype, work.settings, {unit: sorted(found)})
    (outcome,) = executor.run(without, [unit])
    if isinstance(outcome, UnitFailed):
        raise WorkerError(f"unit {unit} fails, and not because of single rows:\n{outcome.reason}")
    return num_rows


class _Bar:
    """Rows of a unit count for the bar as they pass the encoders, and once it is done exactly as many as it has."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._shown: Counter[int] = Counter()
        self._passed: Counter[int] = Counter()

    def advance(self, unit: int, num_rows: int) -> None:
        """Rows have passed one of the encoders."""
        self._passed[unit] += num_rows
        self._show(unit, self._passed[unit] // len(ROLES))

    def finish(self, unit: int, num_rows: int) -> None:
        """A unit is done."""
        self._show(unit, num_rows)
        del self._shown[unit], self._passed[unit]

    def _show(self, unit: int, num_rows: int) -> None:
        self._advance(num_rows - self._shown[unit])
        self._shown[unit] = num_rows
