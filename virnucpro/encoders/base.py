"""The seam every encoder fits.

An encoder is one safetensors file: its tensors, and in the metadata ``config`` (JSON with ``kind``,
the registry key, and every width and depth) and, where the tokenizer needs one, ``tokenizer`` (JSON).
Adding an encoder is one module with a class that has this shape, and one line in
``virnucpro/encoders/__init__.py``.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch

from virnucpro.engine.batch import PackedBatch
from virnucpro.sequence.ragged import Ragged

Alphabet = Literal["nt", "aa"]


class Tokenizer(Protocol):
    """Turns sequences into tokens. Holds no weights and can be pickled: it runs in DataLoader workers."""

    def __call__(self, sequences: Ragged) -> Ragged:
        """Tokenise upper-case ASCII sequences; the result has int32 values and one item per sequence."""
        ...


class Encoder(Protocol):
    """A network with its weights on one device."""

    kind: str
    alphabet: Alphabet
    width: int
    cpu_token_budget: int
    """Tokens in a batch that suit a CPU core: wide layers fall out of its cache, look-ups want many at once."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The weight-free tokenizer that makes this encoder's tokens."""
        ...

    def embed(self, batch: PackedBatch) -> torch.Tensor:
        """Embed each sequence of the batch: (S, width) float32, pooled in float32, on the batch's device.

        The runner never passes an empty sequence: its embedding is zero by definition. On a CPU several threads call
        at the same time, each with a batch of its own.
        """
        ...
