"""Which devices to use. Nothing here starts CUDA."""

from __future__ import annotations

import logging
import os
import platform
import re
from pathlib import Path

import torch

from virnucpro.errors import UsageError

_LOG = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "could not create a primitive",  # oneDNN
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
    "MPS backend out of memory",
)
"""How libraries below PyTorch say that memory is short, without a class for it."""
_TF32_SWITCHES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
_CUDA_NAME = r"(GPU|MIG)-[0-9A-Za-z/-]+"


def choose_devices(device: str = "auto", gpus: str | None = None) -> list[str]:
    """Choose the devices of a run and log why.

    Args:
        device: ``auto`` (every visible CUDA device, else Apple's, else the CPU), ``cpu``, ``cuda`` (every visible
            one), ``cuda:N`` (the N-th visible one) or ``mps``.
        gpus: numbers as ``nvidia-smi`` shows them, such as ``2,3``, or names of cards or their parts (``GPU-...``,
            ``MIG-...``); looked up in ``CUDA_VISIBLE_DEVICES`` where that is set.

    Returns:
        torch device names, at least one, none twice.

    Raises:
        UsageError: a device is not there, or the two options contradict each other.
    """
    # Numbers are then those of nvidia-smi; CUDA alone would number the fastest card first.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if gpus is not None:
        if device not in ("auto", "cuda"):
            raise UsageError(f"--gpus {gpus} contradicts --device {device}: give one of them.")
        if re.match(_CUDA_NAME, gpus.strip()):
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", gpus.replace(" ", ""))  # workers inherit it
    num_cuda = torch.cuda.device_count()  # asks the driver, makes no context
    if gpus is not None:
        chosen, reason = visible_devices(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"), num_cuda), f"--gpus {gpus}"
    elif device == "auto":
        chosen, reason = _best_devices(num_cuda)
    else:
        chosen, reason = _named_devices(device, num_cuda), f"--device {device}"
    _LOG.info("devices: %s (%s)", ", ".join(chosen), reason)
    return chosen


def visible_devices(gpus: str, visible: str | None, num_visible: int) -> list[str]:
    """Translate numbers or names of cards to torch's.

    Args:
        gpus: numbers or names, comma-separated.
        visible: value of ``CUDA_VISIBLE_DEVICES``, None when it is not set.
        num_visible: how many devices torch sees.

    Raises:
        UsageError: neither numbers nor names, one of them twice, or a device that is not visible.
    """
    if not re.fullmatch(rf"\s*(\d+|{_CUDA_NAME})\s*(,\s*(\d+|{_CUDA_NAME})\s*)*", gpus):
        raise UsageError(f"--gpus takes numbers such as 0,1, or names such as GPU-1f2e... or MIG-..., not {gpus!r}.")
    wanted = [str(int(name)) if name.strip().isdecimal() else name.strip() for name in gpus.split(",")]
    if len(set(wanted)) < len(wanted):
        raise UsageError(f"--gpus {gpus} names a device twice.")
    seen = [str(number) for number in range(num_visible)] if visible is None else visible.split(",")
    position = {name.strip(): index for index, name in enumerate(seen) if index < num_visible}
    missing = [name for name in wanted if name not in position]
    if missing:
        source = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        raise UsageError(
            f"GPU {', '.join(missing)} is not there: visible are {', '.join(position) or 'none'}{source}. "
            "Name others in --gpus, or use --device cpu."
        )
    return [f"cuda:{position[name]}" for name in wanted]


def prepare(device: torch.device) -> None:
    """Set what holds for all computing on ``device`` in this process, before its first kernel."""
    torch.set_float32_matmul_precision("highest")  # float32 means float32, not TF32
    if device.type != "cuda":
        return
    torch.backends.cudnn.allow_tf32 = False
    torch.cuda.set_device(device)
    # cuDNN plans each new shape for 0.06 to 0.44 s, and a unit has some twenty.
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    for name in _TF32_SWITCHES:
        if os.environ.get(name, "0") != "0":
            _LOG.warning("%s=%s is set: products in float32 are rounded to TF32.", name, os.environ[name])


def describe(device: torch.device) -> dict[str, str | float]:
    """What a run record says of a card: its name, memory, driver and the versions that drive it; empty without one."""
    if device.type != "cuda":
        return {}
    card, driver = torch.cuda.get_device_properties(device), Path("/proc/driver/nvidia/version")
    text = driver.read_text(encoding="ascii", errors="replace") if driver.exists() else ""
    version = re.search(r"Kernel Module\D*([\d.]+)", text)
    return {
        "name": card.name,
        "memory_gib": round(card.total_memory / (1 << 30), 1),
        "capability": f"{card.major}.{card.minor}",
        "driver": version[1] if version else "unknown",
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "tf32": ", ".join(f"{name}={os.environ[name]}" for name in _TF32_SWITCHES if name in os.environ) or "off",
    }


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, of the device or of this machine, whoever says so."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


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


def dtype_name(wanted: str, device: str) -> str:
    """Torch's name of the float type that a run on ``device`` computes in; ``auto`` is decided.

    Raises:
        UsageError: there is no such type, or not on this device.
    """
    return str(parse_dtype(wanted, torch.device(device))).removeprefix("torch.")


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


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


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
