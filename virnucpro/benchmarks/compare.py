"""Two benchmarks side by side: what became slower or larger by more than both of them vary by themselves.

A figure is judged by its ratio to the peer where it has one, since a busy machine slows both; by itself elsewhere,
and then only where both were measured with the same CPUs and threads. It is worse where its median moved to the
wrong side by more than a tenth and by more than the distance between the quartiles of the runs of either benchmark.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any, Literal

from virnucpro.benchmarks.measure import MIN_RUNS, Figure
from virnucpro.benchmarks.record import Record

LEAST_CHANGE = 0.1
"""Share of the old median below which no change counts."""
UNKNOWN_SPREAD = 0.25
"""Share of the old median that one or two runs may be off: they do not show how much they vary."""

Verdict = Literal["worse", "same", "better"]
_Key = tuple[str, str, str, str, int]
_MACHINE = ("machine.processor", "machine.cpus", "settings.threads")
_CHANGING = ("load_at_start",)


@dataclass(frozen=True)
class Change:
    """One figure then and now.

    Attributes:
        old: then.
        new: now.
        judged_by: its ratio to the peer or the figure itself; None where it cannot be judged.
        noise: share of the old median that the other must differ by; None where it is not judged.
        verdict: None where it is not judged.
    """

    old: Figure
    new: Figure
    judged_by: Literal["ratio", "figure"] | None = None
    noise: float | None = None
    verdict: Verdict | None = None

    @property
    def figure_change(self) -> float | None:
        """Of the figure, as a share of the old one."""
        return _relative(self.old.value, self.new.value)

    @property
    def ratio_change(self) -> float | None:
        """Of the ratio, as a share of the old one."""
        return _relative(self.old.ratio, self.new.ratio)

    @property
    def is_disagreeing(self) -> bool:
        """Whether the outputs disagree now and did not then: such a figure is worth nothing."""
        return self.new.agrees is False and self.old.agrees is not False

    @property
    def is_regression(self) -> bool:
        """Whether someone should look."""
        return self.is_disagreeing or self.verdict == "worse"


@dataclass(frozen=True)
class Comparison:
    """Two benchmarks.

    Attributes:
        changes: a change for every figure that both have, in the order of the new one.
        only_old: what only the old one measured.
        only_new: what only the new one did.
        differences: (name, then, now) of all that differs in program, machine, versions and settings.
    """

    changes: tuple[Change, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    differences: tuple[tuple[str, object, object], ...]

    @property
    def is_same_machine(self) -> bool:
        """Whether figures themselves can be held against each other."""
        return _is_same_machine(self.differences)

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What became worse."""
        return tuple(change for change in self.changes if change.is_regression)


def compare(old: Record, new: Record) -> Comparison:
    """Hold a benchmark against an older one."""
    differences = tuple(_differences(old.context, new.context))
    is_same_machine = _is_same_machine(differences)
    then, now = _by_key(old.figures), _by_key(new.figures)
    return Comparison(
        tuple(_change(then[key], now[key], is_same_machine=is_same_machine) for key in now if key in then),
        tuple(_name(then[key]) for key in then if key not in now),
        tuple(_name(now[key]) for key in now if key not in then),
        differences,
    )


def _is_same_machine(differences: Sequence[tuple[str, object, object]]) -> bool:
    return not any(name in _MACHINE for name, _, _ in differences)


def _by_key(figures: Sequence[Figure]) -> dict[_Key, Figure]:
    """Figures by what they are of; the n-th of the same name is the n-th of the other benchmark. Unmeasured: none."""
    seen: Counter[tuple[str, str, str, str]] = Counter()
    found: dict[_Key, Figure] = {}
    for figure in figures:
        name = (figure.section, figure.what, figure.unit, figure.peer)
        if figure.values:
            found[*name, seen[name]] = figure
        seen[name] += 1
    return found


def _name(figure: Figure) -> str:
    what = f"{figure.section}: {figure.what.strip()}"
    return f"{what}, against {figure.peer}" if figure.peer else what


def _change(old: Figure, new: Figure, *, is_same_machine: bool) -> Change:
    is_more_better = new.is_more_better
    if is_more_better is None:
        return Change(old, new)
    if old.ratio is not None and new.ratio is not None:
        noise, verdict = _judge(old.ratio, old.ratios, new.ratio, new.ratios, is_more_better=is_more_better)
        return Change(old, new, "ratio", noise, verdict)
    if old.value is None or new.value is None or not is_same_machine:
        return Change(old, new)
    noise, verdict = _judge(old.value, old.values, new.value, new.values, is_more_better=is_more_better)
    return Change(old, new, "figure", noise, verdict)


def _judge(
    old: float, old_runs: Sequence[float], new: float, new_runs: Sequence[float], *, is_more_better: bool
) -> tuple[float, Verdict]:
    """Noise as a share of the old value, and what the change is beside it."""
    noise = max(LEAST_CHANGE * abs(old), *(_spread(runs, UNKNOWN_SPREAD * abs(old)) for runs in (old_runs, new_runs)))
    gain = (new - old) * (1 if is_more_better else -1)
    verdict: Verdict = "better" if gain > noise else "worse" if gain < -noise else "same"
    return noise / abs(old) if old else 0.0, verdict


def _spread(runs: Sequence[float], unknown: float) -> float:
    """Distance between the quartiles of the runs; ``unknown`` where they are too few."""
    if len(runs) < MIN_RUNS:
        return unknown
    low, _, high = quantiles(runs, n=4, method="inclusive")
    return high - low


def _relative(old: float | None, new: float | None) -> float | None:
    return None if not old or new is None else new / old - 1


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, object, object]]:
    """What differs between the circumstances, program first."""
    for name in ("version", "commit"):
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)
    for part in ("machine", "versions", "settings"):
        then, now = old.get(part, {}), new.get(part, {})
        for name in dict.fromkeys([*then, *now]):
            before, after = _plain(then.get(name)), _plain(now.get(name))
            if before != after and name not in _CHANGING:
                yield f"{part}.{name}", before, after


def _plain(value: object) -> object:
    """As JSON has it, which knows no tuples."""
    return list(value) if isinstance(value, tuple) else value
