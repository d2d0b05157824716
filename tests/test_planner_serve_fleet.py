"""The integer program over replicas, against brute force."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.planner.serve_fleet import Fleet, Part, fewest_gpus, fleet_of, most_carried


def brute(parts: list[Part], n_gpus: int) -> list[Fleet]:
    ranges = [range(n_gpus // p.n_gpus + 1) for p in parts]
    return [f for counts in itertools.product(*ranges) if (f := fleet_of(parts, counts)).n_gpus <= n_gpus]


def parts() -> st.SearchStrategy[list[Part]]:
    value = st.floats(0.01, 100, allow_nan=False)
    return st.lists(st.builds(Part, value_per_s=value, n_gpus=st.sampled_from([1, 2, 3, 4, 8])), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(parts(), st.integers(1, 10))
def test_the_most_carried_is_that_of_brute_force(found, n_gpus):
    best = max(f.value_per_s for f in brute(found, n_gpus))
    fleet = most_carried(found, n_gpus)
    assert fleet.value_per_s == pytest.approx(best, rel=1e-5)
    assert fleet.n_gpus <= n_gpus
    assert fleet.gap_frac == 0
    assert most_carried(found, n_gpus + 1).value_per_s >= fleet.value_per_s * (1 - 1e-9)  # more GPUs never carry less


@settings(max_examples=40, deadline=None, derandomize=True)
@given(parts(), st.integers(1, 10), st.floats(0.05, 200, allow_nan=False))
def test_the_fewest_gpus_are_those_of_brute_force(found, n_gpus, rate):
    enough = [f.n_gpus for f in brute(found, n_gpus) if f.value_per_s >= rate]
    fleet = fewest_gpus(found, rate, n_gpus)
    if not enough:
        assert fleet is None or fleet.value_per_s >= rate * (1 - 1e-6)
    else:
        assert fleet is not None
        assert fleet.n_gpus == min(enough)


def test_of_equal_fleets_the_one_on_fewer_gpus():
    assert most_carried([Part(value_per_s=5.0, n_gpus=4), Part(value_per_s=5.0, n_gpus=3)], 4).counts == (0, 1)


def test_nothing_to_choose_from():
    assert most_carried([Part(value_per_s=1.0, n_gpus=8)], 4) == Fleet(counts=(0,), value_per_s=0.0, n_gpus=0)
    assert most_carried([Part(value_per_s=0.0, n_gpus=1)], 4).counts == (0,)
    assert fewest_gpus([Part(value_per_s=1.0, n_gpus=8)], 1.0, 4) is None
