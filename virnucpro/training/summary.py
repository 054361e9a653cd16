"""Figures as tables of text, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def dev_table(lengths: Mapping[str, Any]) -> str:
    """Figures of merit by length, and the error rates of each preset."""
    titles = {
        "auroc": "AUROC",
        "auroc_novel": "AUROC novel",
        "auroc_seen": "AUROC seen",
        "average_precision": "average precision",
        "recall_at_1_percent_fpr": "recall at 1 % FPR",
        "calibration_error": "calibration error",
    }
    rows = [[title, *(f"{of_length[name]:.4f}" for of_length in lengths.values())] for name, title in titles.items()]
    for preset in next(iter(lengths.values()))["presets"]:
        for name in ("recall", "fpr"):
            cells = (f"{of_length['presets'][preset][name]:.4f}" for of_length in lengths.values())
            rows.append([f"{preset} {name}", *cells])
    return _aligned([["bases", *lengths], *rows])


def panel_table(panel: Mapping[str, Any]) -> str:
    """Share of the sequences of no organism that each preset calls virus, in all and by kind."""
    presets = panel["presets"]
    rows = [["all", *(f"{100 * found['called_virus']:.2f} %" for found in presets.values())]]
    rows += [
        [kind, *(f"{100 * found['by_kind'][kind]:.1f} %" for found in presets.values())]
        for kind in next(iter(presets.values()))["by_kind"]
    ]
    return _aligned([[f"called virus of {panel['num_sequences']:,} of no organism", *presets], *rows])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
