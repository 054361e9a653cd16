"""Saved measurements: one JSON file in the cache for each model, device, float type, CPU count and torch.

A profile holds what decides how fast a run is, and nothing that decides what it finds.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from virnucpro.bundles import Bundle
from virnucpro.bundles.bundle import cache_dir
from virnucpro.encoders.device import available_cpus
from virnucpro.machine.machine import device_name
from virnucpro.run_dir import write_json
from virnucpro.stages.base import ROLES

SCHEMA = 1
_log = logging.getLogger(__name__)

READING, PACKING, WAITING, COMPUTE, COPYING, WRITING, OTHER = PARTS = (
    "reading",
    "tokenising, packing",
    "waiting",
    "compute",
    "copying, checking",
    "writing",
    "other",
)
"""Reading and packing are in loader processes where there are any: they then show as waiting, or not at all."""


@dataclass(frozen=True)
class BudgetRate:
    """What one token budget gave.

    Attributes:
        token_budget: most tokens in a batch.
        tokens_per_second: median over the runs, of packed tokens to embeddings in the memory of the host.
        rows_per_second: of the same runs.
        mfu: share of the machine's matrix rate that the encoder's arithmetic used; None for look-up encoders.
        num_runs: how many.
    """

    token_budget: int
    tokens_per_second: float
    rows_per_second: float
    mfu: float | None
    num_runs: int


@dataclass(frozen=True)
class Sweep:
    """All budgets of one encoder.

    Attributes:
        kind: of the encoder.
        usual_budget: what is taken without a profile.
        best_budget: the smallest within 3 % of the fastest: what is gained beyond is noise, and memory is lost. The
            usual one where time did not suffice to try it: nothing speaks against it.
        matmul_flops: operations a second the machine reaches in the encoder's widest layer; None for look-ups.
        ended: why no larger budget was tried.
        rates: of the budgets, ascending.
    """

    kind: str
    usual_budget: int
    best_budget: int
    matmul_flops: float | None
    ended: str
    rates: tuple[BudgetRate, ...]

    @property
    def rows_per_second(self) -> float:
        """Of the best budget, or of the fastest where that one was not tried."""
        at_best = (rate for rate in self.rates if rate.token_budget == self.best_budget)
        return next(at_best, max(self.rates, key=lambda rate: rate.rows_per_second)).rows_per_second


@dataclass(frozen=True)
class LoaderRate:
    """What a number of loader processes gave.

    Attributes:
        num_workers: for each encoder; 0 prepares units between the batches, in the process that computes.
        rows_per_second: from the first unit that came out to the last.
    """

    num_workers: int
    rows_per_second: float


@dataclass(frozen=True)
class LayoutRate:
    """What a layout gave.

    Attributes:
        num_processes: at the same time.
        num_threads: of each.
        rows_per_second: of all of them together.
        peak_bytes: most memory one of them had resident.
    """

    num_processes: int
    num_threads: int
    rows_per_second: float
    peak_bytes: int


@dataclass(frozen=True)
class Timeline:
    """Seconds of a unit.

    Attributes:
        num_rows: of the unit, on average.
        wall_seconds: from the shards of one unit to those of the next.
        seconds: part (``PARTS``) to seconds; they add up to ``wall_seconds``.
    """

    num_rows: float
    wall_seconds: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """All figures of a profile.

    Attributes:
        sweeps: role to the sweep of its token budgets.
        loaders: rates for numbers of loader processes.
        timeline: of a unit, at the best budgets and loader processes.
        layouts: rates for processes and threads; empty on a GPU and with one thread.
    """

    sweeps: dict[str, Sweep]
    loaders: tuple[LoaderRate, ...]
    timeline: Timeline
    layouts: tuple[LayoutRate, ...]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The figures as :func:`save` wrote them.

        Raises:
            KeyError: one is missing.
            TypeError: one is unknown or missing.
        """
        sweeps = {
            role: Sweep(**{**sweep, "rates": tuple(BudgetRate(**rate) for rate in sweep["rates"])})
            for role, sweep in content["sweeps"].items()
        }
        return cls(
            sweeps,
            tuple(LoaderRate(**rate) for rate in content["loaders"]),
            Timeline(**content["timeline"]),
            tuple(LayoutRate(**rate) for rate in content["layouts"]),
        )


@dataclass(frozen=True)
class ProfileKey:
    """What a profile holds for, and for nothing else.

    Attributes:
        fingerprint: of the bundle.
        device: model of the GPU or of the processor.
        dtype: float type the encoders compute in.
        num_cpus: CPUs the process may use.
        torch_version: with its build, ``2.13.0+cpu``.
    """

    fingerprint: str
    device: str
    dtype: str
    num_cpus: int
    torch_version: str


@dataclass(frozen=True)
class Profile:
    """What was found to be fastest.

    Attributes:
        key: what it holds for.
        model: name of the bundle, for people.
        token_budgets: role (nucleotide, protein) to the most tokens in a batch.
        loader_workers: processes that read, tokenise and pack ahead, for each encoder.
        num_processes: worker processes on the CPU; 1 on a GPU.
        threads: CPU threads in all that were measured; ``num_processes`` holds for this many.
        measured: the figures it was made from.
    """

    key: ProfileKey
    model: str
    token_budgets: dict[str, int]
    loader_workers: int
    num_processes: int
    threads: int
    measured: Measured


def key_of(bundle: Bundle, device: str, dtype: str) -> ProfileKey:
    """The key of a bundle on this machine.

    Args:
        bundle: the model.
        device: torch's name of it.
        dtype: torch's name of the float type.
    """
    return ProfileKey(
        bundle.fingerprint, device_name(torch.device(device)), dtype, available_cpus(), str(torch.__version__)
    )


def path_of(key: ProfileKey) -> Path:
    """Where the profile of ``key`` is kept."""
    text = json.dumps(asdict(key), sort_keys=True)
    return cache_dir() / "profiles" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def find(bundle: Bundle, device: str, dtype: str) -> Profile | None:
    """The profile for a run, None where none was made.

    A file that cannot be read or makes no sense is as good as none: a run does not depend on it. A warning says so.
    """
    key = key_of(bundle, device, dtype)
    path = path_of(key)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _checked(content, key)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("%s: is not used (%s). Make it anew: virnucpro profile", path, error)
        return None


def save(profile: Profile) -> Path:
    """Write a profile in the place of an older one, atomically.

    Raises:
        DiskFullError: no space is left.
    """
    path = path_of(profile.key)
    write_json(path, {"schema": SCHEMA, **asdict(profile)})
    return path


def forget(key: ProfileKey) -> bool:
    """Delete the profile of ``key``; tells whether there was one."""
    path = path_of(key)
    is_there = path.exists()
    path.unlink(missing_ok=True)
    return is_there


def _checked(content: dict[str, Any], key: ProfileKey) -> Profile:
    """The profile in a file.

    Raises:
        ValueError: it is of another schema or key, or its numbers make no sense.
    """
    if content["schema"] != SCHEMA:
        raise ValueError(f"schema {content['schema']}, this program reads {SCHEMA}")
    if ProfileKey(**content["key"]) != key:
        raise ValueError("it was made for something else")
    budgets = {role: content["token_budgets"][role] for role in ROLES}
    counts = {name: content[name] for name in ("loader_workers", "num_processes", "threads")}
    lowest = {"loader_workers": 0}
    for name, value in {**budgets, **counts}.items():
        if type(value) is not int or value < lowest.get(name, 1):
            raise ValueError(f"{name} is {value!r}")
    return Profile(key, str(content["model"]), budgets, **counts, measured=Measured.from_json(content["measured"]))
