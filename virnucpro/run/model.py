"""A model that stays at hand: ``virnucpro.load``."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from virnucpro.bundles.bundle import Bundle, load_bundle
from virnucpro.embeddings.inputs import Sequences
from virnucpro.embeddings.model import EmbeddingModel, Tabular, as_file
from virnucpro.errors import UsageError
from virnucpro.executors.base import Kept
from virnucpro.results.formats import values_of
from virnucpro.results.schema import SEQUENCES
from virnucpro.results.tables import sequence_cells
from virnucpro.run.predict import score
from virnucpro.settings import make_settings


@dataclass(frozen=True)
class Prediction:
    """The answer for one sequence; columns as in ``.sequences.tsv``.

    Attributes:
        name: id of the sequence.
        length: its bases.
        call: ``virus``, ``not_virus``, ``uncertain`` or ``no_call``.
        p_virus: calibrated probability; None where nothing was scored.
        fdr: estimated share of false calls among all sequences with a p_virus at least as high; None likewise.
        evidence: what was scored; None likewise.
        top_region: 1-based start and stop of the fragment with the highest p_virus, where there are several.
        num_fragments: windows it was cut into.
        num_rows: kept reading frames.
        status: what became of it.
        reason: the status in words, where it is not ok.
    """

    name: str
    length: int
    call: str
    p_virus: float | None
    fdr: float | None
    evidence: str | None
    top_region: str | None
    num_fragments: int
    num_rows: int
    status: str
    reason: str | None


class Predictions(tuple[Prediction, ...], Tabular):
    """Answers in the order of the sequences."""

    __slots__ = ()

    @property
    def columns(self) -> dict[str, list[Any]]:
        """A list for each field of an answer."""
        return {field.name: [getattr(row, field.name) for row in self] for field in fields(Prediction)}


class Model(EmbeddingModel):
    """A model that predicts and embeds; made by :func:`load`. What it loads stays until it is closed."""

    def __init__(self, bundle: Bundle, **options: Any) -> None:  # noqa: ANN401 - those of EmbeddingModel
        super().__init__(bundle, **options)
        self._kept = Kept()  # the worker of ``predict``, with its encoders

    def close(self) -> None:
        """Let go of the encoders and the cache."""
        self._kept.close()
        super().close()

    def predict(
        self,
        sequences: Sequences,
        *,
        preset: Literal["sensitive", "balanced", "strict"] | None = None,
        threshold: float | None = None,
        fdr: float | None = None,
        prevalence: float | None = None,
    ) -> Predictions:
        """Tell which sequences are viral; the answers are those of the command.

        Args:
            sequences: a path, a mapping of ids to sequences, records of Biopython, pysam, scikit-bio or dnaio, pairs,
                or plain sequences.
            preset: the model's thresholds; ``balanced`` if no way to call is given.
            threshold: p_virus from which a sequence is called virus.
            fdr: highest share of false calls.
            prevalence: expected share of viral sequences.

        Raises:
            VirNucProError: see ``virnucpro.errors`` for the tree.
        """
        options: dict[str, object] = {"science.model": str(self.bundle.folder), "science.dtype": self.dtype}
        runtime = {"runtime.threads": self.threads, "runtime.device": self.device}
        with as_file(sequences) as (path, ids):
            fragments = score(path, make_settings(None, options | runtime), kept=self._kept)
        called = fragments.call(preset, threshold=threshold, fdr=fdr, prevalence=prevalence or "auto")
        cells = dict(zip(SEQUENCES.columns, sequence_cells(fragments, called.calls), strict=True))
        columns = {column.name: values_of(column, values) for column, values in cells.items()}
        if ids is not None:
            columns["name"] = ids
        rows = zip(*(columns[field.name] for field in fields(Prediction)), strict=True)
        return Predictions(Prediction(*row) for row in rows)


def load(
    model: str = "lite",
    device: str = "auto",
    threads: int | None = None,
    *,
    dtype: str = "auto",
    cache: str | os.PathLike[str] | None = None,
) -> Model:
    """Load a model once, to be used many times.

    Args:
        model: ``lite``, ``300``, ``500``, or a folder.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        threads: CPU threads; None takes all.
        dtype: type the encoders compute in.
        cache: folder of embeddings for ``embed`` to use and add to.

    Raises:
        ModelError: there is no such model.
        UsageError: fewer than one thread.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads: at least 1, not {threads}.")
    place = None if cache is None else Path(cache)
    return Model(load_bundle(model), device=device, threads=threads, dtype=dtype, cache=place)
