"""Files of embeddings that other programs wrote: a range of items each, HDF5, ``.npz``, ``torch.save`` or pickle.

Whatever the form, a file holds ``embeddings`` (n, D), ``start_index`` and, where it was kept, ``end_index`` (half-open)
and ``model``. In HDF5 the last three are attributes or datasets, elsewhere entries of the dict or archive. The form is
told from the content, not from the name.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from virnucpro.clusters.pickled import UnpicklingError, read_pickle
from virnucpro.errors import InputError

SUFFIXES = (".h5", ".hdf5", ".npz", ".pt", ".pth", ".pkl", ".pickle")
_EMBEDDINGS = "embeddings"
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""What the older form of ``torch.save`` begins with, a pickle of this number."""
_FACTS = ("start_index", "end_index", "model")


@dataclass(frozen=True)
class Checkpoint:
    """One file of embeddings, without its numbers."""

    path: Path
    start: int  # index of its first item
    end: int | None  # index after its last one, as the file says; None where it does not
    num_rows: int  # items that it holds
    width: int  # numbers an item
    dtype: np.dtype[Any]  # of the numbers; bfloat16 counts as float32
    model: str  # what made them; empty where the file does not say

    def blocks(self, num_rows: int, stop: int) -> Iterator[NDArray[Any]]:
        """Its first ``stop`` rows, at most ``num_rows`` at a time.

        Raises:
            InputError: it is damaged, or is not what it was.
        """
        with _named(self.path):
            if h5py.is_hdf5(self.path):
                with h5py.File(self.path, "r") as file:
                    dataset = file[_EMBEDDINGS]
                    for first in range(0, stop, num_rows):
                        yield dataset[first : min(first + num_rows, stop)]
                return
        array = _array_of(self.path, _content(self.path))
        for first in range(0, stop, num_rows):
            yield array[first : min(first + num_rows, stop)]


def look_at(path: Path) -> Checkpoint:
    """What a file of embeddings holds.

    Raises:
        InputError: it is none, or damaged.
    """
    with _named(path):
        if not h5py.is_hdf5(path):
            content = _content(path)
            array = _array_of(path, content)
            return _checkpoint(path, array.shape, array.dtype, {name: content.get(name) for name in _FACTS})
        with h5py.File(path, "r") as file:
            dataset = file.get(_EMBEDDINGS)
            if not isinstance(dataset, h5py.Dataset):
                raise InputError(str(path), f"has no dataset {_EMBEDDINGS!r}: it is not a checkpoint of embeddings")
            facts: dict[str, Any] = {}
            for name in _FACTS:
                places = (file.attrs.get(name), dataset.attrs.get(name), file.get(name))
                facts[name] = next((place for place in places if place is not None), None)
                if isinstance(facts[name], h5py.Dataset):
                    facts[name] = facts[name][()]
            return _checkpoint(path, dataset.shape, dataset.dtype, facts)


def _checkpoint(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], facts: Mapping[str, Any]) -> Checkpoint:
    if len(shape) != 2 or dtype.kind != "f":
        raise InputError(str(path), f"its embeddings are {dtype} of shape {shape}, not rows of floating-point numbers")
    start, end = _integer(path, "start_index", facts), _integer(path, "end_index", facts)
    if start is None:
        raise InputError(str(path), "has no start_index: its place among the others is unknown")
    if start < 0 or (end is not None and end < start):
        raise InputError(str(path), f"its range is {start} to {end}")
    return Checkpoint(path, start, end, shape[0], shape[1], dtype, _text(facts["model"]))


def _integer(path: Path, name: str, facts: Mapping[str, Any]) -> int | None:
    value = facts[name]
    if value is None:
        return None
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iu":
        raise InputError(str(path), f"its {name} is not an integer")
    return int(array.reshape(-1)[0])


def _text(value: Any) -> str:  # noqa: ANN401 - as the file has it
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _content(path: Path) -> Mapping[str, Any]:
    """The entries of a file that is not HDF5."""
    with path.open("rb") as stream:
        is_zip = stream.read(2) == b"PK"
    if not is_zip:
        content = read_pickle(path)
        if content == _TORCH_MAGIC:
            content = _torch_content(path)
    elif any(name.endswith(".npy") for name in zipfile.ZipFile(path).namelist()):
        with np.load(path) as archive:  # objects in it are refused: they would be pickles
            content = {name: archive[name] for name in (_EMBEDDINGS, *_FACTS) if name in archive}
    else:
        content = _torch_content(path)
    if not isinstance(content, Mapping):
        raise InputError(str(path), f"holds a {type(content).__name__}, not a dict with {_EMBEDDINGS}")
    return content


def _torch_content(path: Path) -> Any:  # noqa: ANN401 - as the file has it
    """What ``torch.save`` wrote, by the reader that builds tensors and plain values alone."""
    import torch  # noqa: PLC0415 - takes seconds, and other forms do without

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(str(path), f"holds more than tensors and plain values, or is damaged ({reason})") from error


def _array_of(path: Path, content: Mapping[str, Any]) -> NDArray[Any]:
    value = content.get(_EMBEDDINGS)
    if value is None:
        raise InputError(str(path), f"has no {_EMBEDDINGS!r}: it is not a checkpoint of embeddings")
    if hasattr(value, "detach"):  # a tensor
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).detach().numpy()
    if isinstance(value, list):
        value = np.asarray(value, dtype=np.float32)
    if not isinstance(value, np.ndarray):
        raise InputError(str(path), f"its {_EMBEDDINGS} are a {type(value).__name__}, not an array")
    return value


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what readers raise about a damaged file into an error that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise InputError(str(path), f"cannot be read ({error})") from error
