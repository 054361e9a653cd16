"""The encoders of a model, loaded once: what ``virnucpro.load`` gives embeds with them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles.bundle import Bundle
from virnucpro.embeddings.cache import EmbeddingCache
from virnucpro.embeddings.inputs import Sequences, as_records, checked_records
from virnucpro.embeddings.levels import LEVELS, Level, embed_part, fill, parts_of_dna, room_for
from virnucpro.embeddings.loader import ModelLoader, torch_threads
from virnucpro.errors import UsageError
from virnucpro.resources import available_cpus

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


class EmbeddingModel:
    """A model with its encoders, which are loaded when they are first needed and stay.

    Args:
        bundle: the model.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        threads: CPU threads; None takes all.
        dtype: type the encoders compute in, ``auto`` for what suits the device.
        cache: folder of embeddings to use and add to; None keeps none.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        threads: int | None = None,
        dtype: str = "auto",
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.bundle = bundle
        self.device, self.threads, self.dtype = device, threads, dtype
        self._cache = None if cache is None else EmbeddingCache(Path(cache))
        place = None if device == "auto" else device
        self._loaders = {role: ModelLoader(f"{bundle.folder}:{role}", dtype, place) for role in _ROLES["both"]}

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
        with as_file(sequences) as (path, ids), torch_threads(self.threads or available_cpus()):
            made = [
                embed_part(part, models, level, self._cache) for part in parts_of_dna(path, self.bundle.fragment_length)
            ]
        embeddings = fill(room_for([rows.size for rows in made], level, widths), made)
        if ids is not None:
            embeddings.ids[:] = ids
        counts = dict(zip(_ROLES[which], embeddings.counts.values(), strict=True))
        return embeddings.joined(), EmbeddingIndex(replace(embeddings, counts=counts).columns())

    def close(self) -> None:
        """Close the cache; the encoders go with their last user."""
        if self._cache is not None:
            self._cache.close()


@contextmanager
def as_file(sequences: Sequences) -> Iterator[tuple[str, list[str] | None]]:
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
