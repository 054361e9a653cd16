"""Which devices to use, and how many CPUs there really are. Nothing here starts CUDA."""

from __future__ import annotations

import logging
import math
import os
import re
from pathlib import Path

import torch

from virnucpro.errors import UsageError

_LOG = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_devices(device: str = "auto", gpus: str | None = None) -> list[str]:
    """Choose the devices of a run and log why.

    Args:
        device: ``auto`` (every visible CUDA device, else Apple's, else the CPU), ``cpu``, ``cuda`` (every visible
            one), ``cuda:N`` (the N-th visible one) or ``mps``.
        gpus: physical numbers such as ``2,3``; looked up in ``CUDA_VISIBLE_DEVICES`` where that is set.

    Returns:
        torch device names, at least one, none twice.

    Raises:
        UsageError: a device is not there, or the two options contradict each other.
    """
    num_cuda = torch.cuda.device_count()  # asks the driver, makes no context
    if gpus is not None:
        if device not in ("auto", "cuda"):
            raise UsageError(f"--gpus {gpus} contradicts --device {device}: give one of them.")
        chosen, reason = visible_devices(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"), num_cuda), f"--gpus {gpus}"
    elif device == "auto":
        chosen, reason = _best_devices(num_cuda)
    else:
        chosen, reason = _named_devices(device, num_cuda), f"--device {device}"
    _LOG.info("devices: %s (%s)", ", ".join(chosen), reason)
    return chosen


def visible_devices(gpus: str, visible: str | None, num_visible: int) -> list[str]:
    """Translate physical device numbers to torch names.

    Args:
        gpus: physical numbers, comma-separated.
        visible: value of ``CUDA_VISIBLE_DEVICES``, None when it is not set.
        num_visible: how many devices torch sees.

    Raises:
        UsageError: not numbers, a number twice, or a device that is not visible.
    """
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", gpus):
        raise UsageError(f"--gpus takes numbers such as 0,1, not {gpus!r}.")
    wanted = [int(number) for number in gpus.split(",")]
    if len(set(wanted)) < len(wanted):
        raise UsageError(f"--gpus {gpus} names a device twice.")
    seen = [str(number) for number in range(num_visible)] if visible is None else visible.split(",")
    position = {name.strip(): index for index, name in enumerate(seen) if index < num_visible}
    missing = [str(number) for number in wanted if str(number) not in position]
    if missing:
        source = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        raise UsageError(
            f"GPU {', '.join(missing)} is not there: visible are {', '.join(position) or 'none'}{source}. "
            "Name others in --gpus, or use --device cpu."
        )
    return [f"cuda:{position[str(number)]}" for number in wanted]


def default_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 (float16 on cards before Ampere) on CUDA, float32 elsewhere. Starts CUDA for a CUDA device."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def parse_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype called ``auto``, ``float32``, ``bfloat16``, ``float16``.

    Raises:
        UsageError: no such dtype, or not on this device.
    """
    if name == "auto":
        return default_dtype(device)
    if name not in _DTYPES:
        raise UsageError(f"precision {name!r} is unknown; choose auto, {', '.join(_DTYPES)}.")
    check_dtype(device, _DTYPES[name])
    return _DTYPES[name]


def check_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what a device cannot compute, or, as float16 on a CPU, only 20 times slower than bfloat16.

    Raises:
        UsageError: it is asked for.
    """
    if device.type == "cpu" and dtype == torch.float16:
        raise UsageError("float16 is 20 times slower than bfloat16 on a CPU: choose float32 or bfloat16.")


def slowness(device: torch.device, dtype: torch.dtype) -> str | None:
    """Say what is slow about a dtype that a device imitates; None of one that it has."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return None
    try:
        is_native: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001 - there is no public name
    except (AttributeError, RuntimeError):
        return None
    if is_native:
        return None
    return "this CPU imitates bfloat16, which takes several times as long as --dtype float32"


def available_cpus(system: Path = Path("/")) -> int:
    """Return the number of CPUs this process may keep busy: affinity, and the quota of its control groups.

    Args:
        system: where ``sys`` and ``proc`` lie.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for quota in (_quota_v2(system), _quota_v1(system)) if quota is not None]
    return max(1, min([allowed, *(math.ceil(quota) for quota in quotas)]))


def _best_devices(num_cuda: int) -> tuple[list[str], str]:
    if num_cuda:
        return [f"cuda:{number}" for number in range(num_cuda)], "all CUDA devices; --gpus or --device cpu for less"
    if torch.backends.mps.is_available():
        return ["mps"], "no CUDA device, Apple GPU found"
    return ["cpu"], "no GPU found"


def _named_devices(device: str, num_cuda: int) -> list[str]:
    if device == "cpu":
        return ["cpu"]
    if device == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("--device mps: this machine has no Apple GPU that torch can use. Use --device cpu.")
        return ["mps"]
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if match is None:
        raise UsageError(f"--device {device} is unknown; choose auto, cpu, cuda, cuda:N or mps.")
    numbers = range(num_cuda) if match[1] is None else [int(match[1])]
    if not numbers or max(numbers) >= num_cuda:
        raise UsageError(f"--device {device}: torch sees {num_cuda} CUDA devices. Use --device auto or cpu.")
    return [f"cuda:{number}" for number in numbers]


def _quota_v2(system: Path) -> float | None:
    """Return the smallest CPU quota from this process's group up to the root (cgroup v2)."""
    mount = system / "sys/fs/cgroup"
    group = next((line[3:] for line in _lines(system / "proc/self/cgroup") if line.startswith("0::")), "/")
    here = mount / group.lstrip("/")
    folders = [here, *here.parents][: len(here.relative_to(mount).parts) + 1] if ".." not in group else [mount]
    quotas = []
    for folder in folders:
        for line in _lines(folder / "cpu.max"):
            quota, _, period = line.partition(" ")
            if quota != "max":
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _quota_v1(system: Path) -> float | None:
    folder = system / "sys/fs/cgroup/cpu"
    quota, period = _lines(folder / "cpu.cfs_quota_us"), _lines(folder / "cpu.cfs_period_us")
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split("\n")[:-1]
    except OSError:
        return []
