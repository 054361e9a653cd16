"""The head: a feature to two scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from virnucpro.encoders.layers import Linear
from virnucpro.errors import ModelError

DROPOUT = 0.5


class MLPHead(nn.Module):
    """Linear, BatchNorm, ReLU, Dropout, Linear to two logits (not virus, virus): the published shape.

    The names of the layers are those of the published heads (Li et al. 2025, bbaf224).
    """

    def __init__(self, input_width: int, hidden_width: int) -> None:
        super().__init__()
        self.input_width = input_width
        self.hidden_layer = nn.Linear(input_width, hidden_width)
        self.bn1 = nn.BatchNorm1d(hidden_width)
        self.dropout = nn.Dropout(DROPOUT)
        self.output_layer = nn.Linear(hidden_width, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, 2) of features (N, input_width)."""
        hidden = self.dropout(torch.relu(self.bn1(self.hidden_layer(features))))
        logits: torch.Tensor = self.output_layer(hidden)
        return logits

    @torch.inference_mode()
    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Softmax scores (N, 2) float32 of features (N, input_width); column 1 is virus.

        Raises:
            ModelError: the features have another width than the head.
        """
        if features.ndim != 2 or features.shape[1] != self.input_width:
            raise ModelError(
                f"the head takes features of width {self.input_width}, but these have shape {tuple(features.shape)}: "
                "the encoders do not belong to this head."
            )
        self.eval()
        logits: torch.Tensor = self(features.float())
        return logits.softmax(dim=1)


class PackedHead:
    """A head laid out for scoring many rows; it gives the scores of ``MLPHead.scores`` to 1e-6.

    The batch normalisation is part of the first layer, whose weights are cut along the parts of the features and lie as
    the processor reads them fastest. On a CPU the bits of a row's scores do not depend on how many rows there are.

    Args:
        head: later changes to its weights are not seen.
        widths: of the parts, which side by side are the features.

    Raises:
        ModelError: together they have another width than the head.
    """

    @torch.no_grad()
    def __init__(self, head: MLPHead, widths: Sequence[int]) -> None:
        if sum(widths) != head.input_width:
            raise ModelError(
                f"the head takes features of width {head.input_width}, but the embeddings have the widths "
                f"{', '.join(map(str, widths))}: the encoders do not belong to this head."
            )
        mean, variance = head.get_buffer("bn1.running_mean"), head.get_buffer("bn1.running_var")
        scale = head.bn1.weight / torch.sqrt(variance + head.bn1.eps)
        bias = (head.hidden_layer.bias - mean) * scale + head.bn1.bias
        first, *others = torch.split(head.hidden_layer.weight * scale[:, None], list(widths), dim=1)
        self._hidden_layers = [Linear(first, bias), *(Linear(part, None) for part in others)]
        self._output_layer = Linear(head.output_layer.weight, head.output_layer.bias)

    @torch.inference_mode()
    def scores(self, *parts: torch.Tensor) -> torch.Tensor:
        """Softmax scores (N, 2) float32; column 1 is virus.

        Args:
            *parts: floats (N, width), one for each of the widths.
        """
        hidden, *others = (layer(part.float()) for layer, part in zip(self._hidden_layers, parts, strict=True))
        for other in others:
            hidden += other
        return self._output_layer(hidden.relu_()).softmax(dim=1)


def save_head(path: Path, head: MLPHead, metadata: dict[str, object]) -> None:
    """Write a head to a safetensors file; ``metadata`` goes into the file's header as JSON."""
    tensors = {name: tensor.contiguous() for name, tensor in head.state_dict().items()}
    save_file(tensors, path, metadata={"head": json.dumps(metadata)})


def load_head(path: Path) -> MLPHead:
    """Read a head; its widths come from its tensors.

    Raises:
        ModelError: the file is missing, damaged, or is no head.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError as error:
        raise ModelError(f"{path}: there is no such head. Check the bundle's `head` entry.") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}). Get the file again.") from error
    return head_from_tensors(path, tensors)


def head_from_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> MLPHead:
    """Make a head of its tensors, which say its widths.

    Raises:
        ModelError: they are not those of a head.
    """
    hidden = tensors.get("hidden_layer.weight")
    if hidden is None or hidden.ndim != 2:
        raise ModelError(f"{path}: holds no `hidden_layer.weight`, so it is not a head. Found: {sorted(tensors)}.")
    head = MLPHead(hidden.shape[1], hidden.shape[0])
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"{path}: the tensors do not fit a head of this width: {error}") from error
    return head.eval()
