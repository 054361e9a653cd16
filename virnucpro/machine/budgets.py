"""Which token budget is fastest for an encoder on a device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch

from virnucpro.encoders import EncoderConfig
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.loader import PackedUnit, pack_unit
from virnucpro.engine.packing import GreedyPacker
from virnucpro.errors import ResourceError
from virnucpro.machine.arithmetic import measure_matmul, transformer_shape
from virnucpro.machine.machine import peak_memory_bytes, synchronise
from virnucpro.machine.profiles import BudgetRate, Sweep
from virnucpro.registry.checkup import free_memory_bytes
from virnucpro.sequence.ragged import Ragged
from virnucpro.stages.embed import GPU_TOKEN_BUDGET

CPU_BUDGETS = tuple(1024 << power for power in range(7))
GPU_BUDGETS = tuple(8192 << power for power in range(5))

_SHORTEST_RUN_SECONDS = 0.15  # below, the clock and the neighbours decide
_MOST_RUNS = 7
_GAIN = 1.02
_MOST_WITHOUT_GAIN = 2
_SECOND_CHANCES = 2
_AS_GOOD = 0.97
_MATMUL_SHARE = 0.1


@dataclass
class _Candidate:
    token_budget: int
    unit: PackedUnit
    seconds: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.unit.num_tokens / median(self.seconds)

    @property
    def fastest(self) -> float:
        return self.unit.num_tokens / min(self.seconds)


def usual_budget(encoder: Encoder, device: torch.device) -> int:
    """The token budget of a run without a profile and without ``--token-budget``."""
    return encoder.cpu_token_budget if device.type == "cpu" else GPU_TOKEN_BUDGET


def sweep_budgets(
    encoder: Encoder,
    config: EncoderConfig,
    strings: Ragged,
    device: torch.device,
    dtype: torch.dtype,
    seconds: float,
) -> Sweep:
    """Try budgets, ascending; then the ones that worked again and again, in turns, so that noise hits all of them.

    Args:
        encoder: on ``device``.
        config: of its file.
        strings: of its alphabet.
        device: where.
        dtype: of its matrices.
        seconds: budget; the smallest token budget is measured whatever it takes.

    Raises:
        ResourceError: not even the smallest budget fits the memory.
    """
    deadline = time.perf_counter() + seconds
    usual = usual_budget(encoder, device)
    budgets = sorted({*(CPU_BUDGETS if device.type == "cpu" else GPU_BUDGETS), usual})
    shape = transformer_shape(config)
    matmul = None if shape is None else measure_matmul(shape, budgets, device, dtype, _MATMUL_SHARE * seconds)
    sweeper = _Sweeper(encoder, strings, device, deadline)
    ended = sweeper.ascend(budgets)
    if ended == "no gain" and usual not in sweeper.tried:
        sweeper.try_budget(usual)
    sweeper.take_turns()
    lengths = encoder.tokenizer(strings).lengths
    flop = None if shape is None else shape.flop_per_token(lengths)
    if not sweeper.tried:
        raise ResourceError(
            f"{device} has no memory for a batch of {budgets[0]} tokens of {config.path}. Close other programs, or "
            "measure another --device."
        )
    rates = sweeper.rates(float(lengths.mean()), None if not flop or not matmul else flop / matmul)
    is_untried = ended == "time" and usual not in sweeper.tried
    return Sweep(encoder.kind, usual, usual if is_untried else _choose(rates), matmul, ended, rates)


class _Sweeper:
    """Measures budgets of one encoder until a deadline."""

    def __init__(self, encoder: Encoder, strings: Ragged, device: torch.device, deadline: float) -> None:
        self._encoder = encoder
        self._strings = strings
        self._ends = np.cumsum(encoder.tokenizer(strings).lengths)
        self._device = device
        self._deadline = deadline
        self._candidates: list[_Candidate] = []

    @property
    def tried(self) -> set[int]:
        return {candidate.token_budget for candidate in self._candidates}

    def ascend(self, budgets: Sequence[int]) -> str:
        """Try each budget; tells why it ended: all tried, no gain, time, or memory."""
        best = 0.0
        num_without_gain = 0
        for budget in budgets:
            problem = self.try_budget(budget)
            if problem is not None:
                return problem
            now = self._fastest(self._candidates[-1], best * _GAIN)
            num_without_gain = 0 if now > best * _GAIN else num_without_gain + 1
            best = max(best, now)
            if num_without_gain == _MOST_WITHOUT_GAIN:
                return "no gain"
        return "all tried"

    def try_budget(self, budget: int) -> str | None:
        """Run a budget once, if time and memory allow; else the word for what does not."""
        last = max((candidate.tokens_per_second for candidate in self._candidates), default=0.0)
        unit = self._unit(budget, max(budget, int(last * _SHORTEST_RUN_SECONDS)))
        largest = max(unit.batches, key=lambda batch: batch.num_tokens)
        if last and time.perf_counter() + (largest.num_tokens + unit.num_tokens) / last > self._deadline:
            return "time"
        before = peak_memory_bytes()
        # The runner would halve a batch that does not fit, and go on: it is asked for alone, and warms the caches.
        try:
            self._encoder.embed(largest.to(self._device))
        except torch.OutOfMemoryError:
            return "memory"
        candidate = _Candidate(budget, unit)
        self._run(candidate)
        self._candidates.append(candidate)
        return None if self._has_room(peak_memory_bytes() - before) else "memory"

    def take_turns(self) -> None:
        """Run every candidate again while there is time for a whole round."""
        for _ in range(_MOST_RUNS - 1):
            round_seconds = sum(median(candidate.seconds) for candidate in self._candidates)
            if time.perf_counter() + round_seconds > self._deadline:
                return
            for candidate in self._candidates:
                self._run(candidate)

    def rates(self, mean_length_tokens: float, share_per_token_rate: float | None) -> tuple[BudgetRate, ...]:
        """What was measured, ascending.

        Args:
            mean_length_tokens: of a row.
            share_per_token_rate: share of the machine's matrix rate that one token a second uses.
        """
        return tuple(
            BudgetRate(
                token_budget=candidate.token_budget,
                tokens_per_second=candidate.tokens_per_second,
                rows_per_second=candidate.tokens_per_second / mean_length_tokens,
                mfu=None if share_per_token_rate is None else candidate.tokens_per_second * share_per_token_rate,
                num_runs=len(candidate.seconds),
            )
            for candidate in sorted(self._candidates, key=lambda candidate: candidate.token_budget)
        )

    def _fastest(self, candidate: _Candidate, wanted: float) -> float:
        """Its fastest run: one that a neighbour slowed down is no reason to give up larger budgets."""
        for _ in range(_SECOND_CHANCES):
            if candidate.fastest > wanted or time.perf_counter() + candidate.seconds[-1] > self._deadline:
                break
            self._run(candidate)
        return candidate.fastest

    def _unit(self, budget: int, num_tokens: int) -> PackedUnit:
        """As many rows as hold ``num_tokens``, or all."""
        num_rows = min(len(self._strings), int(np.searchsorted(self._ends, num_tokens)) + 1)
        return pack_unit(0, self._strings.slice(0, num_rows), self._encoder.tokenizer, GreedyPacker(budget))

    def _run(self, candidate: _Candidate) -> None:
        synchronise(self._device)
        start = time.perf_counter()
        for _ in AsyncInferenceRunner(self._encoder, self._device).embeddings([candidate.unit]):
            pass
        candidate.seconds.append(time.perf_counter() - start)

    def _has_room(self, grown_bytes: int) -> bool:
        """Whether twice the batch, which may take twice as much more, still fits the memory of the host."""
        free = free_memory_bytes()
        return free is None or 2 * grown_bytes < free


def _choose(rates: Sequence[BudgetRate]) -> int:
    fastest = max(rate.tokens_per_second for rate in rates)
    return min(rate.token_budget for rate in rates if rate.tokens_per_second >= _AS_GOOD * fastest)
