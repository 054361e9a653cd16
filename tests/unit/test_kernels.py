"""Kept machine code never stops a run and never changes a number."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from virnucpro.kernels import kernel

PACKAGE = Path(__file__).parents[2] / "virnucpro"
PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
import kernels_of_a_test
print(kernels_of_a_test.doubled(20), "numba" in sys.modules)
"""
MODULE = """
import numpy as np
from virnucpro.kernels import kernel

FACTOR = 2
NUMBERS = np.array([1, 1])

def times(number):
    return FACTOR * number * NUMBERS[1]

@kernel
def doubled(number: int) -> int:
    return times(number) + 1
"""
COMPILED, LOADED = "41 True", "41 False"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a module that has a kernel, and room for its machine code."""
    (tmp_path / "kernels_of_a_test.py").write_text(MODULE)
    return tmp_path


def run(place: Path, **environment: str) -> tuple[str, str]:
    """What the kernel gives in a process of its own, and what was logged."""
    path = os.pathsep.join([str(place), str(PACKAGE.parent)])
    # Python keeps byte code by length and time of a source, which a test gives to another source too.
    own = {"PYTHONPATH": path, "NUMBA_CACHE_DIR": str(place / "kept"), "PYTHONDONTWRITEBYTECODE": "1"}
    wanted = {**os.environ, **own, **environment}
    wanted = {name: value for name, value in wanted.items() if value}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=wanted, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr.strip()


def kept(place: Path) -> list[Path]:
    """Files of machine code."""
    return list((place / "kept" / "virnucpro").iterdir())


def test_a_kernel_is_compiled_once_and_says_so_in_one_line(place):
    """The second process finds it, is silent and does without numba."""
    answer, log = run(place)
    assert answer == COMPILED
    assert log.count("\n") == 0
    assert log.startswith("compiling for this CPU")
    assert str(place / "kept") in log
    assert run(place) == (LOADED, "")


def test_damaged_machine_code_is_compiled_again(place):
    """Whatever a full disk, a crash or a network file system left of it; and kept again where that can be."""
    run(place)
    for damage in ("empty", "cut", "flipped", "folder"):
        (path,) = kept(place)
        content = bytearray(path.read_bytes())
        path.unlink()
        if damage == "folder":
            path.mkdir()
        else:
            content[len(content) // 2] ^= 255 if damage == "flipped" else 0
            left = {"empty": b"", "cut": bytes(content[:-40])}
            path.write_bytes(left.get(damage, bytes(content)))
        answer, log = run(place)
        assert answer == COMPILED, damage
        assert log.startswith("compiling for this CPU"), damage
    assert run(place) == (LOADED, "")


def test_what_cannot_be_kept_is_compiled_all_the_same(place):
    """A file where the folder should be, a disk without room, a user without a home."""
    (place / "kept").write_text("")
    assert run(place)[0] == COMPILED
    answer, log = run(place, NUMBA_CACHE_DIR="/dev/full/kept")
    assert answer == COMPILED
    assert "not kept" in log
    assert run(place, NUMBA_CACHE_DIR="", HOME="", XDG_CACHE_HOME="", VIRNUCPRO_CACHE="")[0].startswith("41")


@pytest.mark.parametrize("edit", [("FACTOR = 2", "FACTOR = 4"), ("[1, 1]", "[1, 2]"), ("* number *", "* 2 * number *")])
def test_an_edited_source_gives_new_numbers(place, edit):
    """Also where the change keeps the time of the file, and is in a constant or in a function that the kernel calls."""
    assert run(place)[0] == COMPILED
    path = place / "kernels_of_a_test.py"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text(MODULE.replace(*edit))
    os.utime(path, ns=times)
    assert run(place)[0] == "81 True"
    path.write_text(MODULE)
    assert run(place) == (LOADED, ""), "both are kept"


@kernel
def total(count: int, numbers: NDArray[np.int32], factor: float, totals: NDArray[np.float64]) -> None:
    """Add numbers up."""
    for i in range(count):
        totals[0] += factor * numbers[i]


def test_an_array_of_another_kind_is_refused():
    """Machine code would read something else; a read-only array and an empty one are as good as others."""
    totals = np.zeros((1, 1))
    numbers = np.arange(6, dtype=np.int32)
    numbers.flags.writeable = False
    total(6, numbers, 0.5, totals)
    total(0, numbers[:0], 0.5, totals)
    assert totals.tolist() == [[7.5]]
    for wrong in (
        numbers.astype(np.int64),
        numbers.astype(np.uint32),
        np.arange(12, dtype=np.int32)[::2],
        numbers[::2],
    ):
        with pytest.raises(TypeError):
            total(3, wrong, 0.5, totals)
    with pytest.raises(ValueError, match="argument"):
        total(3, numbers, 0.5)


def test_kernels_are_declared_in_one_way():
    """Nothing else compiles with numba."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == PACKAGE / "kernels.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path}:{node.lineno}" for name in names if name.split(".")[0] == "numba"]
    assert found == []
