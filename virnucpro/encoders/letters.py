"""What small encoders that read one token a letter have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from virnucpro.encoders.base import Alphabet
from virnucpro.encoders.layers import FEWEST_ROWS
from virnucpro.encoders.ngram_bag import left_empty, pack_bags, unpack_bags
from virnucpro.encoders.weights import check_tensors, setting
from virnucpro.engine.batch import PackedBatch
from virnucpro.sequence.ragged import Ragged

MAX_ROWS = 128
"""Rows a forward pass: more does not fit the caches of a CPU core."""


@dataclass(frozen=True)
class LetterTokenizer:
    """One token a letter."""

    codes: NDArray[np.int32]  # (256,) int32, the token of each byte

    def __call__(self, sequences: Ragged) -> Ragged:
        """Look each letter up."""
        return Ragged(self.codes[sequences.values], sequences.offsets)


class LetterEncoder:
    """A network from letter codes (B, N) of one length to embeddings (B, width), with its weights.

    On a CPU the bits of a row do not depend on the others of its batch (``layers.FEWEST_ROWS``).

    A subclass names its network, the network's shape (a dataclass with ``width``, given to its constructor and kept
    as ``shape``) and how letters become codes.
    """

    kind: ClassVar[str]  # registry key
    alphabet: ClassVar[Alphabet]  # what it reads
    cpu_token_budget: ClassVar[int]  # see ``encoders.base.Encoder``
    network_class: ClassVar[type[Any]]  # of the network
    shape_class: ClassVar[type[Any]]  # of the network's shape
    codes: ClassVar[NDArray[np.int32]]  # (256,) int32, the token of each byte
    min_length: ClassVar[int]  # shorter strings are filled at the end, so that every bag and frame exists
    filler: ClassVar[int]  # the token they are filled with

    def __init__(self, network: Any) -> None:  # noqa: ANN401 - of ``network_class``
        self.network = network.eval()
        self.width: int = network.shape.width
        self.tokenizer = LetterTokenizer(self.codes)

    @classmethod
    def from_tensors(
        cls, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], tokenizer_json: str | None = None
    ) -> Self:
        """Build the network from a file's ``config`` and tensors (tables of bags in 8 bits, or all in float)."""
        del tokenizer_json
        widths = {field.name: setting(config, field.name) for field in fields(cls.shape_class)}
        shape = cls.shape_class(**{name: tuple(w) if isinstance(w, list) else w for name, w in widths.items()})
        tensors = unpack_bags(tensors)
        with left_empty():
            network = cls.network_class(shape)
        check_tensors(tensors, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
        network.load_state_dict(tensors, assign=True)
        network.to(next(iter(tensors.values())).device, memory_format=torch.channels_last)
        return cls(network)

    @classmethod
    def tokenizer_from(cls, config: Mapping[str, Any], tokenizer_json: str | None = None) -> LetterTokenizer:
        """The tokenizer; it has no settings."""
        del config, tokenizer_json
        return LetterTokenizer(cls.codes)

    def config(self) -> dict[str, Any]:
        """What ``from_tensors`` needs beside the tensors."""
        return {"kind": self.kind, "alphabet": self.alphabet, **asdict(self.network.shape)}

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors as they are stored: the tables of bags in 8 bits."""
        return pack_bags(self.network.state_dict())

    @torch.inference_mode()
    def embed(self, batch: PackedBatch) -> torch.Tensor:
        """Embed each sequence, some of a run of equal lengths at a time: (S, width) float32."""
        parts: list[torch.Tensor] = []
        first = 0
        for length, count in batch.runs():
            codes = batch.input_ids[first : first + length * count].view(count, length)
            first += length * count
            if length < self.min_length:
                codes = pad(codes, (0, self.min_length - length), value=self.filler)
            parts.extend(codes[k : k + MAX_ROWS] for k in range(0, count, MAX_ROWS))
        return torch.cat([self._embed(part) for part in parts])

    def _embed(self, codes: torch.Tensor) -> torch.Tensor:
        padding = codes[:1].expand(max(0, FEWEST_ROWS - len(codes)), -1)
        embeddings: torch.Tensor = self.network(torch.cat([codes, padding]) if len(padding) else codes)
        return embeddings[: len(codes)]
