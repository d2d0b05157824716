"""The serving what-if notebook runs from top to bottom and its figures show what its text says."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from notebooks import figures_of, line

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def figures() -> list[dict[str, Any]]:
    """The notebook's figures, in order."""
    return figures_of("what_if_serving.ipynb")


def test_latency_explodes_past_saturation(figures: list[dict[str, Any]]) -> None:
    ttft = line(figures[0], "TTFT p99")
    values, symbols = ttft["y"], ttft["marker"]["symbol"]
    assert symbols[0] == "circle"
    assert symbols[-1] == "circle-open"
    assert values[-1] > 10 * values[0]
    for stat in ("p50", "p99"):
        assert line(figures[0], f"TPOT {stat}")["y"][0] < line(figures[0], f"TPOT {stat}")["y"][-1]


def test_split_pools_keep_tokens_on_time(figures: list[dict[str, Any]]) -> None:
    shares = [trace["y"] for trace in figures[1]["data"]]
    assert len(shares) == 3
    assert all(0 <= share <= 1 for row in shares for share in row)
    assert all(row[0] > 0.9 for row in shares)
    assert any(row[-1] < 0.5 for row in shares)


def test_a_tighter_promise_costs_more(figures: list[dict[str, Any]]) -> None:
    cost = line(figures[2], "USD per million tokens")["y"]
    assert len(cost) >= 3
    assert cost[0] > 1.3 * cost[-1]
    assert all(later <= 1.05 * earlier for earlier, later in pairwise(cost))
    assert len(figures) == 3
