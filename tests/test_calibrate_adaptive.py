"""The sampler: what is least known is measured next, within the time left."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.calibrate.adaptive import LAUNCH_S, PRIOR_SPREAD, Ceilings, Sampler
from roofplan.kernels.point import Point


def point(kernel: str, m: int, n: int = 1024, channel: str = "hbm", **texts: str) -> Point:
    return Point(
        kernel=kernel, family="f", framework="x", dtype="bfloat16", shape={"m": m, "n": n, **texts}, flops=2.0 * m * n * 1024,
        moved_bytes=2.0 * (m + n) * 1024, channel=channel,
    )  # fmt: skip


GRID = [point("a", 2**i, 2**j) for i in range(14) for j in range(4, 14)]


def test_the_floor_is_the_slower_of_arithmetic_and_traffic() -> None:
    ceilings = Ceilings(flops_per_s=1e12, hbm_bytes_per_s=1e9, host_bytes_per_s=1e6)
    p = point("a", 512)
    assert ceilings.floor_s(p) == pytest.approx(max(p.flops / 1e12, p.moved_bytes / 1e9) + LAUNCH_S)
    assert ceilings.floor_s(point("a", 512, channel="host")) == pytest.approx(p.moved_bytes / 1e6 + LAUNCH_S)


def test_every_kernel_gets_its_first_point_before_any_gets_its_second() -> None:
    sampler = Sampler([point(k, 2**i) for k in "abcd" for i in range(8)], Ceilings())
    order = []
    for _ in range(4):
        chosen = sampler.choose(1e9)
        assert chosen is not None
        order.append(chosen.group)
        sampler.tell(chosen.key, 2 * Ceilings().floor_s(chosen), 0.3)
    assert sorted(order) == [f"{k}/bfloat16" for k in "abcd"]


def test_text_columns_make_groups_of_their_own() -> None:
    sampler = Sampler([point("moe", 64, routing=r) for r in ("balanced", "skewed")], Ceilings())
    first = sampler.choose(1e9)
    assert first is not None
    sampler.tell(first.key, 1e-4, 0.3)
    second = sampler.choose(1e9)
    assert second is not None
    assert second.group != first.group


def test_a_measured_point_is_known_and_its_neighbours_nearly() -> None:
    sampler = Sampler(GRID, Ceilings())
    centre, near, far = point("a", 64, 512), point("a", 128, 512), point("a", 8192, 8192)
    assert sampler.spread(centre.key) == PRIOR_SPREAD
    sampler.tell(centre.key, 1e-4, 0.3)
    assert sampler.spread(centre.key) < 0.05 < sampler.spread(near.key) < sampler.spread(far.key) <= PRIOR_SPREAD


def test_rough_kernels_get_more_points_than_smooth_ones() -> None:
    points = [point(k, 2**i, 2**j) for k in ("rough", "smooth") for i in range(14) for j in range(4, 14)]
    sampler, counts = Sampler(points, Ceilings()), {"rough": 0, "smooth": 0}
    for _ in range(60):
        chosen = sampler.choose(1e9)
        assert isinstance(chosen, Point)
        counts[chosen.kernel] += 1
        factor = 1.5 if chosen.kernel == "smooth" else (1.2, 6.0)[int(chosen.shape["m"]).bit_length() % 2]
        sampler.tell(chosen.key, factor * Ceilings().floor_s(chosen), 0.3)
    assert counts["rough"] > 1.5 * counts["smooth"] > 0


def test_points_chosen_by_spread_leave_less_unknown_than_points_in_order() -> None:
    """Worst spread left after 25 points: adaptive placement against the first 25 of the list."""
    adaptive, listed = Sampler(GRID, Ceilings()), Sampler(GRID, Ceilings())
    for i in range(25):
        chosen = adaptive.choose(1e9)
        assert chosen is not None
        adaptive.tell(chosen.key, 2 * Ceilings().floor_s(chosen), 0.3)
        listed.tell(GRID[i].key, 2 * Ceilings().floor_s(GRID[i]), 0.3)
    assert max(adaptive.spread(p.key) for p in GRID) < 0.5 * max(listed.spread(p.key) for p in GRID)


def test_what_does_not_fit_the_time_left_is_not_chosen() -> None:
    slow, fast = point("a", 2**20, 2**20), point("a", 16, 16)
    sampler = Sampler([slow, fast], Ceilings())
    assert sampler.cost_s(slow.key) > 100 > 10 > sampler.cost_s(fast.key)
    chosen = sampler.choose(10)
    assert chosen is not None
    assert chosen.key == fast.key
    assert sampler.choose(1e-3) is None


def test_failed_points_are_dropped_and_unknown_keys_ignored() -> None:
    sampler = Sampler([point("a", 16)], Ceilings())
    sampler.drop("nothing of ours")
    sampler.tell("nothing of ours", 1.0, 1.0)
    sampler.drop(point("a", 16).key)
    assert sampler.choose(1e9) is None


def test_it_learns_how_long_points_take() -> None:
    sampler = Sampler(GRID, Ceilings())
    for p in GRID[:40]:
        sampler.tell(p.key, 1e-5, 1.5)
    assert sampler.cost_s(GRID[50].key) == pytest.approx(1.5, rel=0.1)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, len(GRID) - 1), st.floats(0.3, 30)), min_size=1, max_size=25), st.floats(0.01, 100))
def test_spreads_are_finite_never_grow_where_measured_and_choices_are_new(told: list[tuple[int, float]], left_s: float) -> None:
    sampler = Sampler(GRID, Ceilings())
    for i, factor in told:
        sampler.tell(GRID[i].key, factor * Ceilings().floor_s(GRID[i]), 0.3)
    spreads = [sampler.spread(p.key) for p in GRID]
    assert all(math.isfinite(s) and s >= 0 for s in spreads)
    chosen = sampler.choose(left_s)
    if chosen is not None:
        assert chosen.key not in {GRID[i].key for i, _ in told}
        assert sampler.cost_s(chosen.key) <= left_s
        assert sampler.choose(left_s) is chosen
