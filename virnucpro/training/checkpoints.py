"""The file a training resumes from: networks, the optimiser of one of them and how far it is, in safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from virnucpro.atomic import atomic_write
from virnucpro.errors import ModelError, StoreError


@dataclass(frozen=True)
class Checkpoint:
    """Saves a training and puts it back."""

    path: Path | None  # None keeps nothing
    identity: str  # of recipe and data: a checkpoint of another is refused
    networks: Mapping[str, nn.Module]
    trained: str  # name of the network that the optimiser trains
    optimizer: torch.optim.Optimizer

    def save(self, **state: float) -> None:
        """Write the networks, the optimiser and numbers that say how far the training is; all or nothing."""
        if self.path is None:
            return
        tensors = {
            f"{name}.{part}": tensor.clone()
            for name, network in self.networks.items()
            for part, tensor in network.state_dict().items()
        }
        for name, parameter in self.networks[self.trained].named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items() if value is not None}
        metadata = {"identity": self.identity, "state": json.dumps(state)}
        with atomic_write(self.path) as part:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=metadata)

    def load(self) -> dict[str, float]:
        """Put back what was saved, into networks of the same shapes; the numbers, none where nothing was saved.

        Raises:
            ModelError: the file is of another recipe or other data.
            StoreError: it is damaged.
        """
        if self.path is None or not self.path.exists():
            return {}
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("identity") != self.identity:
                    raise ModelError(f"{self.path}: a checkpoint of another recipe. Use another --output, or --fresh.")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError as error:
            raise StoreError(self.path, f"is damaged ({error})") from error
        for name, network in self.networks.items():
            network.load_state_dict(_below(tensors, f"{name}."))
        for name, parameter in self.networks[self.trained].named_parameters():
            # The fused optimiser pairs numbers by their place in memory: moments take the parameter's own layout.
            found = _below(tensors, f"optimizer.{name}.")
            if found:
                moments = {k: torch.empty_like(parameter).copy_(v) if v.dim() else v for k, v in found.items()}
                self.optimizer.state[parameter] = moments
        state: dict[str, float] = json.loads(metadata["state"])
        return state


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
