"""Strings to embeddings on the CPU: packed batches against what the published scripts and others do, same weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cosine_similarity

from benchmarks import inputs
from benchmarks.measure import Figure, Goal, Settings, ratio_of, take_turns
from benchmarks.plain_encoders import FairEsm, HuggingFaceEsm, PlainDnabertS, is_installed
from virnucpro.encoders import load_encoder, save_encoder
from virnucpro.encoders.base import Encoder
from virnucpro.encoders.runner import AsyncInferenceRunner
from virnucpro.engine.loader import pack_unit
from virnucpro.engine.packing import GreedyPacker
from virnucpro.engine.threads import use_threads
from virnucpro.sequence.ragged import Ragged

SECTION = "encoders"
_CPU = torch.device("cpu")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_TOLERANCES = {"float32": 1e-5, "bfloat16": 0.2}  # the largest of all values, which are about 1
_SINGLE_SHARE = 4  # one sequence at a time: one in so many

_PEER_DTYPES = ("float32", "bfloat16")
_ROUNDED = "bfloat16"
_LONGEST_RUN_SECONDS, _PROBED_STRINGS = 10.0, 2
"""A CPU without bfloat16 of its own takes five to eight times as long for it as for float32."""

_Embed = Callable[[Ragged], tuple[int, NDArray[np.float32]]]
"""From strings to the number of tokens and (n, width) embeddings."""


@dataclass(frozen=True)
class _Contestant:
    """One that embeds.

    Attributes:
        dtype: it computes in.
        embed: does it.
        note: what a reader must know.
    """

    dtype: str
    embed: _Embed
    note: str = ""


def measure(settings: Settings) -> Iterator[Figure]:
    """Each ESM-2 size, then DNABERT-S."""
    use_threads(settings.threads)
    for size in settings.esm2:
        yield from _measure_esm2(settings, size)
    yield from _measure_dnabert_s(settings)


def _measure_esm2(settings: Settings, size: str) -> Iterator[Figure]:
    config, tensors = inputs.esm2_weights(size, settings.seed)
    proteins = inputs.frame_proteins(np.random.default_rng(settings.seed), settings.num_strings)
    ours = _ours(config, tensors, None)
    peers = _esm2_peers(config, tensors)
    goals = {
        ("float32", "fair-esm, padded batches, float32"): Goal(least_ratio=2),
        ("bfloat16", "fair-esm, padded batches, float32"): Goal(least_ratio=4),
    }
    yield from _compare(f"ESM-2 {size}", ours, peers, goals, proteins, settings)
    yield from _missing_peers(f"ESM-2 {size}")


def _missing_peers(what: str) -> Iterator[Figure]:
    """A figure without values for each peer of ESM-2 that is not installed."""
    for module, package in (("esm", "fair-esm"), ("transformers", "transformers")):
        if not is_installed(module):
            yield Figure(SECTION, what, "tokens/s", (), package, note=f"{package} is not installed")


def _esm2_peers(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, _Contestant]:
    """Those that are installed, by name."""
    peers: dict[str, _Contestant] = {}
    for dtype in _PEER_DTYPES:
        note = "" if dtype == "float32" else "the peer is cast as a whole, rotary frequencies too"
        if is_installed("esm"):
            fair = FairEsm(config, tensors, _DTYPES[dtype])
            peers[f"fair-esm, padded batches, {dtype}"] = _Contestant(dtype, _fair_esm(fair), note)
            if dtype == "float32":
                peers[f"fair-esm, one at a time, {dtype}"] = _Contestant(dtype, _fair_esm(fair, _SINGLE_SHARE))
        if is_installed("transformers"):
            theirs = HuggingFaceEsm(config, tensors, _DTYPES[dtype])
            peers[f"EsmModel, padded batches, {dtype}"] = _Contestant(dtype, _hugging_face(theirs), note)
    return peers


def _fair_esm(model: FairEsm, single_share: int = 0) -> _Embed:
    """Padded batches, or one of so many strings, one at a time."""

    def embed(strings: Ragged) -> tuple[int, NDArray[np.float32]]:
        texts = _few(strings, single_share) if single_share else _texts(strings)
        return _as_numpy(model.embed(texts, one_at_a_time=single_share > 0))

    return embed


def _hugging_face(model: HuggingFaceEsm) -> _Embed:
    return lambda strings: _as_numpy(model.embed(_texts(strings)))


def _texts(strings: Ragged) -> list[str]:
    return [text.decode() for text in strings.to_bytes()]


def _few(strings: Ragged, share: int) -> list[str]:
    return _texts(strings.slice(0, max(1, len(strings) // share)))


def _measure_dnabert_s(settings: Settings) -> Iterator[Figure]:
    config, tensors = inputs.dnabert_s_weights(settings.dnabert_layers, settings.seed)
    tokenizer = inputs.byte_pairs(settings.seed)
    fragments = inputs.fragments(np.random.default_rng(settings.seed), settings.num_strings)
    ours = _ours(config, tensors, tokenizer)
    plain = PlainDnabertS(config, tensors, tokenizer)
    name = "plain torch, one at a time, float32"
    peers = {name: _Contestant("float32", lambda strings: _as_numpy(plain.embed(_few(strings, _SINGLE_SHARE))))}
    goals = {("bfloat16", name): Goal(least_ratio=4.5)}
    yield from _compare(f"DNABERT-S, {settings.dnabert_layers} layers", ours, peers, goals, fragments, settings)


def _ours(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], tokenizer: str | None
) -> dict[str, _Contestant]:
    """The encoder in each dtype that this CPU has, through its file, as a run loads it."""
    with TemporaryDirectory(prefix="virnucpro-benchmark-") as folder:
        path = Path(folder) / "encoder.safetensors"
        save_encoder(path, config, tensors, tokenizer)
        encoders = {name: load_encoder(path, _CPU, dtype) for name, dtype in _DTYPES.items()}
    packer = GreedyPacker(next(iter(encoders.values())).cpu_token_budget)

    def embed_with(encoder: Encoder) -> _Embed:
        def embed(strings: Ragged) -> tuple[int, NDArray[np.float32]]:
            unit = pack_unit(0, strings, encoder.tokenizer, packer)
            ((_, embeddings),) = AsyncInferenceRunner(encoder, _CPU).embeddings([unit])
            return unit.num_tokens, embeddings

        return embed

    return {name: _Contestant(name, embed_with(encoder)) for name, encoder in encoders.items()}


def _compare(
    what: str,
    ours: Mapping[str, _Contestant],
    peers: Mapping[str, _Contestant],
    goals: Mapping[tuple[str, str], Goal],
    strings: Ragged,
    settings: Settings,
) -> Iterator[Figure]:
    """Every dtype of ours against every peer in float32, and against those in the same dtype."""
    outputs: dict[str, NDArray[np.float32]] = {}
    contestants = {**ours, **peers}
    given = {name: _fitting(contestant, strings) for name, contestant in contestants.items()}

    def timed(name: str) -> Callable[[], float]:
        def work() -> float:
            num_tokens, outputs[name] = contestants[name].embed(given[name])
            return num_tokens

        return work

    rates = take_turns({name: timed(name) for name in contestants}, settings.seconds)
    for dtype in ours:
        label = f"{what}, {dtype}, packed"
        if not peers:
            yield Figure(SECTION, label, "tokens/s", rates[dtype])
        for name, peer in peers.items():
            if peer.dtype not in ("float32", dtype):
                continue
            num_both = min(len(outputs[dtype]), len(outputs[name]))
            one, other = outputs[dtype][:num_both], outputs[name][:num_both]
            notes = [
                f"{settings.num_strings} strings of 300- and 500-b fragments, threads: {settings.threads}",
                *_what_it_got(strings, {"ours": given[dtype], "the peer": given[name]}),
                *([peer.note] if peer.note else []),
                f"mean cosine {_mean_cosine(one, other):.5f}",
            ]
            yield Figure(
                SECTION,
                label,
                "tokens/s",
                rates[dtype],
                name,
                rates[name],
                ratio_of(rates[dtype], rates[name]),
                goals.get((dtype, name), Goal()),
                float(np.abs(one - other).max()),
                max(_TOLERANCES[dtype], _TOLERANCES[peer.dtype]),
                "; ".join(notes),
            )


def _fitting(contestant: _Contestant, strings: Ragged) -> Ragged:
    """All strings; in bfloat16 the first ones, as many as a run may take, two at least."""
    if contestant.dtype != _ROUNDED:
        return strings
    few = strings.slice(0, min(_PROBED_STRINGS, len(strings)))
    contestant.embed(few)  # kernels are cold but once
    begun = time.perf_counter()
    contestant.embed(few)
    num_fitting = int(len(few) * _LONGEST_RUN_SECONDS / (time.perf_counter() - begun))
    return strings.slice(0, min(len(strings), max(len(few), num_fitting)))


def _what_it_got(strings: Ragged, given: Mapping[str, Ragged]) -> list[str]:
    """A note for each that was too slow for all strings."""
    return [
        f"{who} got {len(part)} of them, bfloat16 being slow here"
        for who, part in given.items()
        if len(part) < len(strings)
    ]


def _mean_cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(cosine_similarity(torch.from_numpy(one), torch.from_numpy(other)).mean())


def _as_numpy(result: tuple[int, torch.Tensor]) -> tuple[int, NDArray[np.float32]]:
    num_tokens, embeddings = result
    array: NDArray[np.float32] = embeddings.float().numpy()
    return num_tokens, array
