"""A profile as tables for people."""

from __future__ import annotations

from virnucpro.machine.profiles import Profile, Sweep
from virnucpro.machine.text import aligned, rate

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
    sweeps = (_sweep_text(role, sweep) for role, sweep in profile.sweeps.items())
    return "\n\n".join([head, *sweeps, _layouts_text(profile)])


def choice_text(profile: Profile) -> str:
    """What a run takes from the profile."""
    budgets = ", ".join(f"{role} {budget:,}" for role, budget in profile.token_budgets.items())
    chosen = f"token budgets: {budgets}; loader workers: {profile.loader_workers}"
    if profile.num_processes == 1:
        return chosen
    return f"{chosen}; with --parallel {profile.num_processes} processes, which is fastest here"


def _sweep_text(role: str, sweep: Sweep) -> str:
    rows = [("budget", "", "tokens/s", "rows/s")]
    for line in sweep.rates:
        mark = _MARK if line.token_budget == sweep.best_budget else ""
        rows.append((f"{line.token_budget:,}", mark, rate(line.tokens_per_second), rate(line.rows_per_second)))
    kept = "" if any(row[1] for row in rows) else ", which was not tried and is kept"
    note = f"{_ENDED.get(sweep.ended, sweep.ended)}; without a profile: {sweep.usual_budget:,}{kept}"
    return f"{role} encoder ({sweep.kind})\n{aligned(rows, num_left=0)}\n{note}"


def _layouts_text(profile: Profile) -> str:
    rows = [("processes x threads", "loader workers", "", "rows/s")]
    for line in profile.layouts:
        is_best = (line.num_processes, line.loader_workers) == (profile.num_processes, profile.loader_workers)
        layout = f"{line.num_processes} x {line.num_threads}"
        rows.append((layout, str(line.loader_workers), _MARK if is_best else "", rate(line.rows_per_second)))
    return aligned(rows, num_left=0)
