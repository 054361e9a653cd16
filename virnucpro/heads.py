"""The head: a feature to two scores."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from virnucpro.errors import ModelError

DROPOUT = 0.5


class MLPHead(nn.Module):
    """Linear, BatchNorm, ReLU, Dropout, Linear to two logits (not virus, virus): the published shape.

    The names of the layers are those of the published heads (Li et al. 2025, bbaf224).

    Args:
        input_width: width of the feature.
        hidden_width: width of the hidden layer (512 in the published heads).
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
    def scores(self, *parts: torch.Tensor) -> torch.Tensor:
        """Softmax scores (N, 2) float32; column 1 is virus.

        Args:
            *parts: floats (N, any width), which side by side are the features; they are never laid side by side.

        Raises:
            ModelError: together they have another width than the head.
        """
        shapes = [tuple(part.shape) for part in parts]
        if any(len(shape) != 2 for shape in shapes) or sum(shape[1] for shape in shapes) != self.input_width:
            raise ModelError(
                f"the head takes features of width {self.input_width}, but these have shape "
                f"{', '.join(map(str, shapes))}: the encoders do not belong to this head."
            )
        self.eval()
        weights = torch.split(self.hidden_layer.weight, [part.shape[1] for part in parts], dim=1)
        hidden = self.hidden_layer.bias.expand(len(parts[0]), -1)
        for part, weight in zip(parts, weights, strict=True):
            hidden = torch.addmm(hidden, part.float(), weight.T)
        logits: torch.Tensor = self.output_layer(torch.relu(self.bn1(hidden)))
        return logits.softmax(dim=1)


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

    Args:
        path: where they come from.
        tensors: under the published names.

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
