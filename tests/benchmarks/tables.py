"""Figures as text: a table for each section."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Figure

_WIDTH_WITHOUT_TERMINAL = 180


def open_console() -> Console:
    """Where tables are printed; wide where nobody can say how wide it is."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_WITHOUT_TERMINAL)


def section_table(section: str, figures: Sequence[Figure]) -> Table:
    """A section as a table: ours, the peer, their ratio, and the goal beside them."""
    columns = ["what", ">figure", "against", ">its figure", ">ratio", ">goal", "reached", ">max diff", ">runs", "note"]
    shown = _table(f"{section} (medians)", columns)
    for figure in figures:
        shown.add_row(
            figure.what,
            number(figure.value, figure.unit),
            figure.peer,
            number(figure.peer_value, figure.unit),
            ratio(figure.ratio),
            goal_text(figure),
            {None: "", True: "yes", False: "no"}[figure.is_reached],
            _difference(figure),
            str(len(figure.values) or ""),
            figure.note,
        )
    return shown


def number(value: float | None, unit: str) -> str:
    """A figure with its unit; nothing where there is none."""
    if value is None:
        return ""
    return (f"{value:,.0f} {unit}" if value >= 100 else f"{value:,.3g} {unit}").strip()


def ratio(value: float | None) -> str:
    """A ratio; nothing where there is none."""
    return "" if value is None else f"{value:,.2f}x"


def goal_text(figure: Figure) -> str:
    """All goals of a figure."""
    goal, bounds = figure.goal, []
    bounds += [f">= {number(goal.least, figure.unit)}"] if goal.least is not None else []
    bounds += [f"<= {number(goal.most, figure.unit)}"] if goal.most is not None else []
    bounds += [f">= {goal.least_ratio:,g}x"] if goal.least_ratio is not None else []
    bounds += [f"<= {goal.most_ratio:,g}x"] if goal.most_ratio is not None else []
    return ", ".join(bounds)


def _table(title: str, columns: Sequence[str]) -> Table:
    """An empty table; ``>`` before a column's name puts it to the right."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


def _difference(figure: Figure) -> str:
    if figure.max_difference is None:
        return ""
    return f"{figure.max_difference:.1g}" + ("" if figure.agrees is not False else f" (> {figure.tolerance:g})")
