"""Encoders of other packages, found through the entry points in the group ``virnucpro.encoders``.

::

    [project.entry-points."virnucpro.encoders"]
    my_kind = "my_package:MyEncoder"      # a class of the shape of EncoderClass: for files whose kind is my_kind
    my_encoder = "my_package:load"        # a function (device, dtype) -> Encoder: asked for by this name

The function carries attributes: ``alphabet`` (``nt`` or ``aa``), ``width``, and where they are known ``max_letters``
and ``fingerprint`` (identity of its weights, without which embeddings are not cached).
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from virnucpro.errors import ModelError

GROUP = "virnucpro.encoders"


def plugin_names() -> list[str]:
    """Names of all plug-ins, sorted; none is imported."""
    return sorted(entry_points(group=GROUP).names)


def plugin(name: str) -> Any | None:  # noqa: ANN401 - a class or a function of somebody else's
    """Import a plug-in; None if there is none of that name.

    Raises:
        ModelError: it cannot be imported.
    """
    for entry in entry_points(group=GROUP, name=name):
        try:
            return entry.load()
        except Exception as error:
            raise ModelError(f"plug-in {name} ({entry.value}) cannot be imported: {error}") from error
    return None
