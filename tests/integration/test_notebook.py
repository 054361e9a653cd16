"""The notebook of examples/ runs top to bottom with what it asks for, and shows what its text says."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_the_notebook_runs_and_shows_tables_and_plots(monkeypatch):
    """A table, calls beside the truth, two plots; the same kinds of output as in the file, so that none is stale."""
    root = str(EXAMPLES.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    stored = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    ran = NotebookClient(
        nbformat.from_dict(stored), timeout=600, kernel_name="python3", resources={"metadata": {"path": str(EXAMPLES)}}
    ).execute()  # a cell that fails raises
    kinds = kinds_of(ran)
    assert sum("image/png" in some for some in kinds) == 2
    assert sum("text/html" in some for some in kinds) >= 3
    assert kinds == kinds_of(stored)


def kinds_of(notebook):
    """Kinds of each output of all cells, in order; of a message or an error there is none."""
    return [sorted(output.get("data", ())) for cell in notebook.cells for output in cell.get("outputs", ())]
