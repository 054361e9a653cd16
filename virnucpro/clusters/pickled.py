"""Checkpoints that other programs pickled, read without running any of their code.

A pickle is a program that calls what it names. Here every name stands for a function of our own, which no other file
sees: a file can name what numpy arrays and numbers are made of, and nothing else; whatever other name it holds ends the
reading with that name. No name is ever imported.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
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

    Arrays are those of the outermost dict, or the whole.

    Raises:
        InputError: it holds anything else, or is damaged.
    """
    try:
        with path.open("rb") as stream:
            content = _Reader(stream).load()
    except _Refused as error:
        raise InputError(str(path), f"holds {error}, which would be code to run. Save plain arrays (.npz).") from error
    except _DAMAGED as error:
        raise InputError(str(path), f"is not a pickle that can be read ({type(error).__name__}: {error})") from error
    if isinstance(content, dict):
        return {key: getattr(item, "value", item) for key, item in content.items()}
    return getattr(content, "value", content)


class _Refused(Exception):  # noqa: N818 - what was refused is its text
    """A name that is not on the list."""


class _Array:
    """A numpy array while it is read: made empty, then given shape, type and bytes."""

    value: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        self.value = _array(content, dtype, shape, "F" if is_fortran else "C")


class _Dtype:
    """A numpy type while it is read: its name, then its byte order."""

    def __init__(self, name: object) -> None:
        self.value = np.dtype(name if isinstance(name, str) else "O")
        if self.value.kind not in _KINDS:
            raise _Refused(f"values of type {name!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:  # noqa: ANN401 - as the file has it
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray) or order not in ("C", "F"):
        raise _Refused("an array of objects")
    return np.frombuffer(content, dtype.value).reshape(tuple(map(int, shape)), order=order)


def _bytes(text: str, encoding: str) -> bytes:
    """Bytes, as protocol 2 writes them."""
    if encoding != "latin1":
        raise _Refused(f"{encoding!r}")
    return text.encode("latin1")


_MULTIARRAY: dict[str, Callable[..., Any]] = {
    "_reconstruct": lambda *_: _Array(),
    "scalar": lambda dtype, content: _array(content, dtype, (1,), "C")[0].item(),
}
_NAMES: dict[str, dict[str, Callable[..., Any]]] = {
    "numpy.core.multiarray": _MULTIARRAY,
    "numpy._core.multiarray": _MULTIARRAY,
    "numpy.core.numeric": {"_frombuffer": _array},
    "numpy._core.numeric": {"_frombuffer": _array},
    "numpy": {"dtype": lambda name, *_: _Dtype(name), "ndarray": lambda *_: _Array()},
    "collections": {"OrderedDict": dict},
    "_codecs": {"encode": _bytes},
}
"""Module and name to what stands for it."""


class _Reader(pickle.Unpickler):
    """Finds the names of the list, and no other."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        make = _NAMES.get(module, {}).get(name)
        if make is None:
            raise _Refused(f"{module}.{name}")
        return partial(make)  # a new one each time: what a file does to it, no other file sees

    def persistent_load(self, pid: object) -> None:
        del pid
        raise _Refused("a reference to another file")
