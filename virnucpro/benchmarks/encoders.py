"""Strings to embeddings on the CPU: packed batches against what the published scripts do, same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cosine_similarity

from virnucpro.batching.loader import pack_unit
from virnucpro.batching.packing import GreedyPacker
from virnucpro.benchmarks import inputs
from virnucpro.benchmarks.measure import Figure, Goal, Settings, ratio_of, take_turns
from virnucpro.benchmarks.plain_encoders import FairEsm, PlainDnabertS, has_fair_esm
from virnucpro.encoders import load_encoder, save_encoder
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.low_bit import can_multiply_int8
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.sequence.ragged import Ragged

SECTION = "encoders"
_CPU = torch.device("cpu")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_TOLERANCES = {"float32": 1e-5, "bfloat16": 0.2, "int8": 0.6}  # the largest of all values, which are about 1
_SINGLE_SHARE = 4  # one sequence at a time: one in so many

_Embed = Callable[[], tuple[int, NDArray[np.float32]]]


def measure(settings: Settings) -> Iterator[Figure]:
    """Each ESM-2 size, then DNABERT-S."""
    torch.set_num_threads(settings.threads)
    for size in settings.esm2:
        yield from _measure_esm2(settings, size)
    yield from _measure_dnabert_s(settings)


def _measure_esm2(settings: Settings, size: str) -> Iterator[Figure]:
    config, tensors = inputs.esm2_weights(size, settings.seed)
    proteins = inputs.frame_proteins(np.random.default_rng(settings.seed), settings.num_strings)
    ours = _ours(config, tensors, None, proteins)
    peers: dict[str, _Embed] = {}
    if has_fair_esm():
        fair = FairEsm(config, tensors)
        texts = [text.decode() for text in proteins.to_bytes()]
        few = texts[: max(1, len(texts) // _SINGLE_SHARE)]
        peers["fair-esm, padded batches"] = lambda: _as_numpy(fair.embed(texts, one_at_a_time=False))
        peers["fair-esm, one at a time"] = lambda: _as_numpy(fair.embed(few, one_at_a_time=True))
    goals = {
        ("float32", "fair-esm, padded batches"): Goal(least_ratio=2),
        ("bfloat16", "fair-esm, padded batches"): Goal(least_ratio=4),
        ("int8", "fair-esm, padded batches"): Goal(least_ratio=6),
    }
    yield from _compare(f"ESM-2 {size}", ours, peers, goals, settings)
    if not peers:
        yield Figure(SECTION, f"ESM-2 {size}", "tokens/s", (), "fair-esm", note="fair-esm is not installed")


def _measure_dnabert_s(settings: Settings) -> Iterator[Figure]:
    config, tensors = inputs.dnabert_s_weights(settings.dnabert_layers, settings.seed)
    tokenizer = inputs.byte_pairs(settings.seed)
    fragments = inputs.fragments(np.random.default_rng(settings.seed), settings.num_strings)
    ours = _ours(config, tensors, tokenizer, fragments)
    plain = PlainDnabertS(config, tensors, tokenizer)
    texts = [text.decode() for text in fragments.to_bytes()]
    few = texts[: max(1, len(texts) // _SINGLE_SHARE)]
    peers: dict[str, _Embed] = {"plain torch, one at a time": lambda: _as_numpy(plain.embed(few))}
    goals = {("bfloat16", "plain torch, one at a time"): Goal(least_ratio=4.5)}
    yield from _compare(f"DNABERT-S, {settings.dnabert_layers} layers", ours, peers, goals, settings)


def _ours(
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    tokenizer: str | None,
    strings: Ragged,
) -> dict[str, _Embed]:
    """The encoder in each dtype that this CPU has, through its file, as a run loads it."""
    with TemporaryDirectory(prefix="virnucpro-benchmark-") as folder:
        path = Path(folder) / "encoder.safetensors"
        save_encoder(path, config, tensors, tokenizer)
        encoders = {
            name: load_encoder(path, _CPU, dtype)
            for name, dtype in _DTYPES.items()
            if dtype != torch.int8 or can_multiply_int8()
        }
    packer = GreedyPacker(next(iter(encoders.values())).cpu_token_budget)

    def embed_with(encoder: Encoder) -> _Embed:
        def embed() -> tuple[int, NDArray[np.float32]]:
            unit = pack_unit(0, strings, encoder.tokenizer, packer)
            ((_, embeddings),) = AsyncInferenceRunner(encoder, _CPU).embeddings([unit])
            return unit.num_tokens, embeddings

        return embed

    return {name: embed_with(encoder) for name, encoder in encoders.items()}


def _compare(
    what: str,
    ours: Mapping[str, _Embed],
    peers: Mapping[str, _Embed],
    goals: Mapping[tuple[str, str], Goal],
    settings: Settings,
) -> Iterator[Figure]:
    """Every dtype of ours against every peer."""
    outputs: dict[str, NDArray[np.float32]] = {}

    def timed(name: str, embed: _Embed) -> Callable[[], float]:
        def work() -> float:
            num_tokens, outputs[name] = embed()
            return num_tokens

        return work

    contestants = {name: timed(name, embed) for name, embed in {**ours, **peers}.items()}
    rates = take_turns(contestants, settings.seconds)
    for dtype in ours:
        label = f"{what}, {dtype}, packed"
        if not peers:
            yield Figure(SECTION, label, "tokens/s", rates[dtype])
        for peer in peers:
            expected = outputs[peer]
            yield Figure(
                SECTION,
                label,
                "tokens/s",
                rates[dtype],
                f"{peer}, float32",
                rates[peer],
                ratio_of(rates[dtype], rates[peer]),
                goals.get((dtype, peer), Goal()),
                float(np.abs(outputs[dtype][: len(expected)] - expected).max()),
                _TOLERANCES[dtype],
                f"{settings.num_strings} strings of 300- and 500-b fragments, threads: {settings.threads}; "
                f"mean cosine {_mean_cosine(outputs[dtype][: len(expected)], expected):.5f}",
            )


def _mean_cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(cosine_similarity(torch.from_numpy(one), torch.from_numpy(other)).mean())


def _as_numpy(result: tuple[int, torch.Tensor]) -> tuple[int, NDArray[np.float32]]:
    num_tokens, embeddings = result
    array: NDArray[np.float32] = embeddings.numpy()
    return num_tokens, array
