"""The file a training goes on from: networks and their optimiser, in safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from virnucpro.atomic import atomic_write
from virnucpro.errors import StoreError


def save_checkpoint(
    path: Path,
    networks: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    trained: str,
    metadata: dict[str, str],
) -> None:
    """Write all networks, and the optimiser of the one named ``trained``; the file appears complete or not at all."""
    tensors = {
        f"{name}.{part}": tensor.clone()
        for name, network in networks.items()
        for part, tensor in network.state_dict().items()
    }
    for name, parameter in networks[trained].named_parameters():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items() if value is not None}
    with atomic_write(path) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """What ``save_checkpoint`` was told.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise StoreError(path, f"is damaged ({error})") from error


def load_checkpoint(
    path: Path, networks: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, trained: str
) -> None:
    """Put back what ``save_checkpoint`` wrote into networks of the same shapes."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    for name, network in networks.items():
        network.load_state_dict(_below(tensors, f"{name}."))
    for name, parameter in networks[trained].named_parameters():
        # The fused optimiser pairs numbers by their place in memory: moments take the parameter's own layout.
        found = _below(tensors, f"optimizer.{name}.")
        moments = {k: torch.empty_like(parameter).copy_(v) if v.dim() else v for k, v in found.items()}
        if moments:
            optimizer.state[parameter] = moments


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
