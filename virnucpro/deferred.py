"""A part of torch that is imported when it is needed.

A quarter of the time that importing torch takes goes into what its compiler must know of each operator (shapes and
types of results). Eager computing never asks for it. :func:`defer_compiler` puts it off in the process of the command
line, where no code of others runs but plug-ins; :func:`load_compiler` makes up for it before anything is compiled.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

_NAME = "torch._meta_registrations"


class _Deferred(ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # what looks through all modules asks for these
            raise AttributeError(name)
        load_compiler()
        return getattr(sys.modules[_NAME], name)


def defer_compiler() -> None:
    """Import torch without that part, if it was not imported yet."""
    if "torch" not in sys.modules:
        sys.modules[_NAME] = _Deferred(_NAME)


def load_compiler() -> None:
    """Import that part if it was put off."""
    if isinstance(sys.modules.get(_NAME), _Deferred):
        del sys.modules[_NAME]
        import_module(_NAME)
