"""Drives packed units through an encoder so that the device does not wait.

On CUDA a batch is copied in beside the work on the one before, embeddings are copied out beside the work on the next
unit, and a unit is handed over only when the next one is already under way. On a CPU everything happens in order.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import RLock

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.encoders.base import Encoder
from virnucpro.encoders.compiled_layers import steps_of
from virnucpro.encoders.device import is_out_of_memory
from virnucpro.engine.batch import PackedBatch, Packing
from virnucpro.engine.loader import PackedUnit
from virnucpro.engine.threads import ComputeThreads
from virnucpro.lifeline import Closing

_LOG = logging.getLogger(__name__)

_CPU = torch.device("cpu")
_SECONDS_A_SIGN = 0.5
_MOST_TOGETHER = 8
"""Batches that are computed at the same time on a CPU; more threads than that share them."""

_Embedded = tuple[PackedBatch, list[torch.Tensor]]
"""A batch and its embeddings, in one or more pieces."""

Advance = Callable[[int, int], None]
Reload = Callable[[torch.device, torch.dtype], Encoder]


class NotFiniteError(ArithmeticError):
    """Embeddings hold NaN or Inf, in float32 too. The unit fails, and its rows to blame are then found and listed."""

    def __init__(self, unit: int, rows: list[int]) -> None:
        self.unit = unit
        self.rows = rows
        super().__init__(unit, rows)

    def __str__(self) -> str:
        named = ", ".join(map(str, self.rows[:10])) + (" ..." if len(self.rows) > 10 else "")
        return f"NaN or Inf in {len(self.rows)} embeddings, in float32 too (rows {named} of unit {self.unit})"


@dataclass
class _UnderWay:
    """A unit whose work was given to the device and may not be done."""

    unit: PackedUnit
    rows: NDArray[np.int64]  # distinct sequence of each line of `host`
    host: torch.Tensor  # (S, width), as it is stored
    is_finite: torch.Tensor  # (S,)
    done: torch.cuda.Event | None

    def wait(self) -> None:
        if self.done is not None:
            self.done.synchronize()

    def embeddings(self) -> NDArray[np.floating]:
        """Return (num_rows, width): every row of the unit, zero where its string is empty."""
        lines = self.host.numpy()
        line = self._line_of_rows()
        if len(lines) == 0:
            return np.zeros((len(line), lines.shape[1]), dtype=lines.dtype)
        array: NDArray[np.floating] = lines[line]
        array[line < 0] = 0.0
        return array

    def bad_rows(self) -> list[int]:
        """Rows of the unit that are not finite."""
        bad = np.flatnonzero(~self.is_finite.numpy())
        return np.flatnonzero(np.isin(self._line_of_rows(), bad)).tolist()

    def _line_of_rows(self) -> NDArray[np.int64]:
        num_distinct = int(max(self.unit.inverse.max(initial=-1), self.rows.max(initial=-1))) + 1
        line_of = np.full(num_distinct, -1, dtype=np.int64)
        line_of[self.rows] = np.arange(len(self.rows))
        return line_of[self.unit.inverse]


class AsyncInferenceRunner(Closing):
    """Embeds units with one encoder on one device.

    A batch that does not fit the device's memory is halved by sequences, and so is every later one that is too large;
    a single sequence that does not fit goes to the CPU. Rows with NaN or Inf are computed again in float32. It is a
    context manager, which ends the threads it has on a CPU.

    Args:
        encoder: on ``device`` already.
        device: where it is.
        reload: makes the same encoder on another device or in another dtype; without it, what needs one is an error.
        kept_as: float type in which embeddings leave the device.
    """

    def __init__(
        self,
        encoder: Encoder,
        device: torch.device,
        reload: Reload | None = None,
        kept_as: torch.dtype = torch.float32,
    ) -> None:
        self._kept_as = kept_as
        self._encoder = encoder
        self._device = device
        self._reload = reload
        self._advance: Advance | None = None
        self._reloaded: dict[tuple[torch.device, torch.dtype], Encoder] = {}
        self._token_budget: int | None = None
        self._lock = RLock()
        self._threads: ComputeThreads | None = None
        self._copy_in, self._copy_out = (
            torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
            for _ in range(2)
        )

    def embeddings(
        self, units: Iterable[PackedUnit], advance: Advance | None = None
    ) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Embed all units, in order.

        Args:
            units: to embed.
            advance: told now and then which unit it is at, and how many more of its distinct sequences were given to
                the device.

        Yields:
            The number of a unit and its (num_rows, width) embeddings.

        Raises:
            NotFiniteError: NaN or Inf that float32 does not cure.
            torch.OutOfMemoryError: one sequence does not fit, and there is no ``reload``.
        """
        self._advance = advance
        before: _UnderWay | None = None
        for unit in units:
            now = self._start(unit, self._encoder)
            if before is not None:
                yield self._finish(before)
            before = now
            if self._copy_out is None:
                yield self._finish(now)
                before = None
        if before is not None:
            yield self._finish(before)

    def _start(self, unit: PackedUnit, encoder: Encoder) -> _UnderWay:
        """Give the work of a unit to the device."""
        rows: list[NDArray[np.int64]] = []
        pieces: list[torch.Tensor] = []
        told, passed = time.monotonic(), 0
        embedded = self._embedded_in_threads if self._device.type == "cpu" else self._embedded_in_turn
        for batch, of_batch in embedded(encoder, unit.batches):
            rows.append(batch.rows)
            pieces += of_batch
            passed += len(batch.rows)
            if self._advance is not None and time.monotonic() - told > _SECONDS_A_SIGN:
                self._advance(unit.unit, passed)
                told, passed = time.monotonic(), 0
        # Rounded and looked at where they are: half as much to copy, and nothing to read again on the host.
        pieces = [piece.to(self._kept_as) for piece in pieces]
        is_finite = [piece.isfinite().all(dim=1) for piece in pieces]
        num_lines = sum(map(len, rows))
        page_locked = self._copy_out is not None
        host = torch.empty((num_lines, encoder.width), dtype=self._kept_as, pin_memory=page_locked)
        host_finite = torch.empty(num_lines, dtype=torch.bool, pin_memory=page_locked)
        done = None
        if self._copy_out is None:  # without an event to wait for, copies must be done when they return
            _copy(pieces, host)
            _copy(is_finite, host_finite)
        else:
            self._copy_out.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._copy_out):
                _copy(pieces, host, self._copy_out)
                _copy(is_finite, host_finite, self._copy_out)
                done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                done.record(self._copy_out)
        all_rows = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        return _UnderWay(unit, all_rows, host, host_finite, done)

    def _embedded_in_turn(self, encoder: Encoder, batches: Packing) -> Iterator[_Embedded]:
        """Each batch with its embeddings, the next one being copied meanwhile."""
        for batch, copied in self._ahead(batches):
            if copied is not None:
                torch.cuda.current_stream(self._device).wait_event(copied)
            yield batch, self._embed(encoder, batch)

    def _embedded_in_threads(self, encoder: Encoder, batches: Packing) -> Iterator[_Embedded]:
        """Each batch with its embeddings, computed by one thread beside others.

        Threads that share every operation wait for one another at the end of each: two of them are then hardly faster
        than one. What is compiled is compiled for one caller at a time.
        """
        threads, steps = torch.get_num_threads(), steps_of(encoder)
        together = 1 if steps is not None and steps.are_compiled else min(threads, _MOST_TOGETHER)

        def embed(batch: PackedBatch) -> _Embedded:
            return batch, self._embed(encoder, batch)

        if steps is not None:
            steps.go_on()
        if self._threads is None or self._threads.number != together:
            self.close()
            give_up = (lambda: None) if steps is None else steps.stop
            self._threads = ComputeThreads(together, threads_each=threads // together, give_up=give_up)
        return self._threads.map(embed, batches)

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.close()
            self._threads = None

    def _ahead(self, batches: Packing) -> Iterator[tuple[PackedBatch, torch.cuda.Event | None]]:
        """Yield each batch on the device; the copy of the next one is begun before."""
        if self._copy_in is None:  # a device without streams
            yield from ((batch.to(self._device), None) for batch in batches)
            return
        before = None
        for batch in batches:
            with torch.cuda.stream(self._copy_in):
                there = batch.to(self._device)
                copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                copied.record(self._copy_in)
            for tensor in (there.input_ids, there.cu_seqlens):
                tensor.record_stream(torch.cuda.current_stream(self._device))
            if before is not None:
                yield before
            before = (there, copied)
        if before is not None:
            yield before

    def _embed(self, encoder: Encoder, batch: PackedBatch) -> list[torch.Tensor]:
        """Embed one batch, in as many parts as the memory asks for."""
        pieces: list[torch.Tensor] = []
        todo = [batch]
        while todo:
            part = todo.pop()
            too_large = self._token_budget is not None and part.num_tokens > self._token_budget
            if not (too_large and len(part.lengths) > 1):
                piece = _embed_if_it_fits(encoder, part)
                if piece is not None:
                    pieces.append(piece)
                    continue
                self._free_memory()
                if len(part.lengths) == 1:
                    _LOG.warning(
                        "%s: a sequence of %d tokens does not fit; it goes to the CPU.", self._device, part.num_tokens
                    )
                    pieces.append(self._other(_CPU, torch.float32).embed(part.to(_CPU)))
                    continue
                self._lower_budget(part.num_tokens // 2)
            middle = len(part.lengths) // 2
            todo += [part.part(middle, len(part.lengths)), part.part(0, middle)]
        return pieces

    def _lower_budget(self, token_budget: int) -> None:
        with self._lock:
            if self._token_budget is None:
                _LOG.warning(
                    "%s: out of memory; batches are halved from here on. A smaller --token-budget saves the attempts.",
                    self._device,
                )
            self._token_budget = min(token_budget, self._token_budget or token_budget)

    def _finish(self, work: _UnderWay) -> tuple[int, NDArray[np.floating]]:
        """Wait for a unit; compute those of its rows again in float32 that are not finite."""
        work.wait()
        if not work.is_finite.all() and self._reload is not None:
            self._compute_again(work)
        bad = work.bad_rows()
        if bad:
            raise NotFiniteError(work.unit.unit, bad)
        return work.unit.unit, work.embeddings()

    def _compute_again(self, work: _UnderWay) -> None:
        """The sequences of the lines that are not finite, one at a time, in float32."""
        lines = {int(work.rows[line]): int(line) for line in np.flatnonzero(~work.is_finite.numpy())}
        _LOG.warning("unit %d: NaN or Inf in %d embeddings; computed again in float32.", work.unit.unit, len(lines))
        try:
            device, encoder = self._device, self._other(self._device, torch.float32)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            device, encoder = _CPU, self._other(_CPU, torch.float32)
        for batch in work.unit.batches:
            for place in np.flatnonzero(np.isin(batch.rows, list(lines))).tolist():
                line = lines[int(batch.rows[place])]
                (piece,) = self._embed(encoder, batch.part(place, place + 1).to(device))
                work.host[line] = piece[0].to(self._kept_as).cpu()
                work.is_finite[line] = work.host[line].isfinite().all()

    def _other(self, device: torch.device, dtype: torch.dtype) -> Encoder:
        """Return the same encoder elsewhere or in another dtype; it is kept."""
        if self._reload is None:
            raise torch.OutOfMemoryError(f"{self._device}: one sequence alone does not fit the memory.")
        with self._lock:
            if (device, dtype) not in self._reloaded:
                self._reloaded[device, dtype] = self._reload(device, dtype)
            return self._reloaded[device, dtype]

    def _free_memory(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()


def _copy(pieces: list[torch.Tensor], host: torch.Tensor, stream: torch.cuda.Stream | None = None) -> None:
    """Lay pieces end to end in ``host``; with a stream, beside other work, in page-locked memory."""
    start = 0
    for piece in pieces:
        host[start : start + len(piece)].copy_(piece, non_blocking=stream is not None)
        start += len(piece)
        if piece.is_cuda and stream is not None:
            piece.record_stream(stream)


def _embed_if_it_fits(encoder: Encoder, batch: PackedBatch) -> torch.Tensor | None:
    # A function of its own: while the exception lives, its frames keep the tensors that filled the memory.
    try:
        return encoder.embed(batch)
    except Exception as error:
        if is_out_of_memory(error):
            return None
        raise
