"""What may be given to an encoder, and what may come out of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from virnucpro.errors import ModelError

LETTERS = {"nt": "ACGTURYSWKMBDHVN", "aa": "ACDEFGHIKLMNPQRSTVWYBJOUXZ"}
"""Letters of each alphabet: those of IUPAC, in either case."""
_SHOWN = {"nt": "nucleotides", "aa": "amino acids"}
_OTHERS = {alphabet: re.compile(f"[^{letters}{letters.lower()}]") for alphabet, letters in LETTERS.items()}


class ModelValidationError(ModelError):
    """A string that an encoder does not read, or an embedding that is not one."""


def check_text(text: object, alphabet: Literal["nt", "aa"], max_letters: int | None = None) -> str:
    """Return ``text`` in upper case.

    Args:
        text: a sequence.
        alphabet: nucleotides or amino acids.
        max_letters: the most that the encoder reads; None for any number.

    Raises:
        ModelValidationError: it is no text, empty, too long, or holds other letters.
    """
    if not isinstance(text, str):
        raise ModelValidationError(f"expected a sequence as text, got {type(text).__name__}.")
    if not text:
        raise ModelValidationError("the sequence is empty.")
    if max_letters is not None and len(text) > max_letters:
        raise ModelValidationError(
            f"the sequence has {len(text):,} letters, and the encoder reads {max_letters:,}: cut it into chunks."
        )
    other = _OTHERS[alphabet].search(text)
    if other is not None:
        raise ModelValidationError(
            f"letter {other[0]!r} at position {other.start() + 1:,} is not in the alphabet of {_SHOWN[alphabet]}."
        )
    return text.upper()


@dataclass(frozen=True)
class EmbeddingValidator:
    """Checks embeddings: width, type, finite values, length as vectors.

    Attributes:
        width: of an embedding.
        dtype: of its values; None takes any float type.
        norm_range: least and greatest Euclidean norm.
    """

    width: int
    dtype: str | None = None
    norm_range: tuple[float, float] = (0.0, float("inf"))

    def problems(self, embedding: ArrayLike) -> list[str]:
        """What is wrong with one embedding, a sentence each; none if it is right."""
        array = np.asarray(embedding)
        if array.shape != (self.width,):
            return [f"expected {self.width} numbers, got shape {array.shape}"]
        return self.problems_of_batch(array[None])[0]

    def problems_of_batch(self, embeddings: ArrayLike) -> list[list[str]]:
        """The same for each of (n, width) embeddings.

        Raises:
            ModelValidationError: it is not such an array.
        """
        array = np.asarray(embeddings)
        if array.ndim != 2 or array.shape[1] != self.width:
            raise ModelValidationError(f"expected embeddings of shape (n, {self.width}), got {array.shape}.")
        if array.dtype.kind != "f" or (self.dtype is not None and array.dtype != np.dtype(self.dtype)):
            return [[f"expected {self.dtype or 'float'} values, got {array.dtype}"] for _ in array]
        norms = np.linalg.norm(array.astype(np.float64), axis=1)  # not finite where a value is not
        low, high = self.norm_range
        problems: list[list[str]] = [[] for _ in array]
        for row in np.flatnonzero(~(np.isfinite(norms) & (low <= norms) & (norms <= high))).tolist():
            is_finite = np.isfinite(array[row]).all()
            text = f"norm {norms[row]:.4g} is not from {low:g} to {high:g}" if is_finite else "holds NaN or Inf"
            problems[row].append(text)
        return problems

    def validate(self, embedding: ArrayLike) -> None:
        """Refuse one embedding that is not right.

        Raises:
            ModelValidationError: with all that is wrong.
        """
        if found := self.problems(embedding):
            raise ModelValidationError(f"not an embedding: {'; '.join(found)}.")

    def validate_batch(self, embeddings: ArrayLike) -> None:
        """Refuse (n, width) embeddings of which one is not right.

        Raises:
            ModelValidationError: naming the first few rows.
        """
        wrong = {row: found for row, found in enumerate(self.problems_of_batch(embeddings)) if found}
        if wrong:
            shown = [f"row {row}: {'; '.join(found)}" for row, found in list(wrong.items())[:5]]
            raise ModelValidationError(f"{len(wrong):,} are not embeddings: {' / '.join(shown)}.")
