"""Kept machine code never stops a run and never changes a number."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from virnucpro.kernels import sources_digest

PACKAGE = Path(__file__).parents[2] / "virnucpro"
PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
import kernels_of_a_test
print(kernels_of_a_test.doubled(20.5))
"""
MODULE = """
from virnucpro.kernels import kernel

FACTOR = 2.0

@kernel
def doubled(number):
    return FACTOR * number
"""


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


def kept(place: Path, ending: str) -> list[Path]:
    """Files of machine code (``nbc``) or of what there is (``nbi``)."""
    return list((place / "kept").rglob(f"*.{ending}"))


def test_a_kernel_is_compiled_once_and_says_so_in_one_line(place):
    """The second process finds it and is silent."""
    answer, log = run(place)
    assert answer == "41.0"
    assert log.count("\n") == 0
    assert log.startswith("compiling for this CPU")
    assert str(place / "kept") in log
    assert run(place) == ("41.0", "")


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_damaged_machine_code_is_compiled_again(place, ending):
    """Whatever a full disk, a crash or a network file system left of it; and kept again where that can be."""
    run(place)
    for damage in ("empty", "cut", "flipped", "folder"):
        (path,) = kept(place, ending)
        content = bytearray(path.read_bytes())
        path.unlink()
        if damage == "folder":
            path.mkdir()
        else:
            content[len(content) // 2] ^= 255 if damage == "flipped" else 0
            left = {"empty": b"", "cut": bytes(content[:-40])}
            path.write_bytes(left.get(damage, bytes(content)))
        answer, log = run(place)
        assert answer == "41.0", damage
        assert log.startswith("compiling for this CPU"), damage
        if damage == "flipped":
            assert run(place) == ("41.0", "")


def test_what_cannot_be_kept_is_compiled_all_the_same(place):
    """A file where the folder should be, a disk without room, a user without a home."""
    (place / "kept").write_text("")
    assert run(place)[0] == "41.0"
    answer, log = run(place, NUMBA_CACHE_DIR="/dev/full/kept")
    assert answer == "41.0"
    assert "not kept" in log
    assert run(place, NUMBA_CACHE_DIR="", HOME="", XDG_CACHE_HOME="", VIRNUCPRO_CACHE="")[0] == "41.0"


def test_an_edited_source_gives_new_numbers(place):
    """Also where the change keeps the length and the time of the file, and is in a constant alone."""
    assert run(place)[0] == "41.0"
    path = place / "kernels_of_a_test.py"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text(MODULE.replace("2.0", "4.0"))
    os.utime(path, ns=times)
    assert run(place)[0] == "82.0"


def test_the_digest_covers_what_a_module_imports_of_the_package(tmp_path):
    """Directly or through others, in each way to write it; what nothing imports does not count."""
    package = tmp_path / "virnucpro"
    sources = {
        "kernel.py": "from virnucpro.tables import (\n    A,\n    B,\n)\n",
        "tables.py": "import virnucpro.deep\n",
        "deep.py": "def f():\n    from virnucpro import late\n",
        "late.py": "C = 1\n",
        "room/__init__.py": "",
        "other.py": "D = 1\n",
    }
    sources["late.py"] += "from virnucpro.room import inner, other_name\n"
    sources["room/inner.py"] = "E = 1\n"
    for name, text in sources.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)

    def digest():
        sources_digest.cache_clear()
        return sources_digest(package / "kernel.py", package)

    before = digest()
    assert digest() == before
    for name, text in sources.items():
        (package / name).write_text(text + "# edited\n")
        assert (digest() == before) == (name == "other.py"), name
        (package / name).write_text(text)
    assert digest() == before


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
