"""VirNucPro tells which sequences of a metagenome are viral.

    >>> import virnucpro
    >>> results = virnucpro.predict(["contigs.fasta"], "results")
    >>> results.path("sequences.tsv")
    >>> fragments = virnucpro.score(["contigs.fasta"])  # or records: [("id", "ACGT..."), ...]
    >>> fragments.call("strict").to_pandas()

Importing this package imports no torch; the first call does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virnucpro import errors

if TYPE_CHECKING:
    from virnucpro.bundles import Bundle, load_bundle
    from virnucpro.request import Options
    from virnucpro.results.fragments import Fragments
    from virnucpro.run.model import Model, load
    from virnucpro.run.predict import Results, predict, score
    from virnucpro.samples import Sample
    from virnucpro.settings import Settings, make_settings

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "Fragments",
    "Model",
    "Options",
    "Results",
    "Sample",
    "Settings",
    "errors",
    "load",
    "load_bundle",
    "make_settings",
    "predict",
    "score",
]

_PLACES = {
    "Bundle": "virnucpro.bundles",
    "load_bundle": "virnucpro.bundles",
    "Model": "virnucpro.run.model",
    "load": "virnucpro.run.model",
    "Settings": "virnucpro.settings",
    "make_settings": "virnucpro.settings",
    "Options": "virnucpro.request",
    "Results": "virnucpro.run.predict",
    "Sample": "virnucpro.samples",
    "predict": "virnucpro.run.predict",
    "score": "virnucpro.run.predict",
    "Fragments": "virnucpro.results.fragments",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the module's own lazy attributes
    if name in _PLACES:
        from importlib import import_module  # noqa: PLC0415 - only when something is asked for

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
