"""A model that stays at hand: ``virnucpro.load``. It predicts and embeds sequences in memory or in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles.bundle import Bundle, load_bundle
from virnucpro.embeddings.cache import EmbeddingCache
from virnucpro.embeddings.inputs import Sequences, as_records, checked_records
from virnucpro.embeddings.levels import LEVELS, Level, embed_part, fill, parts_of_dna, room_for
from virnucpro.embeddings.loader import ModelLoader, torch_threads
from virnucpro.errors import UsageError
from virnucpro.executors.base import Kept
from virnucpro.resources import available_cpus
from virnucpro.results.formats import values_of
from virnucpro.results.schema import SEQUENCES
from virnucpro.results.tables import sequence_cells
from virnucpro.run.predict import score
from virnucpro.settings import make_settings

Which = Literal["nucleotide", "protein", "both"]
_ROLES: dict[str, tuple[str, ...]] = {
    "nucleotide": ("nucleotide",),
    "protein": ("protein",),
    "both": ("nucleotide", "protein"),
}


class _HasColumns(Protocol):
    @property
    def columns(self) -> Mapping[str, Any]:
        """Of one length, by name."""


class Tabular:
    """Columns as tables of other libraries, where these are installed."""

    __slots__ = ()

    def to_pandas(self: _HasColumns) -> Any:  # noqa: ANN401 - pandas is not needed to run
        """A pandas table."""
        return import_module("pandas").DataFrame(self.columns)

    def to_arrow(self: _HasColumns) -> Any:  # noqa: ANN401 - pyarrow has no types of its own
        """A pyarrow table."""
        return import_module("pyarrow").table(self.columns)

    def to_polars(self: _HasColumns) -> Any:  # noqa: ANN401 - polars is not needed to run
        """A polars table."""
        return import_module("polars").DataFrame(self.columns)


@dataclass(frozen=True)
class EmbeddingIndex(Tabular):
    """What the rows of an array of embeddings are of.

    Attributes:
        columns: ``id``, ``length`` (of the sequence); of fragments and frames ``fragment``, ``start``, ``stop``
            (0-based half-open), of frames ``frame``; and for each encoder how many embeddings a row is the mean of.
    """

    columns: dict[str, NDArray[np.generic] | list[str]]

    def __len__(self) -> int:
        return len(self.columns["id"])

    @property
    def ids(self) -> list[str]:
        """Id of each row's sequence."""
        return list(map(str, self.columns["id"]))


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


class Model:
    """A model that predicts and embeds; made by :func:`load`. What it loads stays until it is closed."""

    def __init__(self, bundle: Bundle, device: str, threads: int | None, dtype: str, cache: Path | None) -> None:
        self.bundle = bundle
        self.device, self.threads, self.dtype = device, threads, dtype
        self._kept = Kept()  # the worker of ``predict``, with its encoders
        self._cache = None if cache is None else EmbeddingCache(cache)
        place = None if device == "auto" else device
        self._loaders = {role: ModelLoader(f"{bundle.folder}:{role}", dtype, place) for role in _ROLES["both"]}

    def close(self) -> None:
        """Let go of the encoders and the cache."""
        self._kept.close()
        if self._cache is not None:
            self._cache.close()

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
        with _as_file(sequences) as (path, ids):
            fragments = score(path, make_settings(None, options | runtime), kept=self._kept)
        called = fragments.call(preset, threshold=threshold, fdr=fdr, prevalence=prevalence or "auto")
        cells = dict(zip(SEQUENCES.columns, sequence_cells(fragments, called.calls), strict=True))
        columns = {column.name: values_of(column, values) for column, values in cells.items()}
        if ids is not None:
            columns["name"] = ids
        rows = zip(*(columns[field.name] for field in fields(Prediction)), strict=True)
        return Predictions(Prediction(*row) for row in rows)

    def embed(
        self, sequences: Sequences, level: Level = "sequence", which: Which = "both"
    ) -> tuple[NDArray[np.floating], EmbeddingIndex]:
        """Embed nucleotide sequences.

        Args:
            sequences: a path, a mapping of ids to sequences, records of Biopython, pysam, scikit-bio or dnaio, pairs,
                or plain sequences.
            level: a row a sequence, a fragment of it, or a reading frame.
            which: from the bases, from the translated frames, or both side by side.

        Returns:
            (k, width) float32 in input order, NaN where there is nothing to embed; and what the rows are of.

        Raises:
            UsageError: there is no such level or kind.
            ModelValidationError: a sequence holds letters that no nucleotide has.
            InputError: a file cannot be read.
        """
        if level not in LEVELS or which not in _ROLES:
            raise UsageError(f"level is one of {', '.join(LEVELS)}, which one of {', '.join(_ROLES)}.")
        models = [self._loaders[role].get_model() for role in _ROLES[which]]
        widths = {model.source.name: model.source.width for model in models}
        with _as_file(sequences) as (path, ids), torch_threads(self.threads or available_cpus()):
            made = [
                embed_part(part, models, level, self._cache) for part in parts_of_dna(path, self.bundle.fragment_length)
            ]
        embeddings = fill(room_for([rows.size for rows in made], level, widths), made)
        if ids is not None:
            embeddings.ids[:] = ids
        counts = dict(zip(_ROLES[which], embeddings.counts.values(), strict=True))
        return embeddings.joined(), EmbeddingIndex(replace(embeddings, counts=counts).columns())


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
    return Model(load_bundle(model), device, threads, dtype, None if cache is None else Path(cache))


@contextmanager
def _as_file(sequences: Sequences) -> Iterator[tuple[str, list[str] | None]]:
    """A file that holds the sequences; for those in memory also their ids, since a file's end at a blank."""
    if isinstance(sequences, (str, os.PathLike)):
        yield os.fspath(sequences), None
        return
    ids = []
    with TemporaryDirectory(prefix="virnucpro-") as folder:
        path = Path(folder) / "sequences.fasta"
        with path.open("w", encoding="ascii") as stream:
            for number, (name, sequence) in enumerate(checked_records(as_records(sequences), "nt")):
                ids.append(name)
                stream.write(f">{number}\n{sequence}\n")
        yield str(path), ids
