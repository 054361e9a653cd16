"""ESM-2 with its products in 8-bit floats: how fast, and how near the embeddings are to those of 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median

import torch

from benchmarks.gpu.bench import DTYPE, SECTION, Bench
from benchmarks.gpu.models import Shape, random_encoder
from benchmarks.measure import Figure, Goal
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.compiled_layers import compile_layers
from virnucpro.encoders.low_bit import FP8, linear_maker

_GOAL = 145_000.0  # of ESM-2 3B on an H200


def measure(bench: Bench, shape: Shape) -> Iterator[Figure]:
    """Uncompiled, where making the 8 bits takes passes of its own, and compiled; each against 16 bits."""
    what = f"{shape.name}, fp8, {bench.sizes.usual_tokens:,} tokens of {shape.tokens_300}"
    if not bench.has_fp8():
        yield bench.unmeasured(what, "the device has no 8-bit floats")
        return
    wide = bench.encoder(shape)
    narrow = random_encoder(shape, bench.device, DTYPE, bench.sizes.seed, linear_maker(FP8))
    yield _figure(bench, shape, f"{what}, eager", narrow, wide, Goal())
    if compile_layers(narrow, bench.device, bench.compiler):
        goal = Goal(least=_GOAL if shape.name == "ESM-2 3B" else None)
        yield _figure(bench, shape, f"{what}, compiled", narrow, wide, goal)
    else:
        yield bench.unmeasured(f"{what}, compiled", "the compiler failed; the log says how")


def _figure(bench: Bench, shape: Shape, what: str, narrow: Encoder, wide: Encoder, goal: Goal) -> Figure:
    """In turns with 16 bits, in which the layers are compiled where they could be."""
    batch = bench.dense_batch(shape.tokens_300, bench.sizes.usual_tokens)
    cosines = torch.cosine_similarity(narrow.embed(batch), wide.embed(batch))
    rates = bench.rates({"fp8": partial(narrow.embed, batch), "bfloat16": partial(wide.embed, batch)}, batch.num_tokens)
    return Figure(
        SECTION,
        what,
        "tokens/s",
        rates["fp8"],
        "bfloat16, best way",
        rates["bfloat16"],
        median(rates["fp8"]) / median(rates["bfloat16"]),
        goal,
        max_difference=1 - float(cosines.min()),
        note=f"cosine to bfloat16 {cosines.min():.5f} at least, of random weights; max diff is 1 less that",
    )
