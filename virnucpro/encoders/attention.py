"""Attention over packed sequences, shared by the transformer encoders.

A packed batch is sorted by length, so it is a few runs of equal lengths, and each run is a dense
(S, L) batch: plain attention without padding or mask, which every device has. Batches of mixed
lengths without a bias go through a variable-length kernel where a CUDA device has one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from virnucpro.engine.batch import PackedBatch

_LOG = logging.getLogger(__name__)

VarlenKernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, PackedBatch], torch.Tensor]

MAX_KEPT_BIAS_TOKENS = 1024
_VARLEN_TOLERANCE = 0.05  # 16-bit types differ by some thousandths; a kernel that reads the wrong rows, by about 1
_DENSE = "dense, length by length"
_KERNELS = (
    ("flash-attn", "flash_attn", "flash_attn_varlen_func"),
    ("varlen_attn of torch", "torch.nn.attention.varlen", "varlen_attn"),
)
"""Name, module and function of variable-length attention, the best first."""
_IN_USE: dict[torch.device, str] = {}
_VARLEN_MIN_RUNS = 4  # below this the dense kernel, called once a run, is as fast


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: PackedBatch,
    bias: AlibiBias | None = None,
) -> torch.Tensor:
    """Let each token attend to all tokens of its own sequence.

    Args:
        query: (T, H, D).
        key: (T, H, D).
        value: (T, H, D).
        batch: says which token belongs to which sequence.
        bias: added to the scores, shared by all sequences of one length.

    Returns:
        (T, H, D), scores scaled by ``1 / sqrt(D)``.
    """
    runs = batch.runs()
    if bias is None and query.is_cuda and len(runs) >= _VARLEN_MIN_RUNS and query.dtype != torch.float32:
        kernel = varlen_kernel(query.device, query.dtype, *query.shape[1:])
        if kernel is not None:
            return kernel(query, key, value, batch)
    return dense_attention(query, key, value, runs, bias)


def dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    runs: Sequence[tuple[int, int]],
    bias: AlibiBias | None = None,
) -> torch.Tensor:
    """The same by one dense call for each run (length, number of sequences), which come in order."""
    if len(runs) == 1:
        return _dense(query, key, value, runs[0], bias)
    output = torch.empty_like(query)
    start = 0
    for length, count in runs:
        here = slice(start, start + length * count)
        output[here] = _dense(query[here], key[here], value[here], (length, count), bias)
        start = here.stop
    return output


class AlibiBias:
    """Symmetric ALiBi: ``-slope[h] * |i - j|``, from Press et al. 2022 as MosaicBERT makes it two-sided.

    A table serves all lengths up to its size, a power of two: the bias of a shorter sequence is its upper left corner.
    Tables are kept up to 1,024 tokens (24 MiB in bfloat16 with 12 heads); longer sequences are rare and get theirs made
    for the call.
    """

    def __init__(self, num_heads: int) -> None:
        self._slopes = torch.tensor(alibi_slopes(num_heads))
        self._tables: dict[tuple[int, torch.device, torch.dtype], torch.Tensor] = {}

    def __call__(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """Return the bias (1, H, length, length) on the device of ``like``."""
        # CPU kernels take a float32 bias beside bfloat16 scores; CUDA ones want one type.
        dtype = torch.float32 if like.device.type == "cpu" else like.dtype
        if length > MAX_KEPT_BIAS_TOKENS:
            return self._make(-(-length // 8) * 8, like.device, dtype)[:, :, :length, :length]
        kind = (max(64, 1 << (length - 1).bit_length()), like.device, dtype)
        if kind not in self._tables:
            self._tables[kind] = self._make(*kind)
        return self._tables[kind][:, :, :length, :length]

    def _make(self, size: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Rows are padded to whole vectors of the CUDA kernels: these would copy the bias at every call else."""
        place = torch.arange(size, device=device)
        distance = (place[:, None] - place[None, :]).abs()
        return (self._slopes.to(device)[:, None, None] * -distance).to(dtype)[None]


def alibi_slopes(num_heads: int) -> list[float]:
    """Return one slope a head.

    Source: Press et al. 2022, code release. A count that is not a power of two takes the slopes of the next smaller
    power and fills up with every other slope of the next larger one.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    if power < num_heads:
        slopes += alibi_slopes(2 * power)[::2][: num_heads - power]
    return slopes


def _dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, run: tuple[int, int], bias: AlibiBias | None
) -> torch.Tensor:
    length, count = run
    heads, depth = query.shape[1:]
    query, key, value = (x.view(count, length, heads, depth).transpose(1, 2) for x in (query, key, value))
    mask = None if bias is None else bias(length, query)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).reshape(-1, heads, depth)


@cache
def varlen_kernel(device: torch.device, dtype: torch.dtype, heads: int, depth: int) -> VarlenKernel | None:
    """Variable-length attention that works on a device: flash-attn's, else PyTorch's own (2.10 on); None without."""
    installed = ((name, partial(_load_kernel, *place)) for name, *place in _KERNELS if find_spec(place[0]) is not None)
    _IN_USE[device], kernel = first_that_works(installed, device, dtype, heads, depth)
    return kernel


def attention_on(device: torch.device) -> str:
    """Whose attention computes batches of many lengths on ``device``, as far as it was asked for."""
    return _IN_USE.get(device, _DENSE)


def first_that_works(
    kernels: Iterable[tuple[str, Callable[[], VarlenKernel]]],
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    depth: int,
) -> tuple[str, VarlenKernel | None]:
    """The first kernel that gives what dense attention gives, on a small batch, with its name; else none.

    A package may be there that was not built for this card, or is too old for this torch, or lacks the type.
    """
    lengths = (3, 5, 6, 9)
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    ids = torch.zeros(sum(lengths), dtype=torch.int64, device=device)
    batch = PackedBatch(np.arange(len(lengths)), ids, ends, lengths)
    generator = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, sum(lengths), heads, depth, generator=generator).to(device, dtype)
    expected = dense_attention(query, key, value, batch.runs())
    for name, load in kernels:
        try:
            kernel = load()
            difference = (kernel(query, key, value, batch).float() - expected.float()).abs().max().item()
        except Exception as error:  # noqa: BLE001 - a foreign kernel on an unknown card raises anything
            _LOG.warning("attention of %s does not work on %s (%.200s)", name, device, error)
            continue
        if difference <= _VARLEN_TOLERANCE:
            return name, kernel
        _LOG.warning("attention of %s on %s is wrong by %.2g; it is not used", name, device, difference)
    return _DENSE, None


def _load_kernel(module: str, function: str) -> VarlenKernel:
    attend = getattr(import_module(module), function)

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        ends, longest = batch.cu_seqlens, batch.max_seqlen
        output: torch.Tensor = attend(q, k, v, ends, ends, longest, longest)
        return output

    return kernel
