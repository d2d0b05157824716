"""The training what-if notebook runs from top to bottom and its figures show what its text says."""

from __future__ import annotations

from typing import Any

import pytest
from notebooks import figures_of, line


@pytest.fixture(scope="module")
def figures() -> list[dict[str, Any]]:
    """The notebook's figures, in order."""
    return figures_of("what_if_training.ipynb")


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
