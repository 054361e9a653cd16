"""Embeddings as a product: encoders by name, chunks with metadata, files and a cache.

    >>> from virnucpro.embeddings import EmbeddingGenerator
    >>> chunks = EmbeddingGenerator("lite:nucleotide").process_chunks([{"id": "a", "text": "ACGT" * 30}])
    >>> chunks[0]["id"], chunks[0]["embedding"].dtype, chunks[0]["error"]
    ('a', dtype('float32'), None)

Importing this package imports no torch; the first embedding does.
"""

from __future__ import annotations

from virnucpro.embeddings.generator import Chunk, EmbeddingGenerator, ProgressSummary, Statistics
from virnucpro.embeddings.loader import ModelLoader, ModelLoadError
from virnucpro.embeddings.validation import EmbeddingValidator, ModelValidationError

__all__ = [
    "Chunk",
    "EmbeddingGenerator",
    "EmbeddingValidator",
    "ModelLoadError",
    "ModelLoader",
    "ModelValidationError",
    "ProgressSummary",
    "Statistics",
]
