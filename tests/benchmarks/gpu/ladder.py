"""The rungs of one encoder: eager, compiled; its memory; and what follows for a large input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median

import torch

from benchmarks.gpu.bench import SECTION, Bench
from benchmarks.gpu.models import Shape
from benchmarks.measure import Figure, Goal, Point
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.compiled_layers import compile_layers
from virnucpro.engine.batch import PackedBatch

_RATE_GOALS = {"ESM-2 3B": 108_000.0, "DNABERT-S": 1_500_000.0}
_MFU_GOALS = {"ESM-2 3B": 78.0}
_GOALS_ARE = "the goal is an H200's"
_FRAMES = 794_577
"""Of a million reads of 150 bases, in a published run of another program."""
_FRAMES_MINUTES = 7.0
_CARD_GIB, _SHARE_OF_CARD = 24, 0.8


def measure(bench: Bench, shape: Shape) -> Iterator[Figure]:
    """Each rung at each number of tokens, then the best of all."""
    encoder = bench.encoder(shape)
    eager: dict[int, tuple[float, ...]] = {}
    yield from _rung(bench, shape, "eager", encoder, eager)
    if bench.is_over():
        yield bench.unmeasured_for_time(f"{shape.name}, compiled")
    else:
        yield from _upper_rungs(bench, shape, encoder, eager)
    yield from _best(bench, shape)


def _upper_rungs(bench: Bench, shape: Shape, encoder: Encoder, eager: dict[int, tuple[float, ...]]) -> Iterator[Figure]:
    if compile_layers(encoder, bench.device, bench.compiler):
        yield from _rung(bench, shape, "compiled", encoder, eager)
    else:
        yield bench.unmeasured(f"{shape.name}, compiled", "the compiler failed; the log says how")


def measure_memory(bench: Bench, shape: Shape) -> Iterator[Figure]:
    """Peak of the device with the weights and one batch: does a card of 24 GB have room to spare?

    No other model may be on the device.
    """
    what = f"{shape.name}, peak memory, {bench.sizes.usual_tokens:,} tokens of {shape.tokens_300}"
    encoder, batch = bench.encoder(shape), bench.dense_batch(shape.tokens_300, bench.sizes.usual_tokens)
    if not bench.is_cuda:
        encoder.embed(batch)
        yield bench.unmeasured(what, "only CUDA tells")
        return
    bench.free_memory()
    torch.cuda.reset_peak_memory_stats(bench.device)
    encoder.embed(batch)
    bench.wait()
    peak = torch.cuda.max_memory_allocated(bench.device) / (1 << 30)
    total = torch.cuda.get_device_properties(bench.device).total_memory / (1 << 30)
    goal = Goal(most=_SHARE_OF_CARD * _CARD_GIB)
    yield Figure(SECTION, what, "GiB", (peak,), goal=goal, note=f"a card of {_CARD_GIB} GiB; this one has {total:.0f}")


def foresee(bench: Bench, protein: Shape, dna: Shape) -> Iterator[Figure]:
    """The time of a published workload, from the rates at its own lengths."""
    seconds = 0.0
    for shape in (protein, dna):
        encoder, length = bench.encoder(shape), shape.tokens_150
        rates = _rates(bench, encoder, bench.dense_batch(length, bench.sizes.usual_tokens))
        seconds += _FRAMES * length / median(rates)
        what = f"{shape.name}, {bench.sizes.usual_tokens:,} tokens of {length}"
        yield Figure(SECTION, what, "tokens/s", rates, note=_note(bench, shape, length, rates))
    yield Figure(
        SECTION,
        f"foreseen for both encoders: {_FRAMES:,} frames of 150 bases",
        "min",
        (seconds / 60,),
        goal=Goal(most=_FRAMES_MINUTES),
        note="from these two rates; reading, head and tables not counted",
    )


def _rung(
    bench: Bench, shape: Shape, mode: str, encoder: Encoder, eager: dict[int, tuple[float, ...]]
) -> Iterator[Figure]:
    """One way to compute, at each number of tokens; the first one fills ``eager``, others are held against it."""
    length = shape.tokens_300
    for num_tokens in bench.sizes.token_counts:
        what = f"{shape.name}, {mode}, {num_tokens:,} tokens of {length}"
        if bench.is_over():
            yield bench.unmeasured_for_time(what)
            continue
        batch = bench.dense_batch(length, num_tokens)
        try:
            rates = _rates(bench, encoder, batch)
        except torch.OutOfMemoryError:
            yield bench.unmeasured(what, "does not fit the memory")
            bench.free_memory()
            continue
        peer = () if mode == "eager" else eager.get(num_tokens, ())
        eager.setdefault(num_tokens, rates)
        yield Figure(
            SECTION,
            what,
            "tokens/s",
            rates,
            "eager" if peer else "",
            peer,
            median(rates) / median(peer) if peer else None,
            note=_note(bench, shape, length, rates),
            point=Point(f"{shape.name}, {mode}", num_tokens, "tokens in a batch"),
        )


def _rates(bench: Bench, encoder: Encoder, batch: PackedBatch) -> tuple[float, ...]:
    return bench.rates({"": partial(encoder.embed, batch)}, batch.num_tokens)[""]


def _best(bench: Bench, shape: Shape) -> Iterator[Figure]:
    """The best rung, and the share of the device's matrix rate that it is."""
    rate = bench.best.get((shape.name, shape.tokens_300))
    if rate is None:
        return
    what = f"{shape.name}, best rung"
    goal = Goal(least=_RATE_GOALS.get(shape.name))
    yield Figure(SECTION, what, "tokens/s", (rate,), goal=goal, note=_GOALS_ARE if goal.least else "")
    share = _mfu(bench, shape, shape.tokens_300, rate)
    if share is not None:
        goal = Goal(least=_MFU_GOALS.get(shape.name))
        yield Figure(SECTION, f"{what}, MFU", "%", (share,), goal=goal, note="of the rate of its matrix products")


def _note(bench: Bench, shape: Shape, length: int, rates: Sequence[float]) -> str:
    """Keep the rate if it is the highest, and say which share of the ceiling it is."""
    rate = median(rates)
    bench.best[shape.name, length] = max(rate, bench.best.get((shape.name, length), 0.0))
    share = _mfu(bench, shape, length, rate)
    return "" if share is None else f"MFU {share:.0f} %"


def _mfu(bench: Bench, shape: Shape, length: int, rate: float) -> float | None:
    """Percent of the measured ceiling; None without one."""
    ceiling = bench.ceilings.get(shape.name)
    return None if ceiling is None else 100 * rate * shape.flop_per_token(length) / ceiling
