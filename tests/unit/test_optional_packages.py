"""A machine for computing has torch and little else: packages that only some inputs need are imported for these."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from importlib import metadata, util

HIDDEN = {"isal", "zstandard", "pysam", "Bio", "esm", "biopython", "fair-esm"}


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(name)


def version(name, known=metadata.version):
    if name in HIDDEN:
        raise metadata.PackageNotFoundError(name)
    return known(name)


sys.meta_path.insert(0, Missing())
util.find_spec = lambda name, package=None, find=util.find_spec: None if name in HIDDEN else find(name, package)
metadata.version = version
"""
COMPUTES = """
import virnucpro.run.predict, virnucpro.encoders.esm2, virnucpro.encoders.dnabert_s, virnucpro.stages.embed
from virnucpro.run.record import _versions
import benchmarks.gpu.check
from benchmarks.__main__ import benchmark

assert "pysam" not in _versions()
benchmark(["--only", "gpu", "-o", sys.argv[1]])
"""
COLLECTS = """
from pathlib import Path
import pytest

tests = Path("tests/unit")
files = [str(tests / name) for name in sys.argv[1:]]
code = pytest.main(["-q", "--collect-only", "-m", "gpu", "-p", "no:cacheprovider", *files])
import conftest
assert conftest.pytest_ignore_collect(tests / "test_formats.py")
assert not conftest.pytest_ignore_collect(tests / "test_runner.py")
sys.exit(code)
"""


def without_packages(code, *arguments):
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    command = [sys.executable, "-c", CODE + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tests.parent)


def test_what_computes_needs_no_packages_for_some_inputs(tmp_path):
    """isal, zstandard, pysam, biopython and fair-esm may all be missing, for the benchmark and checks of a card too."""
    ended = without_packages(COMPUTES, tmp_path / "gpu.json")
    assert ended.returncode == 0, ended.stderr[-1500:]
    assert (tmp_path / "gpu.json").exists()


def test_tests_that_need_other_packages_are_left_out():
    """The rest is collected, those of a card among them."""
    ended = without_packages(COLLECTS, "test_runner.py", "test_compiled.py", "test_esm2.py")
    assert ended.returncode == 0, ended.stdout[-1500:] + ended.stderr[-1500:]
    assert "test_a_gpu_gives_the_embeddings_of_the_cpu" in ended.stdout
    assert "test_esm2" not in ended.stdout
