"""Saved measurements: one JSON file in the cache for each model, device, float type, CPU count and torch.

A profile holds what decides how fast a run is, and nothing that decides what it finds.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch

from virnucpro import stored_json
from virnucpro.atomic import write_json
from virnucpro.bundles import Bundle
from virnucpro.bundles.bundle import cache_dir
from virnucpro.encoders.device import device_name
from virnucpro.errors import StoreError
from virnucpro.resources import available_cpus
from virnucpro.settings import Positive
from virnucpro.stages.base import ROLES
from virnucpro.stored_json import Limits
from virnucpro.text import aligned, rate

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BudgetRate:
    """Throughput of one token budget."""

    token_budget: int  # most tokens in a batch
    tokens_per_second: float  # median over the runs
    rows_per_second: float  # of the same runs


@dataclass(frozen=True)
class Sweep:
    """All token budgets that were tried for one encoder."""

    kind: str  # of the encoder
    usual_budget: int  # what a run without a profile takes
    best_budget: int  # the smallest within 3 % of the fastest: more is noise, and costs memory
    ended: str  # why no larger budget was tried: all tried, no gain, time or memory
    rates: tuple[BudgetRate, ...]  # of the budgets, ascending


@dataclass(frozen=True)
class LayoutRate:
    """Throughput of one layout."""

    num_processes: int  # that embed at the same time
    num_threads: int  # of each
    loader_workers: int  # processes that read, tokenise and pack ahead, for each encoder of each process
    rows_per_second: float  # of all processes together
    peak_bytes: int  # most memory that one of them had resident


@dataclass(frozen=True)
class ProfileKey:
    """What a profile holds for, and nothing else."""

    fingerprint: str  # of the bundle
    device: str  # model of the GPU or of the processor
    dtype: str  # float type the encoders compute in
    num_cpus: int  # CPUs the process may use
    torch_version: str  # with its build, ``2.13.0+cpu``


@dataclass(frozen=True)
class Profile:
    """The settings that were found to be fastest."""

    key: ProfileKey  # what it holds for
    model: str  # name of the bundle, for people
    token_budgets: dict[str, Positive]  # role (nucleotide, protein) to the most tokens in a batch
    # processes that read, tokenise and pack ahead, for each encoder
    loader_workers: Annotated[int, Limits(ge=0, le=1 << 16)]
    num_processes: Positive  # worker processes on the CPU; 1 on a GPU
    threads: Positive  # CPU threads in all that were measured; ``num_processes`` holds for this many
    sweeps: dict[str, Sweep]  # role to what was measured of its token budgets
    layouts: tuple[LayoutRate, ...]  # what was measured of processes
    schema: Literal[2] = 2  # of the file


def key_of(bundle: Bundle, device: str, dtype: str) -> ProfileKey:
    """The key of a bundle on this machine."""
    return ProfileKey(
        bundle.fingerprint, device_name(torch.device(device)), dtype, available_cpus(), str(torch.__version__)
    )


def path_of(key: ProfileKey) -> Path:
    """Where the profile of ``key`` is kept."""
    text = json.dumps(asdict(key), sort_keys=True)
    return cache_dir() / "profiles" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def find(bundle: Bundle, device: str, dtype: str) -> Profile | None:
    """The profile for a run; None if none was made.

    A file that cannot be read or is wrong is ignored with a warning: a run does not depend on it.
    """
    key = key_of(bundle, device, dtype)
    path = path_of(key)
    try:
        found = stored_json.read(path, Profile) if path.exists() else None
    except (OSError, StoreError) as error:
        _log.warning("%s. The profile is not used; measure again: virnucpro profile", error)
        return None
    return found if found is not None and found.key == key and set(found.token_budgets) == set(ROLES) else None


def save(profile: Profile) -> Path:
    """Write a profile in the place of an older one, atomically.

    Raises:
        DiskFullError: no space is left.
    """
    path = path_of(profile.key)
    write_json(path, asdict(profile))
    return path


def forget(key: ProfileKey) -> bool:
    """Delete the profile of ``key``; returns whether there was one."""
    path = path_of(key)
    is_there = path.exists()
    path.unlink(missing_ok=True)
    return is_there


_MARK = "*"
_ENDED = {
    "all tried": "all budgets were tried",
    "no gain": "larger ones gained nothing",
    "time": "larger ones did not fit the time (--seconds)",
    "memory": "larger ones do not fit the memory",
}


def profile_text(profile: Profile) -> str:
    """All tables; ``*`` marks what a run takes."""
    key = profile.key
    head = (
        f"model {profile.model} ({key.fingerprint[:12]}) on {key.device}, {key.dtype}, "
        f"{profile.threads} of {key.num_cpus} CPUs, torch {key.torch_version}"
    )
    parts = [head]
    for role, sweep in profile.sweeps.items():
        rows = [("budget", "", "tokens/s", "rows/s")]
        for rates in sweep.rates:
            mark = _MARK if rates.token_budget == sweep.best_budget else ""
            rows.append((f"{rates.token_budget:,}", mark, rate(rates.tokens_per_second), rate(rates.rows_per_second)))
        kept = "" if any(row[1] for row in rows) else ", which was not tried and is kept"
        note = f"{_ENDED.get(sweep.ended, sweep.ended)}; without a profile: {sweep.usual_budget:,}{kept}"
        parts.append(f"{role} encoder ({sweep.kind})\n{aligned(rows, num_left=0)}\n{note}")
    rows = [("processes x threads", "loader workers", "", "rows/s")]
    for line in profile.layouts:
        is_best = (line.num_processes, line.loader_workers) == (profile.num_processes, profile.loader_workers)
        layout = f"{line.num_processes} x {line.num_threads}"
        rows.append((layout, str(line.loader_workers), _MARK if is_best else "", rate(line.rows_per_second)))
    return "\n\n".join([*parts, aligned(rows, num_left=0)])


def choice_text(profile: Profile) -> str:
    """What a run takes from the profile."""
    budgets = ", ".join(f"{role} {budget:,}" for role, budget in profile.token_budgets.items())
    chosen = f"token budgets: {budgets}; loader workers: {profile.loader_workers}"
    if profile.num_processes == 1:
        return chosen
    return f"{chosen}; with --parallel {profile.num_processes} processes, which is fastest here"
