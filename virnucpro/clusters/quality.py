"""Figures that tell at a glance whether embeddings are what they should be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Quality:
    """Sums over rows of embeddings; rows may come in any number of blocks."""

    num_rows: int = 0  # rows so far
    num_values: int = 0  # finite values
    total: float = 0.0  # their sum
    total_of_squares: float = 0.0  # of their squares
    min_norm: float = math.inf  # smallest Euclidean norm of a row without NaN and Inf
    max_norm: float = 0.0  # largest one
    num_nan: int = 0  # values that are NaN
    num_inf: int = 0  # values that are infinite
    num_zero_rows: int = 0  # rows of zeros alone

    def add(self, rows: NDArray[np.floating[Any]]) -> None:
        """Count a block (n, D)."""
        values = rows.astype(np.float64)
        squares = np.einsum("ij,ij->i", values, values)
        is_finite = np.isfinite(squares)
        self.num_rows += len(rows)
        if not is_finite.all():
            odd = values[~is_finite]
            self.num_nan += int(np.isnan(odd).sum())
            self.num_inf += int(np.isinf(odd).sum())
            kept = odd[np.isfinite(odd)]
            self._add_values(len(kept), float(kept.sum()), float((kept**2).sum()))
            values, squares = values[is_finite], squares[is_finite]
        self._add_values(values.size, float(values.sum()), float(squares.sum()))
        self.num_zero_rows += int((squares == 0).sum())
        if len(squares):
            self.min_norm = min(self.min_norm, math.sqrt(squares.min()))
            self.max_norm = max(self.max_norm, math.sqrt(squares.max()))

    def include(self, other: Quality) -> None:
        """Add the rows that another one has counted."""
        self._add_values(other.num_values, other.total, other.total_of_squares)
        for name in ("num_rows", "num_nan", "num_inf", "num_zero_rows"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.min_norm = min(self.min_norm, other.min_norm)
        self.max_norm = max(self.max_norm, other.max_norm)

    def figures(self) -> dict[str, float | int | None]:
        """Mean, standard deviation and norms (None without a finite row), and counts of what should not be."""
        mean = self.total / self.num_values if self.num_values else None
        variance = None if mean is None else max(self.total_of_squares / self.num_values - mean**2, 0.0)
        has_norms = self.min_norm <= self.max_norm
        return {
            "num_rows": self.num_rows,
            "mean": mean,
            "sd": None if variance is None else math.sqrt(variance),
            "min_norm": self.min_norm if has_norms else None,
            "max_norm": self.max_norm if has_norms else None,
            "num_nan": self.num_nan,
            "num_inf": self.num_inf,
            "num_zero_rows": self.num_zero_rows,
        }

    def _add_values(self, number: int, total: float, total_of_squares: float) -> None:
        self.num_values += number
        self.total += total
        self.total_of_squares += total_of_squares
