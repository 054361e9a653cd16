"""A plan as a table for people."""

from __future__ import annotations

from collections.abc import Callable

from virnucpro.machine.plan import Plan, Range
from virnucpro.machine.text import aligned, duration, size


def plan_text(plan: Plan) -> str:
    """The table, and how its ranges are found."""
    rows = [
        ("", "low", "likely", "high"),
        *(_row(name.replace("_", " "), amount, "{:,.0f}".format) for name, amount in plan.amounts.items()),
        _row("time: start", plan.start_seconds, duration),
        _row("time: work", plan.work_seconds, duration),
        _row("time in all", plan.total_seconds, duration),
        _row("memory", plan.memory.needed, size),
        *([_row("memory of a GPU", plan.device_memory.needed, size)] if plan.device_memory else []),
        _row("disk while it runs", plan.disk.needed, size),
        _row("disk afterwards", plan.disk_after.needed, size),
        _row("... --keep-embeddings", plan.disk_kept.needed, size),
    ]
    head = f"model {plan.model}, {plan.dtype}, on {', '.join(plan.devices)}; weights {size(plan.weights_bytes)}"
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in plan.stage_seconds.items())
    parts = [head, aligned(rows), f"by stage, which overlap: {stages}", *_shares(plan), _ranges_text(plan)]
    return "\n\n".join([*parts, _verdicts(plan)])


def _shares(plan: Plan) -> list[str]:
    if not plan.shares_by_model:
        return []
    shares = ", ".join(f"{model} {share:.1%}" for model, share in plan.shares_by_model.items())
    return [f"sequences decided by each model: {shares}"]


def _ranges_text(plan: Plan) -> str:
    if plan.share_read == 1:
        return "Everything was read: counts are exact, times are of this run with 15 % either way."
    return (
        f"The first {plan.share_read:.2%} of the text were run in two parts. Ranges go from the lower to the higher of "
        "the two, with 30 % either way, since the rest may differ. Memory high is a quarter above likely."
    )


def _verdicts(plan: Plan) -> str:
    needs = {"memory": plan.memory, "memory of a GPU": plan.device_memory, "disk": plan.disk}
    needs["disk with --keep-embeddings"] = plan.disk_kept
    return "\n".join(
        f"{name}: {need.verdict} ({size(need.free)} free)" for name, need in needs.items() if need is not None
    )


def _row(name: str, amount: Range, shown: Callable[[float], str]) -> tuple[str, str, str, str]:
    if amount.low == amount.high:
        return name, "", shown(amount.likely), ""
    return name, shown(amount.low), shown(amount.likely), shown(amount.high)
