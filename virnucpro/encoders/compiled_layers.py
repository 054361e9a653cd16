"""Steps of transformer layers that torch may compile: one graph for all layers and all batches, and never required.

What is compiled lies between two attentions: norms, matrices, rotary positions, activations. Uncompiled, each of these
reads and writes all token states (about 110 bytes a token and unit of width in a layer of ESM-2, in 16 bit); compiled,
what stands between two matrices is one kernel (about 36 bytes). Attention is one kernel already.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

from virnucpro.encoders.base import Encoder
from virnucpro.encoders.device import is_out_of_memory
from virnucpro.engine.batch import PackedBatch
from virnucpro.settings import CompileChoice

_LOG = logging.getLogger(__name__)

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
_P = ParamSpec("_P")
_ResultT = TypeVar("_ResultT")

_REPAID_FROM_FLOP = 7e16
"""Work of a device from which compiling is repaid.

A fast card does it uncompiled in about three minutes (400 TFLOP/s), a sixth of which compiling saves: the half minute
that compiling takes where nothing is cached. A slower card gains more. It is 120,000 frames of 300 bases with ESM-2 3B,
520,000 with 650M, and 4.7 million with DNABERT-S.
"""
_TRIAL_LENGTH_TOKENS = 64
_TRIAL_SEQUENCES = {"cuda": 256}  # the compiler chooses block sizes for what it is shown: as many tokens as in a run
_TRIAL_TOKEN = 5  # an ordinary one in every vocabulary


class StoppedError(Exception):
    """A forward pass was given up; see ``LayerSteps.stop``."""


class LayerSteps:
    """Calls the steps of a layer, compiled from :meth:`compile` on.

    A step is a function at module level, of a layer, then of tensors that have the tokens first. Weights are reached
    through the layer and are inputs of the graph, so that one graph serves all layers of an encoder. The number of
    tokens is left open in it, so that it serves all batches.

    A compiler that fails (no Triton, no C compiler, an operator it does not know) costs one line in the log, and the
    steps run uncompiled from then on.

    Args:
        name: of the encoder, for the log.
        num_weights: in the matrices of all layers; a token costs twice as many operations.
    """

    def __init__(self, name: str, num_weights: int) -> None:
        self.name = name
        self.num_weights = num_weights
        self._compiler: Compiler | None = None
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._is_stopped = False

    @property
    def are_compiled(self) -> bool:
        """Whether compiled steps are called."""
        return self._compiler is not None

    def compile(self, compiler: Compiler) -> None:
        """Compile each step when it is called next."""
        self._compiler = compiler

    def stop(self) -> None:
        """Let every thread that computes end at its next step, with an error: nobody wants the result."""
        self._is_stopped = True

    def go_on(self) -> None:
        """Compute again."""
        self._is_stopped = False

    def give_up(self, reason: object) -> None:
        """Run uncompiled from here on."""
        self._compiler = None
        self._compiled.clear()
        first, *_ = str(reason).strip().splitlines() or [""]
        _LOG.warning(
            "%s: its layers run uncompiled, somewhat slower (%s: %.200s)", self.name, type(reason).__name__, first
        )

    def __call__(self, step: Callable[_P, _ResultT], *args: _P.args, **kwargs: _P.kwargs) -> _ResultT:
        """Call ``step`` with these arguments."""
        if self._is_stopped:
            raise StoppedError
        if self._compiler is None:
            return step(*args, **kwargs)
        if step not in self._compiled:
            self._compiled[step] = self._compiler(step)
        for argument in args:
            if isinstance(argument, torch.Tensor):
                torch._dynamo.maybe_mark_dynamic(argument, 0)  # noqa: SLF001 - documented under this name
        try:
            result: _ResultT = self._compiled[step](*args, **kwargs)
        except Exception as error:  # a compiler raises anything; what is not its fault comes again below
            if is_out_of_memory(error):  # the runner's to handle
                raise
            self.give_up(error)
            return step(*args, **kwargs)
        return result


def count_layer_weights(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Weights in the matrices whose names begin with ``prefix``."""
    return sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(prefix) and tensor.ndim == 2)


def steps_of(encoder: Encoder) -> LayerSteps | None:
    """The steps of a transformer; None for an encoder of another make."""
    steps = getattr(encoder, "steps", None)
    return steps if isinstance(steps, LayerSteps) else None


def should_compile(choice: CompileChoice, encoder: Encoder, device: torch.device, num_tokens: float) -> bool:
    """Whether to compile the layers of ``encoder``.

    Args:
        choice: the user's; auto compiles on a CUDA device where the work repays it.
        encoder: one without layers is never compiled.
        device: where it is.
        num_tokens: it will embed there, about.
    """
    steps = steps_of(encoder)
    if steps is None or choice == "never":
        return False
    return choice == "always" or (device.type == "cuda" and 2.0 * steps.num_weights * num_tokens >= _REPAID_FROM_FLOP)


def warm_up(encoder: Encoder, device: torch.device) -> None:
    """Embed some sequences of several lengths on a card, which chooses kernels and sets libraries up at first calls."""
    if device.type != "cuda" or steps_of(encoder) is None:
        return
    try:
        encoder.embed(_trial_batch(device, [_TRIAL_LENGTH_TOKENS + k for k in range(8)]))
    except Exception as error:
        if not is_out_of_memory(error):  # that is for the runner to handle, with batches of the run
            raise


def compile_layers(encoder: Encoder, device: torch.device, compiler: Compiler | None = None) -> bool:
    """Compile the layers of a transformer, on a batch made for it; tells whether they are compiled now."""
    steps = steps_of(encoder)
    if steps is None:
        return False
    start = time.perf_counter()
    # Of one length, as most batches of a run.
    batch = _trial_batch(device, [_TRIAL_LENGTH_TOKENS] * _TRIAL_SEQUENCES.get(device.type, 2))
    try:
        encoder.embed(batch)  # some parts settle on the first batch only: norms take the dtype of the states
        steps.compile(compiler or compile_with_inductor)
        encoder.embed(batch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        steps.give_up(error)
    if steps.are_compiled:
        _LOG.info("%s: layers compiled in %.1f s", steps.name, time.perf_counter() - start)
    return steps.are_compiled


def compile_with_inductor(step: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with torch's own compiler, weights of fixed shapes, what is marked as open open."""
    import torch._inductor.config as inductor  # noqa: PLC0415 - a second, for runs that compile only

    inductor.compile_threads = 1  # a handful of kernels: no pool of processes, which would outlive a killed worker
    compiled: Callable[..., Any] = torch.compile(step, fullgraph=True, dynamic=False)
    return compiled


def _trial_batch(device: torch.device, lengths: Sequence[int]) -> PackedBatch:
    ends = [0, *accumulate(lengths)]
    return PackedBatch(
        rows=np.arange(len(lengths)),
        input_ids=torch.full((ends[-1],), _TRIAL_TOKEN, dtype=torch.int64, device=device),
        cu_seqlens=torch.tensor(ends, dtype=torch.int32, device=device),
        lengths=tuple(lengths),
    )
