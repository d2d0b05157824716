"""Links shared by max-min fairness: against the definition, against a re-computation at every event, and in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.scenarios.errors import BadInput
from roofplan.sim.links import FairLinks

CAPACITY = [2.0, 3.0, 5.0, 7.0]
PATHS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1.0, 0.5])), min_size=1, max_size=3, unique_by=lambda p: p[0])


def links(capacity: list[float] = CAPACITY) -> FairLinks:
    return FairLinks([f"l{i}" for i in range(len(capacity))], capacity)


def water_filled(flows: dict[int, tuple[tuple[tuple[int, float], ...], float]], capacity: list[float]) -> dict[int, float]:
    """Max-min rates by raising all that can rise in steps found by bisection: slow, and nothing like the code under test."""
    rates, frozen = dict.fromkeys(flows, 0.0), set()

    def fits(trial):
        used = [0.0] * len(capacity)
        for f, (path, ceiling) in flows.items():
            if trial[f] > ceiling * (1 + 1e-12):
                return False
            for link, share in path:
                used[link] += trial[f] * share
        return all(u <= c * (1 + 1e-12) for u, c in zip(used, capacity, strict=True))

    while len(frozen) < len(flows):
        low, high = 0.0, 100.0
        for _ in range(80):
            mid = (low + high) / 2
            low, high = (mid, high) if fits({f: r + (mid if f not in frozen else 0) for f, r in rates.items()}) else (low, mid)
        rates = {f: r + (low if f not in frozen else 0) for f, r in rates.items()}
        for f in flows:
            if f not in frozen and not fits({g: r + (1e-6 if g == f else 0) for g, r in rates.items()}):
                frozen.add(f)
    return rates


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(PATHS, st.sampled_from([float("inf"), 0.7, 1.3])), min_size=1, max_size=7))
def test_rates_are_max_min_fair(flows):
    shared = links()
    for i, (path, ceiling) in enumerate(flows):
        shared.start(i, 10.0, tuple(path), 0.0, ceiling)
    expected = water_filled({i: (tuple(path), ceiling) for i, (path, ceiling) in enumerate(flows)}, CAPACITY)
    assert {i: shared.rate(i) for i in expected} == pytest.approx(expected, rel=1e-5)


def played(flows, capacity):
    """Ends of transfers (start, bytes, path) through the code under test."""
    shared, ends, todo = links(capacity), {}, sorted(range(len(flows)), key=lambda i: flows[i][0])
    while len(ends) < len(flows):
        at, transfer = shared.next_end()
        if todo and flows[todo[0]][0] <= at:
            i = todo.pop(0)
            shared.start(i, flows[i][1], tuple(flows[i][2]), flows[i][0])
        else:
            shared.end(transfer, at)
            ends[transfer] = at
    assert shared.next_end() == (float("inf"), -1)
    return ends, shared


def brute_force(flows, capacity):
    """The same by computing every rate anew at every start and end."""
    ends, left, now = {}, {i: f[1] for i, f in enumerate(flows)}, 0.0
    while len(ends) < len(flows):
        live = {i: (tuple(f[2]), float("inf")) for i, f in enumerate(flows) if f[0] <= now + 1e-12 and i not in ends}
        rates = water_filled(live, capacity) if live else {}
        coming = min((f[0] for f in flows if f[0] > now + 1e-12), default=np.inf)
        step = min([coming, *(now + left[i] / rates[i] for i in live)])
        for i in live:
            left[i] -= (step - now) * rates[i]
            if left[i] <= 1e-6 * flows[i][1]:
                ends[i] = step
        now = step
    return ends


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 10).map(float), st.integers(1, 30).map(float), PATHS), min_size=1, max_size=6))
def test_ends_equal_brute_force_and_bytes_are_kept(flows):
    ends, shared = played(flows, CAPACITY)
    assert ends == pytest.approx(brute_force(flows, CAPACITY), rel=1e-4)
    for link in range(len(CAPACITY)):
        assert shared.carried[link] == pytest.approx(sum(f[1] * share for f in flows for on, share in f[2] if on == link))


def test_two_of_one_sender_halve_and_the_third_takes_what_they_leave():
    """Links A=10, B=8: two transfers cross A and B, one B alone. Max-min: all three get 8/3; when the lone one ends the two get 4."""
    shared = links([10.0, 8.0])
    for i, path in enumerate((((0, 1.0), (1, 1.0)), ((0, 1.0), (1, 1.0)), ((1, 1.0),))):
        shared.start(i, 16.0, path, 0.0)
    assert [shared.rate(i) for i in range(3)] == pytest.approx([8 / 3] * 3)
    assert shared.next_end() == (pytest.approx(6.0), 0)
    shared.end(0, 6.0)
    assert [shared.rate(i) for i in (1, 2)] == pytest.approx([4.0, 4.0])


def test_a_bottleneck_elsewhere_leaves_more_to_the_others():
    """Classic three-link line: the long transfer is held at 1 by the thin link, so the short one on the wide link gets 9."""
    shared = links([10.0, 1.0])
    shared.start(0, 1.0, ((0, 1.0), (1, 1.0)), 0.0)
    shared.start(1, 1.0, ((0, 1.0),), 0.0)
    assert [shared.rate(0), shared.rate(1)] == pytest.approx([1.0, 9.0])


def test_processor_sharing_of_one_link():
    """n equal transfers at once on one link all end at n times one's time."""
    ends, _ = played([(0.0, 6.0, [(0, 1.0)])] * 5, [2.0])
    assert list(ends.values()) == pytest.approx([15.0] * 5)


def test_a_link_without_bandwidth_is_refused():
    with pytest.raises(BadInput, match=r"link l0 of 0\.0 bytes/s: the rate must be more than 0"):
        links([0.0])
