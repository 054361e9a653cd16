"""Small batches as CUDA graphs: one call starts all their kernels.

An encoder starts some hundred kernels a batch, which takes a processor about as many hundredths of a millisecond. Where
the card is done sooner (small models, small batches), it waits for the processor. Batches of one length recur with the
same shape in every unit, so the kernels of such a batch are recorded once and replayed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import torch

from virnucpro.encoders.attention import MAX_KEPT_BIAS_TOKENS
from virnucpro.encoders.base import Alphabet, Encoder, Tokenizer
from virnucpro.engine.batch import PackedBatch

_LOG = logging.getLogger(__name__)

Replay = Callable[[torch.Tensor], torch.Tensor]
"""From token ids to embeddings, for batches of one shape."""
Recorder = Callable[[Encoder, PackedBatch], Replay]

_WAITED_FOR_FLOP = 2e12  # a fast card does them in 4 ms, as long as their kernels take to start
_MOST_GRAPHS = 32
_RECORDED_WHEN_SEEN = 2  # once may be chance
_BYTES_A_TOKEN_AND_WIDTH = 4 * 22  # see stages.embed.token_budget_for; in float32


def most_tokens_to_replay(num_weights: int) -> int:
    """Tokens up to which a batch is worth recording.

    Args:
        num_weights: in the matrices of the encoder's layers.
    """
    return int(_WAITED_FOR_FLOP / (2 * max(1, num_weights)))


class ReplayedEncoder:
    """An encoder whose small batches of one length are recorded, one graph a shape, when they come again.

    A recording that fails costs one line in the log; batches without a graph then go the ordinary way.

    Args:
        encoder: on its device.
        recorder: makes the replay of a batch; for a device, :class:`CudaRecorder`.
        most_tokens: larger batches are not recorded.
    """

    def __init__(self, encoder: Encoder, recorder: Recorder, most_tokens: int) -> None:
        self.kind: str = encoder.kind
        self.alphabet: Alphabet = encoder.alphabet
        self.width: int = encoder.width
        self.cpu_token_budget: int = encoder.cpu_token_budget
        self._encoder = encoder
        self._recorder: Recorder | None = recorder
        self._most_tokens = most_tokens
        self._seen: Counter[tuple[int, int]] = Counter()
        self._replays: dict[tuple[int, int], Replay] = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """The encoder's."""
        return self._encoder.tokenizer

    def is_recorded(self, batch: PackedBatch) -> bool:
        """Whether a graph is there for batches of this shape."""
        return batch.uniform and _shape(batch) in self._replays

    def embed(self, batch: PackedBatch) -> torch.Tensor:
        """See ``Encoder.embed``."""
        shape = _shape(batch)
        if self.is_recorded(batch):
            return self._replays[shape](batch.input_ids)
        embeddings = self._encoder.embed(batch)
        if self._recorder is not None and self._is_worth_it(batch):
            self._seen[shape] += 1
            if self._seen[shape] == _RECORDED_WHEN_SEEN:
                self._record(self._recorder, shape, batch)
        return embeddings

    def _is_worth_it(self, batch: PackedBatch) -> bool:
        # Longer sequences have a bias made for the call, out of what is no longer there when a graph is replayed.
        is_small = batch.num_tokens <= self._most_tokens and batch.max_seqlen <= MAX_KEPT_BIAS_TOKENS
        return batch.uniform and is_small and len(self._replays) < _MOST_GRAPHS

    def _record(self, recorder: Recorder, shape: tuple[int, int], batch: PackedBatch) -> None:
        try:
            self._replays[shape] = recorder(self._encoder, batch)
        except RuntimeError as error:  # CUDA's errors and a lack of memory are of this class
            self._recorder = None
            _LOG.warning("%s: no more batches are recorded as CUDA graphs (%.200s)", self.kind, error)


def _shape(batch: PackedBatch) -> tuple[int, int]:
    """Tokens of a sequence and number of sequences; of a batch of one length."""
    return batch.max_seqlen, len(batch.lengths)


class CudaRecorder:
    """Records on one device; its graphs share memory, for one is replayed after the other.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, encoder: Encoder, batch: PackedBatch) -> Replay:
        """Record what ``encoder`` does with ``batch``.

        Raises:
            RuntimeError: it cannot be recorded, or there is too little memory.
        """
        self._check_memory(batch.num_tokens * encoder.width * _BYTES_A_TOKEN_AND_WIDTH)
        fixed = PackedBatch(batch.rows, batch.input_ids.clone(), batch.cu_seqlens.clone(), batch.lengths)
        usual = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self._device):
                self._stream.wait_stream(usual)
                with torch.cuda.stream(self._stream):
                    encoder.embed(fixed)  # libraries make their workspaces of a stream at the first call
                usual.wait_stream(self._stream)
                # Threads that page-lock memory go on meanwhile: only calls of this one may spoil the recording.
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    embeddings = encoder.embed(fixed)
        finally:
            torch.cuda.set_stream(usual)  # a recording that fails leaves its own stream in force

        @torch.inference_mode()
        def replay(input_ids: torch.Tensor) -> torch.Tensor:
            fixed.input_ids.copy_(input_ids)
            graph.replay()
            return embeddings.clone()

        return replay

    def _check_memory(self, num_bytes: int) -> None:
        free, _ = torch.cuda.mem_get_info(self._device)
        if 2 * num_bytes > free:
            raise torch.OutOfMemoryError(f"{num_bytes:,} bytes wanted, {free:,} free")
