"""The training what-if notebook runs from top to bottom and its figures show what its text says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebook extra is not installed")
nbclient = pytest.importorskip("nbclient", reason="the notebook extra is not installed")
pytest.importorskip("plotly", reason="the notebook extra is not installed")

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "notebooks" / "what_if_training.ipynb"
PLOTLY = "application/vnd.plotly.v1+json"


@pytest.fixture(scope="module")
def figures() -> list[dict[str, Any]]:
    """The plotly figures of the executed notebook, in order."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", allow_errors=False).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["data"][PLOTLY] for output in outputs if PLOTLY in output.get("data", {})]


def line(figure: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(trace for trace in figure["data"] if trace["name"] == name)
    return found


def numbers(trace: dict[str, Any], axis: str) -> list[float]:
    """The values of an axis; plotly packs arrays of numbers, lists come as they are."""
    return [float(value) for value in trace[axis]]


@pytest.mark.filterwarnings("ignore")
def test_more_gpus_and_more_memory_train_longer_sequences(figures: list[dict[str, Any]]) -> None:
    longest = figures[0]
    for gpu in ("a100-80gb-sxm", "h100-sxm", "h200"):
        lengths = numbers(line(longest, gpu), "y")
        assert lengths == sorted(lengths)
    h100, h200 = (numbers(line(longest, gpu), "y")[-1] for gpu in ("h100-sxm", "h200"))
    assert h200 > h100


def test_memory_stays_under_its_limit(figures: list[dict[str, Any]]) -> None:
    bars = [trace for trace in figures[1]["data"] if trace["type"] == "bar"]
    limit = numbers(line(figures[1], "limit"), "y")
    total = [sum(numbers(bar, "y")[i] for bar in bars) for i in range(len(limit))]
    assert all(used <= most for used, most in zip(total, limit, strict=True))


def test_long_sequences_cost_more_per_token(figures: list[dict[str, Any]]) -> None:
    cost = numbers(line(figures[2], "USD per million tokens"), "y")
    assert cost[-1] > 3 * cost[0]
    assert all(0 < share < 1 for share in numbers(line(figures[2], "MFU"), "y"))


def test_more_gpus_are_faster(figures: list[dict[str, Any]]) -> None:
    steps = numbers(line(figures[3], "step"), "y")
    assert steps == sorted(steps, reverse=True)
    assert len(figures) == 4
