"""What ``virnucpro doctor`` looks at: one finding for each thing that users' machines differ in."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from virnucpro import __version__
from virnucpro.bundles.bundle import cache_dir, load_bundle
from virnucpro.errors import VirNucProError
from virnucpro.registry import known_answers
from virnucpro.registry.inventory import Place, places_here, verify
from virnucpro.registry.receipts import read_receipt
from virnucpro.resources import available_cpus, free_memory_bytes
from virnucpro.text import size

State = Literal["OK", "WARN", "FAIL"]

_LOW_MEMORY_BYTES = 2 << 30
_LOW_DISK_BYTES = 1 << 30
_LARGEST_READ_BYTES = 1 << 30
_ATTENTION_RUNS = ((5, 2), (9, 1), (17, 1), (33, 1), (64, 1))
_ATTENTION_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
_NVIDIA = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"), Path("/dev/dxg"))


@dataclass(frozen=True)
class Finding:
    """One line."""

    name: str  # what was looked at
    state: State  # OK, WARN (it works, but) or FAIL (it does not work)
    text: str  # what was found, and what to do


def look(predict: known_answers.Predict) -> Iterator[Finding]:
    """Look at everything; findings come as they are made."""
    checks: list[tuple[str, Callable[[], tuple[State, str]]]] = [
        ("virnucpro", lambda: ("OK", f"{__version__} ({Path(__file__).parents[1]})")),
        ("python", lambda: ("OK", f"{platform.python_version()} on {platform.platform()} ({sys.executable})")),
        ("torch", _torch),
        ("devices", _devices),
        ("attention", _attention),
        ("cpus", _cpus),
        ("memory", _memory),
        ("disk, models", partial(_disk, cache_dir())),
        ("disk, here", partial(_disk, Path.cwd())),
        ("libraries", _libraries),
        *((f"model {place.name}", partial(_model, place)) for place in places_here()),
        ("self-test", lambda: check_answers(load_bundle("lite").folder, predict)),
    ]
    for name, check in checks:
        try:
            state, text = check()
        except (VirNucProError, OSError, RuntimeError, ImportError) as error:
            first = str(error).strip().splitlines() or [""]
            state, text = "FAIL", f"{type(error).__name__}: {first[0]}"
        yield Finding(name, state, text)


def check_answers(folder: Path, predict: known_answers.Predict) -> tuple[State, str]:
    """Ask the bundle in ``folder`` what it is known to answer.

    Raises:
        ModelError: the bundle or its answers cannot be read.
    """
    known = known_answers.read_answers(folder)
    fingerprint = load_bundle(str(folder)).fingerprint
    short = fingerprint[:12]
    if known is None:
        return "WARN", f"{folder} has no {known_answers.FILE}: the model {short} runs unchecked. Reinstall the program."
    if known.fingerprint != fingerprint:
        return "FAIL", (
            f"{folder / known_answers.FILE} is about model {known.fingerprint[:12]}, here is {short}: reinstall the "
            f"program; after training, run: virnucpro models record --answers {folder}"
        )
    answers = known_answers.ask(predict)
    worst = max(abs(one - other) for one, other in zip(answers, known.p_virus, strict=True))
    text = f"model {short} gives its {len(answers)} known answers; largest difference {worst:.4f}"
    if worst <= known_answers.TOLERANCE + 1e-9:
        return "OK", text
    pairs = ", ".join(f"{one:.4f} for {other:.4f}" for one, other in zip(answers, known.p_virus, strict=True))
    return "FAIL", (
        f"model {short} answers {pairs}: numbers of this machine are not to be trusted. "
        "Reinstall torch, and report it with this output."
    )


def _torch() -> tuple[State, str]:
    import torch  # noqa: PLC0415 - one of the things that may be broken

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    mps = "MPS" if torch.backends.mps.is_available() else "no MPS"
    text = f"{torch.__version__}, built with {cuda}, {mps}"
    if not torch.cuda.device_count() and any(path.exists() for path in _NVIDIA):
        why = "cannot use it (see nvidia-smi)" if torch.version.cuda else "is built without CUDA: install one that is"
        return "WARN", f"{text}; an NVIDIA driver is here, but this torch {why}"
    return "OK", text


def _devices() -> tuple[State, str]:
    import torch  # noqa: PLC0415

    from virnucpro.encoders.device import check_dtype, choose_devices, default_dtype, describe  # noqa: PLC0415
    from virnucpro.errors import UsageError  # noqa: PLC0415

    texts = []
    for name in choose_devices():
        device = torch.device(name)
        known = []
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            try:
                check_dtype(device, dtype)
                (torch.ones(2, 2, device=device, dtype=dtype) @ torch.ones(2, 2, device=device, dtype=dtype)).sum()
            except (UsageError, RuntimeError, TypeError):
                continue
            known.append(str(dtype).removeprefix("torch."))
        facts = "".join(f", {what} {value}" for what, value in describe(device).items())
        default = str(default_dtype(device)).removeprefix("torch.")
        texts.append(f"{name}{facts} in {default} (can: {', '.join(known)})")
    return "OK", "; ".join(texts)


def _attention() -> tuple[State, str]:
    """Run the attention that a run on the first device would, and compare it with 64 bits on the CPU."""
    import torch  # noqa: PLC0415

    from virnucpro.encoders.attention import attention_on, dense_attention, varlen_kernel  # noqa: PLC0415
    from virnucpro.encoders.device import choose_devices, default_dtype  # noqa: PLC0415

    device = torch.device(choose_devices()[0])
    dtype = default_dtype(device)
    num_tokens = sum(length * count for length, count in _ATTENTION_RUNS)
    states = torch.randn(3, num_tokens, 4, 64, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    with torch.inference_mode():
        found, exact = (
            dense_attention(x[0], x[1], x[2], _ATTENTION_RUNS).double().cpu() for x in (states, states.double().cpu())
        )
        if device.type == "cuda" and dtype != torch.float32:
            varlen_kernel(device, dtype, 4, 64)  # is compared with the dense one as it is chosen
    worst, name = float((found - exact).abs().max()), str(dtype).removeprefix("torch.")
    text = f"on {device} in {name} within {worst:.1e} of 64 bits; mixed lengths by {attention_on(device)}"
    return ("OK" if worst <= _ATTENTION_TOLERANCE[name] else "FAIL"), text


def _cpus() -> tuple[State, str]:
    import torch  # noqa: PLC0415

    return "OK", (
        f"{available_cpus()} may be used of {os.cpu_count()}; torch starts with {torch.get_num_threads()} threads "
        "(a run takes --threads)"
    )


def _memory() -> tuple[State, str]:
    free = free_memory_bytes()
    text = f"{size(free)} free"
    if free < _LOW_MEMORY_BYTES:
        return "WARN", f"{text}: the bundled model needs about {size(_LOW_MEMORY_BYTES)}"
    return "OK", text


def _disk(place: Path) -> tuple[State, str]:
    there = next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    text = f"{place}: {size(free)} free" + ("" if there == place else " (not made yet)")
    if not os.access(there, os.W_OK):
        return "WARN", f"{text}, but it cannot be written to; set VIRNUCPRO_CACHE to keep models elsewhere"
    return ("WARN" if free < _LOW_DISK_BYTES else "OK"), text


def _libraries() -> tuple[State, str]:
    found, missing = [], []
    for required in metadata.requires("virnucpro") or ():
        name, _, marker = required.partition(";")
        if marker:  # of an extra, or of some systems
            continue
        name = re.split(r"[^\w.-]", name)[0]
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return "FAIL", f"{', '.join(missing)} not installed; found {', '.join(found)}"
    return "OK", ", ".join(found)


def _model(place: Place) -> tuple[State, str]:
    receipt = read_receipt(place.folder)
    if receipt is None:
        how = place.name if place.part else place.folder
        return "WARN", f"{place.folder}: no record of its SHA-256; to make one: virnucpro models record {how}"
    text = f"{place.folder}: {len(receipt.files)} files, {size(receipt.size_bytes)}"
    if receipt.size_bytes > _LARGEST_READ_BYTES:
        if receipt.problems(place.folder, reads_content=False):
            return "FAIL", f"{text}: incomplete; see 'virnucpro models verify {place.name}'"
        return "OK", f"{text}, sizes as recorded; 'virnucpro models verify {place.name}' reads it all"
    problems = verify(place)
    if problems:
        return "FAIL", "; ".join(map(str, problems))
    named = f", fingerprint {receipt.fingerprint[:12]}" if receipt.fingerprint else ""
    return "OK", f"{text}, SHA-256 as recorded{named}"
