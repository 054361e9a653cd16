"""Pickles of others: their arrays are read, and whatever would run code is refused by name, unrun."""

from __future__ import annotations

import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.clusters.pickled import read_pickle
from virnucpro.errors import InputError


def checkpoint(dtype="float32", order="C"):
    values = np.asarray(np.arange(12).reshape(3, 4), dtype, order=order)
    return {
        "embeddings": values,
        "start_index": 3,
        "end_index": np.int64(6),
        "model": "esm2",
        "more": [1.5, None, True],
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("dtype", "order"), [("float32", "C"), (">f8", "F"), ("float16", "C"), ("int64", "F")])
def test_dicts_of_arrays_are_read(tmp_path, protocol, dtype, order):
    """Of every protocol but the first two, which write arrays as text."""
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(checkpoint(dtype, order), protocol))
    content, expected = read_pickle(path), checkpoint(dtype, order)
    np.testing.assert_array_equal(content.pop("embeddings"), expected.pop("embeddings"))
    assert content == expected


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return self.how


def traps(path: Path):
    """Ways to have code run, or to change what is called later."""
    touch = f"open({str(path)!r}, 'w')"
    return {
        "eval": Runs((eval, (touch,))),
        "exec": Runs((exec, (touch,))),
        "system": Runs((__import__("os").system, (f"touch {path}",))),
        "popen": Runs((subprocess.Popen, (["touch", str(path)],))),
        "getattr": Runs((getattr, ("", "format"))),
        "object array": np.array([Runs((eval, (touch,)))], dtype=object),
        "numpy's own loader": Runs((np.load, (str(path),))),
        "a class of ours": Path("x"),
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", traps(Path()))
def test_code_is_refused_unrun(tmp_path, name, protocol):
    """By the name of what it asks for."""
    trap, path = tmp_path / "ran", tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"embeddings": traps(trap)[name]}, protocol))
    with pytest.raises(InputError, match="would be code to run") as caught:
        read_pickle(path)
    assert str(path) in str(caught.value)
    assert not trap.exists()


CHANGES = {
    "a state for a name": b"cnumpy\ndtype\n}X\x05\x00\x00\x00_makeK\x01sb.",
    "a slot of a name": b"cnumpy\ndtype\nN}X\x05\x00\x00\x00_makeK\x01s\x86b.",
    "a class of a name": b"cnumpy\ndtype\nN}X\x09\x00\x00\x00__class__K\x01s\x86b.",
    "a reference elsewhere": b"X\x01\x00\x00\x00aQ.",
    "an extension": b"\x82\x01.",
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_names_stand_for_cannot_be_changed(tmp_path, name):
    """Nor by the next file that is read."""
    path = tmp_path / "a.pkl"
    path.write_bytes(CHANGES[name])
    with pytest.raises(InputError):
        read_pickle(path)
    path.write_bytes(pickle.dumps(checkpoint()))
    assert read_pickle(path)["embeddings"].dtype == np.float32


@given(st.data())
def test_damage_is_an_error_that_names_the_file(tmp_path_factory, data):
    """Or another value: never another error."""
    content = bytearray(pickle.dumps(checkpoint(), data.draw(st.integers(2, pickle.HIGHEST_PROTOCOL))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read_pickle(path)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017 - it need not be raised
