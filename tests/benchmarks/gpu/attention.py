"""Attention alone: mixed lengths by one dense call a length or by a kernel made for them, and the price of a bias."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.gpu.bench import DTYPE, Bench, against
from benchmarks.gpu.models import packed_batch
from benchmarks.measure import Figure
from virnucpro.encoders.attention import AlibiBias, dense_attention, varlen_kernel
from virnucpro.engine.batch import PackedBatch

_ESM2_3B, _DNABERT_S = (40, 64), (12, 64)  # heads and their depth
_SHORTEST, _DNA_TOKENS = 40, 67
_MIXES = (4, 16, 128)
_TOLERANCE = 0.03  # of values about 1, in bfloat16


def measure(bench: Bench) -> Iterator[Figure]:
    """Batches of ever more lengths, then DNABERT-S with and without its bias."""
    for num_lengths in _MIXES:
        yield _mixed(bench, num_lengths)
    batch = bench.dense_batch(_DNA_TOKENS, bench.sizes.usual_tokens)
    query, key, value = _states(batch, *_DNABERT_S)
    bias, runs = AlibiBias(_DNABERT_S[0]), batch.runs()
    rates = bench.rates(
        {
            "with bias": lambda: dense_attention(query, key, value, runs, bias),
            "without": lambda: dense_attention(query, key, value, runs),
        },
        batch.num_tokens,
    )
    yield against(
        f"attention of DNABERT-S, with its bias, {batch.num_tokens:,} tokens of {_DNA_TOKENS}",
        "tokens/s",
        rates,
        "without",
    )


def _mixed(bench: Bench, num_lengths: int) -> Figure:
    lengths = np.arange(_SHORTEST, _SHORTEST + num_lengths)
    num_sequences = max(num_lengths, bench.sizes.usual_tokens // int(lengths.mean()))
    batch = packed_batch(np.sort(np.resize(lengths, num_sequences)), bench.device, bench.sizes.seed)
    what = f"attention of ESM-2 3B, {num_lengths} lengths, {bench.sizes.usual_tokens:,} tokens"
    kernel = varlen_kernel(bench.device, DTYPE, *_ESM2_3B) if bench.is_cuda else None
    if kernel is None:
        return bench.unmeasured(what, "no kernel for mixed lengths here")
    query, key, value = _states(batch, *_ESM2_3B)
    runs = batch.runs()
    rates = bench.rates(
        {
            "varlen": lambda: kernel(query, key, value, batch),
            "dense, a call a length": lambda: dense_attention(query, key, value, runs),
        },
        batch.num_tokens,
    )
    difference = kernel(query, key, value, batch) - dense_attention(query, key, value, runs)
    return against(what, "tokens/s", rates, "dense, a call a length", float(difference.abs().max()), _TOLERANCE)


def _states(batch: PackedBatch, heads: int, depth: int) -> torch.Tensor:
    """Query, key and value (3, T, heads, depth)."""
    return torch.randn(3, batch.num_tokens, heads, depth, device=batch.input_ids.device, dtype=DTYPE)
