"""Runs the notebooks of docs/notebooks for their tests and finds their figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebook extra is not installed")
nbclient = pytest.importorskip("nbclient", reason="the notebook extra is not installed")
pytest.importorskip("plotly", reason="the notebook extra is not installed")

NOTEBOOKS = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
PLOTLY = "application/vnd.plotly.v1+json"


def figures_of(name: str) -> list[dict[str, Any]]:
    """The plotly figures of the executed notebook, in order; AssertionError if it was committed with outputs."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", allow_errors=False).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["data"][PLOTLY] for output in outputs if PLOTLY in output.get("data", {})]


def line(figure: dict[str, Any], name: str) -> dict[str, Any]:
    """The trace of this name."""
    found: dict[str, Any] = next(trace for trace in figure["data"] if trace["name"] == name)
    return found
