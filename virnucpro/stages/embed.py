"""Rows to embeddings: both encoders, on whatever devices there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import tee

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro import store
from virnucpro.batching.loader import unit_loader
from virnucpro.batching.packing import GreedyPacker
from virnucpro.bundles import Bundle
from virnucpro.encoders import load_encoder, load_tokenizer
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.errors import CountError
from virnucpro.executors.base import Executor, UnitDone, Worker
from virnucpro.run_dir import RunDir
from virnucpro.sequence.ragged import Ragged
from virnucpro.sequence.table import are_own_source
from virnucpro.stages.base import ROLES, Index, Run, shard_made_from

_GPU_TOKEN_BUDGET = 65_536
_MAX_UNITS_TO_WRITE = 2


@dataclass(frozen=True)
class EmbedSettings:
    """What decides how fast, and not what.

    Attributes:
        token_budget: most tokens in a batch; 0 takes what suits the encoder and the device.
        loader_workers: processes that read, tokenise and pack ahead, for each encoder of each worker.
    """

    token_budget: int
    loader_workers: int


@dataclass(frozen=True)
class UnitStrings:
    """Reads the strings of a unit that are to be embedded: those of rows that are their own source."""

    run_dir: RunDir
    role: str

    def __call__(self, unit: int) -> Ragged:
        """Strings of one unit, an item for each row to be computed."""
        path = self.run_dir.unit(unit)
        rows = store.read_arrays(path, "unit", "rows")["rows"]
        first_row = int(store.read_attributes(path, "unit")["first_row"])
        strings = store.read_strings(path, "nucleotides" if self.role == "nucleotide" else "proteins")
        is_source = are_own_source(rows, first_row)
        return strings if is_source.all() else strings.take(np.flatnonzero(is_source))


@dataclass(frozen=True)
class EmbedWork:
    """Embeds units with both encoders of a bundle; see ``executors.base.Work``."""

    run_dir: RunDir
    bundle: Bundle
    dtype: str
    settings: EmbedSettings

    def process(self, units: Iterable[int], worker: Worker) -> Iterator[UnitDone]:
        """Embed each unit; a thread writes, so that the device does not wait for the disk."""
        torch.set_num_threads(worker.num_threads)
        queues = zip(ROLES, tee(units, len(ROLES)), strict=True)
        streams = [self._embeddings(role, queue, torch.device(worker.device)) for role, queue in queues]
        with ThreadPoolExecutor(1) as writer:
            writing: deque[Future[UnitDone]] = deque()
            for embedded in zip(*streams, strict=True):
                writing.append(writer.submit(self._write, *embedded))
                while len(writing) > _MAX_UNITS_TO_WRITE or (writing and writing[0].done()):
                    yield writing.popleft().result()
            while writing:
                yield writing.popleft().result()

    def _embeddings(
        self, role: str, units: Iterable[int], device: torch.device
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        path = self.bundle.encoder(role)

        def load(device: torch.device, dtype: torch.dtype) -> Encoder:
            return load_encoder(path, device, dtype)

        encoder = load_encoder(path, device, getattr(torch, self.dtype))
        suited = encoder.cpu_token_budget if device.type == "cpu" else _GPU_TOKEN_BUDGET
        loader = unit_loader(
            UnitStrings(self.run_dir, role),
            load_tokenizer(path),
            GreedyPacker(self.settings.token_budget or suited),
            units,
            self.settings.loader_workers,
            pin_memory=device.type == "cuda",
        )
        return AsyncInferenceRunner(encoder, device, load).embeddings(loader)

    def _write(self, *embedded: tuple[int, NDArray[np.float32]]) -> UnitDone:
        (unit, _), *_ = embedded
        unit_digest = store.read_attributes(self.run_dir.unit(unit), "unit")["digest"]
        kept_as = np.float32 if self.dtype == "float32" else np.float16
        for role, (number, embedding) in zip(ROLES, embedded, strict=True):
            if number != unit:
                raise CountError(f"unit {unit} and unit {number} came out together")
            made = shard_made_from(self.bundle, role, self.dtype, unit_digest)
            array = embedding.astype(kept_as, copy=False)
            store.write_arrays(self.run_dir.embedding(role, unit), "embedding", {"embedding": array}, made)
        return UnitDone(unit, len(embedded[0][1]))


def settings_for(device: str, token_budget: int, loader_workers: int, threads: int) -> EmbedSettings:
    """Fill in how many processes read ahead where the user left it open (negative)."""
    on_gpu = device != "cpu"
    if loader_workers < 0:
        # On the CPU tokenising would only compete with the encoder; a GPU must not wait for it.
        loader_workers = min(4, max(1, threads // 2)) if on_gpu else 0
    return EmbedSettings(token_budget, loader_workers)


def pending(run: Run, units: Sequence[int]) -> list[int]:
    """Units of ``units`` that lack a shard and anything later."""
    return [
        unit
        for unit in units
        if not run.dir.scores(unit).exists()
        and not run.dir.merged(unit).exists()
        and not all(run.dir.embedding(role, unit).exists() for role in ROLES)
    ]


def run(run: Run, index: Index, units: Sequence[int], executor: Executor, settings: EmbedSettings) -> None:
    """Embed what is pending of ``units``."""
    todo = pending(run, units)
    if not todo:
        return
    work = EmbedWork(run.dir, run.bundle, run.dtype, settings)
    with run.reporter.stage("embed", sum(index.units[unit].num_sources for unit in todo), "rows") as advance:
        for done in executor.run(work, todo):
            advance(done.num_rows)
