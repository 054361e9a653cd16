"""Chunks of sequence with metadata in, the same chunks with embeddings out; what fails is said and stops nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from virnucpro.embeddings.loader import EncoderSource, ModelLoader, torch_threads
from virnucpro.embeddings.validation import EmbeddingValidator, ModelValidationError, check_text
from virnucpro.errors import UsageError, VirNucProError
from virnucpro.parallel import chunk_list, run_parallel
from virnucpro.progress import in_notebook
from virnucpro.resources import available_cpus

_LOG = logging.getLogger(__name__)

Chunk = Mapping[str, Any]
"""``text`` (or ``sequence``) holds the sequence; whatever else is there stays."""
ProgressCallback = Callable[[int, int], None]
_Answer = NDArray[np.float32] | Exception
"""An embedding, or why there is none."""


class Statistics(TypedDict):
    """What a generator has done so far."""

    processed: int  # chunks with an embedding
    failed: int  # chunks without one
    retried: int  # chunks that were tried again by themselves
    batches: int  # that were computed
    seconds: float  # spent in ``process_chunks`` and ``process_batch``
    items_per_second: float  # processed chunks a second


class ProgressSummary(TypedDict):
    """How far the latest call of ``process_chunks`` is."""

    done: int  # chunks
    total: int  # chunks in all
    percent: float
    seconds: float  # since it began
    items_per_second: float
    seconds_left: float | None  # about; None while nothing is done


class EmbeddingGenerator:
    """Embeds chunks in batches, several batches at the same time.

    Args:
        encoder: a name as of :class:`~virnucpro.embeddings.loader.ModelLoader`, or a loader.
        device: ``cpu``, ``cuda``, ``mps`` ...; None takes the best that there is.
        batch_size: chunks computed together.
        num_workers: batches at the same time.
        use_threading: in threads; otherwise in spawned processes, each of which loads the encoder.
        precision: see ``ModelLoader``.
        show_progress: draw a bar; None does so in a notebook.

    Raises:
        ModelLoadError: there is no such encoder.
        UsageError: a number below 1, or processes for an encoder that has no name.
    """

    def __init__(
        self,
        encoder: str | Path | ModelLoader | EncoderSource = "lite:nucleotide",
        device: str | None = None,
        batch_size: int = 32,
        num_workers: int = 4,
        use_threading: bool = True,
        *,
        precision: str = "auto",
        show_progress: bool | None = None,
    ) -> None:
        if batch_size < 1 or num_workers < 1:
            raise UsageError("batch_size and num_workers: at least 1.")
        self.loader = encoder if isinstance(encoder, ModelLoader) else ModelLoader(encoder, precision, device)
        if not use_threading and not self.loader.source.is_named:
            raise UsageError("processes load the encoder by its name or file: give one, or use_threading=True.")
        self.batch_size, self.num_workers, self.use_threading = batch_size, num_workers, use_threading
        self.validator = EmbeddingValidator(self.loader.width, "float32")
        self._desc = "embedding" if show_progress or (show_progress is None and in_notebook()) else None
        self._lock = threading.Lock()
        self._statistics = Statistics(processed=0, failed=0, retried=0, batches=0, seconds=0.0, items_per_second=0.0)
        self._done = self._total = 0
        self._begun = time.monotonic()

    def process_chunks(
        self,
        chunks: Iterable[Chunk],
        progress_callback: ProgressCallback | None = None,
        retry_failed: bool = True,
    ) -> list[dict[str, Any]]:
        """Embed chunks, in order.

        Args:
            chunks: each with ``text`` (or ``sequence``) and any metadata.
            progress_callback: told how many chunks are done, and of how many.
            retry_failed: when a batch fails, compute each of its chunks by itself, so that only those to blame fail.

        Returns:
            For each chunk all that it held, and ``embedding`` (width,) float32 or None, ``error`` (a sentence or None),
            ``encoder`` and ``encoder_fingerprint``.
        """
        given = list(chunks)
        with self._lock:
            self._done, self._total, self._begun = 0, len(given), time.monotonic()

        def told(num_done: int) -> None:
            nonlocal progress_callback
            with self._lock:
                self._done = num_done
            if progress_callback is not None:
                try:
                    progress_callback(num_done, len(given))
                except Exception:  # noqa: BLE001 - somebody else's function; the work is worth more than its answer
                    _LOG.warning("the progress callback raised; it is not called again.", exc_info=True)
                    progress_callback = None

        return self._process(given, self.batch_size, self.num_workers, told, retry_failed=retry_failed)

    def process_batch(self, batch: Sequence[Chunk]) -> list[dict[str, Any]]:
        """Embed some chunks together; see ``process_chunks`` for what comes back."""
        return self._process(batch, max(1, len(batch)), 1, lambda _: None, retry_failed=True)

    def generate_embeddings_for_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, width) embeddings of n sequences.

        Raises:
            ModelValidationError: naming the first sequence that has none, and why.
        """
        enriched = self.process_chunks([{"text": text} for text in texts])
        for number, chunk in enumerate(enriched):
            if chunk["error"] is not None:
                raise ModelValidationError(f"text {number + 1} of {len(enriched)}: {chunk['error']}")
        rows = [chunk["embedding"] for chunk in enriched]
        return np.stack(rows) if rows else np.empty((0, self.loader.width), dtype=np.float32)

    def validate_and_enrich_chunk(self, chunk: Chunk, embedding: NDArray[np.float32]) -> dict[str, Any]:
        """A chunk with its embedding, or with what is wrong with that."""
        return self._enriched(chunk, embedding)

    def get_progress_summary(self) -> ProgressSummary:
        """How far the latest call of ``process_chunks`` is; may be asked from another thread."""
        with self._lock:
            done, total, seconds = self._done, self._total, time.monotonic() - self._begun
        rate = done / max(seconds, 1e-9)
        return ProgressSummary(
            done=done,
            total=total,
            percent=100.0 * done / total if total else 100.0,
            seconds=seconds,
            items_per_second=rate,
            seconds_left=(total - done) / rate if done else None,
        )

    def get_statistics(self) -> Statistics:
        """What was done since this object was made."""
        with self._lock:
            return self._statistics.copy()

    def _text_of(self, chunk: Chunk) -> str:
        if not isinstance(chunk, Mapping):
            raise ModelValidationError(f"expected a chunk with a text, got {type(chunk).__name__}.")
        if "text" not in chunk and "sequence" not in chunk:
            raise ModelValidationError("the chunk has neither 'text' nor 'sequence'.")
        text = chunk["text"] if "text" in chunk else chunk["sequence"]
        return check_text(text, self.loader.alphabet, self.loader.source.max_letters)

    def _enriched(self, chunk: Chunk, answer: _Answer) -> dict[str, Any]:
        if not isinstance(answer, Exception) and (found := self.validator.problems(answer)):
            answer = ModelValidationError(f"not an embedding: {'; '.join(found)}.")
        error = None
        if isinstance(answer, Exception):
            error = str(answer) if isinstance(answer, VirNucProError) else f"{type(answer).__name__}: {answer}"
        return {
            **(chunk if isinstance(chunk, Mapping) else {"text": chunk}),
            "embedding": answer if error is None else None,
            "error": error,
            "encoder": self.loader.name,
            "encoder_fingerprint": self.loader.fingerprint,
        }

    def _process(
        self, given: Sequence[Chunk], batch_size: int, num_workers: int, told: Callable[[int], None], retry_failed: bool
    ) -> list[dict[str, Any]]:
        begun = time.monotonic()
        texts: dict[int, str] = {}
        answers: dict[int, _Answer] = {}
        for number, chunk in enumerate(given):
            try:
                texts[number] = self._text_of(chunk)
            except ModelValidationError as error:
                answers[number] = error
        num_refused, batches = len(answers), chunk_list(texts, batch_size)

        def progress(num_batches: int, _: int) -> None:
            told(min(num_refused + num_batches * batch_size, len(given)))

        failed = self._embed(texts, batches, num_workers, answers, progress)
        retried = failed if retry_failed else []
        self._embed(texts, [[number] for number in retried], num_workers, answers, None)
        if not batches:
            told(len(given))
        enriched = [self._enriched(chunk, answers[number]) for number, chunk in enumerate(given)]
        num_failed, so_far = sum(chunk["error"] is not None for chunk in enriched), self._statistics
        with self._lock:
            so_far["processed"] += len(enriched) - num_failed
            so_far["failed"] += num_failed
            so_far["retried"] += len(retried)
            so_far["batches"] += len(batches) + len(retried)
            so_far["seconds"] += time.monotonic() - begun
            so_far["items_per_second"] = so_far["processed"] / max(so_far["seconds"], 1e-9)
        return enriched

    def _embed(
        self,
        texts: Mapping[int, str],
        batches: list[list[int]],
        num_workers: int,
        answers: dict[int, _Answer],
        progress: ProgressCallback | None,
    ) -> list[int]:
        """Compute batches and note what comes out; returns the numbers of the chunks whose batch failed."""
        if not batches:
            return []
        share = max(1, available_cpus() // num_workers)
        loader, in_processes = self.loader, not self.use_threading and num_workers > 1
        loader_of: Callable[[], ModelLoader] = (
            partial(_loader_of_process, loader.name, loader.precision, loader.device, share)
            if in_processes
            else lambda: loader
        )
        with torch_threads(share):
            results = run_parallel(
                [[texts[number] for number in batch] for batch in batches],
                partial(_embed_texts, loader_of, share),
                num_workers,
                self._desc,
                return_exceptions=True,
                processes=in_processes,
                progress=progress,
            )
        failed = []
        for batch, result in zip(batches, results, strict=True):
            if isinstance(result, Exception):
                _LOG.warning("a batch of %d chunks failed: %s", len(batch), result)
                failed += batch
                answers.update(dict.fromkeys(batch, result))
            else:
                answers.update(zip(batch, result, strict=True))
        return failed


def _embed_texts(loader_of: Callable[[], ModelLoader], num_threads: int, texts: list[str]) -> NDArray[np.float32]:
    """Embed some sequences with a share of the CPUs: threads that share every operation wait for one another."""
    import torch

    torch.set_num_threads(num_threads)  # of this thread alone
    return loader_of().encode(texts)


@lru_cache(maxsize=4)
def _loader_of_process(name: str, precision: str, device: str | None, num_threads: int) -> ModelLoader:
    from virnucpro.engine.threads import use_threads

    use_threads(num_threads)
    return ModelLoader(name, precision, device)
