"""What was measured as tables, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from virnucpro.text import aligned


@dataclass(frozen=True)
class Table:
    """A table of text; the first cell of a row names it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return aligned([self.columns, *self.rows])


def length_table(lengths: Mapping[str, Any]) -> Table:
    """Figures of merit by length, and the error rates of each preset."""
    titles = {
        "auroc": "AUROC",
        "auroc_novel": "AUROC, novel families",
        "auroc_seen": "AUROC, seen families",
        "average_precision": "average precision",
        "recall_at_1_percent_fpr": "recall at 1 % false positives",
        "calibration_error": "expected calibration error",
        "num_unscored": "sequences without a score",
        "num_sequences": "sequences",
    }
    rows = [[title, *(f"{found[name]:,}" for found in lengths.values())] for name, title in titles.items()]
    for name in ("average_precision", "recall_at_1_percent_fpr"):
        for kind in ("novel", "seen"):
            cells = [found.get("by_virus", {}).get(kind, {}).get(name) for found in lengths.values()]
            if any(cell is not None for cell in cells):
                named = f"{titles[name]}, {kind} families"
                rows.append([named, *("NA" if cell is None else str(cell) for cell in cells)])
    for preset in next(iter(lengths.values()))["presets"]:
        for name, title in (("recall", "recall"), ("fpr", "false positive rate")):
            cells = [percent(found["presets"][preset][name]) for found in lengths.values()]
            rows.append([f"{preset}: {title}", *cells])
    return Table("Figures of merit at equal prevalence", columns_of(lengths), rows)


def panel_table(panel: Mapping[str, Any]) -> Table:
    """Share of the sequences of no organism that each preset calls virus: in all, by kind and by length."""
    presets = panel["presets"].values()
    rows = [["all", *(percent(found["called_virus"]) for found in presets)]]
    kinds = next(iter(presets))["by_kind"]
    rows += [[kind.replace("_", " "), *(percent(found["by_kind"][kind]) for found in presets)] for kind in kinds]
    rows += [
        [f"{length:,} bases", *(percent(found["by_length"][str(length)]) for found in presets)]
        for length in panel["lengths_nt"]
    ]
    return Table("Share called virus", ["called virus of no organism", *panel["presets"]], rows)


def columns_of(lengths: Mapping[str, Any]) -> list[str]:
    """Titles of columns by length."""
    return ["bases", *(f"{int(length):,}" for length in lengths)]


def percent(share: float | None) -> str:
    """A share as a percentage."""
    return "NA" if share is None else f"{100 * share:.2f} %"


def records_text(name: str, found: Mapping[str, Any]) -> str:
    """What was measured of whole records: ``records`` or ``whole_dev``, ``curated``, or ``communities``."""
    if name == "communities":
        head = ["viruses in the community", "estimated", "fdr said", "fdr true", "recall"]
        lines = [
            [f"{100 * float(share):g} %", _cell(line["prevalence"]), *(_cell(line[key]) for key in _DISCOVERY)]
            for share, line in found.items()
        ]
        return aligned([head, *lines])
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
        f"{aligned([head, *lines])}\n{cut['cut']} of {cut['num']} viruses of 20 kb or more are cut; "
        f"{hosts['called_virus']} of {hosts['num']} hosts of 300 kb or more are called virus"
    )


_DISCOVERY = ("fdr_said", "fdr_true", "recall")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
