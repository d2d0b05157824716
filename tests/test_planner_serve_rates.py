"""The grid of rates and the search on it, against trying every level."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.planner.serve_rates import RATE_STEP, highest, level, level_from, rate

LEVELS = st.integers(-400, 400)


@given(LEVELS, st.floats(0.01, 0.99))
def test_levels_are_a_grid_of_powers(at, between):
    """A rate on the grid is its own level; one between two levels rounds down or up."""
    assert level(rate(at)) == level_from(rate(at)) == at
    assert (level(rate(at) * RATE_STEP**between), level_from(rate(at) * RATE_STEP**between)) == (at, at + 1)


@given(st.integers(2, 300), st.integers(0, 300), st.integers(0, 300), st.integers(1, 8))
def test_the_highest_level_is_found_from_any_start_in_few_runs(width, edge, start, jump):
    """Of levels 0 to ``width − 1`` those under ``edge`` are carried: doubling and bisection find it, and its neighbour failed."""
    edge, start = min(edge, width), min(start, width - 1)
    runs: dict[int, bool] = {}

    def failed(at: int) -> bool:
        assert at not in runs
        runs[at] = at >= edge
        return runs[at]

    found = highest(failed, start, -1, width, jump)
    assert found == edge - 1
    assert all(0 <= at < width for at in runs)
    assert found < 0 or runs[found] is False
    assert found + 1 == width or runs[found + 1] is True
    assert len(runs) <= 2 * math.log2(width) + 3


@pytest.mark.parametrize(("carried", "found"), [(5, 5), (4, 4), (9, 9)])
def test_a_search_upwards_gives_up_at_once(carried, found):
    """With the start right above the lowest, a failure there ends it."""
    runs: list[int] = []

    def failed(at: int) -> bool:
        runs.append(at)
        return at > carried

    assert highest(failed, 5, 4, 20, 4) == found
    assert (len(runs) == 1) == (carried < 5)
