"""All measurements of ``virnucpro profile``, within a budget of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from virnucpro.bundles import Bundle
from virnucpro.config import LayoutConfig
from virnucpro.encoders import load_encoder, read_config
from virnucpro.encoders.base import Encoder
from virnucpro.engine.threads import use_threads
from virnucpro.machine.budgets import sweep_budgets
from virnucpro.machine.layouts import best_layout, sweep_layouts
from virnucpro.machine.loaders import best_loader, sweep_loaders
from virnucpro.machine.profiles import LayoutRate, Measured, Profile, Sweep, key_of
from virnucpro.machine.sample_units import StoredUnits, draw_strings, store_units
from virnucpro.machine.timeline import measure_timeline
from virnucpro.stages.base import ROLES

_BUDGET_SHARE, _LOADER_SHARE, _LAYOUT_SHARE = 0.45, 0.2, 0.25
"""Of the time; each of the two encoders has half of the first. What is left is for the timeline."""

_SWEPT_ROWS = 4096
_LOADER_UNITS, _LOADER_UNIT_SHARE = 6, 0.01
_TIMELINE_UNITS, _TIMELINE_UNIT_SHARE = 2, 0.04
"""How many units are read by these two measurements, and the share of the time that one of them may take."""


@dataclass(frozen=True)
class ProfileSettings:
    """What is to be measured.

    Attributes:
        bundle: the model.
        device: torch's name of it.
        dtype: torch's name of the float type.
        threads: CPU threads in all.
        seconds: about how long; every measurement is taken once at least, which may be longer.
    """

    bundle: Bundle
    device: str
    dtype: str
    threads: int
    seconds: float


def measure(settings: ProfileSettings) -> Profile:
    """Measure everything and make the profile; nothing is saved.

    Raises:
        ModelError: an encoder cannot be loaded.
        ResourceError: not even the smallest batch fits the memory.
    """
    use_threads(settings.threads)
    with TemporaryDirectory(prefix="virnucpro-profile-") as folder:
        measured = _measure_all(settings, Path(folder))
    layout = best_layout(measured.layouts) if measured.layouts else None
    return Profile(
        key=key_of(settings.bundle, settings.device, settings.dtype),
        model=settings.bundle.name,
        token_budgets={role: sweep.best_budget for role, sweep in measured.sweeps.items()},
        loader_workers=best_loader(measured.loaders),
        num_processes=1 if layout is None else layout.num_processes,
        threads=settings.threads,
        measured=measured,
    )


def _measure_all(settings: ProfileSettings, folder: Path) -> Measured:
    device = torch.device(settings.device)
    encoders, sweeps = _sweep_all_budgets(settings, folder, device)
    budgets = {role: sweep.best_budget for role, sweep in sweeps.items()}
    num_rows = _rows_of_a_unit(settings, sweeps, _LOADER_UNIT_SHARE, _SWEPT_ROWS)
    units = store_units(folder / "units", settings.bundle, num_rows, _LOADER_UNITS)
    loaders = sweep_loaders(units, encoders, budgets, device, _LOADER_SHARE * settings.seconds)
    num_rows = _rows_of_a_unit(settings, sweeps, _TIMELINE_UNIT_SHARE, LayoutConfig().unit_rows)
    large_units = store_units(folder / "large-units", settings.bundle, num_rows, _TIMELINE_UNITS)
    is_half = settings.dtype != "float32"
    timeline = measure_timeline(large_units, encoders, budgets, device, best_loader(loaders), is_half=is_half)
    encoders.clear()  # each of the processes that follow has its own
    layouts = _sweep_all_layouts(settings, folder, units, budgets)
    return Measured(sweeps, loaders, timeline, layouts)


def _sweep_all_budgets(
    settings: ProfileSettings, folder: Path, device: torch.device
) -> tuple[dict[str, Encoder], dict[str, Sweep]]:
    dtype = getattr(torch, settings.dtype)
    strings = draw_strings(folder / "rows", settings.bundle, _SWEPT_ROWS)
    encoders: dict[str, Encoder] = {}
    sweeps: dict[str, Sweep] = {}
    for role in ROLES:
        path = settings.bundle.encoder(role)
        encoders[role] = load_encoder(path, device, dtype)
        seconds = _BUDGET_SHARE / len(ROLES) * settings.seconds
        sweeps[role] = sweep_budgets(encoders[role], read_config(path), strings[role], device, dtype, seconds)
    return encoders, sweeps


def _sweep_all_layouts(
    settings: ProfileSettings, folder: Path, units: StoredUnits, budgets: Mapping[str, int]
) -> tuple[LayoutRate, ...]:
    if settings.device != "cpu" or settings.threads == 1:
        return ()
    return sweep_layouts(
        folder / "layouts",
        units,
        settings.bundle,
        settings.dtype,
        budgets,
        settings.threads,
        _LAYOUT_SHARE * settings.seconds,
    )


def _rows_of_a_unit(settings: ProfileSettings, sweeps: Mapping[str, Sweep], share: float, most: int) -> int:
    """Rows that both encoders take this share of the time for."""
    a_row = sum(1 / sweep.rows_per_second for sweep in sweeps.values())
    return max(1, min(most, int(share * settings.seconds / a_row)))
