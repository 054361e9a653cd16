"""A model that stays at hand: ``virnucpro.load``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, overload

from virnucpro.bundles.bundle import load_bundle
from virnucpro.embeddings.inputs import Sequences
from virnucpro.embeddings.model import EmbeddingModel, as_file
from virnucpro.errors import UsageError
from virnucpro.request import Options
from virnucpro.run.predict import predict
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


@dataclass(frozen=True)
class Predictions(Sequence[Prediction]):
    """Answers in the order of the sequences.

    Attributes:
        rows: one for each.
    """

    rows: tuple[Prediction, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...

    @overload
    def __getitem__(self, index: slice) -> Predictions: ...

    def __getitem__(self, index: int | slice) -> Prediction | Predictions:
        return Predictions(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def columns(self) -> dict[str, list[Any]]:
        """A list a column."""
        dicts = [asdict(row) for row in self.rows]
        return {field.name: [row[field.name] for row in dicts] for field in fields(Prediction)}

    def to_pandas(self) -> Any:  # noqa: ANN401 - pandas is not needed to run
        """A pandas table."""
        import pandas as pd  # type: ignore[import-untyped]  # noqa: PLC0415 - where it is installed

        return pd.DataFrame(self.columns())

    def to_arrow(self) -> Any:  # noqa: ANN401 - pyarrow has no types of its own
        """A pyarrow table."""
        from pyarrow import table  # noqa: PLC0415 - where it is installed

        return table(self.columns())

    def to_polars(self) -> Any:  # noqa: ANN401 - polars is not needed to run
        """A polars table."""
        import polars as pl  # noqa: PLC0415 - where it is installed

        return pl.DataFrame(self.columns())


class Model(EmbeddingModel):
    """A model that predicts and embeds; made by :func:`load`."""

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
        science = {"preset": preset, "threshold": threshold, "fdr": fdr, "prevalence": prevalence}
        settings = make_settings(
            None,
            {"science.model": str(self.bundle.folder), "runtime.threads": self.threads, "science.dtype": self.dtype}
            | {"runtime.device": self.device, **{f"science.{name}": value for name, value in science.items()}},
        )
        options = Options(table_format="jsonl", with_report=False)
        with as_file(sequences) as (path, ids), TemporaryDirectory(prefix="virnucpro-") as folder:
            results = predict([path], folder, settings, options=options)
            lines = results.path("sequences.jsonl").read_text(encoding="utf-8", errors="backslashreplace").splitlines()
        found = [json.loads(line) for line in lines]
        names = ids if ids is not None else [row["name"] for row in found]
        wanted = [field.name for field in fields(Prediction) if field.name != "name"]
        return Predictions(
            tuple(
                Prediction(name=name, **{column: row.get(column) for column in wanted})
                for name, row in zip(names, found, strict=True)
            )
        )


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
