"""Plain tables and amounts for people."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, num_left: int = 1) -> str:
    """Lay rows out in columns, two blanks apart.

    Args:
        rows: the header first; all of one length.
        num_left: so many first columns are set to the left, the others to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if column < num_left else ">" for column in range(len(widths))]
    lines = (
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)) for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``5.2 min``, ``3.1 h`` or ``2.4 d``."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            amount = seconds / size
            return f"{amount:.0f} {unit}" if unit == "s" and amount >= 10 else f"{amount:.1f} {unit}"
    return f"{seconds / 86_400:,.1f} d"


def size(num_bytes: float) -> str:
    """In KB, MB, GB or TB of powers of ten."""
    for limit, unit in ((1e6, "KB"), (1e9, "MB"), (1e12, "GB")):
        if num_bytes < limit:
            return f"{num_bytes / (limit / 1e3):,.1f} {unit}"
    return f"{num_bytes / 1e12:,.1f} TB"


def rate(value: float) -> str:
    """Three figures below a hundred, whole numbers above."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
