"""What a measurement depends on: the device by name, its clock."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from virnucpro.encoders.device import parse_dtype


def device_name(device: torch.device) -> str:
    """Model of the GPU or of the processor. Starts CUDA for a CUDA device."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return processor_name() if device.type == "cpu" else f"{device.type} of {processor_name()}"


def processor_name() -> str:
    """Model of the processor, as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def dtype_name(wanted: str, device: str) -> str:
    """Torch's name of the float type that a run on ``device`` computes in; ``auto`` is decided.

    Raises:
        UsageError: there is no such type, or not on this device.
    """
    return str(parse_dtype(wanted, torch.device(device))).removeprefix("torch.")


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
