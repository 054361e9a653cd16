"""How functions are compiled, and where the machine code is kept.

Every kernel is declared with :func:`kernel`, what only kernels call with :func:`part_of_kernels`. Its machine code is
kept on disk, in a folder named after its module and a digest of all sources that went into it: the module, what it
imports of this package, and the versions of Python, numba and NumPy. Any failure to load or store it means "compile, do
not keep": a cache that is damaged, full, stale or out of reach never stops a run and never changes a number.

The folder is ``NUMBA_CACHE_DIR`` if that is set, else ``__pycache__/kernels`` of the package, else the user's cache
folder. Nobody has to delete anything after an edit.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, _CacheLocator

_log = logging.getLogger(__name__)

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

_PACKAGE = Path(__file__).parent
_IMPORT = re.compile(
    r"^\s*(?:from (virnucpro[\w.]*) import ([\w ,]+|\([^)]*\))|import (virnucpro[\w.]*))", re.MULTILINE
)
_OPTIONS: dict[str, Any] = {"nogil": True, "no_cfunc_wrapper": True}
_PART_OPTIONS = _OPTIONS | {"no_cpython_wrapper": True}
_DIGEST_BYTES = 32
_KEPT_VERSIONS = 3
"""Folders of one module that stay: a machine may have several versions of this program."""


def kernel(function: Kernel) -> Kernel:
    """Compile with numba at the first call; the machine code is kept."""
    dispatcher = numba.njit(**_OPTIONS)(function)
    if hasattr(dispatcher, "_cache"):  # not where numba is switched off
        dispatcher._cache = _Kept(function)  # noqa: SLF001 - numba's own would choose its place and fail loudly
    return cast("Kernel", dispatcher)


def part_of_kernels(function: Kernel) -> Kernel:
    """Compile what only kernels call, as a part of each: nothing of it is kept by itself."""
    return cast("Kernel", numba.njit(**_PART_OPTIONS)(function))


class _Place(_CacheLocator):
    """Where the code of one function is kept, and what it depends on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._module = function.__module__
        self._line = function.__code__.co_firstlineno
        self._source = Path(inspect.getfile(function))
        self._py_file = str(self._source)  # numba names it in warnings

    def get_cache_path(self) -> str:
        return str(folder_of(self._module, sources_digest(self._source)))

    def get_source_stamp(self) -> str:
        return sources_digest(self._source)

    def get_disambiguator(self) -> str:
        return str(self._line)


class _Form(CompileResultCacheImpl):
    def __init__(self, function: Callable[..., Any]) -> None:
        self._locator = _Place(function)
        self._lineno = function.__code__.co_firstlineno
        self._filename_base = self.get_filename_base(function.__qualname__, sys.abiflags)


class _CheckedFile(IndexDataCacheFile):
    """Machine code with its digest behind it, where ``pickle`` does not look."""

    def _dump(self, content: object) -> bytes:
        data: bytes = super()._dump(content)
        return data + hashlib.sha256(data).digest()

    def _load_index(self) -> dict[Any, str]:
        try:
            return dict(super()._load_index())
        except Exception:  # noqa: BLE001 - of an index that cannot be read, a new one is made
            return {}

    def _load_data(self, name: str) -> object:
        data = Path(self._data_path(name)).read_bytes()
        if hashlib.sha256(data[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
            raise ValueError("kept machine code is damaged")
        return super()._load_data(name)


class _Kept(FunctionCache):
    """Numba's cache of one function, of which no failure gets out."""

    _impl_class = _Form

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        place = self._impl.locator
        self._cache_file = _CheckedFile(place.get_cache_path(), self._impl.filename_base, place.get_source_stamp())

    def load_overload(self, sig: object, target_context: object) -> object:
        found = None
        try:
            found = super().load_overload(sig, target_context)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a file, the function can be compiled
            _log.debug("kept kernel cannot be used: %s: %r", self._name, error)
        if found is None:
            _announce(Path(self.cache_path).parent)
        return found

    def save_overload(self, sig: object, data: object) -> None:
        try:
            _drop_old(Path(self.cache_path))
            super().save_overload(sig, data)
        except Exception as error:  # noqa: BLE001 - what cannot be kept is compiled again next time
            _log.debug("kernel cannot be kept: %s: %r", self._name, error)


@cache
def sources_digest(module: Path, package: Path = _PACKAGE) -> str:
    """Hex digest of a module, of all modules of this package that it imports, directly or not, and of the versions."""
    digest = hashlib.sha256(f"{sys.version} numba {numba.__version__} numpy {np.__version__}".encode())
    seen, todo = {module}, [module]
    while todo:
        source = todo.pop()
        text = source.read_text(encoding="utf-8") if source.exists() else ""
        for found in sorted(set(_imported(text, package)) - seen):
            seen.add(found)
            todo.append(found)
    for source in sorted(seen):
        digest.update(source.read_bytes() if source.exists() else b"")
    return digest.hexdigest()


def _imported(text: str, package: Path) -> Iterator[Path]:
    """Files of the modules that a source imports of this package."""
    for of, names, whole in _IMPORT.findall(text):
        parts = (of or whole).split(".")[1:]
        for tail in ([], *([name] for name in re.findall(r"\w+", names))):
            path = package.joinpath(*parts, *tail)
            yield from filter(Path.is_file, (path.with_suffix(".py"), path / "__init__.py"))


def folder_of(module: str, digest: str) -> Path:
    """Where the machine code of a module's kernels is, or would be."""
    name = f"{module.removeprefix('virnucpro.')}-{digest[:16]}"
    roots = list(_roots())
    for root in roots:
        if (root / name).is_dir() or _can_write(root):
            return root / name
    return roots[0] / name  # nothing is there, and nothing can be kept


def _roots() -> Iterator[Path]:
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        yield Path(given) / "virnucpro"
        return
    yield _PACKAGE / "__pycache__" / "kernels"
    home = os.path.expanduser("~/.cache")  # noqa: PTH111 - raises nothing where there is no home
    folder = Path(os.environ.get("VIRNUCPRO_CACHE") or os.environ.get("XDG_CACHE_HOME") or home)
    if folder.is_absolute():
        yield folder / "virnucpro" / "kernels"


@cache
def _can_write(root: Path) -> bool:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(root, os.W_OK | os.X_OK)


@cache
def _announce(root: Path) -> None:
    """One line a process."""
    fate = f"kept in {root}" if _can_write(root) else "not kept; NUMBA_CACHE_DIR may name a folder for it"
    _log.info("compiling for this CPU, which takes some seconds (%s)", fate)


def _drop_old(folder: Path) -> None:
    """Delete the machine code of older sources when a new folder is begun."""
    if folder.is_dir():
        return
    with suppress(OSError):
        module = folder.name.rpartition("-")[0]
        others = sorted(folder.parent.glob(f"{module}-*"), key=lambda path: path.stat().st_mtime)
        for old in others[: max(0, len(others) + 1 - _KEPT_VERSIONS)]:
            shutil.rmtree(old, ignore_errors=True)
