"""A profile as tables for people."""

from __future__ import annotations

from collections.abc import Iterator

from virnucpro.machine.profiles import PARTS, Profile, Sweep
from virnucpro.machine.text import aligned, rate

_MARK = "*"


def profile_text(profile: Profile) -> str:
    """All tables; the best line of each has a ``*``."""
    key = profile.key
    head = (
        f"model {profile.model} ({key.fingerprint[:12]}) on {key.device}, {key.dtype}, "
        f"{profile.threads} of {key.num_cpus} CPUs, torch {key.torch_version}"
    )
    parts = [head, *(_sweep_text(role, sweep) for role, sweep in profile.measured.sweeps.items())]
    parts += [_loaders_text(profile), *_layouts_text(profile), _timeline_text(profile)]
    return "\n\n".join(parts)


def choice_text(profile: Profile) -> str:
    """What a run takes from the profile."""
    budgets = ", ".join(f"{role} {budget:,}" for role, budget in profile.token_budgets.items())
    chosen = f"token budgets: {budgets}; loader workers: {profile.loader_workers}"
    if profile.num_processes == 1:
        return chosen
    return f"{chosen}; with --parallel {profile.num_processes} processes, which is fastest here"


def _sweep_text(role: str, sweep: Sweep) -> str:
    title = f"{role} encoder ({sweep.kind})"
    if sweep.matmul_flops is not None:
        title += f": its matrix products reach {sweep.matmul_flops / 1e12:.3g} TFLOP/s here"
    rows = [("budget", "", "tokens/s", "rows/s", "MFU", "runs")]
    for line in sweep.rates:
        mark = _MARK if line.token_budget == sweep.best_budget else ""
        mfu = "NA" if line.mfu is None else f"{line.mfu:.0%}"
        figures = rate(line.tokens_per_second), rate(line.rows_per_second)
        rows.append((f"{line.token_budget:,}", mark, *figures, mfu, str(line.num_runs)))
    ended = {
        "all tried": "all budgets were tried",
        "no gain": "larger ones gained nothing",
        "time": "larger ones did not fit the time (--seconds)",
        "memory": "larger ones do not fit the memory",
    }[sweep.ended]
    kept = "" if any(row[1] for row in rows) else ", which was not tried and is kept"
    return f"{title}\n{aligned(rows, num_left=0)}\n{ended}; without a profile: {sweep.usual_budget:,}{kept}"


def _loaders_text(profile: Profile) -> str:
    rows = [("loader workers", "", "rows/s")]
    for line in profile.measured.loaders:
        mark = _MARK if line.num_workers == profile.loader_workers else ""
        rows.append((str(line.num_workers), mark, rate(line.rows_per_second)))
    return aligned(rows, num_left=0)


def _layouts_text(profile: Profile) -> Iterator[str]:
    if not profile.measured.layouts:
        return
    rows = [("processes x threads", "", "rows/s")]
    for line in profile.measured.layouts:
        mark = _MARK if line.num_processes == profile.num_processes else ""
        rows.append((f"{line.num_processes} x {line.num_threads}", mark, rate(line.rows_per_second)))
    yield aligned(rows, num_left=0)


def _timeline_text(profile: Profile) -> str:
    timeline = profile.measured.timeline
    rows = [(f"a unit of {timeline.num_rows:,.0f} rows", "seconds", "share")]
    for part in PARTS:
        seconds = timeline.seconds[part]
        rows.append((part, f"{seconds:.4f}", f"{seconds / timeline.wall_seconds:.1%}"))
    rows.append(("in all", f"{timeline.wall_seconds:.4f}", "100.0%"))
    return aligned(rows)
