"""Checkpoints that other programs pickled, read without running any of their code.

A pickle is a program that calls what it names. Here every name stands for an inert object of our own: a file can name
what numpy arrays and numbers are made of, and nothing else; whatever other name it holds ends the reading with that
name. No name is ever imported.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import InputError

UnpicklingError = pickle.UnpicklingError
"""What readers of pickles raise, torch's among them."""
_KINDS = "fiub"
"""Kinds of numpy types that are numbers; objects would be built by other code."""
_DAMAGED = (
    *(pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError),
    *(OverflowError, MemoryError, RecursionError, UnicodeDecodeError),
)


def read_pickle(path: Path) -> Any:  # noqa: ANN401 - whatever plain values and arrays it holds
    """The content of a pickle of plain values (dict, list, text, numbers) and numpy arrays.

    Raises:
        InputError: it holds anything else, or is damaged.
    """
    try:
        with path.open("rb") as stream:
            return _opened(_Reader(stream).load())
    except _Refused as error:
        raise InputError(str(path), f"holds {error}, which would be code to run. Save plain arrays (.npz).") from error
    except _DAMAGED as error:
        raise InputError(str(path), f"is not a pickle that can be read ({type(error).__name__}: {error})") from error


class _Refused(Exception):  # noqa: N818 - what was refused is its text
    """A name that is not on the list."""


class _Array:
    """A numpy array while it is read: made empty, then given shape, type and bytes."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        self.value = _array(content, dtype, shape, "F" if is_fortran else "C")


class _Dtype:
    """A numpy type while it is read: its name, then its byte order."""

    __slots__ = ("value",)

    def __init__(self, name: str) -> None:
        self.value = np.dtype(name) if isinstance(name, str) else np.dtype("O")
        if self.value.kind not in _KINDS:
            raise _Refused(f"values of type {name!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Name:
    """Stands for a name of numpy's; a file can call it and change nothing of it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:  # noqa: ANN401 - as the file has it
        return self._make(*args)

    def __setattr__(self, name: str, value: object) -> None:
        if name != "_make" or hasattr(self, name):
            raise _Refused(f"a new {name} for a function")
        object.__setattr__(self, name, value)


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:  # noqa: ANN401 - as the file has it
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray) or order not in ("C", "F"):
        raise _Refused("an array of objects")
    return np.frombuffer(content, dtype.value).reshape(tuple(map(int, shape)), order=order)


def _scalar(dtype: Any, content: Any) -> Any:  # noqa: ANN401 - as the file has it
    return _array(content, dtype, (1,), "C")[0].item()


_NAMES: dict[str, _Name] = {
    "_reconstruct": _Name(lambda *_: _Array()),
    "_frombuffer": _Name(_array),
    "scalar": _Name(_scalar),
    "dtype": _Name(lambda name, *_: _Dtype(name)),
    "ndarray": _Name(lambda *_: _Array()),
    "OrderedDict": _Name(dict),
}
_LISTED = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    *(("numpy", name) for name in ("dtype", "ndarray")),
    ("collections", "OrderedDict"),
}


class _Reader(pickle.Unpickler):
    """Finds the names of the list, as inert objects, and no other."""

    def find_class(self, module: str, name: str) -> _Name:
        if module == "_codecs" and name == "encode":  # bytes, as protocol 2 writes them
            return _Name(lambda text, encoding: text.encode("latin1") if encoding == "latin1" else _refuse(encoding))
        if (module, name) not in _LISTED:
            raise _Refused(f"{module}.{name}")
        return _NAMES[name]

    def persistent_load(self, pid: object) -> None:
        del pid
        raise _Refused("a reference to another file")


def _refuse(what: object) -> None:
    raise _Refused(f"{what!r}")


def _opened(value: Any) -> Any:  # noqa: ANN401 - as the file has it
    """The value with the arrays themselves in the place of what they were read as; of the outermost dict or list."""
    if isinstance(value, dict):
        return {key: _content(item) for key, item in value.items()}
    return _content(value)


def _content(value: Any) -> Any:  # noqa: ANN401 - as the file has it
    return value.value if isinstance(value, _Array | _Dtype) else value
