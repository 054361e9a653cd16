"""A machine for computing has torch and little else: packages that only some inputs need are imported for these."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"isal", "zstandard", "pysam", "Bio", "esm"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import importlib.util
importlib.util.find_spec = lambda name, find=importlib.util.find_spec: None if name == "zstandard" else find(name)
import virnucpro.run.predict, virnucpro.encoders.esm2, virnucpro.encoders.dnabert_s, virnucpro.stages.embed
import benchmarks.gpu.check
"""


def test_what_computes_imports_without_packages_for_some_inputs():
    """isal, zstandard, pysam, biopython and fair-esm may all be missing, for the checks of a card too."""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    ended = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr[-1500:]
