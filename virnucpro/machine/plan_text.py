"""A plan as a table for people."""

from __future__ import annotations

from collections.abc import Callable

from virnucpro.machine.forecast import Amounts, Range
from virnucpro.machine.plan import FirstPlan, Need, Plan
from virnucpro.machine.text import aligned, duration, rate, size


def plan_text(plan: Plan) -> str:
    """The table, and how its ranges come about."""
    seconds, first = plan.seconds, plan.first
    of_asked = f", {plan.model}" if first is not None else ""
    rows = [
        ("", "low", "likely", "high"),
        *(_first_rows(first) if first is not None else ()),
        *_amount_rows(plan.amounts, of_asked),
        _row(f"rows/s of the encoders{of_asked}", plan.rows_per_second, rate),
        _row("time: start", seconds.start, duration),
        _row("time: extract", seconds.extract, duration),
        *([_row(f"time: embed, {first.model} alone", first.embed_seconds, duration)] if first is not None else ()),
        _row("time: embed", seconds.embed, duration),
        _row("time: head, tables", seconds.rest, duration),
        _row("time in all", seconds.total, duration),
        _row("memory", plan.memory.needed, size),
        *([_row("memory of a GPU", plan.device_memory.needed, size)] if plan.device_memory else []),
        _row("disk while it runs", plan.disk.needed, size),
        _row("disk afterwards", plan.disk_after.needed, size),
        _row("... --keep-embeddings", plan.disk_kept.needed, size),
    ]
    head = f"model {plan.model}, {plan.dtype}, on {', '.join(plan.devices)}; weights {size(plan.weights_bytes)}"
    heads = [head, *([_first_head(plan, first)] if first is not None else ())]
    return "\n\n".join(["\n".join(heads), aligned(rows), _ranges_text(plan), _verdicts(plan)])


def _first_head(plan: Plan, first: FirstPlan) -> str:
    share = f"{first.share.likely:.1%}"
    if not first.share.is_exact:
        share += f" ({first.share.low:.1%} to {first.share.high:.1%})"
    return (
        f"{first.model} looks first, weights {size(first.weights_bytes)}; {share} of the sequences go on to "
        f"{plan.model}: as in the sample, those with p_virus from {first.low:g} to {first.high:g}, or in any doubt"
    )


def _first_rows(first: FirstPlan) -> list[tuple[str, str, str, str]]:
    return [
        *_amount_rows(first.amounts, f", {first.model}"),
        _row(f"rows/s of the encoders, {first.model}", first.rows_per_second, rate),
    ]


def _amount_rows(amounts: Amounts, of: str) -> list[tuple[str, str, str, str]]:
    return [
        _row(f"sequences{of}", amounts.num_sequences, _count),
        _row(f"bases{of}", amounts.num_bases, _count),
        _row(f"fragments{of}", amounts.num_fragments, _count),
        _row(f"rows{of}", amounts.num_rows, _count),
        _row(f"rows to compute{of}", amounts.num_computed, _count),
    ]


def _verdicts(plan: Plan) -> str:
    needs = {"memory": plan.memory, "memory of a GPU": plan.device_memory, "disk": plan.disk}
    needs["disk with --keep-embeddings"] = plan.disk_kept
    return "\n".join(f"{name}: {_verdict(need)}" for name, need in needs.items() if need is not None)


def _verdict(need: Need) -> str:
    free = "" if need.free is None else f" ({size(need.free)} free)"
    return f"{need.verdict}{free}"


def _ranges_text(plan: Plan) -> str:
    seen = sum(plan.sampled) / len(plan.sampled)
    if all(share == 1.0 for share in plan.sampled):
        counted = "Counts are exact: all inputs were read."
    else:
        counted = (
            f"Counts are from a sample ({seen:.1%} of an input): two standard errors between its pieces, at least 5 %, "
            "25 % of a compressed file, of which the beginning was read. More duplicates may turn up in the whole."
        )
    return (
        f"{counted}\nRates of the encoders are from the slowest to the fastest run, widened by a tenth. Start and "
        "extract are taken times 1.5 either way. Head and tables: without and with what a run on one read takes for "
        "them. Memory high is a quarter above likely."
    )


def _row(name: str, amount: Range, shown: Callable[[float], str]) -> tuple[str, str, str, str]:
    if amount.is_exact:
        return name, "", shown(amount.likely), ""
    return name, shown(amount.low), shown(amount.likely), shown(amount.high)


def _count(amount: float) -> str:
    return f"{amount:,.0f}"
