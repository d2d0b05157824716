"""How far a stretch of decode steps goes, against counting step by step."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.sim.step_count import steps_that_fit


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=16).filter(any), st.integers(0, 200), st.integers(0, 15))
def test_steps_that_fit_is_the_largest_count_whose_blocks_are_free(grow, free, at):
    at %= len(grow)
    steps, taken = steps_that_fit(free, grow, at)
    assert taken == sum(grow[(at + i) % len(grow)] for i in range(steps)) <= free
    assert taken + grow[(at + steps) % len(grow)] > free
