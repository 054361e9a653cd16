"""How functions are compiled, and where the machine code is kept.

A kernel is a function on numbers and arrays, declared with :func:`kernel`; plain functions that it calls become a part
of it. It gets the address of each array, so that arrays are indexed as if they had one dimension, and have no length.
Numba compiles it; a later process calls what was kept without importing numba, which takes most of a second.

The machine code is kept in a file named after the kernel and a digest of all that went into it: byte code, the values
of the constants it names, types, versions, and the processor. Any failure to load or store it means "compile, do not
keep": a cache that is damaged, full, stale or out of reach never stops a run and never changes a number.

The folder is ``NUMBA_CACHE_DIR`` if that is set, else ``__pycache__/kernels`` of the package, else the user's cache
folder. Nobody has to delete anything after an edit.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, update_wrapper
from importlib.metadata import version
from pathlib import Path
from threading import RLock
from types import FunctionType
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import binding

from virnucpro.errors import VirNucProError

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

_PACKAGE = Path(__file__).parent
_C_TYPES: dict[Any, Any] = {int: ctypes.c_int64, float: ctypes.c_double}
_OPTIONS: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "error_model": "numpy"}
_Results = ctypes.c_int64 * 2
"""What a kernel returns, and where numba would say what was raised."""
_DIGEST_BYTES = 32
_KEPT_VERSIONS = 3
"""Of the machine code of one kernel: a machine may have several versions of this program."""
_LOCK = RLock()


def kernel(function: Callable[..., Result]) -> Callable[..., Result]:
    """Compile a function at its first call; the machine code is kept.

    Its annotations are its types: ``int`` (64 bits), ``float`` (double), ``NDArray[np.uint8]`` and the like for arrays,
    which must be contiguous; dtypes are checked at each call. It returns an ``int`` or nothing.
    """
    return cast("Callable[..., Result]", _Kernel(cast("FunctionType", function)))


class _Kernel:
    """A function that is machine code from its first call on."""

    def __init__(self, function: FunctionType) -> None:
        update_wrapper(self, function)
        self._function = function
        self._name = f"{function.__module__.removeprefix('virnucpro.')}.{function.__qualname__}"
        self._dtypes: list[np.dtype[Any] | None] = []  # of the arguments; None of numbers
        self._returns = False
        self._machine_code: Callable[..., int] | None = None

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401 - whatever the function is declared for
        machine_code = self._machine_code or self._load()
        given = []
        for argument, dtype in zip(arguments, self._dtypes, strict=True):
            if dtype is not None:
                if argument.dtype != dtype:
                    raise TypeError(f"{self._name}: an array of {argument.dtype} in the place of one of {dtype}")
                try:
                    argument = ctypes.addressof(ctypes.c_char.from_buffer(argument))  # noqa: PLW2901
                except (TypeError, ValueError):  # read-only, empty, or with gaps
                    if not argument.flags.c_contiguous:
                        raise TypeError(f"{self._name}: an array has gaps") from None
                    argument = argument.ctypes.data  # noqa: PLW2901
            given.append(argument)
        results = _Results()
        place = ctypes.addressof(results)
        if machine_code(place, place + 8, *given):
            raise RuntimeError(f"{self._name} raised an exception, which no kernel may")
        return results[0] if self._returns else None

    def _load(self) -> Callable[..., int]:
        """Get the machine code, kept or new."""
        with _LOCK:
            if self._machine_code is None:
                hints = typing.get_type_hints(self._function)
                self._returns = hints.pop("return") is int
                self._dtypes = [_dtype_of(hint) for hint in hints.values()]
                types = [_C_TYPES.get(hint, ctypes.c_void_p) for hint in hints.values()]
                key = _digest([*_what_goes_into(self._function), hints, self._returns, _platform()])
                address = _load_kept(self._name, key) or self._compile(hints, key)
                as_called = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *types)
                self._machine_code = as_called(address)
            return self._machine_code

    def _compile(self, hints: dict[str, Any], key: str) -> int:
        """Compile the function, keep it, and give its address."""
        root = _root()
        _announce(root)
        import numba  # noqa: PLC0415 - most of a second, only where something must be compiled

        def type_of(hint: object) -> object:
            dtype = _dtype_of(hint)
            if dtype is None:
                return numba.int64 if hint is int else numba.float64
            return numba.types.CPointer(numba.uint8 if dtype == np.bool_ else numba.from_dtype(dtype))

        types = tuple(map(type_of, hints.values()))
        dispatcher = _part(self._function)
        dispatcher.compile(types)
        library, symbol = (form := dispatcher.overloads[types]).library, form.fndesc.llvm_func_name
        if [each.name for each in library.get_function(symbol).arguments] != [
            "retptr",
            "excinfo",
            *(f"arg.{name}" for name in hints),
        ]:
            raise VirNucProError(
                f"numba {version('numba')} passes arguments in a way that this version of VirNucPro does not know. "
                "Install an older one; 0.68.1 is known to work."
            )
        try:
            # What it calls must be there in a process without numba. All but what LLVM itself knows is part of it.
            if not re.search(r"^declare .*@(?!llvm\.)", library.get_llvm_str(), re.MULTILINE):
                code = library._get_compiled_object()  # noqa: SLF001 - numba keeps it in the same way
                _keep(root / f"{self._name}-{key}", symbol.encode() + b"\n" + code)
        except Exception as error:  # noqa: BLE001 - what cannot be kept is compiled again next time
            _log.debug("kernel cannot be kept: %s: %r", self._name, error)
        return int(library.get_pointer_to_function(symbol))


def _dtype_of(hint: Any) -> np.dtype[Any] | None:  # noqa: ANN401 - a type hint
    """Of the items of an annotated array; None for a number."""
    if hint in _C_TYPES:
        return None
    dtype: np.dtype[Any] = np.dtype(typing.get_args(typing.get_args(hint)[1])[0])
    return dtype


def _parts_of(function: FunctionType) -> dict[str, FunctionType]:
    """Functions that a function calls."""
    named = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    return {name: value for name, value in named.items() if isinstance(value, FunctionType)}


@cache
def _part(function: FunctionType) -> Any:  # noqa: ANN401 - numba has no annotations
    import numba  # noqa: PLC0415 - as above

    parts = {name: _part(called) for name, called in _parts_of(function).items()}
    function = FunctionType(function.__code__, function.__globals__ | parts, function.__name__, function.__defaults__)
    return numba.njit(**_OPTIONS)(function)


def _what_goes_into(function: FunctionType) -> Iterator[object]:
    """The byte code of a function and of its parts, and the constants that they name."""
    code = function.__code__
    yield from (code.co_code, code.co_consts, code.co_names, code.co_varnames)
    for name in code.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, np.ndarray):
            yield from (name, value.dtype, value.shape, value.tobytes())
        elif isinstance(value, (int, float, np.generic)):
            yield from (name, value)
    for part in _parts_of(function).values():
        yield from _what_goes_into(part)


@cache
def _platform() -> str:
    """What else machine code depends on: versions, the processor, what numba is told by the environment."""
    told = {name: value for name, value in os.environ.items() if name.startswith("NUMBA_")}
    told.pop("NUMBA_CACHE_DIR", None)
    cpu = told.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
    features = told["NUMBA_CPU_FEATURES"] if "NUMBA_CPU_FEATURES" in told else binding.get_host_cpu_features().flatten()
    versions = [sys.version, np.__version__, *map(version, ("numba", "llvmlite"))]
    return repr([*versions, binding.get_process_triple(), cpu, features, sorted(told.items())])


def _digest(ingredients: list[object]) -> str:
    return hashlib.sha256(repr(ingredients).encode()).hexdigest()[:16]


def _load_kept(name: str, key: str) -> int | None:
    """Address of the machine code that is kept of a kernel; None if there is none that can be used."""
    for root in _roots():
        path = root / f"{name}-{key}"
        try:
            digest, content = (data := path.read_bytes())[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
            if hashlib.sha256(content).digest() != digest:
                raise ValueError("kept machine code is damaged")  # noqa: TRY301 - as with any other failure
            symbol, _, code = content.partition(b"\n")
            engine = _engine()
            engine.add_object_file(binding.ObjectFileRef.from_data(code))
            engine.finalize_object()
            return int(engine.get_function_address(symbol.decode())) or None
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a file, the function can be compiled
            _log.debug("no kept kernel: %s: %r", path, error)
    return None


@cache
def _engine() -> binding.ExecutionEngine:
    """Where kept machine code is made ready to be called."""
    with suppress(RuntimeError):
        binding.initialize()  # LLVM of llvmlite before 0.45 does not do so by itself
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine(jit=True)
    return binding.create_mcjit_compiler(binding.parse_assembly(""), machine)


def _keep(path: Path, content: bytes) -> None:
    """Write machine code with its digest before it, whole or not at all, and delete that of older sources."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(hashlib.sha256(content).digest() + content)
    if path.is_dir():
        path.rmdir()
    part.replace(path)
    kept = sorted(path.parent.glob(f"{path.name[:-16]}*"), key=lambda file: file.stat().st_mtime_ns)
    for old in kept[:-_KEPT_VERSIONS]:
        old.unlink(missing_ok=True)


def _root() -> Path:
    """Where machine code is kept, or would be."""
    roots = list(_roots())
    return next(filter(_can_write, roots), roots[0])


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
