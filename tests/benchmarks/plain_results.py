"""Peer of merge, head, consensus and tables: named vectors in lists, as the published scripts keep them.

Kept as published: ten thousand rows a file; nucleotide vectors as lists of Python floats and protein vectors as
tensors, both through ``torch.save``; joined by name; batches of 256; a text line a row; windows grouped by name.
Left out in the peer's favour: its loader processes, and the search for a row through the list of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.heads import MLPHead

_ROWS_A_FILE = 10_000
_BATCH_ROWS = 256


@dataclass(frozen=True)
class PlainResults:
    """The peer's files.

    Attributes:
        folder: where they are.
    """

    folder: Path

    def save_features(
        self, names: Sequence[str], nucleotide: NDArray[np.float32], protein: NDArray[np.float32]
    ) -> None:
        """Write what its encoders would leave."""
        for number, start in enumerate(range(0, len(names), _ROWS_A_FILE)):
            rows = slice(start, start + _ROWS_A_FILE)
            here = list(names[rows])
            vectors = [
                {"label": name, "vector": row.tolist()} for name, row in zip(here, nucleotide[rows], strict=True)
            ]
            torch.save({"names": here, "rows": vectors}, self._path("nucleotide", number))
            tensors = [torch.from_numpy(row.copy()) for row in protein[rows]]
            torch.save({"names": here, "rows": tensors}, self._path("protein", number))

    def run(self, num_rows: int, head: MLPHead) -> int:
        """Merge, score, write and group; returns the number of rows."""
        num_files = -(-num_rows // _ROWS_A_FILE)
        for number in range(num_files):
            self._merge(number)
        scores: list[NDArray[np.float32]] = []
        names: list[str] = []
        for number in range(num_files):
            merged = _load(self._path("merged", number))
            names += merged["names"]
            for start in range(0, len(merged["rows"]), _BATCH_ROWS):
                scores.extend(head.scores(merged["rows"][start : start + _BATCH_ROWS]).numpy())
        with self.row_table.open("w") as stream:
            stream.write("Sequence_ID\tPrediction\tscore1\tscore2\n")
            for name, row in zip(names, scores, strict=True):
                prediction = "virus" if row.argmax() == 1 else "others"
                stream.write(f"{name}\t{prediction}\t{row[0]}\t{row[1]}\n")
        self._group()
        return len(names)

    @property
    def row_table(self) -> Path:
        """A line a row."""
        return self.folder / "prediction_results.txt"

    @property
    def window_table(self) -> Path:
        """A line a window."""
        return self.folder / "prediction_results_highestscore.csv"

    def _path(self, role: str, number: int) -> Path:
        return self.folder / f"{role}_{number}.pt"

    def _merge(self, number: int) -> None:
        nucleotide, protein = _load(self._path("nucleotide", number)), _load(self._path("protein", number))
        vectors = {
            name: torch.tensor(row["vector"]) for name, row in zip(nucleotide["names"], nucleotide["rows"], strict=True)
        }
        others = dict(zip(protein["names"], protein["rows"], strict=True))
        joined = [name for name in nucleotide["names"] if name in vectors and name in others]
        rows = torch.stack([torch.cat((vectors[name], others[name])) for name in joined])
        torch.save({"names": joined, "rows": rows}, self._path("merged", number))

    def _group(self) -> None:
        best: dict[str, tuple[float, float]] = {}
        with self.row_table.open() as stream:
            next(stream)
            for line in stream:
                name, _, other, virus = line.rstrip("\n").split("\t")
                window = name[:-2]
                before = best.get(window, (0.0, 0.0))
                best[window] = (max(before[0], float(other)), max(before[1], float(virus)))
        with self.window_table.open("w") as stream:
            stream.write("Modified_ID\tIs_Virus\n")
            for window in sorted(best):
                other_score, virus_score = best[window]
                stream.write(f"{window}\t{virus_score >= other_score}\n")


def _load(path: Path) -> dict[str, Any]:
    # Written by this process a moment ago. The restricted reader is plain Python and would slow the peer down.
    content: dict[str, Any] = torch.load(path, weights_only=False)
    return content
