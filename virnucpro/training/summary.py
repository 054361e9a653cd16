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


def records_text(name: str, found: Mapping[str, Any]) -> str:
    """What was measured of whole records: ``records`` or ``whole_dev``, ``curated``, or ``communities``."""
    if name == "communities":
        head = ["viruses in the community", "estimated", "fdr said", "fdr true", "recall"]
        lines = [
            [f"{100 * float(share):g} %", _cell(line["prevalence"]), *(_cell(line[key]) for key in _DISCOVERY)]
            for share, line in found.items()
        ]
        return _aligned([head, *lines])
    if name == "curated":
        return (
            f"curated proviruses: {found['found']} of {found['curated']} found in {found['regions']} regions, "
            f"{found['elsewhere']} of which touch none; bases: recall {_cell(found['base_recall'])}, "
            f"precision {_cell(found['base_precision'])}"
        )
    head = [f"{name.replace('_', ' ')}, bases", "viruses", "called virus", "hosts", "called virus", "AUROC"]
    lines = []
    for length, line in found["by_length"].items():
        pairs = [(str(line[side]["num"]), _cell(line[side]["virus"])) for side in ("virus", "host")]
        lines.append([length, *(cell for pair in pairs for cell in pair), _cell(line["auroc"])])
    cut, hosts = found["long_viruses"], found["long_hosts"]
    return (
        f"{_aligned([head, *lines])}\n{cut['cut']} of {cut['num']} viruses of 20 kb or more are cut; "
        f"{hosts['called_virus']} of {hosts['num']} hosts of 300 kb or more are called virus"
    )


_DISCOVERY = ("fdr_said", "fdr_true", "recall")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
